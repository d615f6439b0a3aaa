//! One subscription as a value: what waits, what is in whose hands, who waits for it. No I/O, no clock of its own: the
//! caller brings the time and wakes whom it is told to wake.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use super::backlog::Part;
use crate::message::{Message, Verdict};
use crate::shares;

/// Bytes that bodies may take in memory, over all queues of a broker.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self { used: AtomicUsize::new(0), bytes_max }
    }

    /// Takes `bytes` until the returned part is dropped, or nothing when they are not there.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let share = Share { budget: self.clone(), bytes };
        (before.saturating_add(bytes) <= self.bytes_max).then_some(share)
    }

    pub(super) const fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

/// A part of a [`Budget`], given back on drop.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A message as the queues hold it, shared by all subscriptions of its topic.
#[derive(Debug)]
pub(super) struct Stored {
    /// Its number in the log; 0 where there is none.
    pub(super) id: u64,
    /// `None` when only the log has it.
    pub(super) message: Option<Message>,
    pub(super) bytes: usize,
    /// When nobody waits for it any more.
    pub(super) deadline: Option<Instant>,
    pub(super) _share: Option<Share>,
    /// Its part of what its workspace's requests take.
    pub(super) _request: Option<shares::Share>,
    /// Its part of the backlog, for `flow` messages.
    pub(super) _backlog: Option<Part>,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) stored: Arc<Stored>,
    /// How many times it has been handed out.
    pub(super) attempts: u32,
}

impl Entry {
    fn is_dead(&self, now: Instant) -> bool {
        self.stored.deadline.is_some_and(|deadline| deadline <= now)
    }
}

struct Reader {
    id: u64,
    prefetch: usize,
    holds: usize,
    /// Set while it waits and has not been woken.
    waker: Option<Waker>,
}

/// What a reader gets when it asks.
#[derive(Debug)]
pub(super) enum Take {
    /// The message, counted as handed out; settle it by the token.
    Entry { entry: Entry, token: u64 },
    /// Nothing to have now; it will be woken, and should look again at the given time.
    Wait(Option<Instant>),
}

