//! Topics that a service owns: there from the start, and made again whenever one is gone.
//!
//! A queue can vanish while its owner runs: somebody deletes it at the broker, or sets its vhost up anew. Nobody but the
//! owner makes it again, so every owner looks at a period, and soon after a reader of its process reports that what it reads
//! is gone, or any process tells that it misses a topic of a service ([`crate::losses`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sluice_bus::{BrokerAdmin, Error, ErrorKind, TopicSpec};
use sluice_schema::{Topic, system};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::tasks::Backoff;
use crate::{Process, losses};

/// How often owners look without a report.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks at least, however many readers report.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(500);
/// Pauses between tries to hear what other processes miss.
const HEAR_AGAIN: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(10) };

/// Reports of readers that found their topic or subscription gone. One per process; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Missing {
    reports: watch::Sender<u64>,
    /// Whether what other processes miss is heard here.
    hears: Arc<AtomicBool>,
}

impl Missing {
    /// Reports an error of a reader, where it says that what it reads is gone.
    pub fn report(&self, error: &Error) {
        if error.kind() == ErrorKind::Absent {
            self.reports.send_modify(|count| *count += 1);
        }
    }

    /// Hears from now on what other processes miss of services' topics; told once per process is enough.
    pub(crate) fn hear(&self, process: &Process) {
        if self.hears.swap(true, Ordering::Relaxed) {
            return;
        }
        let (broker, missing, stop) = (process.broker.clone(), self.clone(), process.stop.clone());
        process.tasks.spawn("own/losses", async move {
            let lost = |topic: Topic| {
                if system::owner_of(&topic).is_some() {
                    missing.reports.send_modify(|count| *count += 1);
                }
            };
            let listening = async {
                for attempt in 0.. {
                    // The notices' own topic comes with the flow service.
                    let error = losses::listen(&*broker, &lost).await;
                    tracing::debug!(%error, "what other processes miss is not heard at the moment");
                    tokio::time::sleep(HEAR_AGAIN.pause(attempt)).await;
                }
            };
            stop.run_until_cancelled(listening).await;
        });
    }

    /// When to look whether everything owned is there.
    #[must_use]
    pub fn looks(&self) -> Looks {
        Looks { reports: self.reports.subscribe(), last: Instant::now() }
    }
}

/// Tells an owner when to look.
#[derive(Debug)]
pub struct Looks {
    reports: watch::Receiver<u64>,
    last: Instant,
}

impl Looks {
    /// Returns when it is time: [`LOOK_INTERVAL`] after the last, or soon after a report. Cancel-safe: a report that was
    /// not answered is answered by the next call.
    pub async fn next(&mut self) {
        // A copy, so that nothing counts as heard while this waits.
        let mut reports = self.reports.clone();
        let reported = async {
            let Ok(()) = reports.changed().await else { return std::future::pending().await };
            tokio::time::sleep_until(self.last + LOOK_INTERVAL_MIN).await;
        };
        tokio::select! {
            () = tokio::time::sleep_until(self.last + LOOK_INTERVAL) => {}
            () = reported => {}
        }
        self.reports.borrow_and_update();
        self.last = Instant::now();
    }
}

/// Makes topics that a service of this process owns, and makes them again where they are missing, until the process stops.
///
/// # Errors
/// As [`BrokerAdmin::ensure`], when they cannot be made in the first place.
pub async fn own(
    process: &Process,
    admin: &Arc<dyn BrokerAdmin>,
    owner: &str,
    topics: Vec<TopicSpec>,
) -> Result<(), Error> {
    ensure(&**admin, &topics).await?;
    process.missing.hear(process);
    let (admin, stop, mut looks) = (admin.clone(), process.stop.clone(), process.missing.looks());
    let name = owner.to_owned();
    process.tasks.spawn(format!("own/{owner}"), async move {
        while stop.run_until_cancelled(looks.next()).await.is_some() {
            let Some(made) = stop.run_until_cancelled(ensure(&*admin, &topics)).await else { return };
            if let Err(error) = made {
                tracing::warn!(owner = name, %error, "an own topic that may be missing could not be made; trying again");
            }
        }
    });
    Ok(())
}

/// Makes topics where they are missing.
///
/// # Errors
/// As [`BrokerAdmin::ensure`]; what comes after the first that fails is not tried.
pub(crate) async fn ensure(admin: &dyn BrokerAdmin, topics: &[TopicSpec]) -> Result<(), Error> {
    for topic in topics {
        admin.ensure(topic).await?;
    }
    Ok(())
}
