//! The standard config in a data folder: put when the folder is new, and brought up to date by later versions without touching
//! what a person edited or deleted.
//!
//! A row of the system's own workspace says which values the folder was given, by their digests. A value that still has the
//! digest of what was given is nobody's work but ours, and follows the version; any other stays as it is. A value that this
//! version has and the row has not is new and is put where its key is free; one that was given and is gone was deleted.
//! The template and every workspace, which began as its copy, are treated alike.

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sluice_schema::message::{ConfigValue, Expectation};
use sluice_schema::{record, standard};
use sluice_sdk::{Apply, ConfigClient, ConfigError};

/// Type of the rows that say what was done once.
const INIT_STATE: &str = "init-state";
/// The mark of a folder that was given the standard config at all.
pub(crate) const SEEDED: (&str, &str) = (INIT_STATE, "template-seed");
const SEEDED_VALUE: &str = "\"sluice-1\"";
/// What the folder was given, as an object: `type/key` → digest.
const GIVEN: (&str, &str) = (INIT_STATE, "standard-given");
/// What folders were given by the version before there were such rows.
const GIVEN_FIRST: &str = include_str!("standard/given-first.json");
/// How often a workspace is looked at again because somebody wrote to it meanwhile.
const TRIES_MAX: usize = 16;

/// Digests of values, by `type/key`.
type Given = BTreeMap<String, String>;

/// One value that a workspace should have.
#[derive(Debug, Clone)]
struct Standard {
    kind: String,
    key: String,
    text: String,
}

impl Standard {
    fn name(&self) -> String {
        format!("{}/{}", self.kind, self.key)
    }
}

/// Gives a new folder the standard config, and brings an old one up to date.
pub(crate) async fn settle(config: &ConfigClient) -> anyhow::Result<()> {
    settle_with(config, &of_this_version()).await
}

fn of_this_version() -> Vec<Standard> {
    let own = |kind: &str, key: &str, text: &str| Standard {
        kind: kind.to_owned(),
        key: key.to_owned(),
        text: text.to_owned(),
    };
    let values = standard::config().iter().map(|one| own(one.config_type, &one.key, &one.value));
    let blueprints = standard::BLUEPRINTS.iter().map(|(name, text)| own(record::BLUEPRINT, name, text));
    values.chain(blueprints).collect()
}

async fn settle_with(config: &ConfigClient, values: &[Standard]) -> anyhow::Result<()> {
    let now: Given = values.iter().map(|one| (one.name(), digest(&one.text))).collect();
    let row = config.get(record::SYSTEM, GIVEN.0, GIVEN.1).await?;
    let is_first = row.is_none();
    let given = match row {
        Some(row) => Some(row.value.unwrap_or_default()),
        None if config.get(record::SYSTEM, SEEDED.0, SEEDED.1).await?.is_some() => {
            Some(GIVEN_FIRST.to_owned())
        }
        None => None,
    };
    let Some(given) = given else {
        let mut puts: Vec<ConfigValue> = values.iter().map(|one| put(record::TEMPLATE, one)).collect();
        puts.push(sluice_sdk::config::value(record::SYSTEM, SEEDED.0, SEEDED.1, SEEDED_VALUE));
        puts.push(given_row(&now)?);
        config.apply(Apply { puts, ..Default::default() }).await?;
        return Ok(());
    };
    let given: Given = serde_json::from_str(&given).with_context(|| {
        format!("the record of what this folder was given ({}/{}) cannot be read", GIVEN.0, GIVEN.1)
    })?;
    let changed: Vec<&Standard> =
        values.iter().filter(|one| given.get(&one.name()) != now.get(&one.name())).collect();
    if !changed.is_empty() {
        let registered = config.getvalues(record::WORKSPACES, record::WORKSPACE).await?;
        let workspaces = registered.into_iter().map(|one| one.key);
        let mut updated = 0;
        for workspace in std::iter::once(record::TEMPLATE.to_owned()).chain(workspaces) {
            updated += update(config, &workspace, &changed, &given).await?;
        }
        tracing::info!(
            values = updated,
            "standard blueprints, prompts and parameter types were brought up to date"
        );
    }
    if given != now || is_first {
        // After all workspaces: a crash in between does the rest at the next start.
        config.apply(Apply { puts: vec![given_row(&now)?], ..Default::default() }).await?;
    }
    Ok(())
}

