//! A broker that can be told to fail or to hang at one particular effect, and that writes down every effect it sees.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sluice_bus::{
    Address, BoxFuture, Broker, BrokerAdmin, Embedded, Error, Finding, Inbox, Limits, Message, PoisonBound,
    Seen, Subscription, TopicSpec,
};
use sluice_schema::message::ConfigRequest;
use sluice_schema::{Topic, wire};
use tokio::sync::{Notify, watch};

/// What happens at an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails and nothing is done.
    FailBefore,
    /// It is done, and nobody learns of it.
    FailAfter,
    /// The service dies and nothing is done.
    CrashBefore,
    /// It is done, and the service dies.
    CrashAfter,
}

impl Fault {
    pub(crate) const ALL: [Self; 4] =
        [Self::FailBefore, Self::FailAfter, Self::CrashBefore, Self::CrashAfter];
}

/// Shared by the ends of all instances of the service.
#[derive(Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
    /// Told when the service has to die.
    pub(crate) dying: Notify,
    /// Whether publishes of dead letters have to wait.
    pub(crate) are_letters_held: watch::Sender<bool>,
    /// Publishes of dead letters that wait.
    pub(crate) letters_held: AtomicUsize,
}

#[derive(Default)]
struct State {
    is_recording: bool,
    seen: Vec<String>,
    counts: HashMap<String, usize>,
    armed: Option<(String, Fault)>,
    /// State of a generator of random faults; 0 = none.
    random: u64,
    fired: usize,
}

impl State {
    fn random_fault(&mut self) -> Option<Fault> {
        // xorshift64*; zero stays zero.
        let x = &mut self.random;
        *x ^= *x >> 12;
        *x ^= *x << 25;
        *x ^= *x >> 27;
        let drawn = x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        (*x != 0 && drawn.is_multiple_of(8)).then(|| Fault::ALL[usize::try_from(drawn / 8 % 4).unwrap()])
    }
}

impl Faults {
    pub(crate) fn record(&self) {
        self.state.lock().unwrap().is_recording = true;
    }

    pub(crate) fn effects(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.clone()
    }

    pub(crate) fn arm(&self, effect: &str, fault: Fault) {
        self.state.lock().unwrap().armed = Some((effect.to_owned(), fault));
        self.record();
    }

    /// From now on one effect in eight is struck, and how is random too.
    pub(crate) fn strike_at_random(&self, seed: u64) {
        self.state.lock().unwrap().random = seed;
        self.record();
    }

    pub(crate) fn spare(&self) {
        self.state.lock().unwrap().random = 0;
    }

    /// Waits while dead letters are held; how many do can be seen.
    async fn letter_passes(&self) {
        self.letters_held.fetch_add(1, Ordering::SeqCst);
        let mut held = self.are_letters_held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        self.letters_held.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn fired(&self) -> usize {
        self.state.lock().unwrap().fired
    }

    fn at(&self, what: &str) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        if !state.is_recording {
            return None;
        }
        let count = state.counts.entry(what.to_owned()).or_default();
        *count += 1;
        let effect = format!("{what} #{count}");
        state.seen.push(effect.clone());
        let armed = state.armed.take_if(|(armed, _)| *armed == effect).map(|(_, fault)| fault);
        let fault = armed.or_else(|| state.random_fault())?;
        state.fired += 1;
        Some(fault)
    }

    async fn around(
        &self,
        what: String,
        effect: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        match self.at(&what) {
            None => effect.await,
            Some(Fault::FailBefore) => {
                Err(Error::Unavailable { reason: format!("told to fail before {what}") })
            }
            Some(Fault::FailAfter) => {
                effect.await?;
                Err(Error::OutcomeUnknown { what, reason: "told to lose the answer".to_owned() })
            }
            Some(Fault::CrashBefore) => {
                self.dying.notify_one();
                std::future::pending().await
            }
            Some(Fault::CrashAfter) => {
                effect.await?;
                self.dying.notify_one();
                std::future::pending().await
            }
        }
    }
}

/// Both paths of the service under test.
#[derive(Clone)]
pub(crate) struct Faulty<B = Embedded> {
    pub(crate) inner: B,
    pub(crate) faults: Arc<Faults>,
}

/// Effects of the service outside the broker's queues: writes to config, and leftovers that it parks.
fn effect(to: &Address, message: &Message) -> Option<String> {
    let Address::Topic(topic) = to else { return None };
    if topic.as_str().starts_with("flow:tg:dead-letters:") {
        return Some(format!("publish {topic}"));
    }
    if topic.as_str() != "request:tg:config" {
        return None;
    }
    let request: ConfigRequest = wire::decode(&message.body).unwrap();
    let types = |types: Vec<&String>| {
        let types: BTreeSet<_> = types.into_iter().map(String::as_str).collect();
        types.into_iter().collect::<Vec<_>>().join(",")
    };
    let puts = types(request.puts.iter().chain(&request.values).map(|v| &v.r#type).collect());
    let deletes = types(request.deletes.iter().map(|v| &v.r#type).collect());
    ["put", "delete", "apply"].contains(&request.operation.as_str()).then(|| {
        let quiet = if request.quiet { " quietly" } else { "" };
        format!("config {}{quiet} put({puts}) delete({deletes})", request.operation)
    })
}

impl<B: Broker> Broker for Faulty<B> {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<(), Error>> {
        match effect(to, &message) {
            None => self.inner.publish(to, message),
            Some(what) => Box::pin(async move {
                if what.starts_with("publish ") {
                    self.faults.letter_passes().await;
                }
                self.faults.around(what, self.inner.publish(to, message)).await
            }),
        }
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>, Error>> {
        self.inner.subscribe(to)
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }
}

impl<B: BrokerAdmin> BrokerAdmin for Faulty<B> {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>, Error>> {
        self.inner.observe(topics)
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("ensure {}", topic.topic);
        Box::pin(self.faults.around(what, self.inner.ensure(topic)))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("remove {}", topic.topic);
        Box::pin(self.faults.around(what, self.inner.remove(topic)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>, Error>> {
        self.inner.list(prefix)
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>, Error>> {
        Box::pin(async move {
            let inner = self.inner.hold(name).await?;
            Ok(Arc::new(Faulty { inner, faults: self.faults.clone() }) as Arc<dyn BrokerAdmin>)
        })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound, Error>> {
        self.inner.bound_poison(to)
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        self.inner.examine()
    }
}
