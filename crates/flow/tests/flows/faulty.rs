//! A broker that can be told to fail or to hang at one particular effect, and that writes down every effect it sees.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sluice_bus::{
    Address, BoxFuture, Broker, BrokerAdmin, Error, Finding, Inbox, Limits, Losses, Message, PoisonBound,
    Seen, Subscription, TopicSpec,
};
use sluice_schema::message::ConfigRequest;
use sluice_schema::{Topic, wire};
use tokio::sync::{Notify, watch};

/// How long a broker's end waits for its broker's word: longer than any caller waits for the end.
const WORD_TIMEOUT: Duration = Duration::from_secs(20);

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
    /// No word comes within the caller's time, and nothing is done.
    SilentBefore,
    /// It is done, and no word comes within the caller's time.
    SilentAfter,
    /// The hold is lost before; where it is taken, it is refused.
    LostBefore,
    /// It is done, and the hold is lost.
    LostAfter,
    /// The service sleeps before, as far as its broker can tell, until it is woken.
    Sleep,
}

impl Fault {
    /// Those that can befall an effect.
    pub(crate) fn of(effect: &str) -> Vec<Self> {
        let mut faults = Self::quick_of(effect);
        faults.extend([Self::SilentBefore, Self::SilentAfter]);
        faults
    }

    /// Those of them that nobody has to wait for.
    fn quick_of(effect: &str) -> Vec<Self> {
        let mut faults = vec![Self::FailBefore, Self::FailAfter, Self::CrashBefore, Self::CrashAfter];
        if ["hold ", "ensure ", "remove "].iter().any(|over| effect.starts_with(over)) {
            faults.extend([Self::LostBefore, Self::LostAfter]);
        }
        faults
    }
}

/// Shared by the ends of all instances of the service.
#[derive(Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
    /// Told when the service has to die.
    pub(crate) dying: Notify,
    /// Told when the service is to end in good order.
    pub(crate) retiring: Notify,
    /// Whether publishes of dead letters have to wait.
    pub(crate) are_letters_held: watch::Sender<bool>,
    /// Whether the disk has no room for dead letters.
    pub(crate) has_no_room: AtomicBool,
    /// Publishes of dead letters that wait.
    pub(crate) letters_held: AtomicUsize,
    /// Whether listings of everything have to wait, and with them all that is done unasked.
    pub(crate) are_listings_held: watch::Sender<bool>,
    /// Listings that wait.
    pub(crate) listings_held: AtomicUsize,
    /// Whether writes that take processors' entries away have to wait.
    pub(crate) are_withdrawals_held: watch::Sender<bool>,
    /// Such writes that wait.
    pub(crate) withdrawals_held: AtomicUsize,
    /// Whether the next write that opens a flow is caught: its sender takes it for sent.
    pub(crate) catches_opening: AtomicBool,
    /// The write that was caught, for whoever lets it go on.
    pub(crate) caught: Mutex<Option<(Address, Message)>>,
    /// Told when a service has fallen asleep.
    pub(crate) asleep: Notify,
    /// Calls that came too late, after the hold was lost.
    pub(crate) late_calls: AtomicUsize,
    holds: Mutex<Vec<Weak<Held>>>,
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
    fn random_fault(&mut self, what: &str) -> Option<Fault> {
        // xorshift64*; zero stays zero.
        let x = &mut self.random;
        *x ^= *x >> 12;
        *x ^= *x << 25;
        *x ^= *x >> 27;
        let drawn = x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        (*x != 0 && drawn.is_multiple_of(8)).then(|| {
            let faults = Fault::quick_of(what);
            faults[usize::try_from(drawn / 8).unwrap() % faults.len()]
        })
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

    async fn letter_passes(&self) {
        passes(&self.are_letters_held, &self.letters_held).await;
    }

    async fn withdrawal_passes(&self) {
        passes(&self.are_withdrawals_held, &self.withdrawals_held).await;
    }

    async fn listing_passes(&self) {
        passes(&self.are_listings_held, &self.listings_held).await;
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
        let fault = armed.or_else(|| state.random_fault(what))?;
        state.fired += 1;
        Some(fault)
    }

    fn holds(&self) -> Vec<Arc<Held>> {
        self.holds.lock().unwrap().iter().filter_map(Weak::upgrade).collect()
    }

    /// The broker loses every connection that holds a name.
    pub(crate) fn lose_holds(&self) {
        self.holds().iter().for_each(|held| held.lose());
    }

    /// Whoever fell asleep goes on.
    pub(crate) fn wake(&self) {
        self.holds().iter().for_each(|held| _ = held.is_asleep.send_replace(false));
    }

    async fn around(
        &self,
        what: String,
        effect: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        match self.at(&what) {
            Some(Fault::LostBefore) => {
                self.lose_holds();
                effect.await
            }
            Some(Fault::LostAfter) => {
                effect.await?;
                self.lose_holds();
                Err(Error::OutcomeUnknown { what, reason: "told to lose the connection".to_owned() })
            }
            Some(Fault::Sleep) => {
                self.holds().iter().for_each(|held| _ = held.is_asleep.send_replace(true));
                self.asleep.notify_one();
                effect.await
            }
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
            Some(Fault::SilentBefore) => Err(no_word(&what).await),
            Some(Fault::SilentAfter) => {
                effect.await?;
                Err(no_word(&what).await)
            }
        }
    }
}

/// Waits while things of a kind are held; how many wait can be seen.
async fn passes(are_held: &watch::Sender<bool>, waiting: &AtomicUsize) {
    waiting.fetch_add(1, Ordering::SeqCst);
    let mut held = are_held.subscribe();
    held.wait_for(|held| !held).await.unwrap();
    waiting.fetch_sub(1, Ordering::SeqCst);
}

