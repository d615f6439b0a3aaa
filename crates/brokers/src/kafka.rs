//! Apache Kafka 4.3 and newer. Among processes of ours subscriptions are share groups, whose messages are settled one by one.
//! Beside processes of TrustGraph 2.11 they are classic groups, as theirs are, and topics have their names.
//!
//! # Flow
//! A topic of one partition per topic, a share group per subscription, which its owner makes before anybody reads. Which topics,
//! subscriptions and inboxes there are is in a compacted topic that every process reads to the end and goes on reading
//! ([`registry`]), so senders know at once whether a topic is there and has readers, and readers are told when it goes. A topic
//! that is made again is another one at the broker. Inboxes of a process share a topic of its own; followed topics are read without
//! a group, from their end. What waits for messages has connections of its own, since the broker answers one after the other.
//!
//! # Guarantees
//! A publish returns when all replicas in sync have it; a single broker has it on its disk then. The broker counts a delivery before
//! it makes it, also to readers that are killed; before it drops a message for having been delivered too often, a reader sends it
//! once more, for its subscription only, with how often it was. What a reader held comes back at once when it leaves, and within
//! fifteen seconds when it is not heard of.
//!
//! # Caveats
//! Beside TrustGraph 2.11 one reader of a subscription works at a time, ours or theirs, and what it has not settled when the group
//! chooses another one comes again there ([`classic`]).
//!
//! A hold is a lease ([`sluice_bus::HoldEnd::Lease`]). The broker shows what is not settled in one count, those in hand included, and
//! not who reads. A message that is tried again comes before what has not been handed out. A request that nobody takes by its
//! deadline is dropped by the reader that gets it, not before. Deliveries count that were on their way to a reader that ended.
//! Two owners that make one topic in the same moment make two, of which one stays, and one of them is told to try again. A process
//! that is cut off for two minutes is taken for gone, and its inboxes end.

mod address;
mod admin;
mod book;
mod classic;
mod fault;
mod group;
mod hold;
mod names;
mod own;
mod publish;
mod registry;
mod shared;
mod sweep;
mod tail;
mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use krafka::admin::{AdminClient, DescribeClusterOptions, OffsetSpec};
use sluice_bus::{
    BoxFuture, Broker, BrokerAdmin, Error, Finding, HoldEnd, Inbox, Limits, Losses, Message, PoisonBound,
    Promise, Result, Seen, Subscription, TopicSpec, Traits,
};
use sluice_schema::Topic;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::Secret;
use address::{Address, Role};
use admin::Admin;
use book::Book;
use group::Groups;
use hold::Hold;
use own::Inboxes;
use publish::Publisher;
use registry::{Log, Registry};
use tail::{Reading, Tail};

/// The largest body. Topics are made for it, whatever the broker's own limit is.
const BODY_BYTES_MAX: usize = 8 << 20;
/// What a record of a topic may take.
const MESSAGE_BYTES_MAX: usize = BODY_BYTES_MAX + names::RECORD_BYTES_MAX;
/// What waits to be sent.
const BUFFER_BYTES: usize = 64 << 20;
/// How long a request of the lease's connection may take, and a write of it.
const LEASE_REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const LEASE_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What it does not promise.
pub const TRAITS: Traits = Traits {
    hold: HoldEnd::Lease {
        term: hold::TERM,
        why: "the broker ties nothing to a connection, so a call that it has but has not done may be done a moment later",
    },
    not_promised: &[
        (
            Promise::RequestsExpire,
            "the broker cannot drop one message; the reader that gets a late one does, and it is counted until then",
        ),
        (Promise::UnsettledIsShown, "the broker counts what is in hand with what waits"),
        (Promise::ReadersAreShown, "the client library cannot ask who reads from a share group"),
        (Promise::StrangersTakePart, "TrustGraph 2.11 reads with consumer groups of the older kind"),
    ],
};

/// The same beside processes of TrustGraph 2.11.
pub const TRAITS_BESIDE: Traits = Traits {
    hold: TRAITS.hold,
    not_promised: &[
        TRAITS.not_promised[0],
        TRAITS.not_promised[1],
        (
            Promise::ReadersCompete,
            "a topic has one partition, as TrustGraph 2.11 expects, and one reader has that at a time",
        ),
    ],
};