/// What settling did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The message is done with.
    Done { id: u64 },
    /// It waits again, or the token meant nothing any more.
    Kept,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) name: Arc<str>,
    /// Its number in the log; 0 where there is none.
    pub(super) id: u64,
    ready: VecDeque<Entry>,
    delayed: BTreeMap<(Instant, u64), Entry>,
    unsettled: BTreeMap<u64, (Entry, u64)>,
    readers: Vec<Reader>,
    next_number: u64,
    /// No message dies before this; a lower bound.
    first_death: Option<Instant>,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(name: &str, id: u64) -> Self {
        Self { name: name.into(), id, ..Self::default() }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Bytes of everything it holds in memory.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages waiting, delayed ones included.
    pub(super) fn ready(&self) -> usize {
        self.ready.len() + self.delayed.len()
    }

    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    pub(super) fn consumers(&self) -> usize {
        self.readers.len()
    }

    /// Messages that it holds, whatever their state.
    pub(super) fn len(&self) -> usize {
        self.ready() + self.unsettled()
    }

    fn forget(&mut self, entry: &Entry) {
        if entry.stored.message.is_some() {
            self.bytes -= entry.stored.bytes;
        }
    }

    /// Drops waiting messages whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.first_death.is_none_or(|first| now < first) {
            return;
        }
        let mut dead_bytes = 0;
        let mut first_death: Option<Instant> = None;
        let mut keep = |entry: &Entry| {
            let dead = entry.is_dead(now);
            if dead {
                dead_bytes += entry.stored.bytes;
            } else if let Some(deadline) = entry.stored.deadline {
                first_death = Some(first_death.map_or(deadline, |first| first.min(deadline)));
            }
            !dead
        };
        self.ready.retain(&mut keep);
        self.delayed.retain(|_, entry| keep(entry));
        self.bytes -= dead_bytes;
        self.first_death = first_death;
    }

    /// Puts a message behind all others; the waker of a reader that should look, if one waits.
    pub(super) fn push(&mut self, entry: Entry) -> Option<Waker> {
        if entry.stored.message.is_some() {
            self.bytes += entry.stored.bytes;
        }
        self.note_death(&entry);
        self.ready.push_back(entry);
        self.wake_one()
    }

    fn note_death(&mut self, entry: &Entry) {
        if let Some(deadline) = entry.stored.deadline {
            self.first_death = Some(self.first_death.map_or(deadline, |first| first.min(deadline)));
        }
    }

    /// A waiting reader that may have more.
    fn wake_one(&mut self) -> Option<Waker> {
        let at = self.readers.iter().position(|r| r.waker.is_some() && r.holds < r.prefetch)?;
        let waker = self.readers[at].waker.take();
        // The next one woken is another one.
        self.readers.rotate_left(at + 1);
        waker
    }

    /// Every waiting reader, when the queue ends.
    pub(super) fn wake_all(&mut self) -> Vec<Waker> {
        self.readers.iter_mut().filter_map(|reader| reader.waker.take()).collect()
    }

    pub(super) fn attach(&mut self, prefetch: u32) -> u64 {
        let id = self.number();
        let prefetch = usize::try_from(prefetch.max(1)).unwrap_or(usize::MAX);
        self.readers.push(Reader { id, prefetch, holds: 0, waker: None });
        id
    }

    /// Takes a reader away; what it held waits again.
    pub(super) fn detach(&mut self, reader: u64) -> Vec<Waker> {
        self.readers.retain(|known| known.id != reader);
        let held: Vec<u64> =
            self.unsettled.iter().filter(|(_, (_, by))| *by == reader).map(|(token, _)| *token).collect();
        for token in held {
            if let Some((entry, _)) = self.unsettled.remove(&token) {
                self.ready.push_back(entry);
            }
        }
        let waiting = self.ready.len().max(usize::from(!self.delayed.is_empty()));
        std::iter::from_fn(|| self.wake_one()).take(waiting).collect()
    }

    /// Gives a reader the next message, or remembers that it waits.
    pub(super) fn take(&mut self, reader: u64, now: Instant, waker: &Waker) -> Take {
        self.expire(now);
        while let Some(due) = self.delayed.first_entry()
            && due.key().0 <= now
        {
            let entry = due.remove();
            self.ready.push_back(entry);
        }
        let at = self.readers.iter().position(|known| known.id == reader);
        let Some(at) = at else { return Take::Wait(None) };
        if self.readers[at].holds < self.readers[at].prefetch
            && let Some(mut entry) = self.ready.pop_front()
        {
            entry.attempts = entry.attempts.saturating_add(1);
            let token = self.number();
            self.unsettled.insert(token, (entry.clone(), reader));
            self.readers[at].holds += 1;
            self.readers[at].waker = None;
            return Take::Entry { entry, token };
        }
        match &mut self.readers[at].waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        let has_room = self.readers[at].holds < self.readers[at].prefetch;
        Take::Wait(if has_room { self.delayed.keys().next().map(|(due, _)| *due) } else { None })
    }

    /// A reader stopped waiting; another one may have to take over what it was woken for.
    pub(super) fn leave(&mut self, reader: u64) -> Option<Waker> {
        if let Some(known) = self.readers.iter_mut().find(|known| known.id == reader) {
            known.waker = None;
        }
        if self.ready() > 0 { self.wake_one() } else { None }
    }

    /// The number in the log of what was handed out under `token`, and how many times it has been.
    pub(super) fn handed(&self, token: u64) -> Option<(u64, u32)> {
        self.unsettled.get(&token).map(|(entry, _)| (entry.stored.id, entry.attempts))
    }

    /// Settles what was handed out under `token`.
    pub(super) fn settle(&mut self, token: u64, verdict: Verdict, now: Instant) -> (Settled, Option<Waker>) {
        let Some((mut entry, reader)) = self.unsettled.remove(&token) else { return (Settled::Kept, None) };
        if matches!(verdict, Verdict::Untried(_)) {
            entry.attempts = entry.attempts.saturating_sub(1);
        }
        if let Some(known) = self.readers.iter_mut().find(|known| known.id == reader) {
            known.holds -= 1;
        }
        let settled = match verdict {
            Verdict::Done => {
                self.forget(&entry);
                Settled::Done { id: entry.stored.id }
            }
            Verdict::Again(_) | Verdict::Untried(_) if entry.is_dead(now) => {
                self.forget(&entry);
                Settled::Done { id: entry.stored.id }
            }
            Verdict::Again(Duration::ZERO) | Verdict::Untried(Duration::ZERO) => {
                self.note_death(&entry);
                self.ready.push_back(entry);
                Settled::Kept
            }
            Verdict::Again(delay) | Verdict::Untried(delay) => {
                self.note_death(&entry);
                let key = (now + delay, self.number());
                self.delayed.insert(key, entry);
                Settled::Kept
            }
        };
        // Also a new delayed message wakes: whoever sleeps may have to get up earlier.
        let waker = if self.ready() > 0 { self.wake_one() } else { None };
        (settled, waker)
    }

    /// Undoes a hand-over that did not reach the reader: the message stands first again, uncounted.
    pub(super) fn untake(&mut self, token: u64) {
        let Some((mut entry, reader)) = self.unsettled.remove(&token) else { return };
        if let Some(known) = self.readers.iter_mut().find(|known| known.id == reader) {
            known.holds -= 1;
        }
        entry.attempts -= 1;
        self.ready.push_front(entry);
    }

    /// Forgets every message.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.delayed.clear();
        self.unsettled.clear();
        self.bytes = 0;
    }
}
