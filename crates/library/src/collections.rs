//! Collections of a workspace: config entries of type `collection`, and nothing else. With a collection goes whatever flows
//! made for it.
//!
//! Store writers of other makes fold workspace and collection into one storage name, and folding loses information. So
//! a collection whose folded name is taken is refused, and one whose folded name begins another's is not deleted while
//! the other lives: such a writer would delete both.

use std::sync::Arc;
use std::time::SystemTime;

use sluice_schema::ids::Name;
use sluice_schema::listing::{self, Page};
use sluice_schema::message::{
    self, CollectionManagementRequest, CollectionManagementResponse, CollectionMetadata, ConfigValue,
    Expectation,
};
use sluice_schema::{WorkspaceId, ceilings, exchange, wire};
use sluice_sdk::config::value;
use sluice_sdk::service::SMALL_PAGE_BYTES;
use sluice_sdk::{Apply, ConfigClient, ConfigError, Position, Responder};
use sluice_store::Batch;
use tokio::sync::{Mutex, MutexGuard};

use crate::Error;
use crate::clock::timestamp;
use crate::error::cause;
use crate::folded::FoldedNames;
use crate::removals::{Removals, Scope};

/// Config type of collections.
pub(crate) const COLLECTION: &str = "collection";

/// Collections of all workspaces, asked for one workspace at a time.
#[derive(Clone)]
pub(crate) struct Collections {
    config: Arc<ConfigClient>,
    known: Arc<Mutex<Known>>,
    removals: Removals,
    /// The broker's largest message, in bytes.
    message_bytes_max: usize,
}

/// The names of all collections, as far as config was read.
#[derive(Default)]
struct Known {
    names: FoldedNames,
    at: Position,
}

impl Collections {
    pub(crate) fn new(config: Arc<ConfigClient>, removals: Removals, message_bytes_max: usize) -> Self {
        Self { config, known: Arc::default(), removals, message_bytes_max }
    }

    /// Answers one call.
    pub(crate) async fn answer(
        &self,
        workspace: &str,
        request: CollectionManagementRequest,
        responder: &Responder<exchange::Collections>,
    ) -> Result<CollectionManagementResponse, Error> {
        let mut cursor = String::new();
        let collections = match request.operation.as_str() {
            "list-collections" => {
                let page = self.list(workspace, &request, responder).await.map_err(failed("list"))?;
                cursor = page.cursor;
                page.items
            }
            "update-collection" => vec![self.update(workspace, request).await.map_err(failed("update"))?],
            "delete-collection" => {
                self.delete(workspace, &request.collection).await.map_err(failed("delete"))?;
                Vec::new()
            }
            "" => return Err(Error::request("Null operation")),
            other => return Err(Error::request(format!("Invalid collection operation: {other}"))),
        };
        let timestamp = timestamp(SystemTime::now());
        Ok(CollectionManagementResponse { error: None, timestamp, collections, cursor })
    }

    async fn list(
        &self,
        workspace: &str,
        request: &CollectionManagementRequest,
        responder: &Responder<exchange::Collections>,
    ) -> Result<Page<CollectionMetadata>, Error> {
        // Whether there is much of it shows in a first, small page.
        let small = self.config.getvalues_page(workspace, COLLECTION, SMALL_PAGE_BYTES as i64).await?;
        let values = if small.cursor.is_empty() {
            small.values
        } else {
            drop(small);
            responder.room_for(ceilings::TYPE_BYTES_MAX).await?;
            self.config.getvalues(workspace, COLLECTION).await?
        };
        let mut collections: Vec<CollectionMetadata> = values.iter().filter_map(read).collect();
        if !request.tag_filter.is_empty() {
            collections.retain(|one| one.tags.iter().any(|tag| request.tag_filter.contains(tag)));
        }
        if let Ok(limit @ 1..) = usize::try_from(request.limit) {
            collections.truncate(limit);
        }
        let places: Vec<String> = collections.iter().map(|one| one.collection.clone()).collect();
        let items = places.iter().map(String::as_str).zip(collections);
        let page = Page::new(request.bytes_max, self.message_bytes_max);
        page.fill(&request.cursor, items, |one| listing::row_bytes(&wire::encode(one))).map_err(Error::Told)
    }

    async fn update(
        &self,
        workspace: &str,
        request: CollectionManagementRequest,
    ) -> Result<CollectionMetadata, Error> {
        let id = request.collection;
        self.removals.settle(workspace, &[Scope::collection(&id)], &mut Batch::new()).await?;
        if self.config.get(workspace, COLLECTION, &id).await?.is_none() {
            self.check_new(workspace, &id).await?;
        }
        let name = if request.name.is_empty() { id.clone() } else { request.name };
        let wanted =
            CollectionMetadata { collection: id, name, description: request.description, tags: request.tags };
        let what = format!("what is said about collection '{}'", wanted.collection);
        ceilings::within(what, wire::encode(&wanted).len(), ceilings::COLLECTION_BYTES_MAX)
            .map_err(Error::Told)?;
        self.config.put(workspace, vec![stored(workspace, &wanted)]).await?;
        Ok(wanted)
    }

