//! Supervised tasks: each has a name and a policy for its own failure, and shutdown waits for all of them.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use rand::Rng;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Growing pauses between tries, with jitter.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The first pause.
    pub min: Duration,
    /// The longest pause.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min: Duration::from_millis(100), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The pause before try number `attempt` (0 = the first retry): doubles up to the cap, ±20 %.
    #[must_use]
    pub fn pause(&self, attempt: u32) -> Duration {
        let doubled = self.min.saturating_mul(1_u32.checked_shl(attempt.min(20)).unwrap_or(u32::MAX));
        doubled.min(self.max).mul_f64(rand::rng().random_range(0.8..1.2))
    }
}

/// The tasks of a process. Cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<u64, (String, AbortHandle)>>>,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet; supervised ones end when `stop` is cancelled.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), running: Arc::default(), stop }
    }

    /// Runs a future to its end. A panic is logged as this task's failure and goes no further.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let name = name.into();
        let key = {
            static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        };
        let done = Done { running: self.running.clone(), key };
        let task_name = name.clone();
        let task = async move {
            let _done = done;
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                tracing::error!(task = task_name, panic = panic_text(&*panic), "a task panicked");
            }
        };
        // Registered before it can run, so that a task that ends at once is not left in the table.
        let mut running = lock(&self.running);
        #[expect(clippy::disallowed_methods, reason = "this is the one place where tasks begin")]
        let handle = tokio::spawn(self.tracker.track_future(task)).abort_handle();
        running.insert(key, (name, handle.clone()));
        handle
    }

    /// Runs `make`'s futures one after another until the process stops: after an error or a panic again with backoff,
    /// after `Ok` no more. The stop signal drops the future where it is.
    pub fn supervise<F, Fut, E>(&self, name: impl Into<String>, backoff: Backoff, mut make: F) -> AbortHandle
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let stop = self.stop.clone();
        self.supervise_to_end(name, backoff, move || {
            let (stop, future) = (stop.clone(), make());
            async move { stop.run_until_cancelled(future).await.unwrap_or(Ok(())) }
        })
    }

    /// As [`Tasks::supervise`] for futures that see the stop signal themselves and end their work before they return.
    pub fn supervise_to_end<F, Fut, E>(
        &self,
        name: impl Into<String>,
        backoff: Backoff,
        mut make: F,
    ) -> AbortHandle
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let name = name.into();
        let stop = self.stop.clone();
        let task_name = name.clone();
        self.spawn(name, async move {
            let mut attempt = 0;
            while !stop.is_cancelled() {
                let started = tokio::time::Instant::now();
                let (reason, is_told) = match AssertUnwindSafe(make()).catch_unwind().await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => (error.to_string(), is_broker_away(&error)),
                    Err(panic) => (format!("panic: {}", panic_text(&*panic)), false),
                };
                if started.elapsed() > backoff.max {
                    attempt = 0;
                }
                let pause = backoff.pause(attempt);
                attempt += 1;
                // While something is away for long, each time the failures have doubled is often enough to hear of it.
                if attempt.is_power_of_two() && !is_told {
                    tracing::warn!(
                        task = task_name,
                        reason,
                        attempt,
                        ?pause,
                        "a task failed and starts again"
                    );
                } else {
                    tracing::debug!(
                        task = task_name,
                        reason,
                        attempt,
                        ?pause,
                        "a task failed and starts again"
                    );
                }
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
        })
    }

    /// Waits for every task up to the deadline, then cuts the rest and tells their names. The stop signal must have been
    /// given before.
    pub async fn finish(&self, within: Duration) -> Vec<String> {
        self.tracker.close();
        if tokio::time::timeout(within, self.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let cut: Vec<(String, AbortHandle)> = lock(&self.running).values().cloned().collect();
        for (name, handle) in &cut {
            tracing::warn!(task = name, "cut at the shutdown deadline");
            handle.abort();
        }
        cut.into_iter().map(|(name, _)| name).collect()
    }
}

/// Whether a task failed because the broker is away. Its connection says so once for the whole process.
fn is_broker_away(error: &dyn Any) -> bool {
    matches!(error.downcast_ref(), Some(sluice_bus::Error::Unavailable { .. }))
}

struct Done {
    running: Arc<Mutex<BTreeMap<u64, (String, AbortHandle)>>>,
    key: u64,
}

impl Drop for Done {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.key);
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_failing_task_starts_again_and_a_panicking_one_too() {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let tries = Arc::new(AtomicU32::new(0));
        let seen = tries.clone();
        tasks.supervise("test", Backoff::default(), move || {
            let n = seen.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(n != 1, "the second try panics");
                if n < 3 { Err("not yet") } else { Ok(()) }
            }
        });
        assert!(tasks.finish(Duration::from_secs(60)).await.is_empty());
        assert_eq!(tries.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn only_an_absent_broker_goes_without_saying() {
        let away = sluice_bus::Error::Unavailable { reason: "x".to_owned() };
        assert!(is_broker_away(&away));
        assert!(!is_broker_away(&sluice_bus::Error::Refused { reason: "x".to_owned() }));
        assert!(!is_broker_away(&"the broker is not available"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_cut_by_name() {
        let tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("stuck", std::future::pending());
        assert_eq!(tasks.finish(Duration::from_secs(1)).await, ["stuck"]);
    }
}
