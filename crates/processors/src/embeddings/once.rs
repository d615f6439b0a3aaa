//! Chunks that come twice go to the model once: a text that was cut when its process died is cut again, and all its chunks
//! come again, whatever became of the first ones.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Chunks remembered as done, of which the oldest is forgotten first: more than are on their way to the embedder at once.
const DONE_MAX: usize = 4_096;

/// A chunk in a pass of its document.
type Key = (String, i64);

/// Who is under way, and who has lately been done.
#[derive(Default)]
pub(super) struct Once {
    known: Mutex<Known>,
    ended: Notify,
}

#[derive(Default)]
struct Known {
    under_way: HashSet<Key>,
    done: HashSet<Key>,
    oldest_first: VecDeque<Key>,
}

impl Once {
    /// Begins with a chunk, as soon as no copy of it is under way; `None` when one has been done.
    pub(super) async fn begin(&self, chunk: &str, pass: i64) -> Option<Turn<'_>> {
        let key = (chunk.to_owned(), pass);
        loop {
            // From here on no end is missed.
            let ended = self.ended.notified();
            {
                let mut known = self.known();
                if known.done.contains(&key) {
                    return None;
                }
                if known.under_way.insert(key.clone()) {
                    return Some(Turn { once: self, key });
                }
            }
            ended.await;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A chunk under way; dropped without [`Turn::done`] it is as if it had never begun.
pub(super) struct Turn<'a> {
    once: &'a Once,
    key: Key,
}

impl Turn<'_> {
    /// It needs no vector any more.
    pub(super) fn done(self) {
        let mut known = self.once.known();
        if known.done.insert(self.key.clone()) {
            known.oldest_first.push_back(self.key.clone());
        }
        if known.oldest_first.len() > DONE_MAX
            && let Some(oldest) = known.oldest_first.pop_front()
        {
            known.done.remove(&oldest);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.once.known().under_way.remove(&self.key);
        self.once.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_copy_waits_for_the_first_and_goes_on_only_if_that_failed() {
        let once = Once::default();
        for is_done in [false, true] {
            let first = once.begin("a", 1).await.unwrap();
            let mut copy = std::pin::pin!(once.begin("a", 1));
            assert!(futures_util::poll!(&mut copy).is_pending());
            // Another chunk and another pass wait for nobody.
            assert!(once.begin("b", 1).await.is_some());
            assert!(once.begin("a", 2).await.is_some());
            assert!(futures_util::poll!(&mut copy).is_pending());
            if is_done {
                first.done();
            } else {
                drop(first);
            }
            assert_eq!(copy.await.is_none(), is_done);
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let once = Once::default();
        for n in 0..=DONE_MAX {
            once.begin(&n.to_string(), 1).await.unwrap().done();
        }
        assert!(once.begin("0", 1).await.is_some(), "the oldest is forgotten");
        assert!(once.begin("1", 1).await.is_none());
        assert_eq!(once.known().done.len(), DONE_MAX);
    }
}
