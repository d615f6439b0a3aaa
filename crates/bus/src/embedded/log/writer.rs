//! The thread that writes: takes what arrived, writes it, syncs once, hands on, cleans up.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::frame;
use super::segment;
use super::tail::Tail;
use super::{Done, End, Operation, Refusal, Shared, WRITE_BYTES, disk, misplaced};
use crate::Error;
use crate::contract::TopicSpec;
use crate::embedded::topic::{TopicState, lock};
use crate::message::Message;

/// A file that has grown by this and in which nothing lives is not kept until it is full: it may be all that the broker has on
/// disk.
const EMPTY_BYTES: u64 = 4 << 20;

/// What to do once the sync is through.
enum Effect {
    Enqueue { topic: Arc<TopicState>, id: u64, message: Message, done: Done },
    Ensure { spec: TopicSpec, id: u64, queues: Vec<(String, u64)>, done: Done },
    Remove { spec: TopicSpec, done: Done },
    Stamp { done: Done },
}

impl Shared {
    pub(super) fn run(&self) {
        let mut operations = Vec::new();
        loop {
            let end = {
                let mut pending = lock(&self.pending);
                while pending.operations.is_empty() && !pending.poked && pending.end.is_none() {
                    pending = self.arrived.wait(pending).unwrap_or_else(PoisonError::into_inner);
                }
                // Those just answered are about to publish again: while more arrive, they share the next sync.
                let mut arrived = 0;
                while pending.operations.len() > arrived && pending.end.is_none() {
                    arrived = pending.operations.len();
                    drop(pending);
                    std::thread::yield_now();
                    pending = lock(&self.pending);
                }
                pending.poked = false;
                std::mem::swap(&mut pending.operations, &mut operations);
                pending.end
            };
            if end == Some(End::Crash) {
                return;
            }
            let result = self.step(&mut operations, end.is_some());
            if let Err(error) = result {
                self.die(&error);
                return;
            }
            if end.is_some() {
                return;
            }
        }
    }

    /// Writes, syncs, hands on, and cleans up. An error is the end.
    fn step(&self, operations: &mut Vec<Operation>, closing: bool) -> io::Result<()> {
        let is_misplaced = self.refuse_misplaced(operations);
        let must_sync = !operations.is_empty();
        let mut effects = Vec::with_capacity(operations.len());
        let written = self.write(operations, &mut effects, is_misplaced);
        if let Err(error) = written {
            self.unknown(effects, &error);
            return Err(error);
        }
        if must_sync || closing {
            let (segment, offset) = {
                let mut tail = lock(&self.tail);
                if closing {
                    close(&mut tail)?;
                }
                (tail.segment.clone(), tail.offset)
            };
            if let Err(error) = self.faults.sync(&segment.file) {
                self.unknown(effects, &error);
                return Err(error);
            }
            lock(&self.tail).synced = offset;
        }
        for effect in effects {
            self.apply(effect);
        }
        if closing {
            // What could be given back is at the next start; the end stays where it is now.
            let tail = lock(&self.tail);
            if tail.ledger.is_closed {
                let _ = self.closed_at.set(tail.end());
            }
            return Ok(());
        }
        // What is given back is looked for by its path.
        if is_misplaced { Ok(()) } else { self.clean() }
    }

    /// While a file is not where its path says, nothing is promised of what would be written to it.
    fn refuse_misplaced(&self, operations: &mut Vec<Operation>) -> bool {
        let known = lock(&self.misplaced).clone();
        let reason = known.or_else(|| {
            let segment = lock(&self.tail).segment.clone();
            (!segment.is_in_place()).then(|| misplaced(&segment))
        });
        let Some(reason) = reason else { return false };
        for operation in operations.drain(..) {
            let (Operation::Publish { done, .. }
            | Operation::Ensure { done, .. }
            | Operation::Remove { done, .. }
            | Operation::Stamp { done, .. }) = operation;
            let _ = done.send(Err(Refusal::Failed(disk(reason.clone()))));
        }
        true
    }

