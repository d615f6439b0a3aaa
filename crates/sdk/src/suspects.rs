//! Messages that may have ended a process: handed out before, and given back by nobody here. They are worked on one at a time
//! over the whole process, so that the next end shows which of several that were under way is to blame, and the others are
//! not counted for it.
//!
//! A broker counts an attempt before it hands a message out, so one that ends its process each time is found by its count;
//! what is under way beside it would be counted as often. So a suspect that has to wait goes back uncounted instead, and that
//! work on one begins is noted ([`sluice_bus::Inbox::begin`]) where the broker also counts what was only on its way.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_bus::{Delivery, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Messages that are remembered as given back, over all readers of a process.
const RETURNED_MAX: usize = 4_096;
/// How long a suspect has the process to itself; what ends a process has mostly done so by then.
pub(crate) const ALONE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a suspect waits that goes back because another one is under way.
pub(crate) const ELSEWHERE_PAUSE: Duration = Duration::from_millis(250);

/// What a process knows of messages that were handed out before. One per process, shared by its readers.
#[derive(Debug)]
pub struct Suspects {
    alone: Arc<Semaphore>,
    returned: Mutex<Returned>,
}

#[derive(Debug, Default)]
struct Returned {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Default for Suspects {
    fn default() -> Self {
        Self { alone: Arc::new(Semaphore::new(1)), returned: Mutex::default() }
    }
}

impl Suspects {
    /// Notes that this process gives a message back by itself: when it comes again, it is no suspect.
    pub fn returned(&self, message: &Message) {
        let mark = mark(message);
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        if !returned.known.insert(mark) {
            return;
        }
        returned.order.push_back(mark);
        if returned.order.len() > RETURNED_MAX
            && let Some(oldest) = returned.order.pop_front()
        {
            returned.known.remove(&oldest);
        }
    }

    /// Whether a delivery may have ended a process: it was handed out before, and nobody here gave it back.
    #[must_use]
    pub fn is_suspect(&self, delivery: &Delivery) -> bool {
        if delivery.attempt <= 1 {
            return false;
        }
        let mark = mark(&delivery.message);
        !self.returned.lock().unwrap_or_else(PoisonError::into_inner).known.contains(&mark)
    }

    /// Whether a delivery on which work was about to begin has ended as many processes as it may. Its handler must not see it
    /// again.
    #[must_use]
    pub fn is_spent(&self, delivery: &Delivery, attempts_max: u32) -> bool {
        begun(delivery) > attempts_max && self.is_suspect(delivery)
    }

    /// The turn to work on a suspect, unless another one has it.
    pub(crate) fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.alone.clone().try_acquire_owned().ok()
    }
}

/// Why a delivery is given up that [`Suspects::is_spent`].
#[must_use]
pub fn reason(delivery: &Delivery) -> String {
    let times = begun(delivery).saturating_sub(1);
    format!(
        "it ended the process {times} times: handed out that often, and each time its process ended before it was settled"
    )
}

/// How often work on a delivery may have begun, this time included.
fn begun(delivery: &Delivery) -> u32 {
    delivery.begun.unwrap_or(delivery.attempt)
}

fn mark(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    for property in message.properties() {
        property.hash(&mut hasher);
    }
    message.body.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use sluice_bus::{Settle, Verdict};

    use super::*;

    struct Ignored;

    impl Settle for Ignored {
        fn settle(self: Box<Self>, _: Verdict) {}
    }

    fn delivery(body: &'static str, attempt: u32) -> Delivery {
        Delivery::new(Message::new(body), "flow:tg:in:w:f1".parse().unwrap(), attempt, Box::new(Ignored))
    }

    #[test]
    fn only_what_nobody_here_gave_back_is_a_suspect() {
        let suspects = Suspects::default();
        assert!(!suspects.is_suspect(&delivery("first", 1)));
        assert!(suspects.is_suspect(&delivery("again", 2)));
        suspects.returned(&Message::new("again"));
        assert!(!suspects.is_suspect(&delivery("again", 2)));
        assert!(!suspects.is_spent(&delivery("again", 9), 5));
        assert!(suspects.is_suspect(&delivery("other", 2)));
        assert!(!suspects.is_spent(&delivery("other", 5), 5));
        assert!(suspects.is_spent(&delivery("other", 6), 5));
    }

    #[test]
    fn the_oldest_that_were_given_back_are_forgotten() {
        let suspects = Suspects::default();
        for number in 0..=RETURNED_MAX {
            suspects.returned(&Message::new(number.to_string()));
        }
        assert!(suspects.is_suspect(&delivery("0", 2)));
        assert!(!suspects.is_suspect(&delivery("1", 2)));
    }

    #[test]
    fn one_suspect_at_a_time_has_the_turn() {
        let suspects = Suspects::default();
        let turn = suspects.turn();
        assert!(turn.is_some() && suspects.turn().is_none());
        drop(turn);
        assert!(suspects.turn().is_some());
    }
}
