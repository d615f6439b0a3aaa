//! A broker that fails when told to: before a call takes effect, or after it with the answer lost.
//!
//! Every call of either path is numbered from 0 in the order it is made, and logged with what was done to it, so a test
//! fails each call in turn and asserts that its fault really happened.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sluice_schema::Topic;

use crate::contract::{
    Address, Broker, BrokerAdmin, Excess, Finding, Inbox, InboxAddress, Limits, Naming, PoisonBound,
    Pressure, Seen, Subscription, TopicSpec, Traits,
};
use crate::losses::Losses;
use crate::message::{Delivery, Message};
use crate::{BoxFuture, Error, Result};

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens; the answer is [`Error::Unavailable`].
    Before,
    /// It happens; the answer is lost, [`Error::OutcomeUnknown`]. A delivery or inbox in a lost answer is let go.
    After,
}

/// What kind of call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Broker::publish`].
    Publish,
    /// [`Broker::subscribe`].
    Subscribe,
    /// [`Inbox::next`]; numbered when a delivery (or an error) is there, not when the waiting begins, so that an idle
    /// reader does not shift the numbers.
    Next,
    /// [`Inbox::follow`].
    Follow,
    /// [`Inbox::unfollow`].
    Unfollow,
    /// [`BrokerAdmin::observe`].
    Observe,
    /// [`BrokerAdmin::ensure`].
    Ensure,
    /// [`BrokerAdmin::remove`].
    Remove,
    /// [`BrokerAdmin::list`].
    List,
    /// [`BrokerAdmin::hold`]. Calls under the hold are numbered with all others.
    Hold,
    /// [`BrokerAdmin::bound_poison`].
    BoundPoison,
    /// [`BrokerAdmin::examine`].
    Examine,
}

impl Operation {
    /// Whether it changes what a broker holds.
    #[must_use]
    pub const fn has_effect(self) -> bool {
        match self {
            Self::Publish | Self::Ensure | Self::Remove | Self::BoundPoison => true,
            Self::Subscribe
            | Self::Next
            | Self::Follow
            | Self::Unfollow
            | Self::Observe
            | Self::List
            | Self::Hold
            | Self::Examine => false,
        }
    }
}

/// One call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its number.
    pub index: usize,
    /// What was called.
    pub operation: Operation,
    /// The topic, inbox or prefix it was about; several are joined by commas.
    pub about: String,
    /// What was done to it.
    pub fault: Option<Fault>,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {:?} {}", self.index, self.operation, self.about)?;
        match self.fault {
            Some(fault) => write!(f, " (failed {fault:?})"),
            None => Ok(()),
        }
    }
}

type Choose = Box<dyn FnMut(&Made) -> Option<Fault> + Send>;

/// Which calls fail.
pub struct Plan(Choose);

impl Plan {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self(Box::new(|_| None))
    }

    /// The call of this number, once.
    #[must_use]
    pub fn call(index: usize, fault: Fault) -> Self {
        Self::when(move |made| (made.index == index).then_some(fault))
    }

    /// The n-th call (from 0) of those that are chosen.
    #[must_use]
    pub fn nth(n: usize, fault: Fault, mut is_chosen: impl FnMut(&Made) -> bool + Send + 'static) -> Self {
        let mut seen = 0;
        Self::when(move |made| {
            if !is_chosen(made) {
                return None;
            }
            seen += 1;
            (seen == n + 1).then_some(fault)
        })
    }

    /// Each call with this probability, before or after alike. The same seed and calls give the same faults; print it.
    #[must_use]
    pub fn seeded(seed: u64, probability: f64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self::when(move |_| {
            let (fails, after) = (random.random_bool(probability.clamp(0.0, 1.0)), random.random_bool(0.5));
            fails.then_some(if after { Fault::After } else { Fault::Before })
        })
    }

    /// Whatever the function says.
    #[must_use]
    pub fn when(choose: impl FnMut(&Made) -> Option<Fault> + Send + 'static) -> Self {
        Self(Box::new(choose))
    }
}

struct State {
    plan: Plan,
    log: Vec<Made>,
}

