//! One process's way to the broker: steps take time, calls fail or are done without an answer, notices get lost, doubled and
//! overtaken, answers get lost, and the whole line can be cut.

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{
    Address, BoxFuture, Broker, BrokerAdmin, Delivery, Embedded, Error, Finding, Inbox, InboxAddress, Limits,
    Message, PoisonBound, Result, Seen, Subscription, TopicSpec,
};
use sluice_schema::{Class, Topic};
use tokio::sync::watch;

use crate::chance::{Chance, Fault};

/// Notices that never arrive, in a hundred.
const LOST_NOTICES: u32 = 15;
/// Notices that arrive twice.
const DOUBLED_NOTICES: u32 = 10;
/// Notices that others overtake.
const OVERTAKEN_NOTICES: u32 = 15;
/// Answers that never arrive.
const LOST_ANSWERS: u32 = 3;
/// Answers that arrive twice.
const DOUBLED_ANSWERS: u32 = 3;
/// Calls that fail with nothing done, and calls that are done without an answer.
const FAILING: u32 = 2;

/// How long a broker's end waits for the broker's word.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Line {
    broker: Embedded,
    chance: Arc<Chance>,
    /// The name of the process.
    pub(crate) name: &'static str,
    is_cut: watch::Sender<bool>,
}

fn place(to: &Address) -> &str {
    match to {
        Address::Topic(topic) | Address::Subscribed(topic) => topic.as_str(),
        Address::Inbox(_) => "an inbox",
    }
}

fn cut() -> Error {
    Error::Unavailable { reason: "the line is cut".to_owned() }
}

impl Line {
    pub(crate) fn new(broker: Embedded, chance: Arc<Chance>, name: &'static str) -> Self {
        Self { broker, chance, name, is_cut: watch::Sender::new(false) }
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.send_replace(is_cut);
    }

    /// Returns once the line is cut.
    async fn lost(&self) {
        let mut is_cut = self.is_cut.subscribe();
        // The sender lives in `self`.
        let _ = is_cut.wait_for(|cut| *cut).await;
    }

    /// A call that takes time, and may fail on either way.
    async fn call<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        if *self.is_cut.borrow() {
            return Err(cut());
        }
        self.chance.pause().await;
        let befalls = self.chance.befalls(self.name, what);
        match befalls {
            Some(Fault::FailBefore) => {
                return Err(Error::Unavailable { reason: format!("a fault before {what}") });
            }
            Some(Fault::CrashBefore) => self.chance.dies(self.name).await,
            Some(Fault::TimeOut) => {
                tokio::time::sleep(CALL_TIMEOUT).await;
                let (what, reason) = (what.to_owned(), "no word within its time".to_owned());
                return Err(Error::OutcomeUnknown { what, reason });
            }
            Some(Fault::FailAfter | Fault::CrashAfter) | None => {}
        }
        if self.chance.strikes("call fails", FAILING) {
            return Err(Error::Unavailable { reason: format!("a fault before {what}") });
        }
        let result = tokio::select! {
            biased;
            () = self.lost() => {
                let (what, reason) = (what.to_owned(), "the line was cut".to_owned());
                return Err(Error::OutcomeUnknown { what, reason });
            }
            result = call => result?,
        };
        if befalls == Some(Fault::CrashAfter) {
            self.chance.dies(self.name).await;
        }
        self.chance.pause().await;
        if befalls == Some(Fault::FailAfter)
            || self.chance.strikes("call unheard", FAILING)
            || *self.is_cut.borrow()
        {
            let (what, reason) = (what.to_owned(), "a fault after it".to_owned());
            return Err(Error::OutcomeUnknown { what, reason });
        }
        Ok(result)
    }

    /// Publishes a notice: whoever sends one learns nothing of its way.
    async fn notify(&self, to: &Address, message: Message) -> Result<()> {
        if self.chance.strikes("notice lost", LOST_NOTICES) {
            return Ok(());
        }
        if self.chance.strikes("notice doubled", DOUBLED_NOTICES) {
            self.broker.publish(to, message.clone()).await?;
        }
        if self.chance.strikes("notice overtaken", OVERTAKEN_NOTICES) {
            let (broker, to, chance) = (self.broker.clone(), to.clone(), self.chance.clone());
            tokio::spawn(async move {
                tokio::time::sleep(chance.duration(Duration::from_secs(2))).await;
                let _ = broker.publish(&to, message).await;
            });
            return Ok(());
        }
        self.broker.publish(to, message).await
    }
}

