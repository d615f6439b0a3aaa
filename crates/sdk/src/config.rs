//! Typed calls to the config service on its system queue.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_bus::{Client, Error as BusError, ErrorKind, Replies};
use sluice_schema::message::{
    ConfigKey, ConfigRequest, ConfigResponse, ConfigValue, Error, Expectation, ScopedKey,
};
use sluice_schema::{Class, Topic, exchange};

/// How long one call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// What one page of a fetch holds, in bytes, unless a single value is larger.
pub const PAGE_BYTES: i64 = 4 << 20;
/// How often pages begin again because what comes next could not be told any more.
const EXPIRED_MAX: u32 = 8;

/// A failed config call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConfigError {
    /// The bus did not carry it, or no answer came.
    #[error("the config service could not be asked")]
    Bus(#[from] BusError),
    /// A value changed since it was read: read again before writing.
    #[error("config changed meanwhile: {0}")]
    Conflict(String),
    /// The service refused.
    #[error("config refused ({kind}): {message}")]
    Refused {
        /// Its stable type.
        kind: String,
        /// Its text.
        message: String,
    },
}

impl ConfigError {
    /// Whether the write may have happened although the call failed.
    #[must_use]
    pub fn outcome_is_unknown(&self) -> bool {
        match self {
            Self::Bus(error) => error.kind() == ErrorKind::OutcomeUnknown,
            Self::Refused { kind, .. } => kind == Error::OUTCOME_UNKNOWN,
            Self::Conflict(_) => false,
        }
    }

    /// Where nothing happened, and the same call may succeed in a moment: the type of error that says so to others.
    #[must_use]
    pub fn for_later(&self) -> Option<&'static str> {
        match self {
            Self::Bus(error) => match error.kind() {
                ErrorKind::Absent | ErrorKind::Unavailable => Some(Error::CONFIG_UNAVAILABLE),
                ErrorKind::Refused | ErrorKind::OutcomeUnknown => None,
            },
            Self::Refused { kind, .. } => {
                [Error::OVERLOADED, Error::CONFIG_UNAVAILABLE].into_iter().find(|later| later == kind)
            }
            Self::Conflict(_) => None,
        }
    }

    /// Whether nothing is wrong with a question, which nobody answered.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        self.for_later().is_some() || self.outcome_is_unknown()
    }
}

impl From<Error> for ConfigError {
    fn from(error: Error) -> Self {
        if error.r#type == "version-conflict" {
            Self::Conflict(error.message)
        } else {
            Self::Refused { kind: error.r#type, message: error.message }
        }
    }
}

/// One atomic write across workspaces.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Apply {
    /// Versions that must still hold (0 = the key is absent), else nothing is written.
    pub expect: Vec<Expectation>,
    /// Values to write, each with its workspace.
    pub puts: Vec<ConfigValue>,
    /// Keys to delete, each with its workspace.
    pub deletes: Vec<ScopedKey>,
    /// No version, no notice, no history: for leases and reports.
    pub quiet: bool,
    /// It has to work on a full disk, since things are removed by it: a stop's wish, a report, who leads.
    pub essential: bool,
}

/// Where a reader stands: a version, and the history that it belongs to. The default is before everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The version.
    pub version: i64,
    /// Its history, as the config service named it; empty where it names none.
    pub history: String,
}

impl Position {
    /// Where an answer leaves its reader. A version goes back only where the service names a history: the store was
    /// restored from an older copy. Else the answer came late, and what was read before is newer.
    #[must_use]
    pub fn after(&self, answer: &ConfigResponse) -> Self {
        let version =
            if answer.history.is_empty() { answer.version.max(self.version) } else { answer.version };
        Self { version, history: answer.history.clone() }
    }
}

/// A part of what is fetched: deletions first, then values, over what was known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// What was known before is forgotten first.
    pub is_whole: bool,
    /// Values to know.
    pub values: Vec<ConfigValue>,
    /// Keys that are gone.
    pub deleted: Vec<ScopedKey>,
    /// Keys whose values are there and cannot be read.
    pub damaged: Vec<ScopedKey>,
}

impl From<ConfigResponse> for Page {
    /// What an answer tells; whether what was known before is forgotten, its asker knows.
    fn from(answer: ConfigResponse) -> Self {
        let ConfigResponse { values, deleted, damaged, .. } = answer;
        Self { is_whole: false, values, deleted, damaged }
    }
}

/// Calls to `request:tg:config`, the queue that only internal callers reach.
pub struct ConfigClient {
    client: Client<exchange::Config>,
}

