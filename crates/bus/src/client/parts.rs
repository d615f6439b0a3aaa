//! The parts of one answer, on their way from the inbox to the call that waits for them.
//!
//! Bounded three ways: in number and in bytes for one call, and in bytes for all calls of a process together, so that calls whose
//! parts nobody reads cannot fill its memory. A single part that is larger than what one call may have still arrives.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::task::AtomicWaker;

use super::{UNREAD_BYTES_MAX, UNREAD_PARTS_MAX, lock};
use crate::Result;
use crate::message::Message;

/// Unread bytes of all calls of a process together; above it, the call fails for which more comes.
pub(super) const ALL_UNREAD_BYTES_MAX: usize = 4 * UNREAD_BYTES_MAX;

/// Both ends of a call's parts, whose bytes count in `all`.
pub(super) fn parts(all: &Arc<AtomicUsize>) -> (Sender, Receiver) {
    let queue = Arc::new(Queue { waiting: Mutex::default(), reader: AtomicWaker::new(), all: all.clone() });
    (Sender(queue.clone()), Receiver(queue))
}

struct Queue {
    waiting: Mutex<Waiting>,
    reader: AtomicWaker,
    all: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Waiting {
    parts: VecDeque<Result<Message>>,
    bytes: usize,
    /// One of the ends is gone.
    is_closed: bool,
}

impl Queue {
    /// Whether so many bytes more may wait; they are counted then.
    fn count(&self, waiting: &mut Waiting, bytes: usize) -> bool {
        if waiting.bytes > 0 && waiting.bytes.saturating_add(bytes) > UNREAD_BYTES_MAX {
            return false;
        }
        let before = self.all.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before.saturating_add(bytes) > ALL_UNREAD_BYTES_MAX {
            self.all.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        waiting.bytes += bytes;
        true
    }

    fn uncount(&self, waiting: &mut Waiting, bytes: usize) {
        waiting.bytes -= bytes;
        self.all.fetch_sub(bytes, Ordering::Relaxed);
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
        if waiting.parts.len() >= UNREAD_PARTS_MAX || !self.0.count(&mut waiting, bytes) {
            return false;
        }
        waiting.parts.push_back(part);
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
            Some(part) => {
                self.0.uncount(&mut waiting, part.as_ref().map_or(0, |part| part.body.len()));
                Poll::Ready(Some(part))
            }
            None if waiting.is_closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    #[cfg(test)]
    pub(super) fn unread_bytes(&self) -> usize {
        lock(&self.0.waiting).bytes
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0.waiting);
        waiting.is_closed = true;
        waiting.parts.clear();
        let bytes = waiting.bytes;
        self.0.uncount(&mut waiting, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: usize) -> Result<Message> {
        Ok(Message::new(vec![0; bytes]))
    }

    #[tokio::test]
    async fn all_calls_together_keep_a_bound_and_give_back_what_they_had() {
        let all = Arc::default();
        let mut calls = Vec::new();
        let half = UNREAD_BYTES_MAX / 2;
        for _ in 0..ALL_UNREAD_BYTES_MAX / half {
            let (sender, receiver) = parts(&all);
            assert!(sender.send(part(half)));
            calls.push((sender, receiver));
        }
        let (sender, mut receiver) = parts(&all);
        assert!(!sender.send(part(1)), "there is no room for anybody");
        assert!(sender.send(part(0)));
        assert!(receiver.next().await.is_some());
        // One that is read, one whose reader leaves.
        assert!(calls[0].1.next().await.is_some());
        drop(calls.pop());
        assert_eq!(all.load(Ordering::Relaxed), ALL_UNREAD_BYTES_MAX - 2 * half);
        assert!(sender.send(part(half)));
        drop(calls);
        drop(receiver);
        assert!(sender.send(part(half)), "nobody minds what comes for a reader that has left");
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_part_larger_than_one_call_may_have_arrives_alone() {
        let all = Arc::default();
        let (sender, mut receiver) = parts(&all);
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
        let all = Arc::default();
        let (sender, mut receiver) = parts(&all);
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
