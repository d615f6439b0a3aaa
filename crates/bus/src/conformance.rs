//! The cases that every broker passes, by name: the contract's promises as programs.
//!
//! A backend says how to connect and, if it can, how to restart; a harness puts it through [`cases`]. Topics get names
//! of their own and are removed at the end of a case, so a shared server can be used. What a broker's [`Traits`](crate::Traits) say that it
//! does not promise is not asked for, and each case says so: its [`Conclusion`] names what was left out, and why.
//!
//! ```
//! use std::sync::Arc;
//! use sluice_bus::conformance::{self, Backend, Ends};
//! use sluice_bus::{BoxFuture, Embedded, Result};
//!
//! struct InMemory(Embedded);
//!
//! impl Backend for InMemory {
//!     fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
//!         Box::pin(async { Ok(Ends { broker: Arc::new(self.0.clone()), admin: Arc::new(self.0.clone()) }) })
//!     }
//! }
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! for case in conformance::cases() {
//!     case.run(&InMemory(Embedded::in_memory())).await.map_err(|why| format!("{}: {why}", case.name))?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod data;
mod owner;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_schema::{Class, Topic};

use crate::contract::{
    Address, Broker, BrokerAdmin, HoldEnd, Inbox, InboxAddress, PoisonBound, Promise, SeenSubscription,
    Subscription, TopicSpec,
};
use crate::message::{Delivery, Message};
use crate::{BoxFuture, Error, ErrorKind, Result};

/// How long a case may take.
pub const CASE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a value may take to come.
const VALUE_TIMEOUT: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Every name that a case gives a subscription: a broker that does not list removes only what it is told of.
const SUBSCRIPTIONS: [&str; 5] = ["reader", "one", "two", "second", "unnamed"];

/// Both paths of one connection.
#[derive(Clone)]
pub struct Ends {
    /// The data path.
    pub broker: Arc<dyn Broker>,
    /// The life-cycle path.
    pub admin: Arc<dyn BrokerAdmin>,
}

/// A broker under test.
pub trait Backend: Send + Sync {
    /// A fresh connection, independent of others where the broker has connections.
    fn connect(&self) -> BoxFuture<'_, Result<Ends>>;

    /// Whether others use the broker too: cases that change what holds for all of it are not run then.
    fn is_shared(&self) -> bool {
        false
    }

    /// Kills the broker and brings it back with what it promised to keep; false where that cannot be done, then the
    /// cases that need it are not run.
    fn restart(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async { Ok(false) })
    }

    /// Returns once nobody wants to know any more: the case under way ends, and what it made is removed.
    fn given_up(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// How a case ends that does not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    /// It holds.
    Kept {
        /// What was not asked for, with the reasons, since the broker does not promise it.
        without: Vec<(Promise, &'static str)>,
    },
    /// The broker does not promise it.
    NotPromised {
        /// The broker's reason.
        why: &'static str,
    },
    /// It cannot be tried here.
    NotRun {
        /// What prevents it.
        why: &'static str,
    },
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept { without } => {
                f.write_str("kept")?;
                without
                    .iter()
                    .try_for_each(|(what, why)| write!(f, "; not promised: {} ({why})", what.text()))
            }
            Self::NotPromised { why } => write!(f, "not promised: {why}"),
            Self::NotRun { why } => write!(f, "not run: {why}"),
        }
    }
}

/// A named case.
#[derive(Clone, Copy)]
pub struct Case {
    /// A sentence that says what holds.
    pub name: &'static str,
    run: for<'a> fn(&'a Bench<'a>) -> BoxFuture<'a, Outcome>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Case {
    /// Puts a backend through the case; the error says what did not hold.
    ///
    /// # Errors
    /// What did not hold.
    pub async fn run(&self, backend: &dyn Backend) -> Result<Conclusion, String> {
        let bench = Bench::new(backend);
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(CASE_TIMEOUT, (self.run)(&bench)) => outcome,
            () = backend.given_up() => Ok(Err(Stop::NotRun("it was given up"))),
        };
        let swept = tokio::time::timeout(CASE_TIMEOUT, bench.sweep()).await;
        let conclusion = match outcome {
            Ok(Ok(())) => Conclusion::Kept { without: lock(&bench.without).clone() },
            Ok(Err(Stop::NotPromised(why))) => Conclusion::NotPromised { why },
            Ok(Err(Stop::NotRun(why))) => Conclusion::NotRun { why },
            Ok(Err(Failed(why))) => return Err(why),
            Err(_) => return Err(format!("did not end within {} s", CASE_TIMEOUT.as_secs())),
        };
        match swept {
            Ok(Ok(())) => Ok(conclusion),
            Ok(Err(error)) => Err(format!("cannot clean up: {error}")),
            Err(_) => Err(format!("cannot clean up within {} s", CASE_TIMEOUT.as_secs())),
        }
    }
}

/// Every case, in the order of the contract.
#[must_use]
pub fn cases() -> Vec<Case> {
    [data::CASES, owner::CASES].concat()
}

/// Lists cases: their functions' names are the sentences.
macro_rules! case_list {
    ($($name:ident),* $(,)?) => {
        pub(super) const CASES: &[Case] =
            &[$(Case { name: stringify!($name), run: |bench| Box::pin($name(bench)) }),*];
    };
}
use case_list;

/// Fails a case unless something holds.
macro_rules! holds {
    ($what:expr, $($why:tt)+) => {
        if !$what {
            return Err(Failed(format!($($why)+)));
        }
    };
}
use holds;

