//! What the log holds, told from its records alone: which topics there are, which messages are unsettled and where
//! they lie. Replaying a log gives the ledger that writing it had.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sluice_schema::Topic;

use super::frame::{self, Pending, Record, Seal};
use super::segment::Segment;
use crate::embedded::config::Stamp;

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) topic: u64,
    pub(super) spot: Spot,
    pub(super) pending: Vec<Pending>,
}

#[derive(Debug)]
pub(super) struct LedgerTopic {
    pub(super) topic: Topic,
    pub(super) queues: Vec<(Arc<str>, u64)>,
    messages: usize,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) segment: Arc<Segment>,
    pub(super) messages: usize,
    pub(super) live_bytes: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) topics: HashMap<u64, LedgerTopic>,
    ids: HashMap<Topic, u64>,
    pub(super) messages: HashMap<u64, Live>,
    /// Every file of the log, oldest first; the last one is being written.
    pub(super) segments: BTreeMap<u64, Held>,
    pub(super) next_message: u64,
    pub(super) next_name: u64,
    pub(super) stamp: Option<Stamp>,
    /// The last record says that the log was closed.
    pub(super) is_closed: bool,
    /// The number of the file that has to follow the last one.
    pub(super) next_file: Option<u64>,
    /// The highest number of a file that was given back; `None` in a log that does not keep count of it yet.
    pub(super) gone_file: Option<u64>,
}

impl Ledger {
    pub(super) fn id_of(&self, topic: &Topic) -> Option<u64> {
        self.ids.get(topic).copied()
    }

    pub(super) fn new_message(&mut self) -> u64 {
        self.next_message += 1;
        self.next_message
    }

