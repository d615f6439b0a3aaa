//! Ends calls whose question was in a queue that somebody removed: nobody can answer them, and only their deadline would
//! end them.
//!
//! The reader of a removed queue notes it ([`crate::Losses`]), and every process hears of it. What waited is gone; what
//! somebody had begun to work on is answered all the same. So calls under way to that topic, of which nothing has come yet,
//! get a moment for a sign that somebody works on them.
//!
//! The question is not sent again: a reader that is not ours shows no sign, and would do the work twice, or stream two
//! answers into one call. Whoever asked knows whether asking again does harm.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use sluice_schema::Topic;
use tokio::time::Instant;

use super::{Shared, lock};
use crate::Error;
use crate::losses::Losses;

/// How long a call has for a sign: our own workers give one in another process after a quarter of a second.
const SIGN_TIMEOUT: Duration = Duration::from_secs(2);
/// Each reader of a queue notes its removal, and its owner: what is heard so soon after the first is the same one, and a question
/// that was asked in between is in the queue that was made again. Shorter than making one again and attaching to it takes, so
/// that the next removal is another one.
const SAME_WITHIN: Duration = Duration::from_millis(200);

/// Calls under way whose queue was removed, if there were any. At most one entry per topic and [`SAME_WITHIN`].
struct Doubted {
    since: Instant,
    topic: Topic,
    ids: Vec<Box<str>>,
}

/// Ends such calls as long as it runs.
pub(super) async fn end_calls(shared: &Shared) -> Infallible {
    let Some(mut news) = shared.broker.losses().map(Losses::news) else {
        return std::future::pending().await;
    };
    let mut doubted: VecDeque<Doubted> = VecDeque::new();
    loop {
        let due = doubted.front().map(|oldest| oldest.since + SIGN_TIMEOUT);
        tokio::select! {
            (topic, lost) = news.next() => {
                let since = Instant::now();
                let is_known = |known: &Doubted| known.topic == topic && since - known.since < SAME_WITHIN;
                if lost.is_queue() && !doubted.iter().any(is_known) {
                    let ids = shared.not_begun(&topic);
                    doubted.push_back(Doubted { since, topic, ids });
                }
            }
            () = until(due) => {
                if let Some(Doubted { topic, ids, .. }) = doubted.pop_front() {
                    ids.iter().for_each(|id| shared.end_unless_begun(id, &topic));
                }
            }
        }
    }
}

impl Shared {
    fn not_begun(&self, topic: &Topic) -> Vec<Box<str>> {
        let waiting = lock(&self.waiting);
        let lost = waiting.iter().filter(|(_, waiter)| waiter.to == *topic && !waiter.is_begun);
        lost.map(|(id, _)| id.clone()).collect()
    }

    fn end_unless_begun(&self, id: &str, topic: &Topic) {
        let mut waiting = lock(&self.waiting);
        if waiting.get(id).is_some_and(|waiter| !waiter.is_begun)
            && let Some(waiter) = waiting.remove(id)
        {
            tracing::debug!(id, %topic, "a question went with its queue");
            // Nothing was handed over before, so there is room.
            let _ = waiter.parts.send(Err(Error::QuestionLost { topic: topic.clone() }));
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
