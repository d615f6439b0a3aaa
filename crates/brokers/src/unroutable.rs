//! What a broker takes though nobody gets it, counted on this side.

use std::collections::HashMap;
use std::sync::Mutex;

use sluice_schema::Topic;

use crate::local::lock;

/// Topics whose lost messages are counted one by one.
const COUNTED_TOPICS_MAX: usize = 10_000;

/// Messages that this process sent to topics without subscriptions.
#[derive(Default)]
pub(crate) struct Unroutable(Mutex<HashMap<Topic, u64>>);

impl Unroutable {
    pub(crate) fn count(&self, topic: &Topic) {
        let mut counts = lock(&self.0);
        if counts.len() < COUNTED_TOPICS_MAX || counts.contains_key(topic) {
            let count = counts.entry(topic.clone()).or_default();
            *count += 1;
            if *count == 1 {
                tracing::warn!(%topic, "a message went to a topic without subscriptions and is gone");
            }
        }
    }

    /// `None` where none was lost.
    pub(crate) fn of(&self, topic: &Topic) -> Option<u64> {
        lock(&self.0).get(topic).copied()
    }

    /// The topic's count ends with the topic.
    pub(crate) fn forget(&self, topic: &Topic) {
        lock(&self.0).remove(topic);
    }
}
