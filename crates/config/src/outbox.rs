//! Telling of changes: notices rest beside what they tell of, and one loop sends them in version order.
//!
//! With several instances over one store each sends every notice it finds, lowest first, and forgets a notice only after
//! sending it. So the first time a version is heard, every lower one was heard before; what is heard again is ignored by
//! its version.

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Address, Broker, BrokerAdmin, ErrorKind, Message, TopicSpec};
use sluice_schema::Topic;
use sluice_sdk::Backoff;
use sluice_store::{Found, KeyRange, Tables, contract::Read as Look};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::layout::{self, OUTBOX};
use crate::writer::Sent;

/// How often the outbox is looked at without being told, for notices that another instance left behind.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Notices read in one go.
const READ_COUNT: usize = 256;
const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(5) };

/// What wakes the loop and hears how far it got. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outbox {
    poke: Arc<Notify>,
    sent_to: Arc<watch::Sender<i64>>,
    stop: CancellationToken,
}

/// What the loop needs.
pub(crate) struct Wire {
    pub(crate) tables: Arc<dyn Tables>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    pub(crate) topic: Topic,
    pub(crate) sent: Arc<Sent>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the outbox could not be read: {0}")]
    Store(#[from] sluice_store::Error),
    #[error("a notice could not be sent: {0}")]
    Bus(#[from] sluice_bus::Error),
}

impl Outbox {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self { poke: Arc::default(), sent_to: Arc::new(watch::Sender::new(0)), stop }
    }

    /// Waits until the notice of `version` was sent, at most `within` and not beyond the stop; until then it stays
    /// recorded.
    pub(crate) async fn wait(&self, version: i64, within: Duration) {
        let mut sent_to = self.sent_to.subscribe();
        self.poke.notify_one();
        let sent = self.stop.run_until_cancelled(sent_to.wait_for(|to| *to >= version));
        if tokio::time::timeout(within, sent).await.is_err() {
            tracing::warn!(version, ?within, "a notice waits in the outbox; the broker does not take it");
        }
    }

    /// Sends what rests and what comes, until the stop.
    pub(crate) async fn run(self, wire: Arc<Wire>) {
        let mut attempt = 0;
        loop {
            let pause = match self.send_all(&wire).await {
                Ok(()) => {
                    attempt = 0;
                    LOOK_INTERVAL
                }
                Err(error) => {
                    let pause = RETRY.pause(attempt);
                    attempt += 1;
                    tracing::warn!(%error, ?pause, "notices wait; trying again");
                    make_again(&wire, &error).await;
                    pause
                }
            };
            let poked = async {
                if attempt == 0 {
                    self.poke.notified().await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = poked => {}
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {
                    // Writes that were under way are told as well.
                    let _ = self.send_all(&wire).await;
                    return;
                }
            }
        }
    }

    /// Sends every notice not sent yet.
    pub(crate) async fn send_all(&self, wire: &Wire) -> Result<(), Error> {
        loop {
            let after = *self.sent_to.borrow();
            let range = KeyRange { from: layout::outbox_key(after + 1).into(), to: None };
            let found = wire.tables.read(vec![Look::range(OUTBOX, range, READ_COUNT)]).await?;
            let rows = found.into_iter().next().map(Found::into_rows).unwrap_or_default();
            for (key, body) in rows.rows {
                let Some((version, _)) = layout::history_of(&key) else { continue };
                wire.broker.publish(&Address::Topic(wire.topic.clone()), Message::new(body)).await?;
                wire.sent.add([version]);
                self.sent_to.send_replace(version);
            }
            if !rows.more {
                return Ok(());
            }
        }
    }
}

async fn make_again(wire: &Wire, error: &Error) {
    if let Error::Bus(error) = error
        && error.kind() == ErrorKind::Absent
        && let Err(error) = wire.admin.ensure(&TopicSpec::bare(wire.topic.clone())).await
    {
        tracing::warn!(%error, "the notice topic could not be made again");
    }
}