/// What can be chosen about a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// Takes the place of the password in the address, so that it need not stand on a command line.
    pub password: Option<Secret>,
    /// Certificates (PEM) to trust beside those of the machine, for `kafka+ssl://`.
    pub ca_pem: Option<String>,
    /// How long a publish waits for a connection and for its acknowledgement: 30 s.
    pub publish_timeout: Duration,
    /// How long connecting first and any other call may take, 10 s.
    pub call_timeout: Duration,
    /// How long a process says nothing until its inboxes are removed: two minutes. It says six times as often that it lives.
    pub silence_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            password: None,
            ca_pem: None,
            publish_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(10),
            silence_max: Duration::from_secs(120),
        }
    }
}

/// Our end of a Kafka cluster. Cheap to clone; it disconnects when [`Kafka::shutdown`] is called or the last clone is dropped.
#[derive(Clone)]
pub struct Kafka {
    core: Arc<Core>,
    _stop: Arc<DropGuard>,
}

/// What all ends share.
struct Core {
    address: Arc<Address>,
    groups: Groups,
    client: Arc<AdminClient>,
    book: Arc<Book>,
    tail: Arc<Tail>,
    publisher: Arc<Publisher>,
    inboxes: Arc<Inboxes>,
    admin: Admin,
    limits: Limits,
    losses: Losses,
    options: Options,
    /// Whether this process sees to what others left behind, as owners do.
    is_sweeping: AtomicBool,
    /// Tasks of readers and holders, which end with `stop`.
    readers: TaskTracker,
    /// Those that readers need until their end.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Kafka {
    /// Connects to `kafka://USER:PASSWORD@HOST:9092,…`, or `kafka+ssl://` over TLS only, with `?mechanism=SCRAM-SHA-512` where
    /// passwords are not sent as they are, and `beside=2.11` where processes of TrustGraph 2.11 take part. From then on lost connections are made again. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] for an address that cannot work, for somebody whom the broker does not let in, and for a broker without
    /// share groups; [`Error::Unavailable`] when it cannot be reached.
    pub async fn connect(url: &str, options: Options) -> Result<Self> {
        // A process may have chosen a provider already; then that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = Arc::new(Address::parse(url, &options)?);
        let within = options.call_timeout;
        let client = Arc::new(address.open(Role::Admin, within).await?.admin());
        let (broker, brokers) = cluster(&client, within).await?;
        let groups = match address.is_beside() {
            true => Groups::Classic { kept: group::kept(&client, broker, within).await? },
            false => Groups::Share { deliveries: group::check(&client, broker, within).await? },
        };
        let registry = Arc::new(Registry::default());
        let leases = producer(&address, Role::Lease, LEASE_REQUEST_TIMEOUT, LEASE_WRITE_TIMEOUT).await?;
        let book = Arc::new(Book::new(registry.clone(), client.clone(), leases, brokers, within));
        book.open().await?;
        let (readers, tasks) = (TaskTracker::new(), TaskTracker::new());
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let guard = stop.clone().drop_guard();
        // Reading ends with this guard too, should connecting fail from here on.
        let reads = end.clone().drop_guard();
        let tail = read(&address, &book, &registry, &tasks, &end, within).await?;
        let sends = producer(&address, Role::Publish, within, options.publish_timeout).await?;
        let publisher =
            Arc::new(Publisher::new(book.clone(), sends, options.publish_timeout, BODY_BYTES_MAX));
        let admin = Admin::new(admin::Parts {
            client: client.clone(),
            book: book.clone(),
            publisher: publisher.clone(),
            tasks: readers.clone(),
            broker,
            groups,
            message_bytes_max: MESSAGE_BYTES_MAX,
            call_timeout: within,
        });
        let inboxes = Arc::new(Inboxes::new(own::Parts {
            book: book.clone(),
            client: client.clone(),
            tail: tail.clone(),
            tasks: tasks.clone(),
            stop: end.clone(),
            within,
            alive_every: options.silence_max / 6,
            message_bytes_max: MESSAGE_BYTES_MAX,
        }));
        let core = Core {
            address,
            groups,
            client,
            book: book.clone(),
            tail,
            publisher: publisher.clone(),
            inboxes: inboxes.clone(),
            admin,
            limits: Limits { message_bytes_max: BODY_BYTES_MAX },
            losses: Losses::default(),
            options,
            is_sweeping: AtomicBool::new(false),
            readers: readers.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(async move {
            stop.cancelled().await;
            readers.close();
            if tokio::time::timeout(within, readers.wait()).await.is_err() {
                tracing::debug!("not all was given back; it comes back by itself");
            }
            inboxes.close().await;
            drop(reads);
            publisher.close(within).await;
            book.close().await;
        });
        // Owning begins when something is made; until then there is nothing to see to.
        Ok(Self { core: Arc::new(core), _stop: Arc::new(guard) })
    }

    /// Disconnects: readers get [`Error::Unavailable`], what they held goes back.
    pub async fn shutdown(&self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        // Readers have as long, and what ends after them as long again.
        if tokio::time::timeout(self.core.options.call_timeout * 2, self.core.tasks.wait()).await.is_err() {
            tracing::debug!("the broker did not let all connections be closed in good order");
        }
    }

    /// Sees to what others left behind, from the first time on that something is made.
    fn sweep(&self) {
        if self.core.is_sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let core = Arc::downgrade(&self.core);
        let stop = self.core.stop.clone();
        self.core.readers.spawn(sweep::run(core, stop));
    }
}

/// One of the cluster's brokers, and how many there are.
async fn cluster(client: &AdminClient, within: Duration) -> Result<(i32, usize)> {
    let found = client.describe_cluster(DescribeClusterOptions::default().timeout(within)).await;
    let brokers = found.map_err(|error| fault::of(&error, "looking at the cluster"))?.brokers;
    match brokers.first() {
        Some(first) => Ok((first.id, brokers.len())),
        None => Err(Error::Unavailable { reason: "the cluster has no broker at the moment".to_owned() }),
    }
}

/// An end that sends, over connections of its own.
async fn producer(
    address: &Address,
    role: Role,
    request: Duration,
    delivery: Duration,
) -> Result<krafka::producer::Producer> {
    let kafka = address.open(role, request).await?;
    let producer = kafka
        .producer()
        .linger(Duration::ZERO)
        .delivery_timeout(delivery.max(request))
        .max_block(delivery)
        .max_request_size(MESSAGE_BYTES_MAX + names::RECORD_BYTES_MAX)
        .buffer_memory(BUFFER_BYTES)
        .metrics_push(false)
        .build();
    producer.await.map_err(|error| fault::of(&error, "sending"))
}

/// Reads the registry and the leases up to now, and goes on reading.
async fn read(
    address: &Arc<Address>,
    book: &Book,
    registry: &Arc<Registry>,
    tasks: &TaskTracker,
    end: &CancellationToken,
    within: Duration,
) -> Result<Arc<Tail>> {
    let (tail, changes) = Tail::new();
    let mut begins = [(Log::Registry, 0), (Log::Leases, 0)];
    for (log, offset) in &mut begins {
        *offset = book.offset(log.name(), OffsetSpec::Earliest).await?;
    }
    let reading =
        Reading::open(address.clone(), within, tail.clone(), registry.clone(), changes, begins).await?;
    tasks.spawn(reading.run(end.clone()));
    for log in Log::ALL {
        if let Err(error) = book.sync(log).await {
            end.cancel();
            return Err(error);
        }
    }
    Ok(tail)
}

impl Broker for Kafka {
    fn publish<'a>(&'a self, to: &'a sluice_bus::Address, message: Message) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (bytes, max) = (message.body.len(), self.core.limits.message_bytes_max);
            if bytes > max {
                return Err(Error::TooLarge { bytes, max });
            }
            let sent = self.core.publisher.publish(to, &message).await;
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
        self.core.limits
    }

    fn trouble(&self) -> Option<String> {
        self.core.book.registry.is_silent().then(|| "the connection to it is lost".to_owned())
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.core.losses)
    }
}

impl BrokerAdmin for Kafka {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.core.admin.observe(topics))
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        self.sweep();
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
        Box::pin(self.core.admin.examine())
    }

    fn traits(&self) -> Traits {
        match self.core.groups {
            Groups::Share { .. } => TRAITS,
            Groups::Classic { .. } => TRAITS_BESIDE,
        }
    }
}
