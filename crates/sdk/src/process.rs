//! What every program of a process shares: the broker, the one reply inbox, tasks, the stop signal, metrics.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_bus::{Broker, Replies};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::owned::Missing;
use crate::service::{LATE_KIB_MAX, Rooms};
use crate::{Metrics, Suspects, Tasks};

/// One per process, handed to every service in it. Cheap to clone.
#[derive(Clone)]
pub struct Process {
    /// The data path.
    pub broker: Arc<dyn Broker>,
    /// The one reply inbox.
    pub replies: Replies,
    /// Supervised tasks.
    pub tasks: Tasks,
    /// Cancelled when the process should stop.
    pub stop: CancellationToken,
    /// Counters and durations of everything that runs here.
    pub metrics: Metrics,
    /// What is known of messages that may have ended a process.
    pub suspects: Arc<Suspects>,
    /// Where readers report that what they read is gone.
    pub missing: Missing,
    /// Why nobody should rely on it at the moment, although it answers.
    pub trouble: Trouble,
    /// Room for answers that are sent again.
    pub(crate) late: Arc<Semaphore>,
    /// Room for large answers that are being made.
    pub(crate) rooms: Arc<Rooms>,
}

/// Why nobody should rely on a process at the moment, although it answers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<Option<Arc<str>>>>);

impl Trouble {
    /// The reason, with what to do; `None` while all is well.
    #[must_use]
    pub fn reason(&self) -> Option<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts down the reason, or that all is well. Anybody may read it: it names no place on this machine.
    pub fn set(&self, reason: Option<&str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason.map(Into::into);
    }
}

impl Process {
    /// A process on `broker`; begins to receive replies at once. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(broker: Arc<dyn Broker>, stop: CancellationToken) -> Self {
        let replies = Replies::new(broker.clone());
        let tasks = Tasks::new(stop.clone());
        tasks.spawn("bus/replies", replies.clone().run(stop.child_token()));
        let (missing, ended) = (Missing::default(), stop.clone());
        // Whoever is to hear of losses listens before any is told.
        let losses = [
            Box::pin(missing.clone().hear(broker.clone())) as sluice_bus::BoxFuture<'static, ()>,
            Box::pin(crate::losses::exchange(broker.clone())),
        ];
        tasks.spawn("bus/losses", async move {
            ended.run_until_cancelled(futures_util::future::join_all(losses)).await;
        });
        let metrics = Metrics::default();
        let suspects = Arc::default();
        let trouble = Trouble::default();
        let late = Arc::new(Semaphore::new(LATE_KIB_MAX));
        let rooms = Arc::default();
        Self { broker, replies, tasks, stop, metrics, suspects, missing, trouble, late, rooms }
    }

    /// A part of this process that can be stopped before the rest: its own tasks and stop signal, the same broker, reply
    /// inbox and metrics. What a part still has to say while it stops, the rest can answer.
    #[must_use]
    pub fn part(&self) -> Self {
        let stop = self.stop.child_token();
        Self { tasks: Tasks::new(stop.clone()), stop, ..self.clone() }
    }

    /// Lets nobody have room for a large answer until what this gives back is dropped. For tests of those who make them.
    #[must_use]
    pub fn take_all_room(&self) -> impl Sized + use<> {
        self.rooms.close()
    }

    /// Gives the stop signal and waits for the tasks; at the deadline cuts what is left and returns the names.
    pub async fn shutdown(&self, drain_timeout: Duration) -> Vec<String> {
        self.stop.cancel();
        self.tasks.finish(drain_timeout).await
    }
}
