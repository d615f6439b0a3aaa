//! Config in tables that no service works on: what is largest in them, and a way to take one value out.
//!
//! For a person whose system does not come up, or an administrator who wants to know where the room is. A value is taken out
//! by the same write as any other: what is counted, the history and the notice of it are as if a running service had
//! done it.

use std::collections::BinaryHeap;
use std::sync::Arc;

use sluice_schema::message::ScopedKey;
use sluice_schema::{ceilings, record};
use sluice_store::{Error, Found, KeyRange, Tables, contract::Read as Look};
use tokio_util::sync::CancellationToken;

use crate::layout::VALUE;
use crate::reader::{place_at, row_of};
use crate::request::{Write, place};
use crate::sizes;
use crate::writer::{Sent, Writer};

/// Rows read in one go.
const ROWS_MAX: usize = 64;

/// A value and what it takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Large {
    /// As it is in a message, in bytes.
    pub bytes: usize,
    /// Its workspace.
    pub workspace: String,
    /// Its type.
    pub config_type: String,
    /// Its key.
    pub key: String,
}

impl Large {
    /// Whether it is larger than what is taken in now.
    #[must_use]
    pub fn is_beyond_its_ceiling(&self) -> bool {
        self.workspace != record::FLOWS && self.bytes > ceilings::value_bytes_max(&self.config_type)
    }
}

