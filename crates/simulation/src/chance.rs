//! What a seed decides, how often each thing happened, and the trace of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a step between two parts takes at most, mostly.
const PAUSE_MAX_MS: u64 = 4;
/// How long it takes where a part is slow.
const SLOW_MAX_MS: u64 = 3_000;

/// What befalls one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// It fails, and nothing is done.
    FailBefore,
    /// It is done, and nobody learns of it.
    FailAfter,
    /// Its process dies, and nothing is done.
    CrashBefore,
    /// It is done, and its process dies.
    CrashAfter,
    /// No word comes within its time, and nothing is done.
    TimeOut,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] =
        [Self::FailBefore, Self::FailAfter, Self::CrashBefore, Self::CrashAfter, Self::TimeOut];
}

/// Steps that are numbered, and which of them something befalls.
#[derive(Default)]
struct Steps {
    is_counting: bool,
    /// How often a step of the same name is numbered.
    alike_max: usize,
    alike: BTreeMap<String, usize>,
    seen: Vec<String>,
    armed: Option<(usize, Fault)>,
    fired: bool,
}

/// Steps of one world at most: what goes on longer goes round in a circle.
const PAUSES_MAX: u64 = 100_000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Chance {
    random: Mutex<StdRng>,
    is_peace: AtomicBool,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    begun: Instant,
    steps: AtomicU64,
    steps_max: AtomicU64,
    numbered: Mutex<Steps>,
    crashes: Mutex<BTreeMap<&'static str, Arc<Notify>>>,
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
            steps_max: AtomicU64::new(PAUSES_MAX),
            numbered: Mutex::default(),
            crashes: Mutex::default(),
            is_told,
        }
    }

    fn random(&self) -> MutexGuard<'_, StdRng> {
        lock(&self.random)
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
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.counts).clone()
    }

    pub(crate) fn duration(&self, max: Duration) -> Duration {
        let max = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.random().random_range(0..=max))
    }

    /// The time that a step from one part to another takes.
    pub(crate) async fn pause(&self) {
        let steps = self.steps.fetch_add(1, Ordering::Relaxed);
        if steps >= self.steps_max.load(Ordering::Relaxed) {
            println!("parts of this world go round in a circle");
            std::process::exit(2);
        }
        let max = if self.strikes("slow step", 1) { SLOW_MAX_MS } else { PAUSE_MAX_MS };
        tokio::time::sleep(self.duration(Duration::from_millis(max))).await;
    }

    /// A world in which more happens than in most.
    pub(crate) fn allow_steps(&self, most: u64) {
        self.steps_max.store(most, Ordering::Relaxed);
    }

    /// From now on the steps of services are numbered; something befalls the one of this number.
    pub(crate) fn number_steps(&self, armed: Option<(usize, Fault)>, alike_max: usize) {
        let mut numbered = lock(&self.numbered);
        numbered.is_counting = true;
        numbered.alike_max = alike_max;
        numbered.armed = armed;
    }

    /// What comes from now on has no number.
    pub(crate) fn stop_numbering(&self) {
        lock(&self.numbered).is_counting = false;
    }

    /// The steps that were numbered, and whether something befell the one that it was meant for.
    pub(crate) fn numbered(&self) -> (Vec<String>, bool) {
        let numbered = lock(&self.numbered);
        (numbered.seen.clone(), numbered.fired)
    }

    /// What befalls this step of a process.
    pub(crate) fn befalls(&self, process: &str, what: &str) -> Option<Fault> {
        let mut numbered = lock(&self.numbered);
        let is_service = process.starts_with("config") || process.starts_with("flow");
        // What only looks may fail like anything else, which the seeds try; its moments are too many to try each.
        let has_effect = ["ensure", "remove", "publish", "commit", "a hold", "an answer"]
            .iter()
            .any(|kind| what.starts_with(kind));
        if !numbered.is_counting || !is_service || !has_effect {
            return None;
        }
        let alike_max = numbered.alike_max;
        let alike = numbered.alike.entry(what.to_owned()).or_default();
        *alike += 1;
        if *alike > alike_max {
            return None;
        }
        let number = numbered.seen.len();
        numbered.seen.push(format!("{process}: {what}"));
        let (_, fault) = numbered.armed.take_if(|(at, _)| *at == number)?;
        numbered.fired = true;
        drop(numbered);
        self.tell(|| format!("{fault:?} befalls {process}: {what}"));
        Some(fault)
    }

    /// How a process is made to die.
    pub(crate) fn may_crash(&self, process: &'static str, crash: Arc<Notify>) {
        lock(&self.crashes).insert(process, crash);
    }

    /// A process dies, and its step never ends.
    pub(crate) async fn dies(&self, process: &str) -> ! {
        if let Some(crash) = lock(&self.crashes).get(process) {
            crash.notify_one();
        }
        std::future::pending().await
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