/// Why a case ends before its end.
enum Stop {
    /// What did not hold.
    Failed(String),
    NotPromised(&'static str),
    NotRun(&'static str),
}
use Stop::Failed;

/// Why cases end that have to restart the broker and cannot.
const NEEDS_RESTART: Stop = Stop::NotRun("needs to restart the server");

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(format!("unexpected error: {error}"))
    }
}

type Outcome = Result<(), Stop>;

/// What a case works with.
struct Bench<'a> {
    backend: &'a dyn Backend,
    mark: String,
    /// Topics that it may have made.
    topics: Mutex<Vec<Topic>>,
    /// What it did not ask for.
    without: Mutex<Vec<(Promise, &'static str)>>,
}

impl<'a> Bench<'a> {
    fn new(backend: &'a dyn Backend) -> Self {
        let mark = uuid::Uuid::new_v4().simple().to_string();
        Self { backend, mark, topics: Mutex::default(), without: Mutex::default() }
    }

    async fn connect(&self) -> Result<Ends, Stop> {
        Ok(self.backend.connect().await?)
    }

    /// A topic that no other case has.
    fn topic(&self, class: Class, name: &str) -> Result<Topic, Stop> {
        let topic =
            Topic::tg(class, format!("{name}:{}", self.mark)).map_err(|error| Failed(error.to_string()))?;
        lock(&self.topics).push(topic.clone());
        Ok(topic)
    }

    /// A topic with one subscription, `reader`, made.
    async fn made(&self, ends: &Ends, class: Class, name: &str) -> Result<TopicSpec, Stop> {
        let topic = self.topic(class, name)?;
        let spec =
            if class.has_subscriptions() { TopicSpec::with(topic, "reader") } else { TopicSpec::bare(topic) };
        ends.admin.ensure(&spec).await?;
        Ok(spec)
    }

    /// Whether something is promised; if not, that is noted.
    fn is_promised(&self, ends: &Ends, promise: Promise) -> bool {
        let Some(why) = ends.admin.traits().why_not(promise) else { return true };
        lock(&self.without).push((promise, why));
        false
    }

    /// Insists that something is promised without which nothing is left of a case.
    fn needs(&self, ends: &Ends, promise: Promise) -> Outcome {
        ends.admin.traits().why_not(promise).map_or(Ok(()), |why| Err(Stop::NotPromised(why)))
    }

    async fn sweep(&self) -> Result<()> {
        let topics = std::mem::take(&mut *lock(&self.topics));
        if topics.is_empty() {
            return Ok(());
        }
        let admin = self.backend.connect().await?.admin;
        for topic in topics {
            let names: &[&str] = if topic.class().has_subscriptions() { &SUBSCRIPTIONS } else { &[] };
            let subscriptions = names.iter().map(|name| (*name).to_owned()).collect();
            admin.remove(&TopicSpec { topic, subscriptions }).await?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ends {
    async fn send(&self, topic: &Topic, body: &str) -> Result<()> {
        self.broker.publish(&Address::Topic(topic.clone()), Message::new(body.to_owned())).await
    }

    async fn reader(&self, spec: &TopicSpec, prefetch: u32) -> Result<Box<dyn Inbox>, Stop> {
        let name = spec.subscriptions.first().cloned().unwrap_or_default();
        Ok(self.broker.subscribe(&Subscription::Shared { topic: spec.topic.clone(), name, prefetch }).await?)
    }

    async fn own(&self, topics: &[&Topic]) -> Result<Box<dyn Inbox>, Stop> {
        let topics = topics.iter().map(|topic| (*topic).clone()).collect();
        Ok(self.broker.subscribe(&Subscription::Own { topics }).await?)
    }

    /// What is seen of the first subscription.
    async fn look(&self, spec: &TopicSpec) -> Result<SeenSubscription, Stop> {
        let seen = self.admin.observe(std::slice::from_ref(spec)).await?;
        let wanted = spec.subscriptions.first();
        let found = seen.into_iter().flat_map(|seen| seen.subscriptions).find(|s| Some(&s.name) == wanted);
        found.ok_or_else(|| Failed(format!("observe does not answer about '{}'", spec.topic)))
    }

    /// Waits until the first subscription looks as it should.
    async fn until(
        &self,
        spec: &TopicSpec,
        what: &str,
        is_so: impl Fn(&SeenSubscription) -> bool,
    ) -> Result<SeenSubscription, Stop> {
        let started = tokio::time::Instant::now();
        loop {
            let seen = self.look(spec).await?;
            if is_so(&seen) {
                return Ok(seen);
            }
            if started.elapsed() > VALUE_TIMEOUT {
                return Err(Failed(format!("never saw {what}; last seen: {seen:?}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The next delivery, which must come.
async fn next(inbox: &dyn Inbox) -> Result<Delivery, Stop> {
    match tokio::time::timeout(VALUE_TIMEOUT, inbox.next()).await {
        Ok(delivery) => Ok(delivery?),
        Err(_) => Err(Failed("a message that should come did not".to_owned())),
    }
}

/// The error with which an inbox ends.
async fn ending(inbox: &dyn Inbox) -> Result<Error, Stop> {
    match tokio::time::timeout(VALUE_TIMEOUT, inbox.next()).await {
        Ok(Ok(delivery)) => Err(Failed(format!("expected an error, got {delivery:?}"))),
        Ok(Err(error)) => Ok(error),
        Err(_) => Err(Failed("the reader was not told that its subscription is gone".to_owned())),
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

fn address(inbox: &dyn Inbox) -> Result<InboxAddress, Stop> {
    inbox.address().ok_or_else(|| Failed("an own inbox has no address".to_owned()))
}
