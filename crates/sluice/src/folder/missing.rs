//! What a folder lacks, and going on without it where that was asked for.

use std::fmt;
use std::fs;
use std::path::Path;

use sluice_store::{BlobAudit, Embedded as Store, Tables, embedded::MissingBlob};

use super::mark::{self, Found, Mark};
use super::{ADMIN_KEY, BLOBS, BROKER, Contents, Folder, Loss, Origin, STORE_FILE, Want, refused};

/// Missing content that is named.
const MISSING_SHOWN: usize = 5;

/// Tells of a loss that was accepted, and what follows from it.
pub(super) fn going_on(what: impl fmt::Display, loss: Loss) {
    let follows = match loss {
        Loss::Mark => "what else is missing or older cannot be told without it",
        Loss::Broker => {
            "messages that waited are lost, or some that were settled come again; `sluice doctor` tells which documents were \
             under way, and `sluice doc retry --lost` puts them through again"
        }
        Loss::Blobs | Loss::Objects => "documents whose content is missing cannot be read",
        Loss::AdminKey => "the old key works no more",
        Loss::Copy => {
            "what was written last may be missing, documents may lack their content, and messages may be lost or come \
             again; `sluice doctor --verify` looks at all of it"
        }
    };
    tracing::warn!("{what}; going on with it, as was asked for: {follows}");
}

/// Looks at a folder with a mark.
pub(super) fn check_marked(path: &Path, mark: &Mark, there: &Contents, want: &Want) -> anyhow::Result<()> {
    let accepts = |loss| want.accept.contains(&loss);
    let refuse = |what: String, accept| Err(refused(path, what, accept).into());
    if !mark.is_closed && mark.is_copied(path) {
        let what = "it is a copy that was made while the folder was in use, or after it had not been stopped in good order, and its \
                    parts need not fit together";
        if !accepts(Loss::Copy) {
            let how = "make copies with 'sluice backup', or after a stop";
            return refuse(format!("{what}; {how}"), Some(Loss::Copy));
        }
        going_on(format!("the data folder '{}': {what}", path.display()), Loss::Copy);
    }
    if let Some(bytes) = mark.store.filter(|_| mark.is_closed).and_then(|part| part.bytes) {
        let found = fs::metadata(path.join(STORE_FILE)).map_or(0, |meta| meta.len());
        if found < bytes {
            let what =
                format!("{STORE_FILE} is cut: it has {found} bytes, and had {bytes} when it was closed");
            return refuse(what, None);
        }
    }
    if want.broker && mark.broker.is_some() && !there.broker && !accepts(Loss::Broker) {
        let what = format!(
            "the log of the embedded broker ({BROKER}/log-…) is missing, and the messages that waited in it"
        );
        return refuse(what, Some(Loss::Broker));
    }
    if want.admin_key && mark.has_admin_key && !there.admin_key && !accepts(Loss::AdminKey) {
        return refuse(format!("{ADMIN_KEY} is missing or empty"), Some(Loss::AdminKey));
    }
    Ok(())
}

/// What is wrong with a key file that is there.
pub(crate) async fn wrong_key(file: &Path, tables: &dyn Tables) -> anyhow::Result<Option<String>> {
    match sluice_iam::check_admin_key(file, tables).await {
        Err(sluice_iam::Error::NotAKey { .. }) => {
            Ok(Some(format!("{ADMIN_KEY} holds no key: it is damaged")))
        }
        Err(sluice_iam::Error::OtherKey { .. }) => {
            Ok(Some(format!("{ADMIN_KEY} is not the key of this data, but another one")))
        }
        checked => Ok(checked.map(|()| None)?),
    }
}

/// Whether a folder should hold a key; where its mark does not say, whether its data knows one.
pub(crate) async fn holds_key(path: &Path, tables: &dyn Tables) -> anyhow::Result<bool> {
    match mark::read(path) {
        Found::Mark(mark) => Ok(mark.has_admin_key),
        Found::Nothing | Found::Unusable(_) => Ok(sluice_iam::knows_admin_key(tables).await?),
    }
}

impl Folder {
    /// Insists that all content is there, or accepts what is missing of it.
    pub(super) async fn admit_blobs(&self, store: &Store, audit: &BlobAudit) -> anyhow::Result<()> {
        if audit.named == 0 && audit.unknown > 0 && self.origin != Origin::Marked {
            let what = format!(
                "{BLOBS} holds {} files, and {STORE_FILE} names none of them: it is not the store that they belong to",
                audit.unknown
            );
            return Err(self.refuse(what, None));
        }
        if !audit.missing.is_empty() {
            let (count, named) = (audit.missing.len(), audit.named);
            let shown = audit.missing.iter().take(MISSING_SHOWN).map(unreadable).collect();
            let shown = store.upkeep().named(shown).await;
            let shown: Vec<String> = shown.iter().map(ToString::to_string).collect();
            let more = if count > shown.len() { "; …" } else { "" };
            let what = format!(
                "{BLOBS} lacks {count} of {named} files of content that {STORE_FILE} names: {}{more}",
                shown.join("; ")
            );
            if !self.accepts(Loss::Blobs) {
                return Err(self.refuse(what, Some(Loss::Blobs)));
            }
            going_on(what, Loss::Blobs);
            store.accept_lost(audit).await?;
        }
        if audit.unknown > 0 {
            tracing::warn!(
                files = audit.unknown, folder = %self.path.join(BLOBS).display(),
                "files of content that the store does not name are left as they are"
            );
        }
        Ok(())
    }
}

/// What is said of content whose file is not as the store says.
pub(crate) fn unreadable(missing: &MissingBlob) -> sluice_store::Error {
    let MissingBlob { id, file, bytes, found_bytes } = missing;
    let how = found_bytes.map_or_else(
        || "is missing or cannot be read".to_owned(),
        |found| format!("has {found} bytes instead of {bytes}"),
    );
    sluice_store::Error::damaged_content(id, format!("its file {BLOBS}/{file} {how}"))
}
