//! Messages that their sender put into one: clients of others do that. The broker keeps and settles them together, so a reader
//! settles them once all of them are, and remembers meanwhile which are done.

use std::collections::{BTreeSet, HashMap};

use bytes::{Buf, Bytes};
use prost::Message as _;
use tokio::time::Instant;

use super::link::Arrived;
use super::proto::{MessageId, Metadata, OneMetadata};

/// Batches given back of which it is remembered what is done; of others all is done again.
const GIVEN_BACK_MAX: usize = 1_000;
/// Messages in one batch: what says that it holds more is not read as one.
const PARTS_MAX: u32 = 10_000;
/// Of the size that stands before the metadata of each message.
const SIZE_BYTES: usize = 4;

/// Which message of a batch one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Part {
    pub(super) index: u32,
    /// How many there are.
    pub(super) of: u32,
}

/// The messages of what arrived, if it is a batch that can be read; else what arrived.
pub(super) fn parts(arrived: Arrived) -> Vec<Arrived> {
    let of = arrived.metadata.in_batch.and_then(|of| u32::try_from(of).ok());
    let Some(of) = of.filter(|of| (1..=PARTS_MAX).contains(of)) else { return vec![arrived] };
    let mut rest = arrived.body.clone();
    let read: Option<Vec<_>> = (0..of).map(|_| next(&mut rest)).collect();
    let Some(read) = read else { return vec![arrived] };
    let Arrived { id, redelivered, metadata, .. } = arrived;
    // Its properties are those of each message.
    let of_all = Metadata { properties: Vec::new(), key: None, in_batch: None, ..metadata };
    let one = |(index, (one, body)): (u32, (OneMetadata, Bytes))| {
        let metadata = Metadata { properties: one.properties, key: one.key, ..of_all.clone() };
        Arrived { id, part: Some(Part { index, of }), redelivered, metadata, body }
    };
    (0..of).zip(read).map(one).collect()
}

fn next(rest: &mut Bytes) -> Option<(OneMetadata, Bytes)> {
    let size = rest.get(..SIZE_BYTES)?.iter().fold(0_usize, |size, byte| size << 8 | usize::from(*byte));
    rest.advance(SIZE_BYTES);
    let metadata = rest.get(..size)?;
    let one = OneMetadata::decode(metadata).ok()?;
    rest.advance(size);
    let bytes = usize::try_from(one.bytes).ok().filter(|bytes| *bytes <= rest.len())?;
    Some((one, rest.split_to(bytes)))
}

/// Batches of which something is in somebody's hands.
#[derive(Default)]
pub(super) struct Batches {
    open: HashMap<MessageId, Open>,
    /// What is done of those that were given back.
    given_back: HashMap<MessageId, BTreeSet<u32>>,
}

#[derive(Default)]
struct Open {
    done: BTreeSet<u32>,
    /// When it is wanted again, if anything of it is.
    again: Option<Instant>,
    settled: u32,
}

/// All of a batch is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Done,
    /// Something of it is wanted again then.
    Again(Instant),
}

impl Batches {
    /// One arrived: whether it was done before it came again, and the end if it was the last to be settled.
    pub(super) fn arrived(&mut self, id: MessageId, part: Part) -> (bool, Option<Settled>) {
        let Self { open, given_back } = self;
        let batch = open
            .entry(id)
            .or_insert_with(|| Open { done: given_back.remove(&id).unwrap_or_default(), ..Open::default() });
        let is_done = batch.done.contains(&part.index);
        (is_done, if is_done { self.settle(id, part) } else { None })
    }

    pub(super) fn done(&mut self, id: MessageId, part: Part) -> Option<Settled> {
        self.open.get_mut(&id)?.done.insert(part.index);
        self.settle(id, part)
    }

    pub(super) fn again(&mut self, id: MessageId, part: Part, due: Instant) -> Option<Settled> {
        let batch = self.open.get_mut(&id)?;
        batch.again = Some(batch.again.map_or(due, |other| other.max(due)));
        self.settle(id, part)
    }

    fn settle(&mut self, id: MessageId, part: Part) -> Option<Settled> {
        let batch = self.open.get_mut(&id)?;
        batch.settled += 1;
        if batch.settled < part.of {
            return None;
        }
        let batch = self.open.remove(&id)?;
        let Some(due) = batch.again else { return Some(Settled::Done) };
        if self.given_back.len() >= GIVEN_BACK_MAX {
            self.given_back.clear();
        }
        self.given_back.insert(id, batch.done);
        Some(Settled::Again(due))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::proto::Property;
    use super::*;

    const ID: MessageId = MessageId { ledger: 3, entry: 5 };

    fn batch(bodies: &[&str]) -> Arrived {
        let mut body = Vec::new();
        for text in bodies {
            let property = Property { key: "id".to_owned(), value: (*text).to_owned() };
            let one = OneMetadata {
                properties: vec![property],
                key: None,
                bytes: i32::try_from(text.len()).unwrap(),
            };
            body.extend(u32::try_from(one.encoded_len()).unwrap().to_be_bytes());
            body.extend(one.encode_to_vec());
            body.extend(text.as_bytes());
        }
        let in_batch = Some(i32::try_from(bodies.len()).unwrap());
        let metadata = Metadata { in_batch, ..Metadata::default() };
        Arrived { id: ID, part: None, redelivered: 0, metadata, body: body.into() }
    }

    #[test]
    fn a_batch_is_read_as_the_messages_in_it() {
        let found = parts(batch(&["one", "", "three"]));
        let read: Vec<_> = found
            .iter()
            .map(|one| (one.part.unwrap().index, one.metadata.properties[0].value.as_str()))
            .collect();
        assert_eq!(read, [(0, "one"), (1, ""), (2, "three")]);
        assert!(found.iter().all(|one| one.body == one.metadata.properties[0].value.as_bytes()));
    }

    #[test]
    fn what_is_no_batch_stays_as_it_is_whatever_it_says() {
        let whole = batch(&["one", "two"]);
        for end in 0..whole.body.len() {
            let cut =
                Arrived { body: whole.body.slice(..end), metadata: whole.metadata.clone(), ..batch(&[]) };
            let found = parts(cut);
            assert_eq!((found.len(), found[0].part, found[0].body.len()), (1, None, end));
        }
        for in_batch in [None, Some(0), Some(-1), Some(i32::MAX)] {
            let metadata = Metadata { in_batch, ..Metadata::default() };
            let found = parts(Arrived { metadata, ..batch(&["one"]) });
            assert_eq!((found.len(), found[0].part), (1, None), "{in_batch:?}");
        }
    }

    #[test]
    fn a_batch_is_settled_once_all_of_it_is_and_what_was_done_is_not_done_again() {
        let part = |index| Part { index, of: 3 };
        let (mut batches, due) = (Batches::default(), Instant::now() + Duration::from_secs(1));
        for index in 0..3 {
            assert_eq!(batches.arrived(ID, part(index)), (false, None));
        }
        assert_eq!(batches.done(ID, part(2)), None);
        assert_eq!(batches.again(ID, part(0), due), None);
        assert_eq!(batches.done(ID, part(1)), Some(Settled::Again(due)));
        assert_eq!(batches.arrived(ID, part(0)), (false, None));
        assert_eq!(batches.arrived(ID, part(1)), (true, None));
        assert_eq!(batches.arrived(ID, part(2)), (true, None));
        assert_eq!(batches.done(ID, part(0)), Some(Settled::Done));
        assert_eq!(batches.done(ID, part(0)), None);
    }
}