/// What a caller gets in the end that waits longer than its broker's end does.
async fn no_word(what: &str) -> Error {
    tokio::time::sleep(WORD_TIMEOUT).await;
    let (what, after_ms) = (what.to_owned(), u64::try_from(WORD_TIMEOUT.as_millis()).unwrap());
    Error::TimedOut { what, after_ms }
}

/// Both paths of the service under test.
#[derive(Clone)]
pub(crate) struct Faulty {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    pub(crate) faults: Arc<Faults>,
}

/// Effects of the service outside the broker's queues: writes to config, and leftovers that it parks.
fn effect(to: &Address, message: &Message) -> Option<String> {
    let topic = to.topic()?;
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

impl Broker for Faulty {
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<(), Error>> {
        match effect(to, &message) {
            None => self.broker.publish(to, message),
            Some(what) => Box::pin(async move {
                let opens = what.starts_with("config apply put(flow,processor:");
                if opens && self.faults.catches_opening.swap(false, Ordering::SeqCst) {
                    *self.faults.caught.lock().unwrap() = Some((to.clone(), message));
                    return Ok(());
                }
                if what.starts_with("publish ") {
                    self.faults.letter_passes().await;
                    if self.faults.has_no_room.load(Ordering::SeqCst) {
                        return Err(Error::Disk { reason: "it is full; free some space".to_owned() });
                    }
                }
                if what.contains("delete(processor:") {
                    self.faults.withdrawal_passes().await;
                }
                self.faults.around(what, self.broker.publish(to, message)).await
            }),
        }
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>, Error>> {
        self.broker.subscribe(to)
    }

    fn limits(&self) -> Limits {
        self.broker.limits()
    }

    fn losses(&self) -> Option<&Losses> {
        self.broker.losses()
    }
}

/// What the service does without a hold: looking, and its own request topics.
impl BrokerAdmin for Faulty {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>, Error>> {
        self.admin.observe(topics)
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("ensure {}", topic.topic);
        Box::pin(self.faults.around(what, self.admin.ensure(topic)))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("remove {}", topic.topic);
        Box::pin(self.faults.around(what, self.admin.remove(topic)))
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("remove {}", topic.topic);
        Box::pin(self.faults.around(what, self.admin.remove_idle(topic)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>, Error>> {
        self.admin.list(prefix)
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>, Error>> {
        Box::pin(async move {
            let fault = self.faults.at(&format!("hold {name}"));
            let unavailable = || Error::Unavailable { reason: format!("told to fail at hold {name}") };
            match fault {
                Some(Fault::FailBefore) => return Err(unavailable()),
                Some(Fault::LostBefore) => return Err(Error::Held { name: name.to_owned() }),
                Some(Fault::CrashBefore) => {
                    self.faults.dying.notify_one();
                    return std::future::pending().await;
                }
                Some(Fault::SilentBefore) => return Err(no_word(name).await),
                Some(_) | None => {}
            }
            let inner = self.admin.hold(name).await?;
            let held = Arc::new(Held {
                inner: Mutex::new(Some(inner)),
                is_asleep: watch::Sender::new(false),
                faults: self.faults.clone(),
                name: name.to_owned(),
            });
            match fault {
                Some(Fault::FailAfter) => return Err(unavailable()),
                Some(Fault::CrashAfter) => {
                    self.faults.dying.notify_one();
                    return std::future::pending().await;
                }
                Some(Fault::SilentAfter) => return Err(no_word(name).await),
                Some(Fault::LostAfter) => held.lose(),
                _ => {}
            }
            self.faults.holds.lock().unwrap().push(Arc::downgrade(&held));
            Ok(held as Arc<dyn BrokerAdmin>)
        })
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>, Error>> {
        self.admin.holder(name)
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound, Error>> {
        self.admin.bound_poison(to)
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        self.admin.examine()
    }
}

/// Calls over a hold that can be lost, by a service that can sleep.
struct Held {
    inner: Mutex<Option<Arc<dyn BrokerAdmin>>>,
    is_asleep: watch::Sender<bool>,
    faults: Arc<Faults>,
    name: String,
}

impl Held {
    fn lose(&self) {
        self.inner.lock().unwrap().take();
    }

    async fn under(&self) -> Result<Arc<dyn BrokerAdmin>, Error> {
        let mut is_asleep = self.is_asleep.subscribe();
        is_asleep.wait_for(|is_asleep| !is_asleep).await.unwrap();
        self.inner.lock().unwrap().clone().ok_or_else(|| {
            self.faults.late_calls.fetch_add(1, Ordering::SeqCst);
            Error::HoldLost { name: self.name.clone() }
        })
    }
}

impl BrokerAdmin for Held {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>, Error>> {
        Box::pin(async move { self.under().await?.observe(topics).await })
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("ensure {}", topic.topic);
        let effect = async move { self.under().await?.ensure(topic).await };
        Box::pin(self.faults.around(what, effect))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("remove {}", topic.topic);
        let effect = async move { self.under().await?.remove(topic).await };
        Box::pin(self.faults.around(what, effect))
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<(), Error>> {
        let what = format!("remove {}", topic.topic);
        let effect = async move { self.under().await?.remove_idle(topic).await };
        Box::pin(self.faults.around(what, effect))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>, Error>> {
        Box::pin(async move {
            self.faults.listing_passes().await;
            self.under().await?.list(prefix).await
        })
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>, Error>> {
        Box::pin(async move { self.under().await?.hold(name).await })
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound, Error>> {
        Box::pin(async move { self.under().await?.bound_poison(to).await })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>> {
        Box::pin(async move { self.under().await?.examine().await })
    }
}