    pub(super) fn new_name(&mut self) -> u64 {
        self.next_name += 1;
        self.next_name
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|held| held.bytes).sum()
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.segments.values().map(|held| held.live_bytes).sum()
    }

    pub(super) fn add_segment(&mut self, segment: Arc<Segment>, bytes: u64) {
        self.segments.insert(segment.number, Held { segment, messages: 0, live_bytes: 0, bytes });
    }

    /// A file became longer.
    pub(super) fn grow(&mut self, segment: u64, bytes: u64) {
        if let Some(held) = self.segments.get_mut(&segment) {
            held.bytes += bytes;
        }
    }

    /// Takes in what a frame says that lies at `spot`.
    pub(super) fn apply(&mut self, record: Record<'_>, spot: Spot) {
        self.is_closed = matches!(record, Record::Closed);
        match record {
            Record::Counters { message, name, before_bytes: _ } => {
                self.next_message = self.next_message.max(message);
                self.next_name = self.next_name.max(name);
            }
            Record::Topic { id, topic, queues } => self.topic(id, &topic, &queues),
            Record::Removed { id } => self.removed(id),
            Record::Message { id, topic, pending, body: _ } => self.message(id, topic, pending, spot),
            Record::Handed { id, queue, attempts } => self.handed(id, queue, attempts),
            Record::Settled { id, queue } => self.settled(id, queue),
            Record::Stamp { generation, folder, format: _ } => {
                self.stamp = Some(Stamp { folder: folder.to_owned(), generation });
            }
            Record::Closed => {}
            Record::Next { number } => self.next_file = Some(number),
            Record::Gone { number } => self.gone_file = self.gone_file.max(Some(number)),
        }
    }

    /// Number of the oldest file.
    pub(super) fn first_file(&self) -> u64 {
        self.segments.first_key_value().map_or(0, |(number, _)| *number)
    }

    pub(super) fn topic(&mut self, id: u64, topic: &Topic, queues: &[(&str, u64)]) {
        self.next_name = queues.iter().fold(self.next_name.max(id), |max, (_, queue)| max.max(*queue));
        let known = self.topics.entry(id).or_insert_with(|| LedgerTopic {
            topic: topic.clone(),
            queues: Vec::new(),
            messages: 0,
        });
        self.ids.insert(topic.clone(), id);
        for (name, queue) in queues {
            if !known.queues.iter().any(|(_, there)| there == queue) {
                known.queues.push(((*name).into(), *queue));
            }
        }
    }

    pub(super) fn removed(&mut self, id: u64) {
        let Some(gone) = self.topics.remove(&id) else { return };
        self.ids.remove(&gone.topic);
        if gone.messages == 0 {
            return;
        }
        let ids: Vec<u64> =
            self.messages.iter().filter(|(_, live)| live.topic == id).map(|(id, _)| *id).collect();
        for id in ids {
            self.forget(id);
        }
    }

    pub(super) fn message(&mut self, id: u64, topic: u64, pending: Vec<Pending>, spot: Spot) {
        self.next_message = self.next_message.max(id);
        self.forget(id);
        let Some(known) = self.topics.get_mut(&topic) else { return };
        if pending.is_empty() {
            return;
        }
        known.messages += 1;
        if let Some(held) = self.segments.get_mut(&spot.segment) {
            held.messages += 1;
            held.live_bytes += spot.bytes;
        }
        self.messages.insert(id, Live { topic, spot, pending });
    }

    fn forget(&mut self, id: u64) {
        let Some(live) = self.messages.remove(&id) else { return };
        if let Some(known) = self.topics.get_mut(&live.topic) {
            known.messages -= 1;
        }
        if let Some(held) = self.segments.get_mut(&live.spot.segment) {
            held.messages -= 1;
            held.live_bytes -= live.spot.bytes;
        }
    }

    pub(super) fn handed(&mut self, id: u64, queue: u64, attempts: u32) {
        self.next_message = self.next_message.max(id);
        let pending =
            self.messages.get_mut(&id).and_then(|live| live.pending.iter_mut().find(|p| p.queue == queue));
        if let Some(pending) = pending {
            pending.attempts = attempts;
        }
    }

    pub(super) fn settled(&mut self, id: u64, queue: u64) {
        self.next_message = self.next_message.max(id);
        let Some(live) = self.messages.get_mut(&id) else { return };
        live.pending.retain(|pending| pending.queue != queue);
        if live.pending.is_empty() {
            self.forget(id);
        }
    }

    /// Writes what a new file must begin with, so that all older ones may go; `out` is the file from its first byte on.
    pub(super) fn snapshot(&self, out: &mut Vec<u8>, seal: Seal) {
        let (message, name) = (self.next_message, self.next_name);
        let before_bytes = self.segments.last_key_value().map(|(_, held)| held.bytes);
        frame::write(out, 0, seal, 0, |out| frame::put_counters(out, message, name, before_bytes));
        if let Some(stamp) = &self.stamp {
            frame::write(out, 0, seal, 0, |out| frame::put_stamp(out, &stamp.folder, stamp.generation));
        }
        if let Some(number) = self.gone_file {
            frame::write(out, 0, seal, 0, |out| frame::put_gone(out, number));
        }
        for (id, known) in &self.topics {
            let queues = known.queues.iter().map(|(name, queue)| (&**name, *queue));
            frame::write(out, 0, seal, 0, |out| frame::put_topic(out, *id, &known.topic, queues));
        }
    }

    /// The number of the newest file at the old end such that nothing lives in it and in older ones any more.
    pub(super) fn dead_up_to(&self) -> Option<u64> {
        let but_last = self.segments.len().saturating_sub(1);
        let dead = self.segments.iter().take(but_last).take_while(|(_, held)| held.messages == 0);
        dead.last().map(|(number, _)| *number)
    }

    /// Files at the old end that nothing lives in any more, taken out of the ledger.
    pub(super) fn take_dead(&mut self) -> Vec<Arc<Segment>> {
        let mut dead = Vec::new();
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.first_entry()
            && oldest.get().messages == 0
        {
            dead.push(oldest.remove().segment);
        }
        dead
    }
}
