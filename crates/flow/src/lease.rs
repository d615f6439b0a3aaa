//! Who acts: one flow service at a time. The lease is a row that its holder rewrites; whoever sees it unchanged for a whole
//! term, by its own clock, may take it. Every write insists on the row that was read, so two can never both succeed.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_schema::record;
use sluice_sdk::{Apply, ConfigClient, ConfigError};
use tokio::time::Instant;

use crate::memory::{LEASE, ONLY, expect, scoped_key, scoped_value};

/// A day: longer than anything else lets the loop sleep.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
/// How long letting go may take; the process is about to end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How the lease is kept.
#[derive(Debug, Clone, Copy)]
pub struct LeaseOptions {
    /// How long a holder may be silent before another takes over; renewed three times as often. Default 10 s.
    pub term: Duration,
    /// Nobody else can be there, because the broker or the store is this process's own: the lease is taken at once and
    /// need not be renewed. Default false.
    pub is_sole: bool,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self { term: Duration::from_secs(10), is_sole: false }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    holder: String,
    /// Counts holders.
    epoch: u64,
    /// Counts renewals.
    beat: u64,
}

pub(crate) struct Lease {
    config: Arc<ConfigClient>,
    options: LeaseOptions,
    holder: String,
    state: State,
}

enum State {
    /// Somebody else may hold it; the version of the row last seen, and since when it has been that.
    Watching(Option<(i64, Instant)>),
    Holding {
        row: Row,
        version: i64,
        renewed: Instant,
    },
}

impl Lease {
    pub(crate) fn new(config: Arc<ConfigClient>, options: LeaseOptions) -> Self {
        let holder = uuid::Uuid::new_v4().to_string();
        Self { config, options, holder, state: State::Watching(None) }
    }

    /// How soon [`Lease::tend`] wants to be called again.
    pub(crate) fn interval(&self) -> Duration {
        match &self.state {
            State::Holding { .. } if self.options.is_sole => NEVER,
            State::Holding { .. } | State::Watching(_) => self.renewal(),
        }
    }

    fn renewal(&self) -> Duration {
        self.options.term / 3
    }

    /// Renews or tries to take the lease where it is time; whether this service may act now.
    pub(crate) async fn tend(&mut self) -> bool {
        let result = match &self.state {
            State::Holding { .. } if self.options.is_sole => return true,
            State::Holding { renewed, .. } if renewed.elapsed() < self.renewal() => return true,
            State::Holding { row, version, .. } => self.renew(row.clone(), *version).await,
            State::Watching(seen) => self.watch(*seen).await,
        };
        match result {
            Ok(state) => self.state = state,
            Err(ConfigError::Conflict(_)) => {
                tracing::warn!("another flow service holds the lease; this one stands by");
                self.state = State::Watching(None);
            }
            Err(error) => tracing::warn!(%error, "the lease could not be tended"),
        }
        // One renewal may be lost, not two: others wait a whole term.
        matches!(&self.state, State::Holding { renewed, .. }
            if self.options.is_sole || renewed.elapsed() < self.renewal() * 2)
    }

    /// Lets go, so that another need not wait.
    pub(crate) async fn release(&mut self) {
        let State::Holding { version, .. } = &self.state else { return };
        if self.options.is_sole {
            return;
        }
        let at = scoped_key(record::FLOWS, LEASE, ONLY);
        let write = Apply {
            expect: vec![expect(at.clone(), *version)],
            deletes: vec![at],
            quiet: true,
            ..Apply::default()
        };
        let released = tokio::time::timeout(RELEASE_TIMEOUT, self.config.apply(write)).await;
        if !matches!(released, Ok(Ok(_))) {
            tracing::debug!("the lease was not released; it ends with its term");
        }
        self.state = State::Watching(None);
    }

    async fn watch(&self, seen: Option<(i64, Instant)>) -> Result<State, ConfigError> {
        let found = self.config.get(record::FLOWS, LEASE, ONLY).await?;
        let version = found.as_ref().map_or(0, |value| value.version);
        let since = seen.filter(|(seen, _)| *seen == version).map_or_else(Instant::now, |(_, since)| since);
        let is_free = found.is_none() || self.options.is_sole || since.elapsed() >= self.options.term;
        if !is_free {
            return Ok(State::Watching(Some((version, since))));
        }
        let old: Option<Row> =
            found.and_then(|value| value.value).and_then(|text| serde_json::from_str(&text).ok());
        let epoch = old.map_or(0, |row| row.epoch) + 1;
        self.write(Row { holder: self.holder.clone(), epoch, beat: 0 }, version).await
    }

    async fn renew(&self, mut row: Row, version: i64) -> Result<State, ConfigError> {
        row.beat += 1;
        self.write(row, version).await
    }

    async fn write(&self, row: Row, version: i64) -> Result<State, ConfigError> {
        let renewed = Instant::now();
        let write = Apply {
            expect: vec![expect(scoped_key(record::FLOWS, LEASE, ONLY), version)],
            puts: vec![scoped_value(record::FLOWS, LEASE, ONLY, &row)],
            quiet: true,
            ..Apply::default()
        };
        let version = self.config.apply(write).await?;
        Ok(State::Holding { row, version, renewed })
    }
}
