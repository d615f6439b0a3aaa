//! Which workspaces there should be. Rows in the store say it; the registry in config, which everything else follows, is
//! kept equal to the enabled ones by a loop that also carries out every change. So a change that is cut short heals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sluice_schema::ceilings::{self, json_bytes};
use sluice_schema::message::{Error, Expectation, ScopedKey, WorkspaceInput, WorkspaceRecord};
use sluice_schema::{WorkspaceId, record, wire};
use sluice_sdk::{Apply, ConfigClient, ConfigError, Position, Process, config};
use sluice_store::{Batch, ErrorKind, Found, KeyRange, Read, Tables};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::clock;

/// The workspace that is made where there is none.
pub(crate) const DEFAULT: &str = "default";

const TABLE: &str = "iam.workspace";
const ROWS_READ: usize = 1_000;
/// How often rows and registry are compared without a change.
const COMPARE_INTERVAL: Duration = Duration::from_secs(60);
/// How often a comparison starts over because somebody else was faster.
const RACES_MAX: usize = 8;
/// Changes that may wait for the loop.
const WAITING_MAX: usize = 64;

/// What is stored of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    name: String,
    enabled: bool,
    created: String,
}

/// A change or a question.
#[derive(Debug)]
pub(crate) enum Ask {
    Create(WorkspaceInput),
    Get(String),
    List,
    Update(WorkspaceInput),
    Disable(String),
}

struct Job {
    ask: Ask,
    answer: oneshot::Sender<Result<Vec<WorkspaceRecord>, Error>>,
}

/// The way to the loop. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Workspaces {
    jobs: mpsc::Sender<Job>,
}

impl Workspaces {
    /// Carries out a change or answers a question; one record, except for a list.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<Vec<WorkspaceRecord>, Error> {
        let stopping = || Error::new("internal-error", "the identity service is stopping; try again");
        let (answer, told) = oneshot::channel();
        self.jobs.send(Job { ask, answer }).await.map_err(|_| stopping())?;
        told.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Brings rows and registry together, makes the first workspace where there is none, and starts the loop.
pub(crate) async fn start(
    process: &Process,
    tables: Arc<dyn Tables>,
    config: ConfigClient,
) -> Result<Workspaces, crate::Error> {
    let mut keeper =
        Keeper { tables, config, rows: None, registered: BTreeMap::new(), at: Position::default() };
    keeper.compare().await?;
    if keeper.rows().await?.is_empty() {
        let row = Row { name: "Default".to_owned(), enabled: true, created: clock::now() };
        keeper.store(DEFAULT, &row, None).await?;
        keeper.compare().await?;
    }
    let (jobs, waiting) = mpsc::channel(WAITING_MAX);
    let stop = process.stop.clone();
    process.tasks.spawn("iam/workspaces", async move {
        stop.run_until_cancelled(keeper.run(waiting)).await;
    });
    Ok(Workspaces { jobs })
}

/// Why something could not be done, of which the asker is told that it could not.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Store(#[from] sluice_store::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl From<Failed> for crate::Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Store(error) => error.into(),
            Failed::Config(error) => error.into(),
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        let told = match &failed {
            Failed::Config(ConfigError::Bus(error)) => format!("{failed}: {error}"),
            _ => failed.to_string(),
        };
        tracing::error!(error = told, "a workspace could not be kept");
        let kind = match &failed {
            Failed::Store(error) if error.kind() == ErrorKind::Unavailable => Self::STORE_UNAVAILABLE,
            Failed::Config(ConfigError::Refused { kind, .. }) if kind == Self::CONFIG_UNAVAILABLE => kind,
            _ => "internal-error",
        };
        Self::new(kind, told)
    }
}

type Rows = BTreeMap<String, (Row, Bytes)>;

struct Keeper {
    tables: Arc<dyn Tables>,
    config: ConfigClient,
    /// As they rest, if that is known: nobody else writes them while this process runs, and every write insists on what it
    /// replaces.
    rows: Option<Rows>,
    /// The registry and its versions, as of a position of config.
    registered: BTreeMap<String, i64>,
    at: Position,
}