/// An ordinary broker that fails by plan, around another. Clones share plan and log.
///
/// ```
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// use sluice_bus::{BrokerAdmin, Embedded, ErrorKind, Fault, Faulty, Plan, TopicSpec};
///
/// let broker = Faulty::new(Embedded::in_memory());
/// broker.plan(Plan::call(0, Fault::After));
/// let spec = TopicSpec::bare("flow:tg:chunk-load:default:f1".parse()?);
/// let made = broker.ensure(&spec).await;
/// assert_eq!(made.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
/// assert!(broker.observe(&[spec]).await?[0].exists);
/// assert_eq!(broker.faults().len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Faulty<B> {
    inner: B,
    state: Arc<Mutex<State>>,
}

impl<B> Faulty<B> {
    /// Fails nothing until it gets a plan.
    pub fn new(inner: B) -> Self {
        Self { inner, state: Arc::new(Mutex::new(State { plan: Plan::none(), log: Vec::new() })) }
    }

    /// The broker inside, to look past the faults.
    pub const fn inner(&self) -> &B {
        &self.inner
    }

    /// From now on this plan; numbers start at 0 again and the log is empty.
    pub fn plan(&self, plan: Plan) {
        *lock(&self.state) = State { plan, log: Vec::new() };
    }

    /// Every call since the plan was set, in order.
    #[must_use]
    pub fn log(&self) -> Vec<Made> {
        lock(&self.state).log.clone()
    }

