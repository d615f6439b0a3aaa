//! Apache Pulsar: names are those that TrustGraph 2.11 uses, and all topics are persistent ones. Processes of 2.11 take part
//! where the address says so (`beside`); else all readers and writers are ours.
//!
//! # Flow
//! A link of our own on the binary protocol (`link`), one connection for publishing and one for reading to each broker that
//! serves a topic, and the admin API for everything that is made, seen or removed. A persistent topic per topic, a shared
//! subscription that its owner makes per subscription; inboxes and their followers read without a subscription that anybody
//! made. A reader permits the broker as many messages as it has room for, and one more for each that it settles. Tenant and
//! namespaces are made with the first topic and closed: the broker makes nothing because somebody attaches.
//!
//! # Guarantees
//! A publish returns when the broker has acknowledged it: it is on the bookies' disks then. Whether anybody would get it is
//! asked once for each producer: an owner removes subscriptions with their topic only, which ends the producer. Each
//! hand-over is noted before it happens, in a topic of its own (`notes`), since the broker does not count those that ended
//! their reader. A message whose reader ends, however, comes back at once. What is removed stays so: who attaches to it is
//! reported that it is absent.
//!
//! # Caveats
//! A hold ends with a connection, but calls are made over another one: it is a lease ([`sluice_bus::HoldEnd::Lease`]). A
//! machine that vanishes without a word is taken for a holder for up to a minute. A request that nobody takes is not dropped
//! by its deadline. A message that is tried again waits in its reader, and comes again at once when that one leaves; it comes
//! before what has not been handed out. A subscription that is removed by hand
//! while its topic stays is not missed by senders: what they send is kept for the others only.

mod address;
mod admin;
mod batch;
mod beside;
mod ends;
mod frame;
mod hold;
mod link;
mod links;
mod names;
mod notes;
mod own;
mod proto;
mod publish;
mod rest;
mod shared;
mod system;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{
    BoxFuture, Broker, BrokerAdmin, Error, Finding, HoldEnd, Inbox, Limits, Losses, Message, Naming,
    PoisonBound, Promise, Result, Seen, Subscription, TopicSpec, Traits,
};
use sluice_schema::Topic;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::Secret;
use address::Address;
use admin::Admin;
use beside::Beside;
use hold::Hold;
use links::Links;
use notes::Notes;
use publish::Publisher;
use rest::Rest;
use system::System;

/// Smaller largest messages than this leave no room for properties.
const MESSAGE_BYTES_MIN: usize = 2 * names::PROPERTIES_BYTES_MAX;

/// What it does not promise.
pub const TRAITS: Traits = Traits {
    hold: HoldEnd::Lease {
        term: hold::TERM,
        why: "calls are made over the admin API, not over the hold's connection, so a call that the broker has but has not \
              done may be done a moment later",
    },
    not_promised: &[
        (Promise::RequestsExpire, "the broker drops what is old by a namespace's term only, an hour"),
        (
            Promise::StrangersTakePart,
            "all topics are persistent ones, and TrustGraph 2.11 looks elsewhere for requests, answers and notices",
        ),
    ],
};

/// The same beside processes of TrustGraph 2.11.
pub const TRAITS_BESIDE: Traits = Traits { not_promised: &[TRAITS.not_promised[0]], ..TRAITS };

/// What can be chosen about a broker.
#[derive(Debug, Clone)]
pub struct Options {
    /// Takes the place of the token in the address, so that it need not stand on a command line.
    pub token: Option<Secret>,
    /// Takes the place of the admin API's URL in the address.
    pub admin: Option<Secret>,
    /// Certificates (PEM) to trust beside those of the machine, for `pulsar+ssl://` and `https://`.
    pub ca_pem: Option<String>,
    /// How long a publish waits for a connection and for its acknowledgement: 30 s.
    pub publish_timeout: Duration,
    /// How long connecting first and any other call may take, 10 s.
    pub call_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            admin: None,
            ca_pem: None,
            publish_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(10),
        }
    }
}

/// Our end of a Pulsar cluster. Cheap to clone; it disconnects when [`Pulsar::shutdown`] is called or the last clone is
/// dropped.
#[derive(Clone)]
pub struct Pulsar {
    core: Arc<Core>,
    _stop: Arc<DropGuard>,
}

