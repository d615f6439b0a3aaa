//! The cases that every broker passes, by name: the contract's promises as programs.
//!
//! A backend says how to connect and, if it can, how to restart; a harness puts it through [`cases`]. Topics get names
//! of their own and are removed at the end of a case, so a shared server can be used.
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
use std::sync::Arc;
use std::time::Duration;

use sluice_schema::{Class, Topic};

use crate::contract::{
    Address, Broker, BrokerAdmin, Inbox, InboxAddress, PoisonBound, SeenSubscription, Subscription, TopicSpec,
};
use crate::message::{Delivery, Message};
use crate::{BoxFuture, Error, ErrorKind, Result};

/// How long a case may take.
pub const CASE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a value may take to come.
const VALUE_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

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

    /// Whether the owner's path lists what nobody asked about. Where it does not, cases do without, and what they leave is the
    /// backend's to remove.
    fn lists(&self) -> bool {
        true
    }

    /// Kills the broker and brings it back with what it promised to keep; false where that cannot be done, then the
    /// cases that need it pass without looking.
    fn restart(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async { Ok(false) })
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
    pub async fn run(&self, backend: &dyn Backend) -> Result<(), String> {
        let bench = Bench { backend, mark: uuid::Uuid::new_v4().simple().to_string() };
        let outcome = tokio::time::timeout(CASE_TIMEOUT, (self.run)(&bench)).await;
        let swept = bench.sweep().await;
        match outcome {
            Ok(Ok(())) => swept.map_err(|error| format!("cannot clean up: {error}")),
            Ok(Err(Failed(why))) => Err(why),
            Err(_) => Err(format!("did not end within {} s", CASE_TIMEOUT.as_secs())),
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

/// What did not hold.
struct Failed(String);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(format!("unexpected error: {error}"))
    }
}

type Outcome = Result<(), Failed>;

/// What a case works with.
struct Bench<'a> {
    backend: &'a dyn Backend,
    mark: String,
}

impl Bench<'_> {
    async fn connect(&self) -> Result<Ends, Failed> {
        Ok(self.backend.connect().await?)
    }

    /// A topic that no other case has.
    fn topic(&self, class: Class, name: &str) -> Result<Topic, Failed> {
        Topic::tg(class, format!("{name}:{}", self.mark)).map_err(|error| Failed(error.to_string()))
    }

    /// A topic with one subscription, `reader`, made.
    async fn made(&self, ends: &Ends, class: Class, name: &str) -> Result<TopicSpec, Failed> {
        let topic = self.topic(class, name)?;
        let spec =
            if class.has_subscriptions() { TopicSpec::with(topic, "reader") } else { TopicSpec::bare(topic) };
        ends.admin.ensure(&spec).await?;
        Ok(spec)
    }

    async fn sweep(&self) -> Result<()> {
        if !self.backend.lists() {
            return Ok(());
        }
        let admin = self.backend.connect().await?.admin;
        for class in Class::ALL {
            for seen in admin.list(class.as_str()).await? {
                if seen.topic.as_str().ends_with(&self.mark) {
                    let subscriptions = seen.subscriptions.into_iter().map(|there| there.name).collect();
                    admin.remove(&TopicSpec { topic: seen.topic, subscriptions }).await?;
                }
            }
        }
        Ok(())
    }
}

impl Ends {
    async fn send(&self, topic: &Topic, body: &str) -> Result<()> {
        self.broker.publish(&Address::Topic(topic.clone()), Message::new(body.to_owned())).await
    }

    async fn reader(&self, spec: &TopicSpec, prefetch: u32) -> Result<Box<dyn Inbox>, Failed> {
        let name = spec.subscriptions.first().cloned().unwrap_or_default();
        Ok(self.broker.subscribe(&Subscription::Shared { topic: spec.topic.clone(), name, prefetch }).await?)
    }

    async fn own(&self, topics: &[&Topic]) -> Result<Box<dyn Inbox>, Failed> {
        let topics = topics.iter().map(|topic| (*topic).clone()).collect();
        Ok(self.broker.subscribe(&Subscription::Own { topics }).await?)
    }

    /// What is seen of the first subscription.
    async fn look(&self, spec: &TopicSpec) -> Result<SeenSubscription, Failed> {
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
    ) -> Result<SeenSubscription, Failed> {
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
async fn next(inbox: &dyn Inbox) -> Result<Delivery, Failed> {
    match tokio::time::timeout(VALUE_TIMEOUT, inbox.next()).await {
        Ok(delivery) => Ok(delivery?),
        Err(_) => Err(Failed("a message that should come did not".to_owned())),
    }
}

/// The error with which an inbox ends.
async fn ending(inbox: &dyn Inbox) -> Result<Error, Failed> {
    match tokio::time::timeout(VALUE_TIMEOUT, inbox.next()).await {
        Ok(Ok(delivery)) => Err(Failed(format!("expected an error, got {delivery:?}"))),
        Ok(Err(error)) => Ok(error),
        Err(_) => Err(Failed("the reader was not told that its subscription is gone".to_owned())),
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

fn address(inbox: &dyn Inbox) -> Result<InboxAddress, Failed> {
    inbox.address().ok_or_else(|| Failed("an own inbox has no address".to_owned()))
}
