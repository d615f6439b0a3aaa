//! Connections to the brokers of a cluster, one for each way of use: a broker that takes no more publishes for a moment stops
//! reading a connection, and readers' acknowledgements must not wait behind that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_bus::{Error, Result};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::address::Address;
use super::link::{Fault, Link};
use super::names::Place;
use super::proto::{self, Command, Lookup, LookupResponse};
use crate::local::{Pauses, lock, stopped};

/// How often a look-up may be sent on to another broker.
const REDIRECTS_MAX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Publish,
    Read,
}

/// A broker of the cluster, and whether it is reached only through the host of the address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Broker {
    url: String,
    is_proxied: bool,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Link>>>>;

pub(super) struct Links {
    address: Arc<Address>,
    tasks: TaskTracker,
    within: Duration,
    stop: CancellationToken,
    /// As many as there are brokers and roles.
    slots: Mutex<HashMap<(Role, Broker), Slot>>,
    is_up: AtomicBool,
}

impl Links {
    /// Connects; from then on the first connection is made again whenever it is lost.
    pub(super) async fn open(
        address: Arc<Address>,
        tasks: TaskTracker,
        stop: CancellationToken,
        within: Duration,
    ) -> Result<(Arc<Self>, Arc<Link>)> {
        let links = Arc::new(Self {
            address,
            tasks,
            within,
            stop,
            slots: Mutex::default(),
            is_up: AtomicBool::new(true),
        });
        let first = links.link(Role::Publish, &links.entry()).await?;
        links.tasks.spawn(links.clone().keep(first.clone()));
        Ok((links, first))
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    pub(super) const fn within(&self) -> Duration {
        self.within
    }

    fn entry(&self) -> Broker {
        Broker { url: self.address.broker().to_owned(), is_proxied: false }
    }

    /// So that it is known whether the broker can be reached, also while nobody publishes.
    async fn keep(self: Arc<Self>, mut link: Arc<Link>) {
        loop {
            if self.stop.run_until_cancelled(link.over()).await.is_none() {
                return;
            }
            self.is_up.store(false, Ordering::Relaxed);
            tracing::warn!(broker = %self.address, "the connection to the broker was lost; connecting again");
            let Some(again) = self.stop.run_until_cancelled(self.link_again()).await else { return };
            link = again;
            self.is_up.store(true, Ordering::Relaxed);
            tracing::info!(broker = %self.address, "connected to the broker again");
        }
    }

    async fn link_again(&self) -> Arc<Link> {
        let mut pauses = Pauses::new();
        loop {
            match self.link(Role::Publish, &self.entry()).await {
                Ok(link) => return link,
                Err(error) => tracing::debug!(%error, "not connected again yet"),
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    /// The connection for a use, which is made where there is none.
    async fn link(&self, role: Role, broker: &Broker) -> Result<Arc<Link>> {
        let slot = lock(&self.slots).entry((role, broker.clone())).or_default().clone();
        let mut held = slot.lock().await;
        if let Some(link) = held.as_ref().filter(|link| !link.is_over()) {
            return Ok(link.clone());
        }
        let link = self.fresh(broker).await?;
        *held = Some(link.clone());
        Ok(link)
    }

    async fn fresh(&self, broker: &Broker) -> Result<Arc<Link>> {
        if self.stop.is_cancelled() {
            return Err(stopped());
        }
        let behind = broker.is_proxied.then(|| {
            let (_, host) = broker.url.split_once("://").unwrap_or_default();
            host.to_owned()
        });
        let to = if broker.is_proxied { self.address.broker() } else { &broker.url };
        Link::open(&self.address, to, behind, &self.tasks, self.within).await
    }

    /// The connection to the broker that serves a topic.
    pub(super) async fn to(&self, role: Role, place: &Place) -> Result<Arc<Link>, Fault> {
        let broker = self.broker_of(&place.uri()).await?;
        self.link(role, &broker).await.map_err(Fault::Other)
    }

    /// A connection of its own.
    pub(super) async fn own_to(&self, place: &Place) -> Result<Arc<Link>, Fault> {
        let broker = self.broker_of(&place.uri()).await?;
        self.fresh(&broker).await.map_err(Fault::Other)
    }

    /// Lets all connections go.
    pub(super) fn close(&self) {
        lock(&self.slots).clear();
    }

    async fn broker_of(&self, uri: &str) -> Result<Broker, Fault> {
        let (mut at, mut authoritative) = (self.entry(), false);
        for _ in 0..REDIRECTS_MAX {
            let link = self.link(Role::Publish, &at).await.map_err(Fault::Other)?;
            let number = link.number();
            let lookup =
                Lookup { topic: uri.to_owned(), request: number, authoritative: Some(authoritative) };
            let Command::LookupResponse(found) =
                link.ask(number, Command::Lookup(lookup), self.within).await?
            else {
                break;
            };
            let next = self.broker(&found)?;
            if found.response == Some(proto::CONNECT) {
                return Ok(next);
            }
            authoritative = found.authoritative.unwrap_or(false);
            at = next;
        }
        let reason = format!("no broker says that it serves '{uri}'");
        Err(Fault::Other(Error::Unavailable { reason }))
    }

    /// The broker that a look-up names.
    fn broker(&self, found: &LookupResponse) -> Result<Broker, Fault> {
        if !matches!(found.response, Some(proto::CONNECT | proto::REDIRECT)) {
            let said = found.message.clone().unwrap_or_default();
            return Err(Fault::Refused { code: found.code.unwrap_or_default(), said });
        }
        let url = if self.address.is_tls() { &found.url_tls } else { &found.url };
        let url = url.clone().filter(|url| !url.is_empty()).ok_or_else(|| {
            let reason =
                "the broker that serves the topic names no address of this kind (plain, or encrypted)";
            Fault::Other(Error::Unavailable { reason: reason.to_owned() })
        })?;
        Ok(Broker { url, is_proxied: found.is_proxied.unwrap_or(false) })
    }
}
