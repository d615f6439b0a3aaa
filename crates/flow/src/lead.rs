//! Who acts: one flow service at a time, the one that holds the name `flow` on the broker. Whatever it does to queues goes
//! over that hold, so it can do nothing any more from the moment another may have it. A row in config says who it is.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_bus::{BrokerAdmin, Error};
use sluice_schema::record;
use sluice_sdk::{Apply, Backoff, ConfigClient, ConfigError};

use crate::memory::{LEADER, ONLY, expect, scoped_key, scoped_value};
use crate::tended::Trouble;

/// What is held on the broker.
const NAME: &str = "flow";
/// Pauses between tries to lead: short ones for a successor that waits for the broker to notice the end of its predecessor.
const STAND_BY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(2) };
/// How long taking the hold may take.
const HOLD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long letting go may take; the process is about to end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Who leads, for people. It decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Leader {
    /// An id that no other service has.
    pub(crate) holder: String,
    /// Counts leaders.
    pub(crate) epoch: u64,
    /// Where it runs.
    pub(crate) host: String,
    /// Its process there.
    pub(crate) pid: u32,
}

impl Leader {
    /// The leader on record, if somebody leads.
    pub(crate) async fn read(config: &ConfigClient) -> Result<Option<Self>, ConfigError> {
        Ok(Self::read_versioned(config).await?.1.filter(|leader| !leader.holder.is_empty()))
    }

    async fn read_versioned(config: &ConfigClient) -> Result<(i64, Option<Self>), ConfigError> {
        let found = config.get(record::FLOWS, LEADER, ONLY).await?;
        let version = found.as_ref().map_or(0, |value| value.version);
        let text = found.and_then(|value| value.value);
        Ok((version, text.and_then(|text| serde_json::from_str(&text).ok())))
    }
}

/// Leads or stands by.
pub(crate) struct Lead {
    admin: Arc<dyn BrokerAdmin>,
    config: Arc<ConfigClient>,
    holder: String,
    held: Option<Arc<dyn BrokerAdmin>>,
    /// The row and its version, once it names this service.
    row: Option<(i64, Leader)>,
    tries: u32,
    is_told: bool,
    trouble: Trouble,
}

impl Lead {
    pub(crate) fn new(admin: Arc<dyn BrokerAdmin>, config: Arc<ConfigClient>) -> Self {
        let holder = uuid::Uuid::new_v4().to_string();
        let trouble = Trouble::default();
        Self { admin, config, holder, held: None, row: None, tries: 0, is_told: false, trouble }
    }

    /// How soon [`Lead::tend`] should be called again by a service that stands by.
    pub(crate) fn pause(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        STAND_BY.pause(self.tries - 1)
    }

    /// The calls to act with while this service leads. After a lost hold it is `None` once, so that what was known under
    /// the old hold is dropped before there is a new one.
    pub(crate) async fn tend(&mut self) -> Option<Arc<dyn BrokerAdmin>> {
        if let Some(held) = &self.held {
            // Looking at nothing tells whether the hold still stands.
            if let Err(error) = held.observe(&[]).await {
                tracing::warn!(%error, "this flow service leads no more and stands by");
                (self.held, self.row, self.tries) = (None, None, 0);
                return None;
            }
        } else {
            self.held = self.hold().await;
        }
        let held = self.held.clone()?;
        if self.row.is_none() {
            match self.sign().await {
                Ok(row) => self.row = Some(row),
                Err(error) => {
                    if self.trouble.is_news(&error.to_string()) {
                        tracing::warn!(%error, "this flow service could not put down that it leads; trying again");
                    }
                    return None;
                }
            }
        }
        (self.tries, self.is_told) = (0, false);
        self.trouble.end();
        Some(held)
    }

    async fn hold(&mut self) -> Option<Arc<dyn BrokerAdmin>> {
        let outcome = tokio::time::timeout(HOLD_TIMEOUT, self.admin.hold(NAME)).await;
        match outcome {
            Ok(Ok(held)) => return Some(held),
            Ok(Err(Error::Held { .. })) if self.is_told => {}
            Ok(Err(Error::Held { .. })) => {
                tracing::info!("another flow service leads; this one stands by");
                self.is_told = true;
            }
            Ok(Err(error)) => {
                if self.trouble.is_news(&error.to_string()) {
                    tracing::warn!(%error, "this flow service cannot lead yet; trying again");
                }
            }
            Err(_) => {
                if self.trouble.is_news("no answer") {
                    tracing::warn!("the broker did not say whether this flow service leads; trying again");
                }
            }
        }
        None
    }

    /// Puts this service into the row. Nobody else does meanwhile but a predecessor whose write was under way; then it is
    /// done anew.
    async fn sign(&self) -> Result<(i64, Leader), ConfigError> {
        let (version, last) = Leader::read_versioned(&self.config).await?;
        let leader = Leader {
            holder: self.holder.clone(),
            epoch: last.map_or(0, |last| last.epoch) + 1,
            host: host(),
            pid: std::process::id(),
        };
        let version = self.config.apply(write(version, &leader)).await?;
        tracing::info!(epoch = leader.epoch, "this flow service leads");
        Ok((version, leader))
    }

    /// Lets go, so that another need not wait.
    pub(crate) async fn release(&mut self) {
        if let Some((version, leader)) = self.row.take() {
            let nobody = Leader { epoch: leader.epoch, ..Leader::default() };
            let signed_off = self.config.apply(write(version, &nobody));
            if !matches!(tokio::time::timeout(RELEASE_TIMEOUT, signed_off).await, Ok(Ok(_))) {
                tracing::debug!("the record of who leads still names this service");
            }
        }
        self.held = None;
    }
}

fn write(version: i64, leader: &Leader) -> Apply {
    Apply {
        expect: vec![expect(scoped_key(record::FLOWS, LEADER, ONLY), version)],
        puts: vec![scoped_value(record::FLOWS, LEADER, ONLY, leader)],
        quiet: true,
        essential: true,
        ..Apply::default()
    }
}

/// This machine, as its kernel calls it.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