    fn write(
        &self,
        operations: &mut Vec<Operation>,
        effects: &mut Vec<Effect>,
        is_misplaced: bool,
    ) -> io::Result<()> {
        let mut tail = lock(&self.tail);
        if !is_misplaced && tail.offset >= self.table.config.segment_bytes {
            match tail.roll() {
                // It goes on at the end of the present file.
                Err(error) if segment::is_full(&error) => {}
                rolled => rolled?,
            }
        }
        if !operations.is_empty() {
            self.reopen_when_there_is_room(&mut tail)?;
        }
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for operation in operations.drain(..) {
            match operation {
                Operation::Publish { topic, message, done } => {
                    batch_bytes += message.size_bytes();
                    batch.push((topic, message, done));
                    if batch_bytes >= WRITE_BYTES {
                        self.write_messages(&mut tail, &mut batch, effects)?;
                        batch_bytes = 0;
                    }
                }
                Operation::Ensure { spec, done } => {
                    self.write_messages(&mut tail, &mut batch, effects)?;
                    write_topic(&mut tail, spec, done, effects)?;
                }
                Operation::Remove { spec, done } => {
                    self.write_messages(&mut tail, &mut batch, effects)?;
                    write_removal(&mut tail, spec, done, effects)?;
                }
                Operation::Stamp { stamp, done } => {
                    self.write_messages(&mut tail, &mut batch, effects)?;
                    match tail.stamp(stamp) {
                        Ok(()) => effects.push(Effect::Stamp { done }),
                        Err(error) => refuse(error, done)?,
                    }
                }
            }
        }
        self.write_messages(&mut tail, &mut batch, effects)?;
        match tail.flush() {
            Err(error) if segment::is_full(&error) => Ok(()),
            flushed => flushed,
        }
    }

    /// Looks whether a full disk has room again: the reserve comes first.
    fn reopen_when_there_is_room(&self, tail: &mut Tail) -> io::Result<()> {
        if tail.full {
            tail.full = !tail.reserve(self.table.config.disk_reserve_bytes)?;
        }
        Ok(())
    }

