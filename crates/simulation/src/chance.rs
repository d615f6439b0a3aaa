//! What a seed decides, how often each thing happened, and the trace of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;

/// How long a step between two parts takes at most, mostly.
const PAUSE_MAX_MS: u64 = 4;
/// How long it takes where a part is slow.
const SLOW_MAX_MS: u64 = 3_000;

/// Steps of one world at most: what goes on longer goes round in a circle.
const PAUSES_MAX: u64 = 100_000;

pub(crate) struct Chance {
    random: Mutex<StdRng>,
    is_peace: AtomicBool,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    begun: Instant,
    steps: AtomicU64,
    is_told: bool,
}

impl Chance {
    pub(crate) fn new(seed: u64, is_told: bool) -> Self {
        Self {
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            is_peace: AtomicBool::new(false),
            counts: Mutex::default(),
            begun: Instant::now(),
            steps: AtomicU64::new(0),
            is_told,
        }
    }

    fn random(&self) -> MutexGuard<'_, StdRng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing fails.
    pub(crate) fn make_peace(&self) {
        self.is_peace.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_peace(&self) -> bool {
        self.is_peace.load(Ordering::SeqCst)
    }

    /// A number below `end`.
    pub(crate) fn below(&self, end: usize) -> usize {
        self.random().random_range(0..end.max(1))
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn percent(&self, percent: u32) -> bool {
        self.random().random_ratio(percent, 100)
    }

    /// Whether a fault happens here: so many in a hundred, none in peace.
    pub(crate) fn strikes(&self, what: &'static str, percent: u32) -> bool {
        let does = self.percent(percent) && !self.is_peace();
        if does {
            self.count(what);
        }
        does
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn duration(&self, max: Duration) -> Duration {
        let max = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.random().random_range(0..=max))
    }

    /// The time that a step from one part to another takes.
    pub(crate) async fn pause(&self) {
        let steps = self.steps.fetch_add(1, Ordering::Relaxed);
        assert!(steps < PAUSES_MAX, "parts of this world go round in a circle");
        let max = if self.strikes("slow step", 1) { SLOW_MAX_MS } else { PAUSE_MAX_MS };
        tokio::time::sleep(self.duration(Duration::from_millis(max))).await;
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Since the world began, in virtual time.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// A line of the trace.
    pub(crate) fn tell(&self, line: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:>10.3} {}", self.now().as_secs_f64(), line());
        }
    }
}
