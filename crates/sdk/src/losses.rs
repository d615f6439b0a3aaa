//! Telling owners at once what is missing at the broker.
//!
//! Whoever fails to publish or to read because something of a topic is missing has its process send a notice, and every
//! process hears it: owners look at once instead of at their next look, who follows the topic follows it anew, and calls whose
//! question went with a removed queue end. A lost notice costs no more than that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Address, Broker, Error, Inbox as _, Losses, Lost, Message, Renewing};
use sluice_schema::message::LostTopics;
use sluice_schema::{Topic, system, wire};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::tasks::Backoff;

/// A topic that is still missing after it was told of is told of again after this, then each time twice as late.
const AGAIN_AFTER_MIN: Duration = Duration::from_secs(1);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(30);
/// Topics remembered as told; beyond it all are forgotten, and told again.
const TOLD_MAX: usize = 10_000;
/// Pauses between tries to hear what other processes miss.
const HEAR_AGAIN: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(10) };
/// How long a notice waits for this process to hear what owners make of it. One that is not heard costs what a lost one does.
const HEAR_FIRST: Duration = Duration::from_secs(1);

/// How this process hears what others miss.
#[derive(Default)]
struct Hearing {
    inbox: watch::Sender<Option<Arc<Renewing>>>,
    wanted: Notify,
}

impl Hearing {
    /// Sees to it that it does: an owner answers a notice with another one, which comes only to who listens by then. One that
    /// listens follows anew, since the topic may have been made again meanwhile.
    async fn first(&self) {
        let listens = async {
            let mut inbox = self.inbox.subscribe();
            let there = inbox.borrow_and_update().clone();
            if let Some(there) = there
                && there.follow(&system::lost_topics()).await.is_ok()
            {
                return;
            }
            self.wanted.notify_one();
            let _ = inbox.wait_for(Option::is_some).await;
        };
        let _ = tokio::time::timeout(HEAR_FIRST, listens).await;
    }
}

/// Passes on what calls of this process found missing, and hears what those of others did, as long as it runs.
pub(crate) async fn exchange(broker: Arc<dyn Broker>) {
    let Some(losses) = broker.losses() else { return };
    let own = uuid::Uuid::new_v4().to_string();
    let hearing = Hearing::default();
    tokio::join!(tell(&*broker, losses, &own, &hearing), hear(&*broker, losses, &own, &hearing));
}

async fn hear(broker: &dyn Broker, losses: &Losses, own: &str, hearing: &Hearing) {
    let heard = |notice: LostTopics| {
        // Its own were passed on before they were sent; what is told late would be taken for news.
        if notice.sender == own {
            return;
        }
        for (topics, lost) in [(&notice.emptied, Lost::Queue), (&notice.topics, Lost::Way)] {
            topics
                .iter()
                .filter_map(|topic| Topic::parse(topic).ok())
                .for_each(|topic| losses.tell(&topic, lost));
        }
    };
    let mut attempt = 0;
    loop {
        // The notices' own topic comes with the flow service.
        let error = match attach(broker).await {
            Ok(inbox) => {
                let (inbox, since) = (Arc::new(inbox), Instant::now());
                hearing.inbox.send_replace(Some(inbox.clone()));
                let error = read(&inbox, heard).await;
                hearing.inbox.send_replace(None);
                if since.elapsed() > HEAR_AGAIN.max {
                    attempt = 0;
                }
                error
            }
            Err(error) => error,
        };
        tracing::debug!(%error, "what other processes miss is not heard at the moment");
        tokio::select! {
            () = tokio::time::sleep(HEAR_AGAIN.pause(attempt)) => {}
            () = hearing.wanted.notified() => {}
        }
        attempt += 1;
    }
}

