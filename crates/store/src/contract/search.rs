//! Things found by likeness: vectors by angle, texts by their words.

use sluice_schema::message::TextOrList;

use super::{Attributes, Scope};
use crate::{BoxFuture, Result};

/// A vector with its id and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorEntry {
    /// Unique within the collection, up to 1024 bytes.
    pub id: String,
    /// Its numbers, finite; only their direction counts.
    pub vector: Vec<f32>,
    /// Labels, returned with a match and usable as a filter.
    pub attributes: Attributes,
}

/// A text with its id and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct KeywordEntry {
    /// Unique within the collection, up to 1024 bytes.
    pub id: String,
    /// The text; the index keeps its terms, see [`crate::terms`], not the text.
    pub text: String,
    /// Labels, returned with a match.
    pub attributes: Attributes,
}

/// Something found.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// Its id.
    pub id: String,
    /// How well it fits; larger is better.
    pub score: f32,
    /// Its labels.
    pub attributes: Attributes,
}

/// Nearest vectors of a collection, by cosine.
///
/// **Guarantees.** Search is exact. What an upsert acknowledged is found by the next search, what a removal acknowledged
/// is not. The first upsert fixes how many numbers a collection's vectors have; another length is
/// [`crate::Error::Dimension`]. Removing all of a collection frees it for another length. Every write may be repeated.
pub trait Vectors: Send + Sync + 'static {
    /// Adds entries, replacing those with the same id; all or none of them.
    fn upsert<'a>(&'a self, scope: Scope<'a>, entries: Vec<VectorEntry>) -> BoxFuture<'a, Result<()>>;

    /// Removes entries by id.
    fn remove<'a>(&'a self, scope: Scope<'a>, ids: &'a [String]) -> BoxFuture<'a, Result<()>>;

    /// Removes entries whose id starts with `prefix`.
    fn remove_prefix<'a>(&'a self, scope: Scope<'a>, prefix: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Removes the collection.
    fn remove_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>>;

    /// The `limit` nearest entries whose labels match `filter`, best first; the score is the cosine, from -1 to 1. A
    /// collection that is not there has no entries. Equal scores are ordered by id.
    fn search<'a>(
        &'a self,
        scope: Scope<'a>,
        vector: &'a [f32],
        limit: usize,
        filter: &'a Attributes,
    ) -> BoxFuture<'a, Result<Vec<Match>>>;
}

/// Texts of a collection, ranked by BM25 over their terms.
///
/// **Guarantees.** What an upsert acknowledged is found by the next search. Upserting the same id replaces it: nothing is
/// counted twice. Every write may be repeated.
pub trait Keywords: Send + Sync + 'static {
    /// Adds entries, replacing those with the same id; all or none of them.
    fn upsert<'a>(&'a self, scope: Scope<'a>, entries: Vec<KeywordEntry>) -> BoxFuture<'a, Result<()>>;

    /// Removes entries by id.
    fn remove<'a>(&'a self, scope: Scope<'a>, ids: &'a [String]) -> BoxFuture<'a, Result<()>>;

    /// Removes entries whose id starts with `prefix`.
    fn remove_prefix<'a>(&'a self, scope: Scope<'a>, prefix: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Removes the collection.
    fn remove_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>>;

    /// The `limit` best entries that share a term with the query, best first; the score is BM25, above 0. Equal scores
    /// are ordered by id.
    fn search<'a>(
        &'a self,
        scope: Scope<'a>,
        query: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Match>>>;
}

/// Whether labels fit a filter: for each label of the filter, each of its texts must be among the stored ones.
#[must_use]
pub fn matches(filter: &Attributes, attributes: &Attributes) -> bool {
    filter.iter().all(|(name, wanted)| {
        attributes
            .get(name)
            .is_some_and(|stored| texts(wanted).iter().all(|text| texts(stored).contains(text)))
    })
}

fn texts(value: &TextOrList) -> &[String] {
    match value {
        TextOrList::Text(text) => std::slice::from_ref(text),
        TextOrList::List(texts) => texts,
    }
}