/// The largest values, largest first, at most so many. One that cannot be read is left out.
///
/// # Errors
/// What reading says.
pub async fn largest(tables: &dyn Tables, count: usize) -> Result<Vec<Large>, Error> {
    let mut kept = BinaryHeap::new();
    let mut range = KeyRange::all();
    loop {
        let found = tables.read(vec![Look::range(VALUE, range.clone(), ROWS_MAX)]).await?.pop();
        let rows = found.map(Found::into_rows).unwrap_or_default();
        for (key, raw) in &rows.rows {
            let (Ok(at), Ok(row)) = (place_at(key), row_of(key, raw)) else { continue };
            let Some(value) = row.value else { continue };
            let ScopedKey { workspace, r#type: config_type, key } = at;
            let bytes = ceilings::json_bytes(&value);
            kept.push(std::cmp::Reverse(Large { bytes, workspace, config_type, key }));
            if kept.len() > count {
                kept.pop();
            }
        }
        match rows.rows.last() {
            Some((last, _)) if rows.more => range = range.after(last),
            _ => break,
        }
    }
    Ok(kept.into_sorted_vec().into_iter().map(|kept| kept.0).collect())
}

/// Takes a value out. The service tells of it when it starts next.
///
/// # Errors
/// [`Error::Refused`] where there is none, else what reading or writing says.
pub async fn remove(
    tables: &Arc<dyn Tables>,
    workspace: &str,
    config_type: &str,
    key: &str,
) -> Result<(), Error> {
    let at =
        ScopedKey { workspace: workspace.to_owned(), r#type: config_type.to_owned(), key: key.to_owned() };
    let name = crate::layout::value_key(&at);
    let found = tables.read(vec![Look::get(VALUE, &name)]).await?.pop().and_then(Found::into_value);
    let is_there = found.is_some_and(|raw| row_of(&name, &raw).map_or(true, |row| row.value.is_some()));
    if !is_there {
        return Err(Error::Refused { reason: format!("there is no config value {}", place(&at)) });
    }
    sizes::count(&**tables).await?;
    let (writer, committing) =
        Writer::new(tables.clone(), Arc::new(Sent::default()), CancellationToken::new());
    let write = writer.write(Write { deletes: vec![at], ..Write::default() });
    let outcome = tokio::select! {
        outcome = write => outcome,
        () = committing => return Err(Error::Unavailable { reason: "the write was cut off".to_owned() }),
    };
    outcome.map(drop).map_err(|error| Error::Unavailable { reason: error.message })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use sluice_bus::{Client, Embedded};
    use sluice_schema::message::{ConfigKey, ConfigRequest, ConfigResponse};
    use sluice_schema::{exchange, system};
    use sluice_sdk::{ConfigClient, Process};
    use sluice_store::Batch;

    use super::*;
    use crate::layout::{COUNTED_KEY, SIZE, Size};
    use crate::request::Put;

    const DEADLINE: Duration = Duration::from_secs(60);
    const WORKSPACE: &str = "acme";

    /// Writes as versions did that knew no ceilings and counted nothing.
    async fn write_without_ceilings(tables: &Arc<dyn Tables>, values: Vec<(&str, String, String)>) {
        let (writer, committing) =
            Writer::new(tables.clone(), Arc::new(Sent::default()), CancellationToken::new());
        let writing = async {
            for (config_type, key, value) in values {
                let at = ScopedKey { workspace: WORKSPACE.to_owned(), r#type: config_type.to_owned(), key };
                let write = Write { puts: vec![Put { at, value }], ..Write::default() };
                writer.write(write).await.unwrap();
            }
        };
        tokio::select! { () = writing => {}, () = committing => panic!("the writer ended") }
        let mut batch = Batch::new();
        batch.delete_prefix(SIZE, b"");
        tables.commit(batch).await.unwrap();
    }

    async fn start(tables: &Arc<dyn Tables>) -> (Process, Client<exchange::Config>) {
        let broker = Embedded::in_memory();
        let process = Process::new(Arc::new(broker.clone()), CancellationToken::new());
        let parts =
            crate::Parts { process: process.clone(), admin: Arc::new(broker), tables: tables.clone() };
        crate::start(parts).await.unwrap();
        let system = ConfigClient::new(&process.replies).await.unwrap();
        let entry = sluice_sdk::config::value(record::WORKSPACES, record::WORKSPACE, WORKSPACE, "{}");
        system.put(record::WORKSPACES, vec![entry]).await.unwrap();
        let id = sluice_schema::WorkspaceId::existing(WORKSPACE);
        let (request, response) = (system::config_request(Some(&id)), system::config_response(Some(&id)));
        let user = Client::new(&process.replies, request, &response).await.unwrap();
        (process, user)
    }

    async fn ask(user: &Client<exchange::Config>, request: ConfigRequest) -> ConfigResponse {
        user.call(&request, DEADLINE).await.unwrap()
    }

    fn request(operation: &str) -> ConfigRequest {
        ConfigRequest { operation: operation.to_owned(), ..Default::default() }
    }

    /// Every row of the table of sizes.
    async fn counted(tables: &Arc<dyn Tables>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let rows = tables.read(vec![Look::prefix(SIZE, b"", usize::MAX)]).await.unwrap().remove(0);
        rows.into_rows().rows.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    /// What counting afresh gives.
    async fn counted_afresh(tables: &Arc<dyn Tables>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut batch = Batch::new();
        batch.delete_prefix(SIZE, b"");
        tables.commit(batch).await.unwrap();
        sizes::count(&**tables).await.unwrap();
        counted(tables).await
    }

    #[tokio::test]
    async fn an_older_folder_beyond_every_ceiling_opens_is_read_in_pages_and_can_be_undone() {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path()).unwrap();
        let tables = store.tables();
        // More than a message, a type and a workspace may hold, a value beyond what a value may be, and too many keys.
        let mut values: Vec<_> =
            (0..75).map(|n| ("prompt", format!("p{n}"), "x".repeat(1_000_000))).collect();
        values.push(("ontology", "vast".to_owned(), "y".repeat(20 << 20)));
        write_without_ceilings(&tables, values).await;

        let found = largest(&*tables, 3).await.unwrap();
        assert_eq!((found.len(), found[0].key.as_str(), found[0].bytes), (3, "vast", 20 << 20));
        assert!(found[0].is_beyond_its_ceiling() && !found[1].is_beyond_its_ceiling());

        let (process, user) = start(&tables).await;
        let whole = ask(&user, request("config")).await.error.expect("it does not fit a message");
        assert_eq!(whole.r#type, "too-large");
        let (mut keys, mut cursor) = (BTreeSet::new(), String::new());
        loop {
            let page = ask(&user, ConfigRequest { bytes_max: 1 << 20, cursor, ..request("config") }).await;
            assert_eq!(page.error, None);
            let named = |(kind, held): (&String, &BTreeMap<String, String>)| {
                held.keys().map(|key| (kind.clone(), key.clone())).collect::<Vec<_>>()
            };
            keys.extend(page.config.iter().flat_map(named));
            cursor = page.cursor;
            if cursor.is_empty() {
                break;
            }
        }
        assert_eq!(keys.len(), 76);
        let listed = ConfigRequest { r#type: "prompt".into(), ..request("list") };
        assert_eq!(ask(&user, listed).await.directory.len(), 75);
        // Single calls undo it, one after the other.
        for key in (0..75).map(|n| format!("p{n}")) {
            let keys = vec![ConfigKey { r#type: "prompt".to_owned(), key }];
            assert_eq!(ask(&user, ConfigRequest { keys, ..request("delete") }).await.error, None);
        }
        let left = ask(&user, request("config")).await;
        assert_eq!((left.error, left.config.len()), (None, 1), "what is left fits a message");
        assert!(process.shutdown(DEADLINE).await.is_empty());

        // What is left is taken out while nobody works in the folder; what is counted is as if it had never been there.
        let missing = remove(&tables, WORKSPACE, "ontology", "other").await.unwrap_err();
        assert!(matches!(missing, Error::Refused { .. }), "{missing:?}");
        remove(&tables, WORKSPACE, "ontology", "vast").await.unwrap();
        let kept = counted(&tables).await;
        assert!(kept.contains_key(COUNTED_KEY));
        assert!(!kept.contains_key(format!("{WORKSPACE}\0").as_bytes()), "nothing is left of the workspace");
        assert_eq!(kept, counted_afresh(&tables).await);
        assert_ne!(kept.values().filter_map(|raw| Size::decode(raw)).count(), 0, "others are counted");
        let (process, user) = start(&tables).await;
        assert_eq!(ask(&user, request("config")).await.config.len(), 0);
        assert!(process.shutdown(DEADLINE).await.is_empty());
        store.close().await;
    }
}
