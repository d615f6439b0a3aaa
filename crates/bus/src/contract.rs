//! What every broker promises. This page is the conformance suite in prose.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sluice_schema::{Class, Topic, TopicError};

use crate::losses::Losses;
use crate::message::{Delivery, Message};
use crate::{BoxFuture, Result};

/// How often a hold is looked at where the broker does not say when it is lost.
const HOLD_LOOK: Duration = Duration::from_secs(1);

/// The name of one reader's inbox, valid while its reader is connected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InboxAddress(pub Arc<str>);

impl fmt::Display for InboxAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// To whoever subscribes to a topic.
    Topic(Topic),
    /// To the readers of a topic that has one on record: where the broker has none, the message is refused, not counted.
    Subscribed(Topic),
    /// To one reader's inbox.
    Inbox(InboxAddress),
}

impl Address {
    /// The topic, unless it is an inbox.
    #[must_use]
    pub const fn topic(&self) -> Option<&Topic> {
        match self {
            Self::Topic(topic) | Self::Subscribed(topic) => Some(topic),
            Self::Inbox(_) => None,
        }
    }
}

impl From<Topic> for Address {
    fn from(topic: Topic) -> Self {
        Self::Topic(topic)
    }
}

/// What a reader attaches to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// A named subscription of a `flow` or `request` topic, made by its owner; consumers of one name compete.
    Shared {
        /// The topic.
        topic: Topic,
        /// The subscription's name.
        name: String,
        /// How many deliveries the reader holds unsettled at most, at least 1. A broker that does not wait to be asked
        /// may give a reader that many, and show them as unsettled, before it takes them.
        prefetch: u32,
    },
    /// An inbox of the reader's own: it gets its own copy of everything published to these `response` and `notify`
    /// topics from now on, and whatever is sent to its address. It dies with the reader.
    Own {
        /// Topics to follow from the start; more can be followed later.
        topics: Vec<Topic>,
    },
}

/// How large things may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest body, in bytes.
    pub message_bytes_max: usize,
}

/// How much unsettled `flow` traffic a broker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes of unsettled messages, each counted once however many subscriptions it waits for.
    pub bytes: u64,
    /// Above this, nothing new should be let in.
    pub high_water_bytes: u64,
    /// The disk took no more at the last try.
    pub disk_full: bool,
}

/// Why new work of a workspace should not be let in at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excess {
    /// All workspaces together have too much waiting, or it is not known whose it is.
    Whole,
    /// The workspace has more waiting than its share.
    Own {
        /// What waits of it.
        bytes: u64,
        /// What may.
        share_bytes: u64,
        /// The flow of which most waits, by the name in its topics.
        flow: Option<String>,
    },
}

impl Pressure {
    /// Whether new work should be refused at the doors (inner publishes go on, or cyclic flows would stand still).
    #[must_use]
    pub const fn is_high(&self) -> bool {
        self.disk_full || self.bytes >= self.high_water_bytes
    }
}

/// The data path. No method here can make or remove a named queue; a reader's inbox lives and dies with its connection.
///
/// **Guarantees.** A publish to a `flow` topic returns after the message is durable, once for all subscriptions that the
/// topic has; with no subscription it is counted, not kept, and succeeds, unless the sender knows of one on record
/// ([`Address::Subscribed`]): then it is [`crate::Error::NoReader`], and nothing happened. Of several subscriptions on
/// record some may be missing: the others get the message, and the owner's next look finds it. A publish to a `request`
/// topic without a subscription is [`crate::Error::Unroutable`]. A publish to a `response` or `notify` topic reaches the inboxes that
/// follow it now, maybe none. A publish to a topic that was never ensured is [`crate::Error::NoTopic`]. First deliveries
/// of one subscription keep publish order; redeliveries do not.
///
/// **Assumes.** Futures are driven to their end; a dropped publish may or may not have happened.
pub trait Broker: Send + Sync + 'static {
    /// Sends a message to a topic or to one reader's inbox.
    fn publish<'a>(&'a self, to: &'a Address, message: Message) -> BoxFuture<'a, Result<()>>;

    /// Attaches a reader. On return it is bound: whatever is published from now on reaches it.
    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>>;

    /// How large things may be.
    fn limits(&self) -> Limits;

    /// How much waits, where the broker can tell without asking anybody; doors refuse new work while it is high.
    fn pressure(&self) -> Option<Pressure> {
        None
    }

    /// Why new work of one workspace should be refused at the doors, a full disk aside: it has more waiting than its share.
    /// Where a broker does not tell workspaces apart, all have one share.
    fn excess(&self, _workspace: &str) -> Option<Excess> {
        let pressure = self.pressure()?;
        (pressure.bytes >= pressure.high_water_bytes).then_some(Excess::Whole)
    }

    /// Why nothing can be published at the moment, where the broker can tell without asking anybody: it is away, or short
    /// of something. In words for strangers, as what follows "the broker takes nothing:"; no address, name or secret. `None`
    /// when nothing is known to be wrong.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What calls of this process found missing, for who tells its owner. `None` where a broker takes no notes.
    fn losses(&self) -> Option<&Losses> {
        None
    }

    /// What entries of processors call topics.
    fn naming(&self) -> Naming {
        Naming::IDENTIFIERS
    }
}

