//! Telling owners at once what is missing at the broker.
//!
//! Whoever fails to publish or to read because something of a topic is missing has its process send a notice, and every
//! process hears it: owners look at once instead of at their next look, and who follows the topic follows it anew. A lost
//! notice costs no more than that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Address, Broker, Error, Inbox as _, Losses, Message, Renewing};
use sluice_schema::message::LostTopics;
use sluice_schema::{Topic, system, wire};
use tokio::time::Instant;

use crate::tasks::Backoff;

/// A topic that is still missing after it was told of is told of again after this, then each time twice as late.
const AGAIN_AFTER_MIN: Duration = Duration::from_secs(1);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(30);
/// Topics remembered as told; beyond it all are forgotten, and told again.
const TOLD_MAX: usize = 10_000;
/// Pauses between tries to hear what other processes miss.
const HEAR_AGAIN: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(10) };

/// Passes on what calls of this process found missing, and hears what those of others did, as long as it runs.
pub(crate) async fn exchange(broker: Arc<dyn Broker>) {
    let Some(losses) = broker.losses() else { return };
    tokio::join!(tell(&*broker, losses), hear(&*broker, losses));
}

async fn hear(broker: &dyn Broker, losses: &Losses) {
    for attempt in 0.. {
        // The notices' own topic comes with the flow service.
        let error = listen(broker, |topic| losses.tell(&topic)).await;
        tracing::debug!(%error, "what other processes miss is not heard at the moment");
        tokio::time::sleep(HEAR_AGAIN.pause(attempt)).await;
    }
}

async fn tell(broker: &dyn Broker, losses: &Losses) {
    let to = Address::Topic(system::lost_topics());
    let mut told: HashMap<Topic, Told> = HashMap::new();
    loop {
        let mut lost = losses.take().await;
        let now = Instant::now();
        if told.len() + lost.len() > TOLD_MAX {
            told.clear();
        }
        lost.retain(|topic| told.entry(topic.clone()).or_default().is_due(now));
        lost.iter().for_each(|topic| losses.tell(topic));
        // Of the notices themselves other processes are not told: where nobody follows them, their topic may not be there.
        lost.remove(&system::lost_topics());
        if lost.is_empty() {
            continue;
        }
        let notice = LostTopics { topics: lost.iter().map(ToString::to_string).collect() };
        if let Err(error) = broker.publish(&to, Message::new(wire::encode(&notice))).await {
            tracing::debug!(%error, "owners were not told of missing topics; they find them at their next look");
        }
    }
}

/// When a topic was told of, and how long it is not told of again.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
    pause: Duration,
}

impl Told {
    /// Whether it is to be told of now; counts as told then.
    fn is_due(&mut self, now: Instant) -> bool {
        let since = self.last.map(|last| now.duration_since(last));
        if since.is_some_and(|since| since < self.pause) {
            return false;
        }
        // One that was there for a while is told of as quickly as the first time.
        let is_new = since.is_none_or(|since| since > self.pause * 4);
        self.pause = if is_new { AGAIN_AFTER_MIN } else { (self.pause * 2).min(AGAIN_AFTER_MAX) };
        self.last = Some(now);
        true
    }
}

/// Hands every topic to `lost` that somebody, in whichever process, found something of missing; until it cannot, and why.
/// The flow service makes the topic of the notices.
pub async fn listen(broker: &dyn Broker, lost: impl Fn(Topic)) -> Error {
    let inbox = match Renewing::attach(broker, vec![system::lost_topics()], || ()).await {
        Ok(inbox) => inbox,
        Err(error) => return error,
    };
    loop {
        let notice = match inbox.next().await {
            Ok(notice) => notice,
            Err(error) => return error,
        };
        // One that cannot be read costs what a lost one does.
        let Ok(told) = wire::decode::<LostTopics>(&notice.message.body) else { continue };
        told.topics.iter().filter_map(|topic| Topic::parse(topic).ok()).for_each(&lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_stays_missing_is_told_of_less_and_less() {
        let (mut told, begun) = (Told::default(), Instant::now());
        let mut at = |secs: u64| told.is_due(begun + Duration::from_secs(secs));
        let due: Vec<u64> = (0..100).filter(|secs| at(*secs)).collect();
        assert_eq!(due, [0, 1, 3, 7, 15, 31, 61, 91]);
        assert!(at(400) && at(401), "there meanwhile");
    }
}
