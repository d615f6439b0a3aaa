//! What publishers and readers of this process found missing at the broker, for whoever tells its owner.
//!
//! A queue that somebody removed is made again by its owner at the owner's next look. Whoever runs into the gap first can
//! shorten it: a broker notes the topic here, on its failing calls only, and the program that it runs in passes it on.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_schema::Topic;
use tokio::sync::{Notify, broadcast};

use crate::Error;

/// Topics noted and not passed on yet; beyond it none are noted, and their owners find them at their own looks.
const NOTED_MAX: usize = 1_024;
/// News that a slow listener may be behind; of what it misses it learns at its own next look.
const NEWS_MAX: usize = 256;

/// Topics of which something was missing. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Losses(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    noted: Mutex<BTreeSet<Topic>>,
    more: Notify,
    news: broadcast::Sender<Topic>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { noted: Mutex::default(), more: Notify::new(), news: broadcast::Sender::new(NEWS_MAX) }
    }
}

/// What is found missing from some moment on, see [`Losses::news`].
#[derive(Debug)]
pub struct News(broadcast::Receiver<Topic>);

impl News {
    /// The next topic of which something is missing. Cancel-safe.
    pub async fn next(&mut self) -> Topic {
        loop {
            match self.0.recv().await {
                Ok(topic) => return topic,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Losses {
    /// Notes the topic of a failed call, if the failure says that something of it is missing.
    pub fn note(&self, error: &Error) {
        let topic = match error {
            Error::NoTopic { topic }
            | Error::NoSubscription { topic, .. }
            | Error::Unroutable { topic }
            | Error::NoReader { topic } => topic,
            Error::NoInbox { .. }
            | Error::TooLarge { .. }
            | Error::Full { .. }
            | Error::Mismatch { .. }
            | Error::InUse { .. }
            | Error::Held { .. }
            | Error::HoldLost { .. }
            | Error::Refused { .. }
            | Error::Unavailable { .. }
            | Error::Disk { .. }
            | Error::TimedOut { .. }
            | Error::OutcomeUnknown { .. }
            | Error::Decode(_) => return,
        };
        let mut noted = self.0.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < NOTED_MAX && noted.insert(topic.clone()) {
            self.0.more.notify_one();
        }
    }

    /// Tells everything in this process that listens that something of a topic is missing, whoever found it.
    pub fn tell(&self, topic: &Topic) {
        // Nobody may listen.
        let _ = self.0.news.send(topic.clone());
    }

    /// Topics that are reported from now on.
    #[must_use]
    pub fn news(&self) -> News {
        News(self.0.news.subscribe())
    }

    /// Waits for topics and takes all that are noted. Cancel-safe; of several who wait, one gets them.
    pub async fn take(&self) -> BTreeSet<Topic> {
        loop {
            let noted = std::mem::take(&mut *self.0.noted.lock().unwrap_or_else(PoisonError::into_inner));
            if !noted.is_empty() {
                return noted;
            }
            self.0.more.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_topic_is_taken_once_however_often_it_is_missed() {
        let losses = Losses::default();
        let topic: Topic = "flow:tg:a".parse().unwrap();
        losses.note(&Error::TooLarge { bytes: 2, max: 1 });
        for _ in 0..3 {
            losses.note(&Error::NoReader { topic: topic.clone() });
        }
        assert_eq!(losses.take().await, BTreeSet::from([topic.clone()]));
        losses.note(&Error::NoTopic { topic: topic.clone() });
        assert_eq!(losses.take().await, BTreeSet::from([topic]));
    }
}