/// What entries of processors call topics: readers that are not ours may find some by other names only.
#[derive(Debug, Clone, Copy)]
pub struct Naming {
    /// The name of a topic.
    pub name: fn(&Topic) -> String,
    /// The topic of a name; identifiers are names too.
    pub topic: fn(&str) -> std::result::Result<Topic, TopicError>,
}

impl Naming {
    /// Topics are called by their identifiers.
    pub const IDENTIFIERS: Self = Self { name: |topic| topic.to_string(), topic: Topic::parse };
}

/// A reader's end. Dropping it detaches the reader; what it held unsettled comes back to the subscription.
pub trait Inbox: Send + Sync + 'static {
    /// The next delivery; one caller at a time. Cancel-safe: a delivery is handed over or stays.
    ///
    /// Fails with [`crate::Error::NoSubscription`] when the subscription is removed, [`crate::Error::Unavailable`] when
    /// the broker stops.
    fn next(&self) -> BoxFuture<'_, Result<Delivery>>;

    /// To be called before work begins on a delivery that was handed out before and may have ended a process. Where the
    /// broker counts an attempt also when a message was only on its way to a reader that ended, or when it crashed itself,
    /// this notes durably that work begins, and sets [`crate::Delivery::begun`] to how often it has: the first time, each
    /// time noted, and this one. The note goes when the delivery is settled. On an error the delivery has gone back.
    fn begin(&self, delivery: Delivery) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async { Ok(delivery) })
    }

    /// The address of an own inbox; `None` for a shared subscription.
    fn address(&self) -> Option<InboxAddress>;

    /// Starts following a `response` or `notify` topic with an own inbox. On return it is bound. Repeatable.
    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>>;

    /// Stops following a topic. Repeatable.
    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>>;
}

/// A topic with the subscriptions that its owner keeps under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// The topic.
    pub topic: Topic,
    /// Names of its subscriptions; only `flow` and `request` topics have any.
    pub subscriptions: Vec<String>,
}

impl TopicSpec {
    /// A topic without subscriptions.
    #[must_use]
    pub const fn bare(topic: Topic) -> Self {
        Self { topic, subscriptions: Vec::new() }
    }

    /// A topic with one subscription.
    pub fn with(topic: Topic, subscription: impl Into<String>) -> Self {
        Self { topic, subscriptions: vec![subscription.into()] }
    }
}

/// What a broker knows of a topic right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The topic.
    pub topic: Topic,
    /// Whether it is there.
    pub exists: bool,
    /// Its subscriptions: those asked about and, where the broker can list, all others.
    pub subscriptions: Vec<SeenSubscription>,
    /// Messages published while it had no subscription, where the broker counts them.
    pub unroutable: Option<u64>,
}

/// What a broker knows of one subscription right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenSubscription {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub exists: bool,
    /// Messages waiting, delayed ones included; a broker that cannot delay shows those as unsettled instead, until they
    /// are due, and so does one that does not promise [`Promise::DelayedIsReady`].
    pub ready: u64,
    /// Messages given to readers and not settled; `None` where the broker cannot show them ([`Promise::UnsettledIsShown`]).
    pub unsettled: Option<u64>,
    /// Readers attached; `None` where the broker cannot show them ([`Promise::ReadersAreShown`]).
    pub consumers: Option<u64>,
    /// Whether what is published to the topic reaches it; `None` where the broker cannot show that. Making it again binds it.
    pub is_bound: Option<bool>,
}

impl SeenSubscription {
    /// Whether nothing waits and nothing is in anybody's hands, as far as the broker can show.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.ready == 0 && self.unsettled.unwrap_or(0) == 0
    }
}

/// In which of the ways that the contract allows a broker keeps it, where brokers differ. It is the one place that says what a
/// broker does not promise; whatever it does not name is asked of every broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// How a hold ends whose holder cannot let it go.
    pub hold: HoldEnd,
    /// What it does not promise beside, each with the reason: a short sentence for people, without a full stop.
    pub not_promised: &'static [(Promise, &'static str)],
}

