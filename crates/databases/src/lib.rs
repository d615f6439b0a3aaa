//! Stores that are servers of their own: today content in an S3-compatible object store.
//!
//! It implements contracts of the store crate over the network and refuses to know who uses them. What small rows it needs
//! beside the content rest in tables that it is handed.

mod objects;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use sluice_store::{Blobs, Error, Result, Tables};

pub use crate::objects::Bucket;
use crate::objects::ObjectBlobs;

/// Addresses that [`connect`] understands begin with one of these.
pub const SCHEMES: &[&str] = &["s3"];

/// Text that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How an object store is reached.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where the service is, for example `http://127.0.0.1:9000`; without it the one that the region has.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` unless told.
    pub region: Option<String>,
    /// Id of the access key; without it what the machine itself may do.
    pub access_key: Option<String>,
    /// The key's secret.
    pub secret_key: Option<Secret>,
    /// Token of a session, for keys that are valid for a while only.
    pub session_token: Option<Secret>,
    /// File of certificates (PEM) to trust beside those of the machine.
    pub ca: Option<PathBuf>,
    /// Id of the data folder whose content it keeps. A mark with it is put beside the content, so that another bucket of the
    /// same address, or one that was emptied, is told from it; without an id there is no mark.
    pub owner: Option<String>,
    /// Goes on although the mark or content is not there any more.
    pub accept_loss: bool,
}

/// The address of the object store that keeps the content which these tables name, if one does.
///
/// # Errors
/// What the tables say.
pub async fn used_by(tables: &dyn Tables) -> Result<Option<String>> {
    objects::used_by(tables).await
}

/// The objects that the rows of a store name; `page` reads rows of a table that come after a key.
///
/// # Errors
/// What reading says.
pub fn objects_in(
    page: impl Fn(&str, Option<&[u8]>) -> Result<sluice_store::Rows>,
) -> Result<Vec<sluice_store::ContentFile>> {
    objects::objects_in(page)
}

/// Puts down that content was moved to another address.
///
/// # Errors
/// What writing says.
pub async fn move_to(tables: &dyn Tables, url: &str) -> Result<()> {
    objects::move_to(tables, url).await
}

/// Opens the content store at `url`, for example `s3://bucket/folder`. The bucket must be there. `tables` remember which
/// content is where; they belong to one process, and so does what lies under the address.
///
/// # Errors
/// [`Error::Refused`] for an address or key that cannot work, or for tables that name content elsewhere, [`Error::Unavailable`] if nobody answers.
pub async fn connect(url: &str, settings: &Settings, tables: Arc<dyn Tables>) -> Result<Arc<dyn Blobs>> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        // It is not repeated: it may hold a key.
        let reason = "the object store's address should look like s3://bucket/folder".to_owned();
        return Err(Error::Refused { reason });
    }
    Ok(Arc::new(ObjectBlobs::open(url, settings, tables).await?))
}