/// What all ends share.
struct Core {
    links: Arc<Links>,
    system: Arc<System>,
    publisher: Arc<Publisher>,
    admin: Admin,
    notes: Notes,
    limits: Limits,
    product: String,
    is_beside: bool,
    losses: Losses,
    options: Options,
    /// Tasks of readers and holders, which end with `stop`.
    readers: TaskTracker,
    /// Those that readers need until their end.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Pulsar {
    /// Connects to `pulsar://:TOKEN@HOST:6650?admin=http://HOST:8080`, or `pulsar+ssl://` over TLS only. From then on lost
    /// connections are made again. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] for an address that cannot work, for somebody whom the broker does not let in, and for one that takes
    /// only very small messages; [`Error::Unavailable`] when it cannot be reached.
    pub async fn connect(url: &str, options: Options) -> Result<Self> {
        // A process may have chosen a provider already; then that one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let address = Arc::new(Address::parse(url, &options)?);
        let rest = Arc::new(Rest::new(&address, &options)?);
        let (readers, tasks) = (TaskTracker::new(), TaskTracker::new());
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let guard = stop.clone().drop_guard();
        let within = options.call_timeout;
        let is_beside = address.is_beside();
        let (links, first) = Links::open(address, tasks.clone(), end.clone(), within).await?;
        check(first.message_bytes_max)?;
        let system = Arc::new(System::new(rest, within));
        let publisher = Arc::new(Publisher::new(links.clone(), system.clone(), options.publish_timeout));
        let notes = Notes::new(links.clone(), system.clone(), tasks.clone(), end.clone(), within);
        let bytes_max = first.message_bytes_max;
        let beside = is_beside.then(|| {
            let all = (links.clone(), system.clone(), publisher.clone());
            Arc::new(Beside::new(all, readers.clone(), stop.child_token()))
        });
        let core = Core {
            admin: Admin::new(system.clone(), publisher.clone(), notes.clone(), beside, bytes_max, within),
            is_beside,
            links,
            system,
            publisher,
            notes,
            limits: Limits { message_bytes_max: bytes_max - names::PROPERTIES_BYTES_MAX },
            product: format!("Pulsar {}", first.server_version.trim_start_matches("Pulsar Server").trim()),
            losses: Losses::default(),
            options,
            readers: readers.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let held = core.links.clone();
        tasks.spawn(async move {
            stop.cancelled().await;
            readers.close();
            if tokio::time::timeout(within, readers.wait()).await.is_err() {
                tracing::debug!("not all was given back; it comes back by itself");
            }
            end.cancel();
            held.close();
        });
        Ok(Self { core: Arc::new(core), _stop: Arc::new(guard) })
    }

    /// Disconnects: readers get [`Error::Unavailable`], what they held goes back.
    pub async fn shutdown(&self) {
        self.core.stop.cancel();
        self.core.publisher.close();
        self.core.tasks.close();
        // Readers have as long, and connections as long again.
        if tokio::time::timeout(self.core.options.call_timeout * 2, self.core.tasks.wait()).await.is_err() {
            tracing::debug!("the broker did not let all connections be closed in good order");
        }
    }
}

/// Whether the broker can be what is needed.
fn check(message_bytes_max: usize) -> Result<()> {
    if message_bytes_max >= MESSAGE_BYTES_MIN {
        return Ok(());
    }
    let reason = format!(
        "the Pulsar broker takes messages of {message_bytes_max} bytes at most; set maxMessageSize to {MESSAGE_BYTES_MIN} or \
         more, best 5 MiB"
    );
    Err(Error::Refused { reason })
}

impl Broker for Pulsar {
    fn publish<'a>(&'a self, to: &'a sluice_bus::Address, message: Message) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (bytes, max) = (message.body.len(), self.core.limits.message_bytes_max);
            if bytes > max {
                return Err(Error::TooLarge { bytes, max });
            }
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
        self.core.limits
    }

    fn trouble(&self) -> Option<String> {
        (!self.core.links.is_up()).then(|| "the connection to it is lost".to_owned())
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.core.losses)
    }

    fn naming(&self) -> Naming {
        // Entries that were written beside others are read without them too.
        let name = if self.core.is_beside { names::called } else { Naming::IDENTIFIERS.name };
        Naming { name, topic: names::of_name }
    }
}

impl BrokerAdmin for Pulsar {
    fn observe<'a>(&'a self, topics: &'a [TopicSpec]) -> BoxFuture<'a, Result<Vec<Seen>>> {
        Box::pin(self.core.admin.observe(topics))
    }

    fn ensure<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.admin.ensure(topic))
    }

    fn remove<'a>(&'a self, topic: &'a TopicSpec) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.core.admin.remove(topic))
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
        if self.core.is_beside { TRAITS_BESIDE } else { TRAITS }
    }

    fn product(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { Some(self.core.product.clone()) })
    }
}