/// Brings one workspace up to date; how many values were written.
async fn update(
    config: &ConfigClient,
    workspace: &str,
    changed: &[&Standard],
    given: &Given,
) -> anyhow::Result<usize> {
    for _ in 0..TRIES_MAX {
        let mut write = Apply::default();
        for one in changed {
            let there = config.get(workspace, &one.kind, &one.key).await?;
            let version = there.as_ref().map_or(0, |there| there.version);
            let is_ours = match (there.and_then(|there| there.value), given.get(&one.name())) {
                (Some(text), _) if text == one.text => false,
                (Some(text), Some(given)) => digest(&text) == *given,
                // A person made one of that name, or deleted ours.
                (Some(_), None) | (None, Some(_)) => false,
                (None, None) => true,
            };
            if is_ours {
                let (workspace, r#type, key) = (workspace.to_owned(), one.kind.clone(), one.key.clone());
                write.expect.push(Expectation { workspace: workspace.clone(), r#type, key, version });
                write.puts.push(put(&workspace, one));
            }
        }
        let count = write.puts.len();
        if count == 0 {
            return Ok(0);
        }
        match config.apply(write).await {
            Ok(_) => return Ok(count),
            Err(ConfigError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("workspace '{workspace}' is being written to all the time")
}

fn put(workspace: &str, one: &Standard) -> ConfigValue {
    sluice_sdk::config::value(workspace, &one.kind, &one.key, one.text.as_str())
}

fn given_row(given: &Given) -> anyhow::Result<ConfigValue> {
    Ok(sluice_sdk::config::value(record::SYSTEM, GIVEN.0, GIVEN.1, serde_json::to_string(given)?))
}

/// A short digest of a value. What is JSON counts by what it says, not by how it is set.
fn digest(text: &str) -> String {
    let canonical =
        serde_json::from_str::<Value>(text).map_or_else(|_| text.to_owned(), |value| value.to_string());
    Sha256::digest(canonical)[..12].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use sluice_bus::embedded::Embedded;
    use sluice_sdk::Process;

    use super::*;

    fn one(kind: &str, key: &str, text: &str) -> Standard {
        Standard { kind: kind.to_owned(), key: key.to_owned(), text: text.to_owned() }
    }

    async fn text(config: &ConfigClient, workspace: &str, kind: &str, key: &str) -> Option<String> {
        config.get(workspace, kind, key).await.unwrap().and_then(|there| there.value)
    }

    /// A config service over a store in a folder, with one workspace beside the template.
    async fn service(folder: &std::path::Path) -> (Process, ConfigClient, sluice_store::Embedded) {
        let broker = Embedded::in_memory();
        let process = Process::new(Arc::new(broker.clone()), Default::default());
        let store = sluice_store::Embedded::open(folder).unwrap();
        let parts = sluice_config::Parts {
            process: process.clone(),
            admin: Arc::new(broker),
            tables: store.tables(),
        };
        sluice_config::start(parts).await.unwrap();
        let config = ConfigClient::new(&process.replies).await.unwrap();
        (process, config, store)
    }

    #[tokio::test]
    async fn a_new_version_brings_its_standard_values_and_leaves_what_a_person_edited() {
        let folder = tempfile::tempdir().unwrap();
        let (process, config, store) = service(folder.path()).await;
        let before = [
            one("prompt", "a", "1"),
            one("prompt", "b", "1"),
            one("prompt", "c", "1"),
            one("prompt", "d", "1"),
        ];
        settle_with(&config, &before).await.unwrap();
        assert_eq!(text(&config, record::TEMPLATE, "prompt", "a").await.unwrap(), "1");
        let registered = sluice_sdk::config::value(record::WORKSPACES, record::WORKSPACE, "acme", "{}");
        config.put(record::WORKSPACES, vec![registered]).await.unwrap();
        for workspace in [record::TEMPLATE, "acme"] {
            let mut puts: Vec<_> = before.iter().map(|one| put(workspace, one)).collect();
            puts.push(put(workspace, &one("prompt", "b", "mine")));
            puts.push(put(workspace, &one("prompt", "f", "mine too")));
            config.apply(Apply { puts, ..Default::default() }).await.unwrap();
            let gone = sluice_schema::message::ConfigKey { r#type: "prompt".into(), key: "c".into() };
            config.delete(workspace, vec![gone]).await.unwrap();
        }
        let after = [
            one("prompt", "a", "2"),
            one("prompt", "b", "2"),
            one("prompt", "c", "2"),
            one("prompt", "d", "1"),
            one("prompt", "e", "2"),
            one("prompt", "f", "2"),
        ];
        for _ in 0..2 {
            settle_with(&config, &after).await.unwrap();
            for workspace in [record::TEMPLATE, "acme"] {
                let mut found = Vec::new();
                for key in ["a", "b", "c", "d", "e", "f"] {
                    found.push(text(&config, workspace, "prompt", key).await);
                }
                let found: Vec<Option<&str>> = found.iter().map(Option::as_deref).collect();
                let wanted = [Some("2"), Some("mine"), None, Some("1"), Some("2"), Some("mine too")];
                assert_eq!(found, wanted, "{workspace}");
            }
        }
        process.shutdown(Duration::from_secs(10)).await;
        store.close().await;
    }

    #[tokio::test]
    async fn a_folder_from_before_there_was_a_record_counts_as_given_what_that_version_gave() {
        let folder = tempfile::tempdir().unwrap();
        let (process, config, store) = service(folder.path()).await;
        let first: Given = serde_json::from_str(GIVEN_FIRST).unwrap();
        assert!(first.len() > 50, "{}", first.len());
        let ours = of_this_version();
        let same = ours.iter().filter(|one| first.get(&one.name()) == Some(&digest(&one.text))).count();
        println!("{same} of {} values are as they were at first", ours.len());
        let seeded = sluice_sdk::config::value(record::SYSTEM, SEEDED.0, SEEDED.1, SEEDED_VALUE);
        config.put(record::SYSTEM, vec![seeded]).await.unwrap();
        // Deleted before, so it stays away; never given, so it comes.
        let new = one("prompt", "of-a-later-version", "\"new\"");
        let values: Vec<Standard> = ours.into_iter().chain([new]).collect();
        settle_with(&config, &values).await.unwrap();
        assert_eq!(text(&config, record::TEMPLATE, "prompt", "system").await, None);
        assert!(text(&config, record::TEMPLATE, "prompt", "of-a-later-version").await.is_some());
        assert!(text(&config, record::SYSTEM, GIVEN.0, GIVEN.1).await.is_some());
        process.shutdown(Duration::from_secs(10)).await;
        store.close().await;
    }
}