impl Broker for Line {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
        let class = match to {
            Address::Topic(topic) | Address::Subscribed(topic) => topic.class(),
            Address::Inbox(_) => Class::Response,
        };
        Box::pin(async move {
            match class {
                Class::Notify => self.call("a notice", self.notify(to, message)).await,
                Class::Response => {
                    if self.chance.strikes("answer lost", LOST_ANSWERS) {
                        return Ok(());
                    }
                    if self.chance.strikes("answer doubled", DOUBLED_ANSWERS) {
                        self.broker.publish(to, message.clone()).await?;
                    }
                    self.call("an answer", self.broker.publish(to, message)).await
                }
                Class::Flow | Class::Request => {
                    let what = format!("publish to {}", place(to));
                    self.call(&what, self.broker.publish(to, message)).await
                }
            }
        })
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        Box::pin(async move {
            let inbox = self.call("a subscribe", self.broker.subscribe(to)).await?;
            Ok(Box::new(LineInbox { inbox, line: self.clone() }) as Box<dyn Inbox>)
        })
    }

    fn limits(&self) -> Limits {
        self.broker.limits()
    }
}

/// An inbox that ends when its line is cut.
struct LineInbox {
    inbox: Box<dyn Inbox>,
    line: Line,
}

impl Inbox for LineInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            tokio::select! {
                biased;
                () = self.line.lost() => Err(cut()),
                next = self.inbox.next() => next,
            }
        })
    }

    fn address(&self) -> Option<InboxAddress> {
        self.inbox.address()
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.line.call("a follow", self.inbox.follow(topic)))
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.line.call("an unfollow", self.inbox.unfollow(topic)))
    }
}

/// Life-cycle calls over the line, or over a hold that ends with it.
struct Calls<A> {
    line: Line,
    admin: A,
    /// Of a hold: its name. A hold whose line was cut once is lost for ever.
    held: Option<(String, watch::Receiver<bool>)>,
}

impl<A: BrokerAdmin> Calls<A> {
    async fn call<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        if let Some((name, lost)) = &self.held
            && *lost.borrow()
        {
            return Err(Error::HoldLost { name: name.clone() });
        }
        self.line.call(what, call).await
    }
}

impl<A: BrokerAdmin> BrokerAdmin for Calls<A> {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.call("a look", self.admin.observe(topics)))
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        self.line.chance.tell(|| format!("{} ensures {}", self.line.name, topic.topic));
        let what = format!("ensure {}", topic.topic);
        Box::pin(async move { self.call(&what, self.admin.ensure(topic)).await })
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let what = format!("remove {}", topic.topic);
            let removed = self.call(&what, self.admin.remove(topic)).await;
            self.line.chance.tell(|| format!("{} removes {}: {removed:?}", self.line.name, topic.topic));
            removed
        })
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let what = format!("remove {} if idle", topic.topic);
            let removed = self.call(&what, self.admin.remove_idle(topic)).await;
            self.line
                .chance
                .tell(|| format!("{} removes {} if idle: {removed:?}", self.line.name, topic.topic));
            removed
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.call("a listing", self.admin.list(prefix)))
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move {
            let admin = self.call("a hold", self.admin.hold(name)).await?;
            let (lost, is_lost) = watch::channel(false);
            let line = self.line.clone();
            let inner = Arc::new(std::sync::Mutex::new(Some(admin)));
            let let_go = Arc::downgrade(&inner);
            let held = name.to_owned();
            // What the broker does when a holder's connection ends.
            tokio::spawn(async move {
                tokio::select! {
                    () = line.lost() => {
                        line.chance.tell(|| format!("{} loses its hold on {held}", line.name));
                        lost.send_replace(true);
                        if let Some(inner) = let_go.upgrade() {
                            inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                        }
                    }
                    () = lost.closed() => {}
                }
            });
            let admin = Holding { name: name.to_owned(), inner };
            let held = Some((name.to_owned(), is_lost));
            Ok(Arc::new(Calls { line: self.line.clone(), admin, held }) as Arc<dyn BrokerAdmin>)
        })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        Box::pin(self.call("a bound", self.admin.bound_poison(to)))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(self.call("an examination", self.admin.examine()))
    }
}

/// A hold that can be taken away.
struct Holding {
    name: String,
    inner: Arc<std::sync::Mutex<Option<Arc<dyn BrokerAdmin>>>>,
}

impl Holding {
    fn under(&self) -> Result<Arc<dyn BrokerAdmin>> {
        let held = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        held.ok_or_else(|| Error::HoldLost { name: self.name.clone() })
    }
}

impl BrokerAdmin for Holding {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move { self.under()?.observe(topics).await })
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.under()?.ensure(topic).await })
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.under()?.remove(topic).await })
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.under()?.remove_idle(topic).await })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(async move { self.under()?.list(prefix).await })
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move { self.under()?.hold(name).await })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        Box::pin(async move { self.under()?.bound_poison(to).await })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async move { self.under()?.examine().await })
    }
}

impl Line {
    /// The life-cycle path of this process.
    pub(crate) fn admin(&self) -> Arc<dyn BrokerAdmin> {
        Arc::new(Calls { line: self.clone(), admin: self.broker.clone(), held: None })
    }
}