    /// The calls that were failed.
    #[must_use]
    pub fn faults(&self) -> Vec<Made> {
        lock(&self.state).log.iter().filter(|made| made.fault.is_some()).cloned().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn decide(state: &Mutex<State>, operation: Operation, about: String) -> Made {
    let mut state = lock(state);
    let mut made = Made { index: state.log.len(), operation, about, fault: None };
    made.fault = (state.plan.0)(&made);
    state.log.push(made.clone());
    made
}

/// Makes a call, with the fault that the plan has for it.
async fn through<T>(
    state: &Mutex<State>,
    operation: Operation,
    about: String,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let made = decide(state, operation, about);
    match made.fault {
        None => call.await,
        Some(Fault::Before) => Err(Error::Unavailable { reason: format!("a test failed {made}") }),
        Some(Fault::After) => {
            drop(call.await?);
            Err(lost(&made))
        }
    }
}

fn lost(made: &Made) -> Error {
    let what = format!("{:?} {}", made.operation, made.about);
    Error::OutcomeUnknown { what, reason: format!("a test failed {made}") }
}

fn about(topics: &[TopicSpec]) -> String {
    topics.iter().map(|spec| spec.topic.as_str()).collect::<Vec<_>>().join(",")
}

impl<B: Broker> Broker for Faulty<B> {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>> {
        let about = match to {
            Address::Topic(topic) | Address::Subscribed(topic) => topic.to_string(),
            Address::Inbox(inbox) => inbox.to_string(),
        };
        Box::pin(through(&self.state, Operation::Publish, about, self.inner.publish(to, message)))
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        let about = match to {
            Subscription::Shared { topic, .. } => topic.to_string(),
            Subscription::Own { topics } => topics.iter().map(Topic::as_str).collect::<Vec<_>>().join(","),
        };
        Box::pin(async move {
            let call = self.inner.subscribe(to);
            let inner = through(&self.state, Operation::Subscribe, about, call).await?;
            Ok(Box::new(FaultyInbox { inner, state: self.state.clone() }) as Box<dyn Inbox>)
        })
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn pressure(&self) -> Option<Pressure> {
        self.inner.pressure()
    }

    fn excess(&self, workspace: &str) -> Option<Excess> {
        self.inner.excess(workspace)
    }

    fn trouble(&self) -> Option<String> {
        self.inner.trouble()
    }

    fn losses(&self) -> Option<&Losses> {
        self.inner.losses()
    }

    fn naming(&self) -> Naming {
        self.inner.naming()
    }
}

impl<B: BrokerAdmin> BrokerAdmin for Faulty<B> {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(through(&self.state, Operation::Observe, about(topics), self.inner.observe(topics)))
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        let about = topic.topic.to_string();
        Box::pin(through(&self.state, Operation::Ensure, about, self.inner.ensure(topic)))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        let about = topic.topic.to_string();
        Box::pin(through(&self.state, Operation::Remove, about, self.inner.remove(topic)))
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        let about = topic.topic.to_string();
        Box::pin(through(&self.state, Operation::Remove, about, self.inner.remove_idle(topic)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(through(&self.state, Operation::List, prefix.to_owned(), self.inner.list(prefix)))
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move {
            let call = self.inner.hold(name);
            let inner = through(&self.state, Operation::Hold, name.to_owned(), call).await?;
            Ok(Arc::new(Faulty { inner, state: self.state.clone() }) as Arc<dyn BrokerAdmin>)
        })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        let call = self.inner.bound_poison(to);
        Box::pin(through(&self.state, Operation::BoundPoison, to.to_string(), call))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(through(&self.state, Operation::Examine, String::new(), self.inner.examine()))
    }

    fn traits(&self) -> Traits {
        self.inner.traits()
    }

    fn product(&self) -> BoxFuture<'_, Option<String>> {
        self.inner.product()
    }
}

struct FaultyInbox {
    inner: Box<dyn Inbox>,
    state: Arc<Mutex<State>>,
}

impl Inbox for FaultyInbox {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            let outcome = self.inner.next().await;
            let about = match &outcome {
                Ok(delivery) => delivery.topic.to_string(),
                Err(error) => error.to_string(),
            };
            let made = decide(&self.state, Operation::Next, about);
            match made.fault {
                None => outcome,
                Some(Fault::Before) => Err(Error::Unavailable { reason: format!("a test failed {made}") }),
                Some(Fault::After) => Err(lost(&made)),
            }
        })
    }

    fn begin(&self, delivery: Delivery) -> BoxFuture<'_, Result<Delivery>> {
        self.inner.begin(delivery)
    }

    fn address(&self) -> Option<InboxAddress> {
        self.inner.address()
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(through(&self.state, Operation::Follow, topic.to_string(), self.inner.follow(topic)))
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(through(&self.state, Operation::Unfollow, topic.to_string(), self.inner.unfollow(topic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embedded, ErrorKind};

    fn spec() -> TopicSpec {
        TopicSpec::with("flow:tg:faulty".parse().unwrap(), "reader")
    }

    #[tokio::test]
    async fn a_fault_before_leaves_no_effect_and_one_after_does() {
        for (fault, kind, exists) in
            [(Fault::Before, ErrorKind::Unavailable, false), (Fault::After, ErrorKind::OutcomeUnknown, true)]
        {
            let broker = Faulty::new(Embedded::in_memory());
            broker.plan(Plan::nth(0, fault, |made| made.operation.has_effect()));
            assert!(!broker.observe(&[spec()]).await.unwrap()[0].exists);
            assert_eq!(broker.ensure(&spec()).await.unwrap_err().kind(), kind);
            assert_eq!(broker.observe(&[spec()]).await.unwrap()[0].exists, exists);
            broker.ensure(&spec()).await.unwrap();
            let faults = broker.faults();
            assert_eq!(faults.len(), 1);
            assert_eq!(
                (faults[0].index, faults[0].operation, faults[0].fault),
                (1, Operation::Ensure, Some(fault))
            );
            assert_eq!(broker.log().len(), 4);
        }
    }

    #[tokio::test]
    async fn a_delivery_in_a_lost_answer_comes_back() {
        let broker = Faulty::new(Embedded::in_memory());
        broker.ensure(&spec()).await.unwrap();
        let to = Subscription::Shared { topic: spec().topic, name: "reader".to_owned(), prefetch: 1 };
        let inbox = broker.subscribe(&to).await.unwrap();
        broker.publish(&Address::Topic(spec().topic), Message::new("x")).await.unwrap();
        broker.plan(Plan::call(0, Fault::After));
        assert_eq!(inbox.next().await.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        let delivery = inbox.next().await.unwrap();
        assert_eq!(delivery.attempt, 2);
        delivery.ack();
    }

    #[tokio::test]
    async fn the_same_seed_gives_the_same_faults() {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let broker = Faulty::new(Embedded::in_memory());
            broker.plan(Plan::seeded(7, 0.3));
            for _ in 0..50 {
                let _ = broker.ensure(&spec()).await;
            }
            let count = broker.faults().len();
            assert!((5..30).contains(&count), "{count} of 50 failed");
            runs.push(broker.log());
        }
        assert_eq!(runs[0], runs[1]);
    }
}