impl ConfigClient {
    /// A client on the system queue. The config service must have made its topics.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub async fn new(replies: &Replies) -> Result<Self, BusError> {
        let client =
            Client::new(replies, system_topic(Class::Request)?, &system_topic(Class::Response)?).await?;
        Ok(Self { client })
    }

    /// Sends any request.
    ///
    /// # Errors
    /// A [`ConfigError`]; an `error` in the answer is one.
    pub async fn call(&self, request: &ConfigRequest) -> Result<ConfigResponse, ConfigError> {
        let mut answer = self.client.call(request, CALL_TIMEOUT).await?;
        match answer.error.take() {
            None => Ok(answer),
            Some(error) => Err(error.into()),
        }
    }

    /// One value with its version, or `None`.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn get(
        &self,
        workspace: &str,
        kind: &str,
        key: &str,
    ) -> Result<Option<ConfigValue>, ConfigError> {
        let request = ConfigRequest {
            operation: "get".to_owned(),
            workspace: workspace.to_owned(),
            keys: vec![ConfigKey { r#type: kind.to_owned(), key: key.to_owned() }],
            ..Default::default()
        };
        let answer = self.call(&request).await?;
        Ok(answer.values.into_iter().next().filter(|found| found.value.is_some()))
    }

    /// Every value of a type in a workspace by key, however much it is.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn getvalues(&self, workspace: &str, kind: &str) -> Result<Vec<ConfigValue>, ConfigError> {
        let request = ConfigRequest {
            operation: "getvalues".to_owned(),
            workspace: workspace.to_owned(),
            r#type: kind.to_owned(),
            ..Default::default()
        };
        let mut known = BTreeMap::new();
        self.pages(request, |mut page| {
            if page.is_whole {
                known.clear();
            }
            for gone in page.deleted.drain(..) {
                known.remove(&gone.key);
            }
            known.extend(page.values.drain(..).map(|value| (value.key.clone(), value)));
        })
        .await?;
        Ok(known.into_values().collect())
    }

    /// A first page of the values of a type in a workspace, of about so many bytes; its `cursor` says whether there is more.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn getvalues_page(
        &self,
        workspace: &str,
        kind: &str,
        bytes_max: i64,
    ) -> Result<ConfigResponse, ConfigError> {
        let request = ConfigRequest {
            operation: "getvalues".to_owned(),
            workspace: workspace.to_owned(),
            r#type: kind.to_owned(),
            bytes_max,
            ..Default::default()
        };
        self.call(&request).await
    }

    /// Every key of a type in a workspace, however many they are.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn list(&self, workspace: &str, kind: &str) -> Result<Vec<String>, ConfigError> {
        let mut next = ConfigRequest {
            operation: "list".to_owned(),
            workspace: workspace.to_owned(),
            r#type: kind.to_owned(),
            bytes_max: PAGE_BYTES,
            ..Default::default()
        };
        let mut keys = Vec::new();
        loop {
            let mut answer = self.call(&next).await?;
            keys.append(&mut answer.directory);
            next.cursor = answer.cursor;
            if next.cursor.is_empty() {
                return Ok(keys);
            }
        }
    }

    /// Hands over an answer page by page; once more from the beginning where the next one cannot be told.
    async fn pages(
        &self,
        first: ConfigRequest,
        mut take: impl FnMut(Page) + Send,
    ) -> Result<(), ConfigError> {
        let mut tries = 0;
        let mut next = ConfigRequest { bytes_max: PAGE_BYTES, ..first };
        loop {
            let is_whole = next.cursor.is_empty();
            match self.call(&next).await {
                Ok(answer) => {
                    next.cursor.clone_from(&answer.cursor);
                    take(Page { is_whole, ..answer.into() });
                    if next.cursor.is_empty() {
                        return Ok(());
                    }
                }
                Err(ConfigError::Refused { kind, .. })
                    if kind == Error::PAGE_EXPIRED && tries < EXPIRED_MAX =>
                {
                    tries += 1;
                    next.cursor.clear();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Every value of a type in all workspaces, reserved ones included.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn getvalues_all(&self, kind: &str) -> Result<ConfigResponse, ConfigError> {
        let request = ConfigRequest {
            operation: "getvalues-all-ws".to_owned(),
            r#type: kind.to_owned(),
            ..Default::default()
        };
        self.call(&request).await
    }

    /// Values of several types in all workspaces, in one snapshot; with `since` > 0 only what changed after that version
    /// where the service can tell (the answer's `since` says so).
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn getvalues_many(&self, types: &[String], since: i64) -> Result<ConfigResponse, ConfigError> {
        self.changes(types, &Position { version: since, ..Position::default() }).await
    }

    /// What was written after a position, of several types in all workspaces: relative where the service can tell and the
    /// position is of its history (the answer's `since` says so), else everything. All of it has to fit one message; see
    /// [`ConfigClient::fetch`].
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn changes(&self, types: &[String], after: &Position) -> Result<ConfigResponse, ConfigError> {
        self.call(&changes(types, after)).await
    }

    /// The first page of what [`ConfigClient::fetch`] would hand over; its `cursor` says whether there is more.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn first_page(
        &self,
        types: &[String],
        after: &Position,
    ) -> Result<ConfigResponse, ConfigError> {
        self.call(&ConfigRequest { bytes_max: PAGE_BYTES, ..changes(types, after) }).await
    }

    /// What was written after a position, of several types in all workspaces, however much it is: handed over in pages, of
    /// which each goes over those before. What all of them make of what was known is true at the position that is
    /// returned, and not before.
    ///
    /// # Errors
    /// As [`ConfigClient::call`]; what was handed over until then is worth nothing.
    pub async fn fetch(
        &self,
        types: &[String],
        after: &Position,
        mut take: impl FnMut(Page) + Send,
    ) -> Result<Position, ConfigError> {
        let first = self.first_page(types, after).await?;
        match self.hand_over(types, after, first, &mut take).await {
            Err(ConfigError::Refused { kind, .. }) if kind == Error::PAGE_EXPIRED => {}
            done => return done,
        }
        // Something was deleted that had to be told, or config was restored: once more, from nothing.
        let nothing = Position::default();
        let first = self.first_page(types, &nothing).await?;
        self.hand_over(types, &nothing, first, &mut take).await
    }

    async fn hand_over(
        &self,
        types: &[String],
        after: &Position,
        mut answer: ConfigResponse,
        take: &mut (impl FnMut(Page) + Send),
    ) -> Result<Position, ConfigError> {
        let mut is_whole = answer.since <= 0;
        loop {
            let (cursor, end) = (std::mem::take(&mut answer.cursor), after.after(&answer));
            take(Page { is_whole, ..answer.into() });
            if cursor.is_empty() {
                return Ok(end);
            }
            is_whole = false;
            let next = ConfigRequest { bytes_max: PAGE_BYTES, cursor, ..changes(types, after) };
            answer = self.call(&next).await?;
        }
    }

    /// Writes values into one workspace as one step; the new version.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn put(&self, workspace: &str, values: Vec<ConfigValue>) -> Result<i64, ConfigError> {
        let request = ConfigRequest {
            operation: "put".to_owned(),
            workspace: workspace.to_owned(),
            values,
            ..Default::default()
        };
        Ok(self.call(&request).await?.version)
    }

    /// Deletes keys of one workspace as one step; the new version.
    ///
    /// # Errors
    /// As [`ConfigClient::call`].
    pub async fn delete(&self, workspace: &str, keys: Vec<ConfigKey>) -> Result<i64, ConfigError> {
        let request = ConfigRequest {
            operation: "delete".to_owned(),
            workspace: workspace.to_owned(),
            keys,
            ..Default::default()
        };
        Ok(self.call(&request).await?.version)
    }

    /// Writes and deletes across workspaces as one step, if everything expected still holds; the new version.
    ///
    /// # Errors
    /// As [`ConfigClient::call`]; [`ConfigError::Conflict`] when an expectation failed and nothing was written.
    pub async fn apply(&self, write: Apply) -> Result<i64, ConfigError> {
        let request = ConfigRequest {
            operation: "apply".to_owned(),
            r#if: write.expect,
            puts: write.puts,
            deletes: write.deletes,
            quiet: write.quiet,
            essential: write.essential,
            ..Default::default()
        };
        Ok(self.call(&request).await?.version)
    }
}

fn changes(types: &[String], after: &Position) -> ConfigRequest {
    ConfigRequest {
        operation: "getvalues-many".to_owned(),
        types: types.to_vec(),
        since: after.version,
        history: after.history.clone(),
        ..Default::default()
    }
}

fn system_topic(class: Class) -> Result<Topic, BusError> {
    Topic::tg(class, "config").map_err(|error| BusError::Refused { reason: error.to_string() })
}

/// A value to put.
#[must_use]
pub fn value(workspace: &str, kind: &str, key: &str, value: impl Into<String>) -> ConfigValue {
    ConfigValue {
        r#type: kind.to_owned(),
        key: key.to_owned(),
        value: Some(value.into()),
        workspace: workspace.to_owned(),
        version: 0,
    }
}
