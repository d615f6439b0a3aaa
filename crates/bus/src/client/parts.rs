//! The parts of one answer, on their way from the inbox to the call that waits for them.
//!
//! Bounded three ways: in number and in bytes for one call, and in bytes for all calls of a process together, so that calls whose
//! parts nobody reads cannot fill its memory. Workspaces share that: one whose parts nobody reads keeps no answer from another.
//! A single part that is larger than what one call may have still arrives.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::task::AtomicWaker;
use sluice_schema::{Topic, doors};

use super::{UNREAD_BYTES_MAX, UNREAD_PARTS_MAX, lock};
use crate::Result;
use crate::message::Message;
use crate::shares::{Share, Shares};

/// Unread bytes of all calls of a process together; above it, the call fails for which more comes if its workspace has more than
/// its part of them.
pub(super) const ALL_UNREAD_BYTES_MAX: usize = 2 * UNREAD_BYTES_MAX;

/// A part that waits alone counts only if it is larger: most answers are small and taken at once, and each call may have one.
const FREE_BYTES: usize = 16 << 10;

/// Both ends of the parts of a call to this topic, whose bytes count in `all`.
pub(super) fn parts(all: &Arc<Shares>, to: &Topic) -> (Sender, Receiver) {
    let (all, to) = (all.clone(), to.clone());
    let waiting = Waiting { parts: VecDeque::new(), all, to, share: None, is_closed: false };
    let queue = Arc::new(Queue { waiting: Mutex::new(waiting), reader: AtomicWaker::new() });
    (Sender(queue.clone()), Receiver(queue))
}

struct Queue {
    waiting: Mutex<Waiting>,
    reader: AtomicWaker,
}

struct Waiting {
    /// Each with what it counts for.
    parts: VecDeque<(Result<Message>, usize)>,
    all: Arc<Shares>,
    to: Topic,
    /// What they count for together, once one has.
    share: Option<Share>,
    /// One of the ends is gone.
    is_closed: bool,
}

impl Waiting {
    /// What so many bytes more count for, if they may wait.
    fn count(&mut self, bytes: usize) -> Option<usize> {
        if self.parts.is_empty() && bytes <= FREE_BYTES {
            return Some(0);
        }
        let share = self.share.get_or_insert_with(|| self.all.share(&doors::holder(&self.to), 0));
        let before = share.amount();
        let may = before == 0 || before.saturating_add(bytes) <= UNREAD_BYTES_MAX;
        (may && share.grow(bytes)).then_some(bytes)
    }
}

/// Where parts go in. Dropping it ends the answer after what waits.
pub(super) struct Sender(Arc<Queue>);

impl Sender {
    /// Hands a part over, or what became of the call; `false` when too much waits unread already.
    pub(super) fn send(&self, part: Result<Message>) -> bool {
        let mut waiting = lock(&self.0.waiting);
        if waiting.is_closed {
            // It belongs to a call that is just being dropped.
            return true;
        }
        let bytes = part.as_ref().map_or(0, |part| part.body.len());
        if waiting.parts.len() >= UNREAD_PARTS_MAX {
            return false;
        }
        let Some(counts) = waiting.count(bytes) else { return false };
        waiting.parts.push_back((part, counts));
        drop(waiting);
        self.0.reader.wake();
        true
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        lock(&self.0.waiting).is_closed = true;
        self.0.reader.wake();
    }
}

/// Where parts come out. Dropping it gives back what waits.
pub(super) struct Receiver(Arc<Queue>);

impl Receiver {
    /// The next part; `None` once there are no more. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Message>> {
        std::future::poll_fn(|cx| {
            if let ready @ Poll::Ready(_) = self.take() {
                return ready;
            }
            self.0.reader.register(cx.waker());
            // One may have come in between.
            self.take()
        })
        .await
    }

    fn take(&self) -> Poll<Option<Result<Message>>> {
        let mut waiting = lock(&self.0.waiting);
        match waiting.parts.pop_front() {
            Some((part, counts)) => {
                if let Some(share) = &mut waiting.share {
                    share.shrink(counts);
                }
                Poll::Ready(Some(part))
            }
            None if waiting.is_closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    #[cfg(test)]
    pub(super) fn unread_bytes(&self) -> usize {
        lock(&self.0.waiting).share.as_ref().map_or(0, Share::amount)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0.waiting);
        waiting.is_closed = true;
        waiting.parts.clear();
        waiting.share = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Arc<Shares> {
        Shares::new(ALL_UNREAD_BYTES_MAX)
    }

    fn to(workspace: &str) -> Topic {
        format!("request:tg:librarian:{workspace}").parse().unwrap()
    }

    fn part(bytes: usize) -> Result<Message> {
        Ok(Message::new(vec![0; bytes]))
    }

    #[tokio::test]
    async fn all_calls_together_keep_a_bound_and_give_back_what_they_had() {
        let all = all();
        let mut calls = Vec::new();
        let half = UNREAD_BYTES_MAX / 2;
        for _ in 0..ALL_UNREAD_BYTES_MAX / half {
            let (sender, receiver) = parts(&all, &to("acme"));
            assert!(sender.send(part(half)));
            calls.push((sender, receiver));
        }
        let (sender, mut receiver) = parts(&all, &to("acme"));
        assert!(sender.send(part(FREE_BYTES)), "a small one is free");
        assert!(!sender.send(part(1)), "there is no room for its workspace");
        let (others, theirs) = parts(&all, &to("other"));
        assert!(others.send(part(2 * half)), "half of it is for another, whatever the first has");
        assert!(!others.send(part(1)));
        drop(others);
        drop(theirs);
        assert!(sender.send(part(0)));
        assert!(receiver.next().await.is_some());
        // One that is read, one whose reader leaves.
        assert!(calls[0].1.next().await.is_some());
        drop(calls.pop());
        assert_eq!(all.held(), ALL_UNREAD_BYTES_MAX - 2 * half);
        assert!(sender.send(part(half)));
        drop(calls);
        drop(receiver);
        assert!(sender.send(part(half)), "nobody minds what comes for a reader that has left");
        assert_eq!(all.held(), 0);
    }

    #[tokio::test]
    async fn a_part_larger_than_one_call_may_have_arrives_alone() {
        let (sender, mut receiver) = parts(&all(), &to("acme"));
        assert!(sender.send(part(UNREAD_BYTES_MAX + 1)));
        assert!(!sender.send(part(1)));
        assert!(receiver.next().await.is_some());
        assert!(sender.send(part(1)));
        drop(sender);
        assert!(receiver.next().await.is_some());
        assert!(receiver.next().await.is_none(), "what waited came, then the end");
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_by_a_part_and_by_the_end() {
        let (sender, mut receiver) = parts(&all(), &to("acme"));
        let reading = async { (receiver.next().await.is_some(), receiver.next().await.is_none()) };
        let sending = async {
            tokio::task::yield_now().await;
            assert!(sender.send(part(3)));
            tokio::task::yield_now().await;
            drop(sender);
        };
        assert_eq!(tokio::join!(reading, sending).0, (true, true));
    }
}
