//! NATS with JetStream, for processes of ours only: no other broker's names are kept.
//!
//! # Flow
//! A stream per topic, a durable pull consumer per subscription, plain subscriptions for inboxes. A `flow` or `request`
//! stream keeps a message until every consumer has settled it, and listens to its topic's subject only once it has a
//! consumer: a publish that finds nobody is refused at once. A `response` or `notify` stream publishes what it takes again
//! to a subject of its own, which followers listen to; so a publish is acknowledged, and who followed a topic that was
//! removed hears nothing of another one that is made under its name. Streams begin at a sequence that no earlier one of
//! their name has reached, so what settles an old message settles no new one.
//!
//! One connection, rebuilt by the client library; readers ask anew.
//!
//! # Guarantees
//! A publish returns when the server has acknowledged it. The server counts an attempt when it sends a message; what comes
//! back without work on it, and that work begins, is noted apart in a bucket. Waiting before the next attempt is the
//! server's. All streams are in files and outlive the server; messages of other topics than `flow` may be lost with it.
//!
//! # Caveats
//! A hold is a lease of five seconds ([`sluice_bus::HoldEnd::Lease`]). What a reader had in hand when its process or its
//! connection ended comes back after fifteen seconds, and is shown as unsettled until then. A server that is killed may forget
//! that it sent a message the moment before. A reader with its hands full of a topic that is removed and at once made again
//! goes on with the new one. The server shows readers that
//! wait, not those that have a message in hand. What is sent to an inbox while its connection is down is lost. Somebody who
//! listens to all subjects keeps the server from saying that nobody takes a message: a publish to a topic that is not there
//! then ends with its deadline. A consumer removed by hand while its stream stays loses what is published until its reader
//! has said so.

mod address;
mod admin;
mod bucket;
mod hold;
mod link;
mod names;
mod notes;
mod own;
mod publish;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use async_nats::rustls::crypto::ring;
use serde_json::json;
use sluice_bus::{
    BoxFuture, Broker, BrokerAdmin, Error, Finding, HoldEnd, Inbox, Limits, Losses, Message, PoisonBound,
    Promise, Result, Seen, Subscription, TopicSpec, Traits,
};
use sluice_schema::Topic;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Secret;
use address::Address;
use admin::Admin;
use hold::Hold;
use link::Link;
use notes::Notes;
use publish::Publisher;

/// The oldest server with all that streams of ours need.
const VERSION_MIN: (i64, i64, i64) = (2, 12, 0);
/// Smaller largest messages than this leave no room for properties.
const PAYLOAD_BYTES_MIN: usize = 2 * names::HEADER_BYTES_MAX;

/// What it does not promise.
pub const TRAITS: Traits = Traits {
    hold: HoldEnd::Lease {
        term: hold::TERM,
        why: "the server ties nothing to a connection, so a call that it has but has not done may be done a moment later",
    },
    not_promised: &[
        (
            Promise::DelayedIsReady,
            "the server keeps it and counts it as in hand until it is due, whoever reads",
        ),
        (
            Promise::ReadersAreShown,
            "the server shows who waits for a message, not who has one in hand; no reader is shown as none",
        ),
        (Promise::StrangersTakePart, "TrustGraph 2.11 has no backend for it"),
    ],
};

/// What can be chosen about a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Takes the place of the password or token in the address, so that it need not stand on a command line.
    pub password: Option<Secret>,
    /// Certificates (PEM) to trust beside those of the machine, for `tls://`.
    pub ca_pem: Option<String>,
    /// Shown by the server as the name of our connection.
    pub name: String,
    /// How long a publish waits for a connection and for its acknowledgement: 30 s.
    pub publish_timeout: Duration,
    /// How long connecting first and any other call may take, 10 s.
    pub call_timeout: Duration,
    /// Of subscriptions that are made: when what a reader has in hand comes back that is not heard of any more, 15 s. Readers
    /// say three times as often that they are at work. A shorter one counts attempts of processes that only stood still.
    pub ack_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            password: None,
            ca_pem: None,
            name: "sluice".to_owned(),
            publish_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(10),
            ack_wait: Duration::from_secs(15),
        }
    }
}

