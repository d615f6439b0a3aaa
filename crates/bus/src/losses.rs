//! What publishers and readers of this process found missing at the broker, for whoever tells its owner.
//!
//! A queue that somebody removed is made again by its owner at the owner's next look. Whoever runs into the gap first can
//! shorten it: a broker notes the topic here, on its failing calls only, and the program that it runs in passes it on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_schema::Topic;
use tokio::sync::{Notify, broadcast};

use crate::Error;

/// Topics noted and not passed on yet; beyond it none are noted, and their owners find them at their own looks.
const NOTED_MAX: usize = 1_024;
/// News that a slow listener may be behind; of what it misses it learns at its own next look.
const NEWS_MAX: usize = 256;

/// What of a topic is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lost {
    /// The way into it: its exchange, or what binds a queue to it. What is in its queues is still there.
    Way,
    /// The queue of a reader, with all that waited in it.
    Queue,
    /// The same, and its reader saw it go: that is news each time, however soon it comes after the last.
    Removed,
}

impl Lost {
    /// Whether what waited in a queue is gone.
    #[must_use]
    pub const fn is_queue(self) -> bool {
        matches!(self, Self::Queue | Self::Removed)
    }
}

/// Topics of which something was missing. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Losses(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    noted: Mutex<BTreeMap<Topic, Lost>>,
    more: Notify,
    news: broadcast::Sender<(Topic, Lost)>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { noted: Mutex::default(), more: Notify::new(), news: broadcast::Sender::new(NEWS_MAX) }
    }
}

/// What is found missing from some moment on, see [`Losses::news`].
#[derive(Debug)]
pub struct News(broadcast::Receiver<(Topic, Lost)>);

impl News {
    /// The next topic of which something is missing, and what. Cancel-safe.
    pub async fn next(&mut self) -> (Topic, Lost) {
        loop {
            match self.0.recv().await {
                Ok(lost) => return lost,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Losses {
    /// Notes the topic of a queue that went under its reader, or with a broker that was started again; or one that was gone with
    /// all that followed it, by its owner once it is there again.
    pub fn note_removed(&self, topic: &Topic) {
        self.put(topic, Lost::Removed);
    }

    /// Notes the topic of a failed call, if the failure says that something of it is missing.
    pub fn note(&self, error: &Error) {
        match error {
            Error::NoSubscription { topic, .. } => self.put(topic, Lost::Queue),
            Error::NoTopic { topic } | Error::Unroutable { topic } | Error::NoReader { topic } => {
                self.put(topic, Lost::Way);
            }
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
            | Error::Log { .. }
            | Error::LogUnopened { .. }
            | Error::TimedOut { .. }
            | Error::OutcomeUnknown { .. }
            | Error::QuestionLost { .. }
            | Error::Decode(_) => {}
        }
    }

    fn put(&self, topic: &Topic, lost: Lost) {
        let mut noted = self.0.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < NOTED_MAX && noted.get(topic).is_none_or(|known| *known < lost) {
            noted.insert(topic.clone(), lost);
            self.0.more.notify_one();
        }
    }

    /// Tells everything in this process that listens that something of a topic is missing, whoever found it.
    pub fn tell(&self, topic: &Topic, lost: Lost) {
        // Nobody may listen.
        let _ = self.0.news.send((topic.clone(), lost));
    }

    /// Topics that are reported from now on.
    #[must_use]
    pub fn news(&self) -> News {
        News(self.0.news.subscribe())
    }

    /// Waits for topics and takes all that are noted. Cancel-safe; of several who wait, one gets them.
    pub async fn take(&self) -> BTreeMap<Topic, Lost> {
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
        assert_eq!(losses.take().await, BTreeMap::from([(topic.clone(), Lost::Way)]));
        losses.note(&Error::NoTopic { topic: topic.clone() });
        assert_eq!(losses.take().await, BTreeMap::from([(topic, Lost::Way)]));
    }

    #[tokio::test]
    async fn a_lost_queue_is_reported_whatever_else_of_its_topic_was_missed_before_or_after() {
        let losses = Losses::default();
        let topic: Topic = "request:tg:a".parse().unwrap();
        let way = Error::Unroutable { topic: topic.clone() };
        let queue = Error::NoSubscription { topic: topic.clone(), subscription: "s".to_owned() };
        for errors in [[&way, &queue], [&queue, &way]] {
            errors.into_iter().for_each(|error| losses.note(error));
            assert_eq!(losses.take().await, BTreeMap::from([(topic.clone(), Lost::Queue)]));
        }
        losses.note_removed(&topic);
        losses.note(&queue);
        assert_eq!(losses.take().await, BTreeMap::from([(topic, Lost::Removed)]));
    }
}