async fn tell(broker: &dyn Broker, losses: &Losses, own: &str, hearing: &Hearing) {
    let to = Address::Topic(system::lost_topics());
    let mut told: HashMap<(Topic, Lost), Told> = HashMap::new();
    loop {
        let mut lost = losses.take().await;
        let now = Instant::now();
        if told.len() + lost.len() > TOLD_MAX {
            told.clear();
        }
        // What is seen to go is news; that it is still missing is not.
        lost.retain(|topic, lost| {
            *lost == Lost::Removed || told.entry((topic.clone(), *lost)).or_default().is_due(now)
        });
        lost.iter().for_each(|(topic, lost)| losses.tell(topic, *lost));
        // Of the notices themselves other processes are not told: where nobody follows them, their topic may not be there.
        lost.remove(&system::lost_topics());
        if lost.is_empty() {
            continue;
        }
        let emptied = lost.iter().filter(|(_, lost)| lost.is_queue());
        let notice = LostTopics {
            topics: lost.keys().map(ToString::to_string).collect(),
            emptied: emptied.map(|(topic, _)| topic.to_string()).collect(),
            sender: own.to_owned(),
        };
        hearing.first().await;
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

async fn attach(broker: &dyn Broker) -> sluice_bus::Result<Renewing> {
    Renewing::attach(broker, vec![system::lost_topics()], || ()).await
}

/// Hands every notice to `heard` that somebody, in whichever process, found something of topics missing; until it cannot, and why.
async fn read(inbox: &Renewing, heard: impl Fn(LostTopics)) -> Error {
    loop {
        let notice = match inbox.next().await {
            Ok(notice) => notice,
            Err(error) => return error,
        };
        // One that cannot be read costs what a lost one does.
        if let Ok(told) = wire::decode::<LostTopics>(&notice.message.body) {
            heard(told);
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_bus::faulty::Operation;
    use sluice_bus::{BrokerAdmin as _, TopicSpec};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_removal_is_told_however_soon_it_follows() {
        let broker = sluice_bus::Embedded::in_memory();
        broker.ensure(&TopicSpec::bare(system::lost_topics())).await.unwrap();
        let (losses, hearing) = (broker.losses().unwrap(), Hearing::default());
        let topic: Topic = "request:tg:a".parse().unwrap();
        let mut news = losses.news();
        let notes = async {
            for _ in 0..3 {
                losses.note_removed(&topic);
                assert_eq!(news.next().await, (topic.clone(), Lost::Removed));
            }
            let missing = Error::NoSubscription { topic: topic.clone(), subscription: "s".to_owned() };
            losses.note(&missing);
            assert_eq!(news.next().await, (topic.clone(), Lost::Queue));
            // That it is still missing is told later.
            losses.note(&missing);
            assert!(tokio::time::timeout(AGAIN_AFTER_MIN / 2, news.next()).await.is_err());
        };
        tokio::select! {
            () = tell(&broker, losses, "own", &hearing) => {}
            () = notes => {}
        }
    }

    /// What an owner answers that has made a queue again.
    async fn say_emptied(broker: &impl Broker, topic: &Topic) {
        let lost = vec![topic.to_string()];
        let answer = LostTopics { topics: lost.clone(), emptied: lost, sender: "owner".to_owned() };
        let to = Address::Topic(system::lost_topics());
        broker.publish(&to, Message::new(wire::encode(&answer))).await.unwrap();
    }

    /// The topic of the notices comes while who misses something is between two tries to follow it.
    #[tokio::test(start_paused = true)]
    async fn who_misses_something_hears_what_its_owner_answers() {
        let broker = sluice_bus::Faulty::new(sluice_bus::Embedded::in_memory());
        let topic: Topic = "request:tg:a".parse().unwrap();
        let losses = broker.losses().unwrap();
        let tries = || broker.log().iter().filter(|made| made.operation == Operation::Subscribe).count();
        let noted = async {
            while tries() < 8 {
                tokio::time::sleep(HEAR_AGAIN.min).await;
            }
            broker.ensure(&TopicSpec::bare(system::lost_topics())).await.unwrap();
            let owner = attach(&broker).await.unwrap();
            let mut news = losses.news();
            losses.note(&Error::NoReader { topic: topic.clone() });
            assert_eq!(news.next().await, (topic.clone(), Lost::Way));
            owner.next().await.unwrap().ack();
            say_emptied(&broker, &topic).await;
            let heard = tokio::time::timeout(HEAR_AGAIN.max / 2, news.next()).await;
            assert_eq!(heard.expect("it is heard"), (topic, Lost::Queue));
        };
        tokio::select! {
            () = exchange(Arc::new(broker.clone())) => {}
            () = noted => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_misses_something_hears_that_also_after_the_notices_were_removed_and_made_again() {
        let broker = sluice_bus::Embedded::in_memory();
        let notices = TopicSpec::bare(system::lost_topics());
        broker.ensure(&notices).await.unwrap();
        let topic: Topic = "request:tg:a".parse().unwrap();
        let losses = broker.losses().unwrap();
        let noted = async {
            let mut news = losses.news();
            // It listens.
            losses.note(&Error::NoReader { topic: topic.clone() });
            assert_eq!(news.next().await, (topic.clone(), Lost::Way));
            tokio::time::sleep(AGAIN_AFTER_MAX).await;
            broker.remove(&notices).await.unwrap();
            broker.ensure(&notices).await.unwrap();
            let owner = attach(&broker).await.unwrap();
            losses.note(&Error::NoReader { topic: topic.clone() });
            assert_eq!(news.next().await, (topic.clone(), Lost::Way));
            owner.next().await.unwrap().ack();
            say_emptied(&broker, &topic).await;
            let heard = tokio::time::timeout(Duration::from_millis(100), news.next()).await;
            assert_eq!(heard.expect("it is heard"), (topic, Lost::Queue));
        };
        tokio::select! {
            () = exchange(Arc::new(broker.clone())) => {}
            () = noted => {}
        }
    }

    #[test]
    fn a_topic_that_stays_missing_is_told_of_less_and_less() {
        let (mut told, begun) = (Told::default(), Instant::now());
        let mut at = |secs: u64| told.is_due(begun + Duration::from_secs(secs));
        let due: Vec<u64> = (0..100).filter(|secs| at(*secs)).collect();
        assert_eq!(due, [0, 1, 3, 7, 15, 31, 61, 91]);
        assert!(at(400) && at(401), "there meanwhile");
    }
}