impl Keeper {
    async fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut next = Instant::now() + COMPARE_INTERVAL;
        loop {
            match tokio::time::timeout_at(next, waiting.recv()).await {
                Ok(Some(Job { ask, answer })) => drop(answer.send(self.carry_out(ask).await)),
                Ok(None) => return,
                Err(_) => {
                    next = Instant::now() + COMPARE_INTERVAL;
                    self.rows = None;
                    if let Err(error) = self.compare().await {
                        tracing::warn!(%error, "the registry of workspaces could not be compared; trying again later");
                    }
                }
            }
        }
    }

    async fn carry_out(&mut self, ask: Ask) -> Result<Vec<WorkspaceRecord>, Error> {
        if let Ask::Create(input) | Ask::Update(input) = &ask {
            ceilings::within("the name of a workspace", json_bytes(&input.name), ceilings::NAME_BYTES_MAX)?;
        }
        let rows = self.rows().await?;
        let known = |id: &str| match rows.get(id) {
            _ if id.is_empty() => Err(Error::new("invalid-argument", "workspace_record.id required")),
            Some((row, raw)) => Ok((row.clone(), raw.clone())),
            None => Err(Error::new("not-found", "workspace not found")),
        };
        let (id, row) = match ask {
            Ask::List => return Ok(rows.iter().map(|(id, (row, _))| record_of(id, row)).collect()),
            Ask::Get(id) => {
                let (row, _) = known(&id)?;
                return Ok(vec![record_of(&id, &row)]);
            }
            Ask::Create(input) => {
                let row = match rows.get(&input.id).cloned() {
                    // What is there keeps its name, and is there again if it was disabled.
                    Some((row, raw)) if input.enabled && !row.enabled => {
                        let row = Row { enabled: true, ..row };
                        self.store(&input.id, &row, Some(raw)).await?;
                        row
                    }
                    Some((row, _)) => row,
                    None => {
                        check_new(&input.id, rows)?;
                        let name = if input.name.is_empty() { input.id.clone() } else { input.name };
                        let row = Row { name, enabled: input.enabled, created: clock::now() };
                        self.store(&input.id, &row, None).await?;
                        row
                    }
                };
                (input.id, row)
            }
            Ask::Update(input) => {
                let (mut row, raw) = known(&input.id)?;
                if !input.name.is_empty() {
                    row.name = input.name;
                }
                row.enabled = input.enabled;
                self.store(&input.id, &row, Some(raw)).await?;
                (input.id, row)
            }
            Ask::Disable(id) => {
                let (mut row, raw) = known(&id)?;
                row.enabled = false;
                self.store(&id, &row, Some(raw)).await?;
                (id, row)
            }
        };
        self.compare().await?;
        Ok(vec![record_of(&id, &row)])
    }

    async fn rows(&mut self) -> Result<&Rows, Failed> {
        let rows = match self.rows.take() {
            Some(rows) => rows,
            None => self.read_rows().await?,
        };
        Ok(self.rows.insert(rows))
    }

    async fn read_rows(&self) -> Result<Rows, Failed> {
        let mut rows = Rows::new();
        let mut range = KeyRange::all();
        loop {
            let found = self.tables.read(vec![Read::range(TABLE, range.clone(), ROWS_READ)]).await?;
            let page = found.into_iter().next().map(Found::into_rows).unwrap_or_default();
            let last = page.rows.last().map(|(key, _)| key.clone());
            for (key, raw) in page.rows {
                let id = String::from_utf8_lossy(&key).into_owned();
                let row = wire::decode(&raw).map_err(|e| sluice_store::Error::Damaged {
                    what: format!("workspace '{id}'"),
                    reason: e.to_string(),
                })?;
                rows.insert(id, (row, raw));
            }
            match last {
                Some(last) if page.more => range = range.after(last),
                _ => return Ok(rows),
            }
        }
    }

    async fn store(&mut self, id: &str, row: &Row, was: Option<Bytes>) -> Result<(), Failed> {
        let raw = wire::encode(row);
        let mut batch = Batch::new();
        batch.expect(TABLE, id, was);
        batch.put(TABLE, id, raw.clone());
        // Of a write that failed it is not known what it left.
        let known = self.rows.take();
        self.tables.commit(batch).await?;
        self.rows = known.map(|mut rows| {
            rows.insert(id.to_owned(), (row.clone(), raw));
            rows
        });
        Ok(())
    }

    /// The registry as of now: what was written since the last look is read, and no more.
    async fn look_at_registry(&mut self) -> Result<(), Failed> {
        // Where reading fails, what was known is forgotten: some of what came may be in it.
        let (mut known, at) = (std::mem::take(&mut self.registered), std::mem::take(&mut self.at));
        let types = [record::WORKSPACE.to_owned()];
        let at = self
            .config
            .fetch(&types, &at, |page| {
                if page.is_whole {
                    known.clear();
                }
                let is_ours = |workspace: &str| workspace == record::WORKSPACES;
                for gone in page.deleted.into_iter().filter(|gone| is_ours(&gone.workspace)) {
                    known.remove(&gone.key);
                }
                let written = page.values.into_iter().filter(|value| is_ours(&value.workspace));
                known.extend(written.map(|value| (value.key, value.version)));
            })
            .await?;
        (self.registered, self.at) = (known, at);
        Ok(())
    }

    /// Makes the registry hold exactly the enabled rows. What is registered and has no row came from elsewhere, and gets
    /// one. Looks again when somebody else wrote meanwhile.
    async fn compare(&mut self) -> Result<(), Failed> {
        for _ in 0..RACES_MAX {
            match self.compare_once().await {
                Err(Failed::Config(ConfigError::Conflict(_))) => {}
                Err(Failed::Config(error)) if error.outcome_is_unknown() => {}
                Err(Failed::Store(error)) if error.is_conflict() => {}
                compared => return compared,
            }
        }
        self.compare_once().await
    }

    async fn compare_once(&mut self) -> Result<(), Failed> {
        self.look_at_registry().await?;
        let rows = self.rows().await?.clone();
        let versions = self.registered.clone();
        for id in versions.keys().filter(|id| !rows.contains_key(*id) && !id.starts_with('_')) {
            let row = Row { name: id.clone(), enabled: true, created: clock::now() };
            self.store(id, &row, None).await?;
        }
        let wanted: BTreeSet<&str> =
            rows.iter().filter(|(_, (row, _))| row.enabled).map(|(id, _)| id.as_str()).collect();
        let missing = wanted.iter().copied().filter(|id| !versions.contains_key(*id));
        let unwanted = versions.keys().filter(|id| rows.contains_key(*id) && !wanted.contains(id.as_str()));
        let mut write = Apply::default();
        for id in missing {
            write.expect.push(expectation(id, 0));
            write.puts.push(config::value(record::WORKSPACES, record::WORKSPACE, id, "{\"enabled\": true}"));
        }
        for id in unwanted {
            write.expect.push(expectation(id, versions.get(id).copied().unwrap_or_default()));
            write.deletes.push(ScopedKey {
                workspace: record::WORKSPACES.to_owned(),
                r#type: record::WORKSPACE.to_owned(),
                key: id.clone(),
            });
        }
        // What goes, goes first: no ceiling that keeps one out keeps another one in.
        let gone: BTreeSet<&str> = write.deletes.iter().map(|at| at.key.as_str()).collect();
        let (of_gone, of_new) = write.expect.into_iter().partition(|expected| gone.contains(&*expected.key));
        if !write.deletes.is_empty() {
            self.config.apply(Apply { expect: of_gone, deletes: write.deletes, ..Apply::default() }).await?;
        }
        if !write.puts.is_empty() {
            self.config.apply(Apply { expect: of_new, puts: write.puts, ..Apply::default() }).await?;
        }
        Ok(())
    }
}