impl Traits {
    /// Everything is promised.
    pub const STRICT: Self = Self { hold: HoldEnd::Connection, not_promised: &[] };

    /// Why it does not promise something; `None` where it does.
    #[must_use]
    pub fn why_not(&self, promise: Promise) -> Option<&'static str> {
        match (promise, self.hold) {
            (Promise::HoldEndsWithConnection, HoldEnd::Lease { why, .. }) => Some(why),
            _ => self.not_promised.iter().find(|(not, _)| *not == promise).map(|(_, why)| *why),
        }
    }
}

/// What one broker may promise and another not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// [`HoldEnd::Connection`].
    HoldEndsWithConnection,
    /// A request that nobody has taken by its deadline ([`crate::property::TTL`]) is dropped.
    RequestsExpire,
    /// A message wanted again later is [`SeenSubscription::ready`] once the reader that wants it so has left. Else it is
    /// unsettled until it is due, whoever reads: the broker keeps it, and nobody has it.
    DelayedIsReady,
    /// [`SeenSubscription::unsettled`] is shown.
    UnsettledIsShown,
    /// [`SeenSubscription::consumers`] is shown.
    ReadersAreShown,
    /// [`BrokerAdmin::list`] finds topics that nobody asked about. Else it is refused.
    TopicsAreListed,
    /// Several readers of one subscription work at a time. Else one does, and the others wait for their turn.
    ReadersCompete,
    /// Readers and writers that are not ours reach the broker, by the names that theirs have. Else
    /// [`PoisonBound::Unneeded`] holds.
    StrangersTakePart,
}

impl Promise {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::HoldEndsWithConnection,
        Self::RequestsExpire,
        Self::DelayedIsReady,
        Self::UnsettledIsShown,
        Self::ReadersAreShown,
        Self::TopicsAreListed,
        Self::ReadersCompete,
        Self::StrangersTakePart,
    ];

    /// A sentence for people, without a full stop.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::HoldEndsWithConnection => {
                "a hold ends with the connection that its calls are made over, and no call is done after it"
            }
            Self::RequestsExpire => "a request that nobody has taken by its deadline is dropped",
            Self::DelayedIsReady => {
                "a message that is tried again later counts as waiting once its reader has left"
            }
            Self::UnsettledIsShown => "messages in readers' hands are counted",
            Self::ReadersAreShown => "readers are counted",
            Self::TopicsAreListed => "topics that nobody asked about are found",
            Self::ReadersCompete => "readers of one subscription share its messages",
            Self::StrangersTakePart => "readers and writers that are not ours take part",
        }
    }
}

/// How a hold ends whose holder cannot let it go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldEnd {
    /// With the connection that its calls are made over: the broker takes none of them afterwards.
    Connection,
    /// With a term that its holder renews. It outlives a broker that is back within the term, and its holder makes no call
    /// after it; one that the broker has but not done yet may still be done a moment later.
    Lease {
        /// The term.
        term: Duration,
        /// Why it cannot end with the connection: a short sentence for people, without a full stop.
        why: &'static str,
    },
}

/// What ends a loop in which a reader that is not ours gives the same message back for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoisonBound {
    /// The broker does: after so many deliveries the message goes where it was told.
    Bounded {
        /// Deliveries of one message, the first included.
        deliveries: u32,
    },
    /// Nothing does.
    Unbounded {
        /// Why the broker cannot be told to, and what would change that.
        why: String,
    },
    /// Only our own readers reach this broker, and those count attempts and park by themselves.
    Unneeded,
}

/// Something a person should know of the broker's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is, in kebab-case; does not change between versions.
    pub code: &'static str,
    /// The topic it is about, if it is about one.
    pub topic: Option<Topic>,
    /// The subscription it is about, if it is about one.
    pub subscription: Option<String>,
    /// What is so, with the names needed to find it.
    pub text: String,
    /// What to do about it.
    pub next: String,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something does not work.
    Error,
    /// Something will hurt.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

impl Finding {
    /// How much it matters; a code that is not known here is worth a look.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self.code {
            "disk-full"
            | "publishers-blocked"
            | "publish-fails"
            | "policy-loses-messages"
            | "queue-full"
            | "vhost-limit"
            | "broker-partitioned" => Severity::Error,
            "management-missing" | "poison-unbounded" | "alarms-not-seen" => Severity::Info,
            _ => Severity::Warning,
        }
    }
}

