//! Collections of a workspace: config entries of type `collection`, and nothing else. With a collection goes whatever flows
//! made for it.
//!
//! Store writers of other makes fold workspace and collection into one storage name, and folding loses information. So
//! a collection whose folded name is taken is refused, and one whose folded name begins another's is not deleted while
//! the other lives: such a writer would delete both.

use std::sync::Arc;
use std::time::SystemTime;

use sluice_schema::ids::Name;
use sluice_schema::listing::Page;
use sluice_schema::message::{
    self, CollectionManagementRequest, CollectionManagementResponse, CollectionMetadata, ConfigValue,
    Expectation,
};
use sluice_schema::{WorkspaceId, ceilings, wire};
use sluice_sdk::config::value;
use sluice_sdk::{Apply, ConfigClient, ConfigError};
use sluice_store::Batch;

use crate::Error;
use crate::clock::timestamp;
use crate::error::cause;
use crate::removals::{Removals, Scope};

/// Config type of collections.
pub(crate) const COLLECTION: &str = "collection";

/// Collections of all workspaces, asked for one workspace at a time.
#[derive(Clone)]
pub(crate) struct Collections {
    config: Arc<ConfigClient>,
    removals: Removals,
    /// The broker's largest message, in bytes.
    message_bytes_max: usize,
}

impl Collections {
    pub(crate) const fn new(config: Arc<ConfigClient>, removals: Removals, message_bytes_max: usize) -> Self {
        Self { config, removals, message_bytes_max }
    }

    /// Answers one call.
    pub(crate) async fn answer(
        &self,
        workspace: &str,
        request: CollectionManagementRequest,
    ) -> Result<CollectionManagementResponse, Error> {
        let mut cursor = String::new();
        let collections = match request.operation.as_str() {
            "list-collections" => {
                let page = self.list(workspace, &request).await.map_err(failed("list"))?;
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
    ) -> Result<Page<CollectionMetadata>, Error> {
        let values = self.config.getvalues(workspace, COLLECTION).await?;
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
        page.fill(&request.cursor, items, |one| wire::encode(one).len()).map_err(Error::Told)
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
        if let Some(other) = deletion_blocked_by(workspace, id, &self.live().await?) {
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
        let live = self.live().await?;
        if let Some(other) = creation_blocked_by(workspace, id, &live) {
            return Err(Error::request(format!(
                "collection '{id}' cannot be made: stores that fold names could not tell it from {other}; choose another id"
            )));
        }
        if let Some(other) = deletion_blocked_by(workspace, id, &live) {
            tracing::warn!(workspace, collection = id, "the collection cannot be deleted before {other}");
        }
        Ok(())
    }

    /// Every collection of every live workspace.
    async fn live(&self) -> Result<Vec<(String, String)>, Error> {
        let live = self.config.places(COLLECTION).await?.into_iter();
        Ok(live.filter(|(workspace, _)| !WorkspaceId::existing(workspace).is_reserved()).collect())
    }
}

fn failed(verb: &str) -> impl Fn(Error) -> Error + '_ {
    move |error| match error {
        Error::Config(ConfigError::Refused { kind, message }) if kind == message::Error::TOO_LARGE => {
            Error::Told(message::Error::new(message::Error::TOO_LARGE, message))
        }
        Error::Config(inner) => {
            let what = if verb == "list" { "query" } else { verb };
            Error::request(format!(
                "Failed to {verb} collection{}: Config {what} failed: {}",
                plural(verb),
                cause(&inner)
            ))
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

fn folded(workspace: &str, id: &str) -> String {
    let fold = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '_' })
            .collect()
    };
    format!("{}_{}_", fold(workspace), fold(id))
}

/// A live collection that folds to the same name, as the caller may see it.
fn creation_blocked_by(workspace: &str, id: &str, live: &[(String, String)]) -> Option<String> {
    let name = folded(workspace, id);
    blocked_by(workspace, id, live, |other| other == name)
}

/// A live collection whose folded name begins with that of the one to delete, as the caller may see it.
fn deletion_blocked_by(workspace: &str, id: &str, live: &[(String, String)]) -> Option<String> {
    let name = folded(workspace, id);
    blocked_by(workspace, id, live, |other| other.starts_with(&name))
}

fn blocked_by(
    workspace: &str,
    id: &str,
    live: &[(String, String)],
    hit: impl Fn(&str) -> bool,
) -> Option<String> {
    let (in_workspace, other) =
        live.iter().find(|(w, c)| !(w == workspace && c == id) && hit(&folded(w, c)))?;
    Some(if in_workspace == workspace {
        format!("collection '{other}'")
    } else {
        "a collection of another workspace".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fold_alike_block_each_other_and_foreign_ones_are_not_named() {
        let live: Vec<(String, String)> = [("default", "docs"), ("default", "docs-2024"), ("a", "b_c")]
            .map(|(w, c)| (w.into(), c.into()))
            .into();
        let create = |w: &str, c: &str| creation_blocked_by(w, c, &live);
        assert_eq!(create("default", "docs_2024").unwrap(), "collection 'docs-2024'");
        assert_eq!(create("a-b", "c").unwrap(), "a collection of another workspace");
        assert_eq!(create("default", "docs"), None, "the same one is no stranger");
        assert_eq!(create("default", "other"), None);
        assert_eq!(deletion_blocked_by("default", "docs", &live).unwrap(), "collection 'docs-2024'");
        assert_eq!(deletion_blocked_by("default", "docs-2024", &live), None);
    }
}