/// Our end of a NATS server. Cheap to clone; it disconnects when [`Nats::shutdown`] is called or the last clone is dropped.
#[derive(Clone)]
pub struct Nats {
    core: Arc<Core>,
    _stop: Arc<tokio_util::sync::DropGuard>,
}

/// What all ends share. Its tasks end with `stop`.
struct Core {
    link: Arc<Link>,
    publisher: Arc<Publisher>,
    admin: Admin,
    notes: Notes,
    limits: Limits,
    losses: Losses,
    options: Options,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Nats {
    /// Connects to `nats://USER:PASSWORD@HOST:PORT`, `nats://:TOKEN@HOST`, `nats://HOST?creds=FILE` or
    /// `nats://HOST?nkey=FILE`; with `tls://` over TLS only. From then on a lost connection is rebuilt. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`Error::Refused`] for an address that cannot work, for somebody whom the server does not let in, and for a server that
    /// is too old, has JetStream off or takes only very small messages; [`Error::Unavailable`] when it cannot be reached.
    pub async fn connect(url: &str, options: Options) -> Result<Self> {
        // A process may have chosen a provider already; then that one stays.
        let _ = ring::default_provider().install_default();
        let link = Arc::new(Link::open(&Address::parse(url, &options)?, &options).await?);
        check(&link, options.call_timeout).await?;
        let publisher = Arc::new(Publisher::new(link.clone(), options.publish_timeout));
        let limits = Limits { message_bytes_max: link.client.max_payload() - names::HEADER_BYTES_MAX };
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        let core = Core {
            admin: Admin::new(link.clone(), publisher.clone(), &options),
            notes: Notes::new(link.clone(), options.call_timeout),
            link,
            publisher,
            limits,
            losses: Losses::default(),
            options,
            tasks: TaskTracker::new(),
            stop,
        };
        Ok(Self { core: Arc::new(core), _stop: Arc::new(guard) })
    }

    /// Disconnects: readers get [`Error::Unavailable`], what they held goes back.
    pub async fn shutdown(&self) {
        self.core.stop.cancel();
        self.core.tasks.close();
        if tokio::time::timeout(self.core.options.call_timeout, self.core.tasks.wait()).await.is_err() {
            tracing::debug!("not all was given back; it comes back by itself");
        }
        // What was given back is on its way only once it is flushed.
        let closed = tokio::time::timeout(self.core.options.call_timeout, async {
            let flushed = self.core.link.client.flush().await.map_err(|error| error.to_string());
            flushed.and(self.core.link.client.drain().await.map_err(|error| error.to_string()))
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error, "the connection was not closed in good order"),
            Err(_) => tracing::debug!("the server did not let the connection be closed in good order"),
        }
    }
}

/// Whether the server can be what is needed.
async fn check(link: &Link, within: Duration) -> Result<()> {
    let info = link.client.server_info();
    let (major, minor, patch) = VERSION_MIN;
    if !link.client.is_server_compatible(major, minor, patch) {
        let reason = format!("the NATS server is {}; {major}.{minor} or newer is needed", info.version);
        return Err(Error::Refused { reason });
    }
    if info.max_payload < PAYLOAD_BYTES_MIN {
        let reason = format!(
            "the NATS server takes messages of {} bytes at most; set max_payload to {PAYLOAD_BYTES_MIN} or more, best 8 MiB",
            info.max_payload
        );
        return Err(Error::Refused { reason });
    }
    let account = link.api::<serde_json::Value>("INFO", &json!(null), within).await?;
    account.map(drop).map_err(|refusal| link::refused(&refusal, "looking at the account"))
}

impl Broker for Nats {
    fn publish<'a>(&'a self, to: &'a sluice_bus::Address, message: Message) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (bytes, max) = (message.body.len(), self.core.limits.message_bytes_max);
            if bytes > max {
                return Err(Error::TooLarge { bytes, max });
            }
            let sent = self.core.publisher.publish(to, message, max).await;
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
        (!self.core.link.is_up()).then(|| "the connection to it is lost".to_owned())
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.core.losses)
    }
}

impl BrokerAdmin for Nats {
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
        Box::pin(self.core.admin.examine())
    }

    fn traits(&self) -> Traits {
        TRAITS
    }

    fn product(&self) -> BoxFuture<'_, Option<String>> {
        Box::pin(async { Some(format!("NATS {}", self.core.link.client.server_info().version)) })
    }
}