/// The life-cycle path, handed only to the owner of a queue. Every call may be repeated.
///
/// A topic is owned together with its subscriptions: a message published before the consumer arrives is kept for it.
pub trait BrokerAdmin: Send + Sync + 'static {
    /// Looks at topics; the answer has one entry per question, in order, also for what is not there.
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>>;

    /// Makes a topic and its subscriptions, bound, where they are missing; leaves other subscriptions alone.
    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>>;

    /// Removes a topic, its named subscriptions and everything bound under its name, with what is in them. Readers get
    /// an error; own inboxes stop following it. What is not there is fine.
    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>>;

    /// Removes a topic as [`BrokerAdmin::remove`] does, but only while nobody reads it and, for a `flow` topic, nothing is
    /// in its subscriptions: else it fails with [`crate::Error::InUse`], and of its subscriptions only some are gone, which
    /// held nothing. A broker that cannot remove on conditions looks first; what comes between its look and the removal is
    /// removed too.
    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for seen in self.observe(std::slice::from_ref(topic)).await? {
                let is_flow = seen.topic.class() == Class::Flow;
                let is_busy = |s: &&SeenSubscription| {
                    s.exists && (s.consumers.unwrap_or(0) > 0 || (is_flow && !s.is_drained()))
                };
                if let Some(busy) = seen.subscriptions.iter().find(is_busy) {
                    return Err(crate::Error::InUse {
                        name: format!("{} / {}", seen.topic, busy.name),
                        holders: format!("{} readers", busy.consumers.unwrap_or(0)),
                    });
                }
            }
            self.remove(topic).await
        })
    }

    /// Every topic whose identifier starts with `prefix` (`""` for all), as far as the broker can list
    /// ([`Promise::TopicsAreListed`]). Counts of messages and readers may be some seconds old.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>>;

    /// Life-cycle calls that end with the hold: at most one holder of a name over the whole broker, others get
    /// [`crate::Error::Held`]. Every call of what is returned, also the observing of nothing, fails with
    /// [`crate::Error::HoldLost`] from the moment the hold may be somebody else's, and has then changed nothing after
    /// that moment, unless holds are leases ([`HoldEnd::Lease`]). A lost hold never comes back by itself. Dropped, it is let go, which others may see a moment later.
    /// A hold gives no further holds.
    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>>;

    /// Of a hold: returns once it may be somebody else's, at the latest a second after that.
    fn lost(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while !matches!(self.observe(&[]).await, Err(crate::Error::HoldLost { .. })) {
                tokio::time::sleep(HOLD_LOOK).await;
            }
        })
    }

    /// Of a hold: what was last left under its name with [`BrokerAdmin::sign`], by whoever held it then. It outlives the hold
    /// and the broker's process. `None` when nothing was left, or the broker keeps nothing.
    fn signature(&self) -> BoxFuture<'_, Result<Option<String>>> {
        Box::pin(async { Ok(None) })
    }

    /// Of a hold: leaves a string of at most 255 bytes under its name, in place of what was there; `None` removes that.
    fn sign<'a>(&'a self, _by: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Who holds a name, in words for people: its process and host. `None` when nobody does, or nobody says.
    fn holder<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(async { Ok(None) })
    }

    /// Ends the requeue loops of readers that are not ours, where the broker lets the owner do it: after some deliveries,
    /// more than our own readers make, a message of a `flow` topic goes to `to`, a `flow` topic with a subscription. The
    /// properties [`crate::property::DEAD_TOPIC`], [`crate::property::DEAD_SUBSCRIPTION`] and
    /// [`crate::property::DEAD_REASON`] tell the reader of `to` where it comes from; only messages that were taken in this
    /// way have them. Stays in force until another `to` is given.
    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>>;

    /// What a person should know: loops, what cannot be seen and why, publishers held back. Changes nothing.
    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>>;

    /// Where brokers may differ, what this one does.
    fn traits(&self) -> Traits {
        Traits::STRICT
    }

    /// What the server is, for people: its product, and its version where it says that. `None` where nobody knows.
    fn product(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { None })
    }
}

impl<B: BrokerAdmin + ?Sized> BrokerAdmin for Arc<B> {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        (**self).observe(topics)
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        (**self).ensure(topic)
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        (**self).remove(topic)
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        (**self).remove_idle(topic)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        (**self).list(prefix)
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        (**self).hold(name)
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        (**self).lost()
    }

    fn signature(&self) -> BoxFuture<'_, Result<Option<String>>> {
        (**self).signature()
    }

    fn sign<'a>(&'a self, by: Option<&'a str>) -> BoxFuture<'a, Result<()>> {
        (**self).sign(by)
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        (**self).holder(name)
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        (**self).bound_poison(to)
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        (**self).examine()
    }

    fn traits(&self) -> Traits {
        (**self).traits()
    }

    fn product(&self) -> BoxFuture<'_, Option<String>> {
        (**self).product()
    }
}
