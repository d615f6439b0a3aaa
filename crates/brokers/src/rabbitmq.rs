//! RabbitMQ, with the names and properties that TrustGraph 2.11 gives its exchanges and queues.
//!
//! # Flow
//! A fanout exchange per topic, a queue per subscription, an exclusive queue per inbox. Four kinds of connections:
//! publishing, consuming (one per thousand readers), life cycle, looks. Each is rebuilt when lost; readers attach again.
//!
//! # Guarantees
//! A publish returns when the broker has confirmed it. An attempt is counted before a message is handed out: what the
//! broker marks as redelivered is first put behind the good messages as a copy with a higher count, then handed out.
//! A message wanted again later stays unacknowledged here until then, so a crash gives it back at once.
//!
//! A broker that restarts loses `request` queues; whoever made them here makes them again while their exchange is there.
//! Those made under a hold, which such a restart ends, are the next holder's to make.
//!
//! # Measured
//! `benches/round_trip.rs`, two busy cores, 64 calls at once: 1 300 a second with a prefetch of 1, 5 300 with 16, 6 500
//! with 64; a bare client's were 1 500, 7 000 and 8 500. A prefetch of 1 costs a round trip per message.
//!
//! # Caveats
//! What happens under a hold is sent over its connection, but for looks, and for the policy that bounds poison: that goes over the
//! management API, after asking whether the hold lasts. A dead letter that cannot be routed at that moment is lost.
//!
//! Without the management API the broker shows neither unacknowledged messages nor queues that nobody asked about; with
//! it, the former are up to five seconds old. What was sent to an inbox while its connection was down is lost. A message
//! that a reader had been given, but not taken, when its connection was lost counts as an attempt; so does every message
//! that was in the broker when that crashed, for it marks all of them as delivered. How often work on a message began that
//! may have ended a process is therefore noted apart (`begun`).

mod address;
mod admin;
mod begun;
mod examine;
mod fault;
mod hold;
mod link;
mod management;
mod names;
mod outbox;
mod own;
mod poison;
mod pool;
mod publish;
mod screen;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{
    BoxFuture, Broker, BrokerAdmin, Finding, HoldEnd, Inbox, Limits, Losses, Message, PoisonBound, Pressure,
    Promise, Result, Seen, Subscription, TopicSpec, Traits,
};
use sluice_schema::Topic;
use tokio_util::sync::CancellationToken;

use crate::Secret;
use crate::local::{Pauses, lock, stopped};
use address::Address;
use admin::Admin;
use hold::Hold;
use link::{Lanes, Link};
use management::Management;
use pool::Pool;
use publish::Publisher;

/// What it does not promise without the management API; with it, it promises everything.
pub const TRAITS_WITHOUT_MANAGEMENT: Traits = Traits {
    hold: HoldEnd::Connection,
    not_promised: &[
        (
            Promise::UnsettledIsShown,
            "only the management API counts messages in hand, and no address of that is given",
        ),
        (Promise::TopicsAreListed, "only the management API lists queues, and no address of that is given"),
    ],
};

/// What can be chosen about a broker.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://USER:PASSWORD@HOST:15672` of the management API; without user and password those of the broker are taken.
    /// Without it, queues that nobody asked about are not found, and unacknowledged messages are not counted.
    pub management: Option<Secret>,
    /// Takes the place of the password in the address, so that it need not stand on a command line.
    pub password: Option<Secret>,
    /// Certificates (PEM) to trust beside those of the machine, for `amqps://`.
    pub ca_pem: Option<String>,
    /// Shown by the broker as the name of our connections.
    pub name: String,
    /// The largest body that is published, 64 MiB. The broker has a limit of its own (128 MiB by default, 16 MiB on 4.x): a
    /// smaller one is known, and told, once it has refused a message for it.
    pub message_bytes_max: usize,
    /// Channels for publishing what goes to a disk, and as many for what does not, 4: what waits when one gets free goes
    /// over it together. Measured with 1, 2, 4 and 8 on two busy cores: calls at 64 at once made 0.67 to 0.9 of a bare
    /// client's, without an order among the four; one alone would let a large body hold up all others.
    pub publishing_channels: usize,
    /// Life-cycle calls under way at once, 16.
    pub life_cycle_channels_max: usize,
    /// How long a publish waits for a connection, for a broker that blocks publishers, and for its confirmation: 30 s.
    pub publish_timeout: Duration,
    /// How long the first connection and any other call may take, 10 s.
    pub call_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            management: None,
            password: None,
            ca_pem: None,
            name: "sluice".to_owned(),
            message_bytes_max: 64 << 20,
            publishing_channels: 4,
            life_cycle_channels_max: 16,
            publish_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(10),
        }
    }
}

/// Our end of a RabbitMQ broker. Cheap to clone; it disconnects when [`RabbitMq::shutdown`] is called or the last clone
/// is dropped.
#[derive(Clone)]
pub struct RabbitMq {
    core: Arc<Core>,
    _stop: Arc<tokio_util::sync::DropGuard>,
}