    fn write_messages(
        &self,
        tail: &mut Tail,
        batch: &mut Vec<(Arc<TopicState>, Message, Done)>,
        effects: &mut Vec<Effect>,
    ) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let bytes: usize = batch.iter().map(|(_, message, _)| message.size_bytes()).sum();
        let limit = self.table.config.disk_bytes_max.unwrap_or(u64::MAX);
        let mut ids = Vec::with_capacity(batch.len());
        let written = if tail.full || tail.ledger.bytes().saturating_add(bytes as u64) > limit {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            tail.messages(batch.iter().map(|(topic, message, _)| (topic.id, message)), &mut ids)
        };
        match written {
            Ok(()) => {
                effects.extend(
                    batch.drain(..).zip(ids).map(|((topic, message, done), id)| Effect::Enqueue {
                        topic,
                        id,
                        message,
                        done,
                    }),
                );
                Ok(())
            }
            Err(error) if segment::is_full(&error) => {
                tail.full = true;
                for (_, _, done) in batch.drain(..) {
                    let _ = done.send(Err(Refusal::Full("it is full; free some space".to_owned())));
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn apply(&self, effect: Effect) {
        // Whoever asked may have left; then nobody hears the answer.
        match effect {
            Effect::Enqueue { topic, id, message, done } => {
                let queued = topic.enqueue(id, message, &self.table);
                let _ = done.send(queued.map_err(Refusal::Failed));
            }
            Effect::Ensure { spec, id, queues, done } => {
                self.table.ensure(&spec.topic, id, queues);
                let _ = done.send(Ok(()));
            }
            Effect::Remove { spec, done } => {
                self.table.remove(&spec.topic);
                let _ = done.send(Ok(()));
            }
            Effect::Stamp { done } => {
                let _ = done.send(Ok(()));
            }
        }
    }

    /// Gives files back, and moves old survivors when they pin too much.
    fn clean(&self) -> io::Result<()> {
        let pinned = |tail: &Tail| {
            let ledger = &tail.ledger;
            let allowed = 3 * ledger.live_bytes() + 3 * self.table.config.segment_bytes;
            !tail.full && ledger.bytes() > allowed
        };
        self.leave_empty()?;
        loop {
            let (dead, untold) = self.take_dead()?;
            let any = !dead.is_empty();
            for segment in dead {
                let bytes = segment.file.metadata().map_or(0, |there| there.len());
                match std::fs::remove_file(&segment.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
                self.faults.give_back(bytes);
            }
            if let Some(number) = untold {
                let mut tail = lock(&self.tail);
                match tail.gone(number).and_then(|()| self.faults.sync(&tail.segment.file)) {
                    Err(error) if !segment::is_full(&error) => return Err(error),
                    _ => {}
                }
            }
            if any {
                self.freed.notify_waiters();
            }
            let mut moved = false;
            while {
                let mut tail = lock(&self.tail);
                pinned(&tail) && tail.move_oldest()?
            } {
                moved = true;
            }
            if !moved {
                return Ok(());
            }
            // What was moved is on disk before its old place goes.
            let mut tail = lock(&self.tail);
            self.faults.sync(&tail.segment.file)?;
            tail.synced = tail.offset;
        }
    }

    /// Begins the next file where the present one only holds what nobody needs, so that it can be given back.
    fn leave_empty(&self) -> io::Result<()> {
        let mut tail = lock(&self.tail);
        if tail.full || tail.offset - tail.begun_at < EMPTY_BYTES || !tail.ledger.messages.is_empty() {
            return Ok(());
        }
        match tail.roll() {
            Err(error) if segment::is_full(&error) => Ok(()),
            rolled => rolled,
        }
    }

    /// Files that may go. Their removal is on record on disk first, so that a lost file can be told apart from a removed one;
    /// where the disk had no room for that, the number is answered too, to be put down once they have made some.
    fn take_dead(&self) -> io::Result<(Vec<Arc<segment::Segment>>, Option<u64>)> {
        let mut tail = lock(&self.tail);
        let Some(number) = tail.ledger.dead_up_to() else { return Ok((Vec::new(), None)) };
        let untold = match tail.gone(number) {
            Ok(()) => {
                self.faults.sync(&tail.segment.file)?;
                tail.synced = tail.offset;
                None
            }
            Err(error) if segment::is_full(&error) => Some(number),
            Err(error) => return Err(error),
        };
        Ok((tail.ledger.take_dead(), untold))
    }

    fn unknown(&self, effects: Vec<Effect>, error: &io::Error) {
        for effect in effects {
            let (what, done) = match effect {
                Effect::Enqueue { topic, done, .. } => (format!("the publish to '{}'", topic.topic), done),
                Effect::Ensure { spec, done, .. } => (format!("making '{}'", spec.topic), done),
                Effect::Remove { spec, done } => (format!("removing '{}'", spec.topic), done),
                Effect::Stamp { done } => ("noting which folder the log belongs to".to_owned(), done),
            };
            let error = Error::OutcomeUnknown { what, reason: error.to_string() };
            let _ = done.send(Err(Refusal::Failed(error)));
        }
    }

    fn die(&self, error: &io::Error) {
        let reason = format!("{error}; check the disk, then start the broker again");
        tracing::error!(%reason, "the log cannot be written; the broker stops");
        let _ = self.dead.set(reason);
        let waiting = {
            let mut pending = lock(&self.pending);
            pending.end = Some(End::Crash);
            self.ended.store(true, Ordering::Release);
            std::mem::take(&mut pending.operations)
        };
        // Their answer is dropped with them: the outcome is unknown, in fact nothing happened.
        drop(waiting);
        self.table.stop(&self.unusable());
    }
}

fn write_topic(tail: &mut Tail, spec: TopicSpec, done: Done, effects: &mut Vec<Effect>) -> io::Result<()> {
    let known = tail.ledger.id_of(&spec.topic);
    let there = known.and_then(|id| tail.ledger.topics.get(&id)).map_or(&[][..], |known| &known.queues);
    let mut missing: Vec<&String> = Vec::new();
    for name in &spec.subscriptions {
        if !there.iter().any(|(known, _)| **known == **name) && !missing.contains(&name) {
            missing.push(name);
        }
    }
    let mut queues: Vec<(String, u64)> = there.iter().map(|(name, id)| (name.to_string(), *id)).collect();
    let is_new = known.is_none() || !missing.is_empty();
    let id = known.unwrap_or_else(|| tail.ledger.new_name());
    let added: Vec<(&str, u64)> =
        missing.iter().map(|name| (name.as_str(), tail.ledger.new_name())).collect();
    queues.extend(added.iter().map(|(name, id)| ((*name).to_owned(), *id)));
    if is_new {
        let written = tail.topology(|out| frame::put_topic(out, id, &spec.topic, added.iter().copied()));
        if let Err(error) = written {
            return refuse(error, done);
        }
        tail.ledger.topic(id, &spec.topic, &added);
    }
    effects.push(Effect::Ensure { spec, id, queues, done });
    Ok(())
}

fn write_removal(tail: &mut Tail, spec: TopicSpec, done: Done, effects: &mut Vec<Effect>) -> io::Result<()> {
    if let Some(id) = tail.ledger.id_of(&spec.topic) {
        if let Err(error) = tail.topology(|out| frame::put_removed(out, id)) {
            return refuse(error, done);
        }
        tail.ledger.removed(id);
    }
    effects.push(Effect::Remove { spec, done });
    Ok(())
}

/// Closes the log, as far as a full disk lets it: then the next start finds it as after a crash.
fn close(tail: &mut Tail) -> io::Result<()> {
    match tail.close() {
        Err(error) if segment::is_full(&error) => tail.trim(),
        closed => closed,
    }
}

fn refuse(error: io::Error, done: Done) -> io::Result<()> {
    if !segment::is_full(&error) {
        return Err(error);
    }
    let _ = done.send(Err(Refusal::Full("it is full, and so is its reserve; free some space".to_owned())));
    Ok(())
}