fn expectation(id: &str, version: i64) -> Expectation {
    Expectation {
        workspace: record::WORKSPACES.to_owned(),
        r#type: record::WORKSPACE.to_owned(),
        key: id.to_owned(),
        version,
    }
}

fn record_of(id: &str, row: &Row) -> WorkspaceRecord {
    WorkspaceRecord {
        id: id.to_owned(),
        name: row.name.clone(),
        enabled: row.enabled,
        created: row.created.clone(),
    }
}

/// Whether a workspace of this id may be made beside those there are.
fn check_new(id: &str, rows: &Rows) -> Result<(), Error> {
    let refuse = |message: String| Err(Error::new("invalid-argument", message));
    if id.is_empty() {
        return refuse("workspace_record.id required for create-workspace".to_owned());
    }
    if id.starts_with('_') {
        return refuse("workspace ids beginning with '_' are reserved".to_owned());
    }
    if let Err(error) = WorkspaceId::parse(id) {
        return refuse(error.to_string());
    }
    if rows.len() >= ceilings::WORKSPACES_MAX {
        let most = ceilings::WORKSPACES_MAX;
        let told = format!(
            "there are {most} workspaces, disabled ones counted, and no more are made; use one of them"
        );
        return Err(Error::new(Error::TOO_LARGE, told));
    }
    match rows.keys().find(|other| folded(other) == folded(id)) {
        Some(other) => {
            refuse(format!("workspace '{id}' is too like '{other}': stores cannot tell their names apart"))
        }
        None => Ok(()),
    }
}

/// An id as some stores keep it.
fn folded(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_are_checked() {
        let row = Row { name: String::new(), enabled: false, created: String::new() };
        let rows: Rows = [("a_b".to_owned(), (row, Bytes::new()))].into();
        assert!(check_new("a-c", &rows).is_ok());
        let check = |id: &str, expected: &str| {
            let error = check_new(id, &rows).unwrap_err();
            assert_eq!(error.r#type, "invalid-argument");
            assert!(error.message.contains(expected), "{}", error.message);
        };
        check("", "workspace_record.id required for create-workspace");
        check("__x__", "reserved");
        check("Acme", "lower-case");
        check("a:b", "not valid");
        check("a-b", "too like 'a_b'");
        let row = Row { name: String::new(), enabled: true, created: String::new() };
        let full: Rows =
            (0..ceilings::WORKSPACES_MAX).map(|n| (format!("w{n}"), (row.clone(), Bytes::new()))).collect();
        let error = check_new("one-more", &full).unwrap_err();
        assert!(error.r#type == "too-large" && error.message.contains("10000"), "{}", error.message);
    }
}