/// What readers share with the broker; they keep this alive, not its connections.
struct Core {
    publisher: Arc<Publisher>,
    consuming: Lanes,
    admin: Arc<Admin>,
    address: Arc<Address>,
    options: Options,
    losses: Losses,
    stop: CancellationToken,
}

impl RabbitMq {
    /// Connects to `amqp://USER:PASSWORD@HOST:PORT/VHOST` or `amqps://…`; user, password and vhost default to `guest`,
    /// `guest` and `/`. From then on lost connections are rebuilt. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`sluice_bus::Error::Refused`] for an address that cannot work, credentials or a vhost that the broker does not
    /// take; [`sluice_bus::Error::Unavailable`] when it cannot be reached.
    pub async fn connect(url: &str, options: Options) -> Result<Self> {
        // A process may have chosen a provider already; then that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = Arc::new(Address::parse(url, &options)?);
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let open = |role| Link::open(address.clone(), role, options.call_timeout, stop.clone());
        let (publishing, consuming, life_cycle, looks) =
            tokio::try_join!(open("publishing"), open("consuming"), open("life cycle"), open("looks"))?;
        let management = Management::new(&options, &address)?.map(Arc::new);
        let publisher = Arc::new(Publisher::new(
            publishing,
            options.publishing_channels,
            options.publish_timeout,
            options.message_bytes_max,
        ));
        let pool = Pool::new(life_cycle, options.life_cycle_channels_max);
        let looks = Arc::new(Pool::new(looks, options.life_cycle_channels_max));
        let losses = Losses::default();
        let admin = Arc::new(Admin::new(pool, looks, management, publisher.clone(), losses.clone()));
        #[expect(
            clippy::disallowed_methods,
            reason = "floor 1 does not see the sdk's tasks; `stop` ends this one"
        )]
        tokio::spawn(admin.clone().keep());
        let core =
            Core { publisher, consuming: Lanes::new(consuming), admin, address, options, losses, stop };
        Ok(Self { core: Arc::new(core), _stop: Arc::new(guard) })
    }

    /// Disconnects: readers and publishers get [`sluice_bus::Error::Unavailable`], what readers held goes back.
    pub async fn shutdown(&self) {
        self.core.stop.cancel();
        self.core.publisher.close().await;
        self.core.consuming.close().await;
        self.core.admin.close().await;
    }

    /// `flow` messages that this process published to topics without a subscription: they are gone.
    #[must_use]
    pub fn unroutable(&self) -> u64 {
        self.core.publisher.unroutable_total()
    }

    /// Where it is connected to, without the password.
    #[must_use]
    pub fn address(&self) -> String {
        self.core.address.to_string()
    }

    /// Whether the management API answers; `None` when none was configured.
    pub async fn management_answers(&self) -> Option<bool> {
        self.core.admin.management_answers().await
    }
}

impl Broker for RabbitMq {
    fn publish<'a>(&'a self, to: &'a sluice_bus::Address, message: Message) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let sent = self.core.publisher.publish(to, message).await;
            sent.inspect_err(|error| self.core.losses.note(error))
        })
    }

    fn subscribe<'a>(&'a self, to: &'a Subscription) -> BoxFuture<'a, Result<Box<dyn Inbox>>> {
        Box::pin(async move {
            let attached = match to {
                Subscription::Shared { topic, name, prefetch } => {
                    let attached = shared::attach(&self.core, topic, name, *prefetch).await;
                    attached.map(|inbox| Box::new(inbox) as Box<dyn Inbox>)
                }
                Subscription::Own { topics } => {
                    own::attach(&self.core, topics).await.map(|inbox| Box::new(inbox) as Box<dyn Inbox>)
                }
            };
            attached.inspect_err(|error| self.core.losses.note(error))
        })
    }

    fn limits(&self) -> Limits {
        Limits { message_bytes_max: self.core.publisher.bytes_max() }
    }

    /// It cannot tell how much waits, only that the broker takes nothing more.
    fn pressure(&self) -> Option<Pressure> {
        let is_blocked = self.core.publisher.is_blocked();
        Some(Pressure { bytes: 0, high_water_bytes: u64::MAX, disk_full: is_blocked })
    }

    fn trouble(&self) -> Option<String> {
        self.core.publisher.trouble().map(str::to_owned)
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.core.losses)
    }
}

impl BrokerAdmin for RabbitMq {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.core.admin.observe(topics))
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.admin.ensure(topic))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.admin.remove(topic))
    }

    fn remove_idle<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.admin.remove_idle(topic))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.core.admin.list(prefix))
    }

    fn hold<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Arc<dyn BrokerAdmin>>> {
        Box::pin(async move { Ok(Arc::new(Hold::take(&self.core, name).await?) as Arc<dyn BrokerAdmin>) })
    }

    fn holder<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<String>>> {
        Box::pin(hold::holder(&self.core, name))
    }

    fn bound_poison<'a>(&'a self, to: &'a Topic) -> BoxFuture<'a, Result<PoisonBound>> {
        Box::pin(self.core.admin.bound_poison(to))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async move { Ok(self.core.admin.examine().await) })
    }

    fn traits(&self) -> Traits {
        self.core.admin.traits()
    }

    fn product(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { Some(self.core.admin.product().await) })
    }
}
