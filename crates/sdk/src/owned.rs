//! Topics that a service owns: there from the start, and made again whenever one is gone.
//!
//! A queue can vanish while its owner runs: somebody deletes it at the broker, or sets its vhost up anew. Nobody but the
//! owner makes it again, so every owner looks at a period, and soon after a reader of its process reports that what it reads
//! is gone, or any process tells that it misses a topic of a service (`losses`).

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Broker, BrokerAdmin, Error, ErrorKind, TopicSpec};
use sluice_schema::system;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Process;

/// How often owners look without a report.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Between two looks at least, however many readers report.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(500);
/// How soon after a look at which not all that is missing could be made.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Reports of readers that found their topic or subscription gone. One per process; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Missing {
    reports: watch::Sender<u64>,
}

impl Missing {
    /// Reports an error of a reader, where it says that what it reads is gone.
    pub fn report(&self, error: &Error) {
        if error.kind() == ErrorKind::Absent {
            self.reports.send_modify(|count| *count += 1);
        }
    }

    /// Takes what anybody, in whichever process, misses of services' topics as a report.
    pub(crate) async fn hear(self, broker: Arc<dyn Broker>) {
        let Some(losses) = broker.losses() else { return };
        let mut news = losses.news();
        loop {
            if system::is_system(&news.next().await.0) {
                self.reports.send_modify(|count| *count += 1);
            }
        }
    }

    /// When to look whether everything owned is there.
    #[must_use]
    pub fn looks(&self) -> Looks {
        Looks { reports: self.reports.subscribe(), last: Instant::now(), pause: LOOK_INTERVAL }
    }
}

/// Tells an owner when to look.
#[derive(Debug)]
pub struct Looks {
    reports: watch::Receiver<u64>,
    last: Instant,
    pause: Duration,
}

impl Looks {
    /// What was missing at the last look could not be made: the next one comes soon.
    pub fn failed(&mut self) {
        self.pause = LOOK_AGAIN;
    }

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
            () = tokio::time::sleep_until(self.last + self.pause) => {}
            () = reported => {}
        }
        self.reports.borrow_and_update();
        (self.last, self.pause) = (Instant::now(), LOOK_INTERVAL);
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
    keep(process, admin, owner, topics, process.missing.looks());
    Ok(())
}

/// The same for topics that need not be there at once: on return they are, unless the broker cannot make them yet.
pub async fn own_soon(process: &Process, admin: &Arc<dyn BrokerAdmin>, owner: &str, topics: Vec<TopicSpec>) {
    let mut looks = process.missing.looks();
    if let Err(error) = ensure(&**admin, &topics).await {
        tracing::warn!(owner, %error, "an own topic could not be made yet; trying again");
        looks.failed();
    }
    keep(process, admin, owner, topics, looks);
}

fn keep(
    process: &Process,
    admin: &Arc<dyn BrokerAdmin>,
    owner: &str,
    topics: Vec<TopicSpec>,
    mut looks: Looks,
) {
    let (admin, stop, name) = (admin.clone(), process.stop.clone(), owner.to_owned());
    process.tasks.spawn(format!("own/{owner}"), async move {
        while stop.run_until_cancelled(looks.next()).await.is_some() {
            let Some(made) = stop.run_until_cancelled(ensure(&*admin, &topics)).await else { return };
            if let Err(error) = made {
                tracing::warn!(owner = name, %error, "an own topic that may be missing could not be made; trying again");
                looks.failed();
            }
        }
    });
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
