//! Data stays: the contracts that every store keeps, and the embedded engine that keeps them in one folder.
//!
//! It owns what is durable: tables, blobs, vectors, keywords, triples. It refuses to know who asks, what a flow is, and
//! any database product. Begin with [`contract::tables`]; all but [`Blobs`]' large content is written over [`Tables`],
//! so whoever brings a `Tables` gets the rest.
//!
//! **Invariant: what a call acknowledged survives the process being killed, and a batch is there whole or not at all.**
//!
//! ```
//! use sluice_store::{Batch, Embedded, Read};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let store = Embedded::open(folder.path())?;
//! let tables = store.tables();
//!
//! let mut batch = Batch::new();
//! batch.expect_absent("greetings", "en").put("greetings", "en", "hello");
//! tables.commit(batch).await?;
//!
//! let found = tables.read(vec![Read::get("greetings", "en")]).await?;
//! assert_eq!(found[0].value().map(|v| &v[..]), Some(&b"hello"[..]));
//! # store.close().await;
//! # Ok(())
//! # }
//! ```

pub mod contract;
pub mod error;

pub mod blobs;
pub mod content;
pub mod keywords;
pub mod terms;
pub mod triples;
pub mod vectors;

pub mod conformance;
pub mod embedded;

pub mod faulty;

mod keys;
mod turns;

pub use blobs::{ContentFile, Contents};
pub use contract::{
    Attributes, Batch, BlobInfo, BlobWriter, Blobs, Cursor, Expect, Expected, Found, KeyRange, KeywordEntry,
    Keywords, Match, Op, Page, Pattern, Read, Rows, Scope, Stores, Tables, Triples, VectorEntry, Vectors,
};
pub use embedded::{
    BlobAudit, Embedded, FolderLock, MissingBlob, Options, Snapshot, Stamp, Untouched, Upkeep,
};
pub use error::{Error, ErrorKind};
pub use faulty::{Fault, FaultyTables};

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed future, as the object-safe contracts return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
