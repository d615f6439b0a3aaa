//! Content by id, small or large.

use bytes::Bytes;

use crate::{BoxFuture, Result};

/// The most that [`Blobs::get`] returns at once, in bytes; larger content is read in ranges.
pub const GET_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Content by id.
///
/// **Guarantees.** Content appears whole, at the moment its write is acknowledged, and is durable then; a replacement
/// takes the place of the old content in one step. Removal may be repeated. Ids are any text up to 1024 bytes and never
/// become part of a path.
pub trait Blobs: Send + Sync + 'static {
    /// Stores content that is in memory.
    fn put<'a>(&'a self, id: &'a str, content: Bytes) -> BoxFuture<'a, Result<()>>;

    /// Begins to store content that arrives in parts. Nothing is visible before [`BlobWriter::finish`].
    fn writer<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Box<dyn BlobWriter>>>;

    /// The whole content, up to [`GET_BYTES_MAX`].
    fn get<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Bytes>>>;

    /// Up to `bytes_max` bytes from `offset`; fewer at the end of the content, none beyond it.
    fn get_range<'a>(
        &'a self,
        id: &'a str,
        offset: u64,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<Bytes>>>;

    /// The size of the content in bytes.
    fn size<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<u64>>>;

    /// Removes content; what is not there is fine.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Ids that start with `prefix`, in order, from the one after `after`, at most `entries_max`.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        entries_max: usize,
    ) -> BoxFuture<'a, Result<Vec<BlobInfo>>>;
}

/// Content on its way in. Dropped unfinished, it leaves nothing behind.
pub trait BlobWriter: Send + 'static {
    /// Adds a part.
    fn write(&mut self, part: Bytes) -> BoxFuture<'_, Result<()>>;

    /// Makes the content durable and visible; answers its size in bytes.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<u64>>;
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// The id.
    pub id: String,
    /// The size in bytes.
    pub bytes: u64,
}
