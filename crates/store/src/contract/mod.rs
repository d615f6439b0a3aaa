//! What every store promises, one module per kind of store. These pages are the conformance suite in prose.

pub mod blobs;
pub mod search;
pub mod tables;
pub mod triples;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use sluice_schema::message::TextOrList;

pub use blobs::{BlobInfo, BlobWriter, Blobs};
pub use search::{KeywordEntry, Keywords, Match, VectorEntry, Vectors};
pub use tables::{Batch, Expect, Expected, Found, KeyRange, Op, Read, Rows, Tables};
pub use triples::{Cursor, Page, Pattern, Triples};

/// Small labels that rest beside a vector or a text.
pub type Attributes = BTreeMap<String, TextOrList>;

/// The collection of a workspace that an operation works in. No operation reaches beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope<'a> {
    /// The workspace.
    pub workspace: &'a str,
    /// The collection.
    pub collection: &'a str,
}

impl<'a> Scope<'a> {
    /// A collection of a workspace.
    #[must_use]
    pub const fn new(workspace: &'a str, collection: &'a str) -> Self {
        Self { workspace, collection }
    }
}

/// Everything durable that a service is handed.
#[derive(Clone)]
pub struct Stores {
    /// Ordered tables with atomic batches.
    pub tables: Arc<dyn Tables>,
    /// Content by id.
    pub blobs: Arc<dyn Blobs>,
    /// Nearest vectors.
    pub vectors: Arc<dyn Vectors>,
    /// Texts by their words.
    pub keywords: Arc<dyn Keywords>,
    /// Statements by pattern.
    pub triples: Arc<dyn Triples>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stores")
    }
}
