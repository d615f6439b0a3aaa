//! A reader's own inbox that goes on following its topics although somebody removed one and its owner made it again.
//!
//! At a broker a topic that is made again has no followers, and those that it had are not told. So what is followed is
//! followed anew at a period, and at once when something of it is found missing ([`crate::Losses`]).

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_schema::Topic;
use tokio::time::Instant;

use crate::contract::{Broker, Inbox, InboxAddress, Subscription};
use crate::losses::{Losses, News};
use crate::message::Delivery;
use crate::{BoxFuture, ErrorKind, Result};

/// How often everything is followed anew.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(30);
/// The same once something is found missing, whatever it is: who removed that may have removed more. Not more often than this.
const RENEW_INTERVAL_MIN: Duration = Duration::from_secs(5);
/// How long owners have first, then.
const OWNERS_FIRST: Duration = Duration::from_millis(500);
/// Pauses between tries to follow a topic that is missing: they double.
const AGAIN_MIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(5);

/// An own inbox of a reader that wants its topics for as long as it says so.
pub struct Renewing {
    shared: Arc<Shared>,
    /// Follows anew while somebody waits for deliveries. One caller at a time, as [`Inbox::next`] wants it.
    renews: tokio::sync::Mutex<BoxFuture<'static, Infallible>>,
}

struct Shared {
    inbox: Box<dyn Inbox>,
    losses: Option<Losses>,
    topics: Mutex<BTreeSet<Topic>>,
    /// Called when a topic that was missing is followed again: what was sent meanwhile did not come.
    missed: Box<dyn Fn() + Send + Sync>,
}

impl Renewing {
    /// Attaches an own inbox that follows `topics`. `missed` is called when a topic had been missing and is followed again.
    ///
    /// # Errors
    /// As [`Broker::subscribe`].
    pub async fn attach(
        broker: &dyn Broker,
        topics: Vec<Topic>,
        missed: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        // Heard from before it follows, so that no removal falls in between.
        let losses = broker.losses().cloned();
        let news = losses.as_ref().map(Losses::news);
        let inbox = broker.subscribe(&Subscription::Own { topics: topics.clone() }).await?;
        let topics = Mutex::new(topics.into_iter().collect());
        let shared = Arc::new(Shared { inbox, losses, topics, missed: Box::new(missed) });
        let renews = tokio::sync::Mutex::new(Box::pin(renew(shared.clone(), news)) as BoxFuture<'static, _>);
        Ok(Self { shared, renews })
    }

    /// Follows a topic no longer, without telling the broker.
    pub fn forget(&self, topic: &Topic) {
        self.shared.topics().remove(topic);
    }
}

impl Inbox for Renewing {
    fn next(&self) -> BoxFuture<'_, Result<Delivery>> {
        Box::pin(async move {
            let mut renews = self.renews.lock().await;
            tokio::select! {
                biased;
                delivery = self.shared.inbox.next() => delivery,
                never = renews.as_mut() => match never {},
            }
        })
    }

    fn address(&self) -> Option<InboxAddress> {
        self.shared.inbox.address()
    }

    fn follow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let is_new = self.shared.topics().insert(topic.clone());
            let followed = self.shared.inbox.follow(topic).await;
            if followed.is_err() && is_new {
                self.forget(topic);
            }
            followed
        })
    }

    fn unfollow<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<()>> {
        self.forget(topic);
        self.shared.inbox.unfollow(topic)
    }
}

impl Shared {
    fn topics(&self) -> MutexGuard<'_, BTreeSet<Topic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows topics anew that are still wanted; returns those that are missing.
    async fn follow(&self, topics: BTreeSet<Topic>) -> BTreeSet<Topic> {
        let mut missing = BTreeSet::new();
        let mut topics = topics.into_iter();
        while let Some(topic) = topics.next() {
            if !self.topics().contains(&topic) {
                continue;
            }
            let Err(error) = self.inbox.follow(&topic).await else { continue };
            missing.insert(topic);
            if error.kind() != ErrorKind::Absent {
                // The broker is away, and may come back without any of them.
                missing.extend(topics);
                break;
            }
            if let Some(losses) = &self.losses {
                losses.note(&error);
            }
        }
        missing
    }
}

async fn renew(shared: Arc<Shared>, mut news: Option<News>) -> Infallible {
    let mut missing = BTreeSet::new();
    let mut all_last = Instant::now();
    let (mut all_at, mut again_at, mut pause) = (all_last + RENEW_INTERVAL, None, AGAIN_MIN);
    loop {
        let next_news = async {
            match &mut news {
                Some(news) => news.next().await,
                None => std::future::pending().await,
            }
        };
        let at = again_at.map_or(all_at, |again_at: Instant| again_at.min(all_at));
        tokio::select! {
            (topic, _) = next_news => {
                let now = Instant::now();
                all_at = all_at.min((all_last + RENEW_INTERVAL_MIN).max(now + OWNERS_FIRST));
                if shared.topics().contains(&topic) && missing.insert(topic) {
                    (again_at, pause) = (Some(now), AGAIN_MIN);
                }
                continue;
            }
            () = tokio::time::sleep_until(at) => {}
        }
        let mut wanted = missing.clone();
        if Instant::now() >= all_at {
            wanted.extend(shared.topics().iter().cloned());
            all_last = Instant::now();
            all_at = all_last + RENEW_INTERVAL;
        }
        let still = shared.follow(wanted).await;
        if missing.iter().any(|topic| !still.contains(topic)) {
            (shared.missed)();
        }
        missing = still;
        again_at = (!missing.is_empty()).then(|| Instant::now() + pause);
        pause = (pause * 2).min(AGAIN_MAX);
    }
}
