//! What is removed, with everything that was made from it: a document, a document's data in one collection, a collection.
//!
//! A removal is a wish written in one step. Making it so can be repeated: contents and rows go, then the stores are told by a
//! durable message, then the wish goes. A crash in between leaves the wish, and it is made so at the next start; a call
//! that would add what is being removed makes it so first. What is gone stays on record for a while with the number of
//! its removal, so that reports and parts which were still on their way can be told from those of a later pass.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_bus::{Address, Broker, Message};
use sluice_schema::message::{ConfigKey, Removal, StageReport};
use sluice_schema::{WorkspaceId, system, wire};
use sluice_sdk::ConfigClient;
use sluice_store::{Batch, Found, Read};
use tokio::sync::watch;

use crate::collections::COLLECTION;
use crate::documents::Documents;
use crate::passes::Passes;
use crate::progress::Progress;
use crate::rows::{self, Rows, check_id, key, prefix};
use crate::{Error, clock, processing};

/// Wishes, by document and collection.
const WISHES: &str = "library-removals";
/// What is gone, by document and collection.
const GONE: &str = "library-gone";

/// How long it is known that something is gone, in milliseconds.
const GONE_MS_MAX: i64 = 30 * 24 * 3_600 * 1_000;
const PAGE_ROWS: usize = 500;

/// What a removal is about: a document everywhere, a document in a collection, or a collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope<'a> {
    document: &'a str,
    collection: &'a str,
}

impl<'a> Scope<'a> {
    pub(crate) const fn document(document: &'a str) -> Self {
        Self { document, collection: "" }
    }

    pub(crate) const fn collection(collection: &'a str) -> Self {
        Self { document: "", collection }
    }

    pub(crate) const fn of(document: &'a str, collection: &'a str) -> Self {
        Self { document, collection }
    }

    fn key(self, workspace: &str) -> Vec<u8> {
        key(&[workspace, self.document, self.collection])
    }
}

/// Up to which number something is gone, and from which on it is there again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Gone {
    until: i64,
    #[serde(default)]
    restored: i64,
}

/// Removals in all workspaces.
#[derive(Clone)]
pub(crate) struct Removals {
    pub(crate) rows: Rows,
    pub(crate) documents: Documents,
    pub(crate) progress: Progress,
    pub(crate) passes: Passes,
    pub(crate) config: Arc<ConfigClient>,
    pub(crate) broker: Arc<dyn Broker>,
    /// Changes when a wish could not be made so at once.
    pub(crate) poke: watch::Sender<()>,
}

impl Removals {
    /// Removes; `with` is committed together with the wish.
    pub(crate) async fn remove(
        &self,
        workspace: &str,
        scope: Scope<'_>,
        mut with: Batch,
    ) -> Result<(), Error> {
        // A wish that can never be fulfilled would be tried for ever.
        for (what, id) in [("document", scope.document), ("collection", scope.collection)] {
            if !id.is_empty() {
                check_id(what, id)?;
            }
        }
        let gone = Gone { until: self.passes.next(workspace).await?, restored: 0 };
        let scope_key = scope.key(workspace);
        with.put(WISHES, &scope_key, rows::encode(&gone.until)).put(GONE, &scope_key, rows::encode(&gone));
        with.essential();
        self.rows.commit(with).await?;
        self.make_so(workspace, scope, gone.until).await.map_err(|error| {
            self.poke.send_replace(());
            Error::OnRecord(Box::new(error))
        })
    }

