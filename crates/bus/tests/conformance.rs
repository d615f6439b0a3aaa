//! The embedded broker passes every case, in memory and on disk, the latter also through restarts like a kill; a broker that
//! breaks a promise does not, unless it says that it does not make it.
#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sluice_bus::conformance::{self, Backend, Conclusion, Ends};
use sluice_bus::{
    Address, BoxFuture, BrokerAdmin, Config, Embedded, Error, Finding, Inbox, Limits, Message, PoisonBound,
    Promise, Result, Seen, Subscription, TopicSpec, Traits, property,
};
use sluice_schema::Topic;

struct Broker {
    now: Mutex<Embedded>,
    dir: Option<PathBuf>,
}

impl Broker {
    fn open(dir: Option<PathBuf>) -> Result<Self> {
        let config = Config { dir: dir.clone(), disk_reserve_bytes: 4096, ..Config::default() };
        Ok(Self { now: Mutex::new(Embedded::open(config)?), dir })
    }
}

impl Backend for Broker {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        let now = Arc::new(self.now.lock().unwrap().clone());
        Box::pin(async { Ok(Ends { broker: now.clone(), admin: now }) })
    }

    fn restart(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async {
            if self.dir.is_none() {
                return Ok(false);
            }
            let old = self.now.lock().unwrap().clone();
            old.crash().await;
            let new = Self::open(self.dir.clone())?;
            *self.now.lock().unwrap() = new.now.into_inner().unwrap();
            Ok(true)
        })
    }
}

/// How each case ends, each with a broker of its own.
async fn every_case(
    open: impl Fn() -> (Broker, Option<tempfile::TempDir>),
) -> Vec<(&'static str, Conclusion)> {
    let (mut ended, mut failed) = (Vec::new(), Vec::new());
    for case in conformance::cases() {
        let (broker, _folder) = open();
        match case.run(&broker).await {
            Ok(conclusion) => ended.push((case.name, conclusion)),
            Err(why) => failed.push(format!("{}: {why}", case.name)),
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
    ended
}

/// Cases that were not kept whole.
fn others(ended: Vec<(&'static str, Conclusion)>) -> Vec<(&'static str, String)> {
    let others = ended.into_iter().filter(|(_, one)| *one != Conclusion::Kept { without: Vec::new() });
    others.map(|(name, one)| (name, one.to_string())).collect()
}

fn told<'a>(others: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    others.iter().map(|(name, one)| (*name, one.as_str())).collect()
}

/// Nobody else's poison gets into this process.
const POISON: (&str, &str) = (
    "poison_is_bounded_or_said_why_not",
    "kept; not promised: readers and writers that are not ours take part (no other process reaches it)",
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_passes_in_memory() {
    let ended = every_case(|| (Broker::open(None).unwrap(), None)).await;
    let why = "not run: needs to restart the server";
    let expected =
        [("flow_messages_survive_a_restart", why), ("a_hold_does_not_outlive_the_broker", why), POISON];
    assert_eq!(told(&others(ended)), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_passes_on_disk() {
    let ended = every_case(|| {
        let folder = tempfile::tempdir().unwrap();
        (Broker::open(Some(folder.path().to_owned())).unwrap(), Some(folder))
    });
    assert_eq!(told(&others(ended.await)), [POISON]);
}

/// A broker with one fault, which may say that it does not promise what it breaks.
#[derive(Clone)]
struct Broken {
    inner: Embedded,
    fault: Fault,
    traits: Traits,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    ForgetsDeadlines,
    HidesReaders,
    SwallowsUnroutable,
}

impl Broken {
    fn new(fault: Fault, traits: Traits) -> Self {
        Self { inner: Embedded::in_memory(), fault, traits }
    }
}

impl sluice_bus::Broker for Broken {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let kept = |name: &str| self.fault != Fault::ForgetsDeadlines || name != property::TTL;
            let properties = message.properties().filter(|(name, _)| kept(name));
            let sent = properties
                .fold(Message::new(message.body.clone()), |all, (name, value)| all.with(name, value));
            match self.inner.publish(to, sent).await {
                Err(Error::Unroutable { .. }) if self.fault == Fault::SwallowsUnroutable => Ok(()),
                other => other,
            }
        })
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        self.inner.subscribe(to)
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

impl BrokerAdmin for Broken {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move {
            let mut seen = self.inner.observe(topics).await?;
            if self.fault == Fault::HidesReaders {
                seen.iter_mut().flat_map(|seen| &mut seen.subscriptions).for_each(|one| one.consumers = None);
            }
            Ok(seen)
        })
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        self.inner.ensure(topic)
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        self.inner.remove(topic)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        self.inner.list(prefix)
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        self.inner.hold(name)
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        self.inner.bound_poison(to)
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        self.inner.examine()
    }

    fn traits(&self) -> Traits {
        self.traits
    }
}

impl Backend for Broken {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        let ends = Arc::new(self.clone());
        Box::pin(async { Ok(Ends { broker: ends.clone(), admin: ends }) })
    }
}

async fn run(name: &str, broker: &Broken) -> Result<Conclusion, String> {
    conformance::cases().into_iter().find(|case| case.name == name).unwrap().run(broker).await
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_is_broken_fails_its_case_and_no_other() {
    let broken = Broken::new(Fault::SwallowsUnroutable, Embedded::TRAITS);
    let mut failed = Vec::new();
    for case in conformance::cases() {
        failed.extend(case.run(&broken).await.is_err().then_some(case.name));
    }
    assert_eq!(failed, ["a_request_without_subscription_is_unroutable"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_promised_is_told_with_its_reason_and_what_is_promised_is_asked_for() {
    const LATE: &str = "a_request_is_not_delivered_after_its_deadline";
    const WHY: &str = "it has no clock";
    let not = |promise: Promise| Traits {
        not_promised: match promise {
            Promise::RequestsExpire => &[(Promise::RequestsExpire, WHY)],
            _ => &[(Promise::ReadersAreShown, WHY)],
        },
        ..Traits::STRICT
    };
    let told = run(LATE, &Broken::new(Fault::ForgetsDeadlines, not(Promise::RequestsExpire))).await;
    assert_eq!(told, Ok(Conclusion::NotPromised { why: WHY }));
    let told = run(LATE, &Broken::new(Fault::ForgetsDeadlines, not(Promise::ReadersAreShown))).await;
    assert!(told.as_ref().is_err_and(|why| why.contains("the late request gone")), "{told:?}");
    let told =
        run("counts_are_exact", &Broken::new(Fault::HidesReaders, not(Promise::ReadersAreShown))).await;
    assert_eq!(told, Ok(Conclusion::Kept { without: vec![(Promise::ReadersAreShown, WHY)] }));
    let told = run("counts_are_exact", &Broken::new(Fault::HidesReaders, Traits::STRICT)).await;
    assert!(told.as_ref().is_err_and(|why| why.contains("one consumer")), "{told:?}");
}

/// Gives up a case that waits for ever.
struct GivenUp(Broken);

impl Backend for GivenUp {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        self.0.connect()
    }

    fn given_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            while self.0.inner.list("").await.is_ok_and(|seen| seen.is_empty()) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_case_that_is_given_up_leaves_nothing() {
    let broken = GivenUp(Broken::new(Fault::HidesReaders, Traits::STRICT));
    let case = conformance::cases().into_iter().find(|case| case.name == "counts_are_exact").unwrap();
    assert_eq!(case.run(&broken).await, Ok(Conclusion::NotRun { why: "it was given up" }));
    assert_eq!(broken.0.inner.list("").await.unwrap(), []);
}
