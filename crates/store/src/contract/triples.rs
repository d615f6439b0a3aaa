//! Statements by pattern.

use sluice_schema::message::{Term, Triple};

use super::Scope;
use crate::{BoxFuture, Result};

/// Which statements; what is `None` matches anything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pattern {
    /// The subject.
    pub s: Option<Term>,
    /// The predicate.
    pub p: Option<Term>,
    /// The object.
    pub o: Option<Term>,
    /// The graph: `None` every graph, `""` the default graph only, else exactly that graph.
    pub g: Option<String>,
}

impl Pattern {
    /// Every statement.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Every statement of one graph; `""` is the default graph.
    pub fn graph(name: impl Into<String>) -> Self {
        Self { g: Some(name.into()), ..Self::default() }
    }
}

/// Where the next page begins; only valid for the pattern it was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub(crate) bytes::Bytes);

/// Some of the statements that match.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The statements; those of the default graph have no `g`.
    pub triples: Vec<Triple>,
    /// Set if there may be more.
    pub next: Option<Cursor>,
}

/// Statements of a collection, each in a named graph or the default graph.
///
/// **Guarantees.** A collection is a set: adding a statement again changes nothing. Only the fields that belong to a
/// term's type are kept. What an add acknowledged is found by the next query. A statement that is there throughout a
/// paged query is returned exactly once. Every write may be repeated.
pub trait Triples: Send + Sync + 'static {
    /// Adds statements; all or none of them. Subject, predicate and object must be set.
    fn add<'a>(&'a self, scope: Scope<'a>, triples: Vec<Triple>) -> BoxFuture<'a, Result<()>>;

    /// Up to `limit` statements that match, from the beginning or from a cursor. Order is stable and has no meaning.
    fn query<'a>(
        &'a self,
        scope: Scope<'a>,
        pattern: &'a Pattern,
        from: Option<Cursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Page>>;

    /// Removes every statement that matches. [`Pattern::all`] removes the collection, in one step.
    fn remove<'a>(&'a self, scope: Scope<'a>, pattern: &'a Pattern) -> BoxFuture<'a, Result<()>>;
}