    /// Waits until nothing of this kind is being removed any more, by doing it. Adds to `batch` that it stays so.
    pub(crate) async fn settle(
        &self,
        workspace: &str,
        scopes: &[Scope<'_>],
        batch: &mut Batch,
    ) -> Result<(), Error> {
        for scope in scopes {
            let scope_key = scope.key(workspace);
            if let Some(wish) = self.rows.get::<i64>(WISHES, &scope_key).await? {
                self.make_so(workspace, *scope, wish.is).await?;
            }
            batch.expect_absent(WISHES, scope_key);
        }
        Ok(())
    }

    /// Tells the stores that something removed earlier is there again, for messages that tell no pass.
    pub(crate) async fn restore(&self, workspace: &str, scopes: &[Scope<'_>]) -> Result<(), Error> {
        for scope in scopes {
            let scope_key = scope.key(workspace);
            let Some(row) = self.rows.get::<Gone>(GONE, &scope_key).await? else { continue };
            if row.is.restored > row.is.until {
                continue;
            }
            let gone = Gone { restored: self.passes.next(workspace).await?, ..row.is };
            self.tell(workspace, *scope, gone.restored, true).await?;
            let mut batch = Batch::new();
            batch.expect_value(GONE, &scope_key, row.raw).put(GONE, &scope_key, rows::encode(&gone));
            match self.rows.commit(batch).await {
                // Removed or restored by another call meanwhile, which has told it.
                Err(error) if rows::is_conflict(&error) => {}
                done => done?,
            }
        }
        Ok(())
    }

    async fn make_so(&self, workspace: &str, scope: Scope<'_>, until: i64) -> Result<(), Error> {
        // Config has no other names, but an earlier version has recorded wishes for them.
        if scope.document.is_empty() && rows::is_id(scope.collection) {
            let key = ConfigKey { r#type: COLLECTION.to_owned(), key: scope.collection.to_owned() };
            self.config.delete(workspace, vec![key]).await?;
        }
        if scope.collection.is_empty() {
            self.documents.remove_tree(workspace, scope.document).await?;
            self.progress.forget(workspace, scope.document).await?;
        } else {
            self.documents.remove_made(workspace, scope.document, scope.collection).await?;
            self.progress.forget_in(workspace, scope.document, scope.collection).await?;
        }
        processing::forget(&self.rows, workspace, scope.document, scope.collection).await?;
        // On a full disk a broker may take this only after the contents have gone.
        self.tell(workspace, scope, until, false).await?;
        let mut batch = Batch::new();
        let scope_key = scope.key(workspace);
        batch.expect_value(WISHES, &scope_key, rows::encode(&until)).delete(WISHES, &scope_key);
        match self.rows.commit(batch).await {
            // Wished again meanwhile, or made so by another call.
            Err(error) if rows::is_conflict(&error) => Ok(()),
            done => done,
        }
    }

    async fn tell(&self, workspace: &str, scope: Scope<'_>, pass: i64, restored: bool) -> Result<(), Error> {
        let removal = Removal {
            document_id: scope.document.to_owned(),
            collection: scope.collection.to_owned(),
            pass,
            restored,
        };
        let topic = system::removals(&WorkspaceId::existing(workspace));
        Ok(self.broker.publish(&Address::Subscribed(topic), Message::new(wire::encode(&removal))).await?)
    }

    /// Makes so what was wished and is not so yet, and forgets what has been gone for long. What fails keeps nothing else from
    /// it; its error is returned in the end, so that it is tried again.
    pub(crate) async fn resume(&self, workspace: &str) -> Result<(), Error> {
        let under = prefix(&[workspace]);
        let mut wishes: Vec<(Bytes, Bytes)> = Vec::new();
        self.rows
            .scan(WISHES, &under, |key, raw| {
                wishes.push((key.clone(), raw.clone()));
                Ok(true)
            })
            .await?;
        let mut failure = None;
        for (wish_key, raw) in wishes {
            let names = String::from_utf8_lossy(&wish_key[under.len()..]).into_owned();
            let Some((document, collection)) = names.split_once('\0') else { continue };
            let made_so = async {
                let until = rows::decode(WISHES, &wish_key, &raw)?;
                self.make_so(workspace, Scope { document, collection }, until).await
            };
            match made_so.await {
                Ok(()) => {
                    tracing::info!(workspace, document, collection, "a removal that was cut short is done");
                }
                Err(error) => {
                    tracing::warn!(workspace, document, collection, %error, "a removal that was cut short cannot be finished yet");
                    failure.get_or_insert(error);
                }
            }
        }
        self.forget_old(workspace).await?;
        failure.map_or(Ok(()), Err)
    }

    async fn forget_old(&self, workspace: &str) -> Result<(), Error> {
        let mut old: Vec<(Bytes, Bytes)> = Vec::new();
        let oldest = clock::milliseconds() - GONE_MS_MAX;
        self.rows
            .scan(GONE, &prefix(&[workspace]), |key, raw| {
                // One that cannot be read stays, and is found by a check of the whole store.
                let is_old = |gone: Gone| gone.until.max(gone.restored) < oldest;
                if rows::decode(GONE, key, raw).is_ok_and(is_old) {
                    old.push((key.clone(), raw.clone()));
                }
                Ok(true)
            })
            .await?;
        for some in old.chunks(PAGE_ROWS) {
            let mut batch = Batch::new();
            for (key, raw) in some {
                batch.expect_value(GONE, key, raw.clone()).delete(GONE, key);
            }
            match self.rows.commit(batch).await {
                Err(error) if rows::is_conflict(&error) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Whether what belongs to a pass of a document comes too late: its document or collection was removed since.
    pub(crate) async fn is_gone(
        &self,
        workspace: &str,
        document: &str,
        collection: &str,
        pass: Option<i64>,
    ) -> Result<bool, Error> {
        let reads = scopes(document, collection).map(|scope| Read::get(GONE, scope.key(workspace)));
        for found in self.rows.read(reads.into()).await? {
            let Some(raw) = found.into_value() else { continue };
            let gone: Gone = rows::decode(GONE, b"", &raw)?;
            if pass.unwrap_or(gone.restored) <= gone.until {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The reports that do not come too late.
    pub(crate) async fn live(
        &self,
        workspace: &str,
        reports: Vec<(Option<i64>, StageReport)>,
    ) -> Result<Vec<(Option<i64>, StageReport)>, Error> {
        let mut live = Vec::with_capacity(reports.len());
        let mut reads = Vec::with_capacity(3 * reports.len());
        for (_, report) in &reports {
            // What names nothing is told and dropped where it would be counted.
            let is_named = [&report.document_id, &report.collection].iter().all(|name| rows::is_id(name));
            let (document, collection) =
                if is_named { (&*report.document_id, &*report.collection) } else { ("", "") };
            reads.extend(scopes(document, collection).map(|scope| Read::get(GONE, scope.key(workspace))));
        }
        let found: Vec<Option<Bytes>> =
            self.rows.read(reads).await?.into_iter().map(Found::into_value).collect();
        for ((pass, report), found) in reports.into_iter().zip(found.chunks(3)) {
            let mut is_gone = false;
            for raw in found.iter().flatten() {
                let gone: Gone = rows::decode(GONE, b"", raw)?;
                is_gone |= pass.unwrap_or(gone.restored) <= gone.until;
            }
            if !is_gone {
                live.push((pass, report));
            }
        }
        Ok(live)
    }
}

/// Whatever removes a document's data in a collection.
fn scopes<'a>(document: &'a str, collection: &'a str) -> [Scope<'a>; 3] {
    [Scope::of(document, collection), Scope::document(document), Scope::collection(collection)]
}