    async fn delete(&self, workspace: &str, id: &str) -> Result<(), Error> {
        if id.is_empty() {
            return Err(Error::request("name the collection to delete"));
        }
        if let Some(other) = self.known().await?.names.below(workspace, id) {
            return Err(Error::request(format!(
                "collection '{id}' cannot be deleted while {other} exists: stores that fold names would delete both"
            )));
        }
        self.removals.remove(workspace, Scope::collection(id), Batch::new()).await
    }

    /// Makes a collection where it is missing.
    pub(crate) async fn ensure(&self, workspace: &str, id: &str) -> Result<(), Error> {
        self.removals.settle(workspace, &[Scope::collection(id)], &mut Batch::new()).await?;
        if self.config.get(workspace, COLLECTION, id).await?.is_some() {
            return Ok(());
        }
        self.check_new(workspace, id).await?;
        let wanted =
            CollectionMetadata { collection: id.to_owned(), name: id.to_owned(), ..Default::default() };
        let absent = Expectation {
            workspace: workspace.to_owned(),
            r#type: COLLECTION.to_owned(),
            key: id.to_owned(),
            version: 0,
        };
        let write =
            Apply { expect: vec![absent], puts: vec![stored(workspace, &wanted)], ..Default::default() };
        match self.config.apply(write).await {
            // Somebody else made it meanwhile, which is as good.
            Ok(_) | Err(ConfigError::Conflict(_)) => Ok(()),
            // Looking tells, whoever made it.
            Err(error)
                if error.outcome_is_unknown()
                    && self.config.get(workspace, COLLECTION, id).await?.is_some() =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn check_new(&self, workspace: &str, id: &str) -> Result<(), Error> {
        Name::parse(id)
            .map_err(|error| Error::request(error.to_string().replacen("name", "collection", 1)))?;
        let known = self.known().await?;
        if let Some(other) = known.names.alike(workspace, id) {
            return Err(Error::request(format!(
                "collection '{id}' cannot be made: stores that fold names could not tell it from {other}; choose another id"
            )));
        }
        if let Some(other) = known.names.below(workspace, id) {
            tracing::warn!(workspace, collection = id, "the collection cannot be deleted before {other}");
        }
        Ok(())
    }

    /// Every collection of every live workspace, as of now: what was written since the last look is read, and no more.
    async fn known(&self) -> Result<MutexGuard<'_, Known>, Error> {
        let mut known = self.known.lock().await;
        let Known { mut names, at } = std::mem::take(&mut *known);
        let of_people = |workspace: &str| !WorkspaceId::existing(workspace).is_reserved();
        let types = [COLLECTION.to_owned()];
        // Where reading fails, what was known is forgotten: some of what came may be in it.
        let at = self
            .config
            .fetch(&types, &at, |page| {
                if page.is_whole {
                    names = FoldedNames::default();
                }
                page.deleted.iter().for_each(|gone| names.remove(&gone.workspace, &gone.key));
                let written = page.values.iter().map(|value| (&value.workspace, &value.key));
                let damaged = page.damaged.iter().map(|at| (&at.workspace, &at.key));
                let there = written.chain(damaged).filter(|(workspace, _)| of_people(workspace));
                there.for_each(|(workspace, id)| names.insert(workspace, id));
            })
            .await?;
        *known = Known { names, at };
        Ok(known)
    }
}

fn failed(verb: &str) -> impl Fn(Error) -> Error + '_ {
    move |error| match error {
        Error::Config(ConfigError::Refused { kind, message }) if kind == message::Error::TOO_LARGE => {
            Error::Told(message::Error::new(message::Error::TOO_LARGE, message))
        }
        Error::Config(inner) => {
            let what = if verb == "list" { "query" } else { verb };
            let text = format!(
                "Failed to {verb} collection{}: Config {what} failed: {}",
                plural(verb),
                cause(&inner)
            );
            match inner.for_later() {
                Some(later) => Error::Told(message::Error::new(later, text)),
                None => Error::request(text),
            }
        }
        Error::Request(text) => {
            Error::request(format!("Failed to {verb} collection{}: {text}", plural(verb)))
        }
        other => other,
    }
}

fn plural(verb: &str) -> &'static str {
    if verb == "list" { "s" } else { "" }
}

fn stored(workspace: &str, collection: &CollectionMetadata) -> ConfigValue {
    let text = serde_json::to_string(collection).unwrap_or_default();
    value(workspace, COLLECTION, &collection.collection, text)
}

fn read(value: &ConfigValue) -> Option<CollectionMetadata> {
    let text = value.value.as_deref()?;
    match serde_json::from_str::<CollectionMetadata>(text) {
        Ok(found) => Some(CollectionMetadata { collection: value.key.clone(), ..found }),
        Err(error) => {
            tracing::warn!(collection = value.key, %error, "a collection's record cannot be read; listed by its id");
            Some(CollectionMetadata {
                collection: value.key.clone(),
                name: value.key.clone(),
                ..Default::default()
            })
        }
    }
}
