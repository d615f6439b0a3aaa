//! Whatever is in the files of a log: it opens with what was written first, or is refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, FRAME_BYTES, HEADER_BYTES, Head, Seal};
use super::ledger::Ledger;
use super::recover;
use super::segment::DiskFaults;
use super::tail::Tail;
use crate::Error;
use crate::embedded::Embedded;
use crate::embedded::config::{Config, LogEnd};
use crate::message::Message;

const FILE: &str = "log-0000000000000001";

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Each message with whom it waits for, how often it was handed out to them, and what it says.
type Held = BTreeMap<u64, (Vec<(u64, u32)>, Vec<u8>)>;

/// A log in one file: topics that come and go, messages that are handed out and settled, with and without a sync between.
fn made() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let mut tail = Tail::begin(folder.path(), Ledger::default(), 1 << 14, Arc::default()).unwrap();
    let kept = "flow:tg:kept".parse().unwrap();
    let gone = "flow:tg:gone".parse().unwrap();
    tail.topology(|out| frame::put_topic(out, 1, &kept, [("a", 2), ("b", 3)].into_iter())).unwrap();
    tail.ledger.topic(1, &kept, &[("a", 2), ("b", 3)]);
    tail.topology(|out| frame::put_topic(out, 4, &gone, [("a", 5)].into_iter())).unwrap();
    tail.ledger.topic(4, &gone, &[("a", 5)]);
    for number in 0..6_u64 {
        let message = Message::new(format!("{number} {}", "x".repeat(20 * number as usize)));
        let message = message.with("id", &number.to_string());
        let mut ids = Vec::new();
        tail.messages([(1, &message), (4, &message)].into_iter(), &mut ids).unwrap();
        if number % 2 == 0 {
            tail.synced = tail.offset;
        }
        tail.handed(ids[0], 2, 1).unwrap();
        if number < 3 {
            tail.settled(ids[0], 2).unwrap();
            tail.settled(ids[0], 3).unwrap();
        }
    }
    tail.topology(|out| frame::put_removed(out, 4)).unwrap();
    tail.ledger.removed(4);
    tail.close().unwrap();
    std::fs::read(folder.path().join(FILE)).unwrap()
}

/// What a file says in the end, if it is opened.
fn opened(file: &[u8], end: Option<LogEnd>) -> Result<Held, Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), file).unwrap();
    let config = Config { segment_bytes: 1 << 14, end, ..Config::default() };
    let ledger = recover::open(folder.path(), &config, &Arc::<DiskFaults>::default())?.tail.ledger;
    let mut held = Held::new();
    for (id, live) in &ledger.messages {
        let segment = &ledger.segments[&live.spot.segment].segment;
        let payload = segment.read(live.spot.offset, live.spot.bytes).unwrap();
        let Some(frame::Record::Message { body, .. }) = frame::read(&payload) else { panic!("no message") };
        let pending = live.pending.iter().map(|one| (one.queue, one.attempts)).collect();
        held.insert(*id, (pending, body.to_vec()));
    }
    Ok(held)
}

/// Where frames begin, and where the last one ends.
fn frames(file: &[u8]) -> Vec<usize> {
    let mut places = vec![HEADER_BYTES];
    while let Some(head) = places.last().and_then(|at| Head::read(&file[*at..])) {
        places.push(places.last().copied().unwrap_or(0) + FRAME_BYTES + head.payload_bytes);
    }
    assert_eq!(places.last(), Some(&file.len()));
    places
}

/// What it said after each of its frames.
fn states(file: &[u8]) -> Vec<Held> {
    let states: Vec<Held> = frames(file).into_iter().map(|end| opened(&file[..end], None).unwrap()).collect();
    assert!(states.iter().any(|held| held.len() > 4) && states.last().is_some_and(|held| held.len() == 3));
    states
}

/// A changed log is refused with its file, or holds what the whole one held at some moment.
fn is_told_or_earlier(file: &[u8], states: &[Held], what: &dyn Fn() -> String) {
    match opened(file, None) {
        Err(error) => assert!(error.to_string().contains(FILE), "{}: {error}", what()),
        Ok(held) => assert!(states.contains(&held), "{}: it holds what it never held: {held:?}", what()),
    }
}

#[test]
fn any_damage_to_a_file_is_told_or_leaves_what_was_written_first() {
    let file = made();
    let states = states(&file);
    let end = LogEnd { first_file: 1, last_file: 1, last_bytes: file.len() as u64 };
    sluice_fuzz::run("log", &corpus("log"), 1_500, &[&file], &|input| {
        is_told_or_earlier(input, &states, &|| format!("{} bytes", input.len()));
        assert!(input == file || opened(input, Some(end)).is_err(), "it opens as if it were whole");
    });
}

#[test]
fn a_frame_that_is_missing_repeated_or_in_the_place_of_another_is_told_or_cut_off() {
    let file = made();
    let (places, states) = (frames(&file), states(&file));
    let count = places.len() - 1;
    let frame = |number: usize| &file[places[number]..places[number + 1]];
    for one in 0..count {
        let without = [&file[..places[one]], &file[places[one + 1]..]].concat();
        is_told_or_earlier(&without, &states, &|| format!("without frame {one}"));
        for other in 0..=count {
            let twice = [&file[..places[other]], frame(one), &file[places[other]..]].concat();
            is_told_or_earlier(&twice, &states, &|| format!("frame {one} again before {other}"));
        }
        for other in one + 1..count {
            let between = &file[places[one + 1]..places[other]];
            let rest = &file[places[other + 1]..];
            let swapped = [&file[..places[one]], frame(other), between, frame(one), rest].concat();
            is_told_or_earlier(&swapped, &states, &|| format!("frames {one} and {other} swapped"));
        }
    }
}

/// A file whose frames say anything at all, each of them sound.
fn sealed(seal: Seal, header: [u8; HEADER_BYTES], payloads: &[&[u8]]) -> Vec<u8> {
    let mut file = header.to_vec();
    for payload in payloads {
        frame::write(&mut file, 0, seal, 0, |out| out.extend_from_slice(payload));
    }
    file
}

/// Splits an input into payloads, each after its length.
fn payloads(mut input: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while let Some((bytes, rest)) = input.split_first_chunk() {
        let (payload, rest) = rest.split_at(usize::from(u16::from_le_bytes(*bytes)).min(rest.len()));
        all.push(payload);
        input = rest;
    }
    all
}

#[test]
fn sound_frames_that_say_anything_are_taken_or_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let file = made();
    let places = frames(&file);
    let said = |pair: &[usize]| file[pair[0] + FRAME_BYTES..pair[1]].to_vec();
    let known: Vec<u8> = places
        .windows(2)
        .map(said)
        .flat_map(|payload| [&(payload.len() as u16).to_le_bytes()[..], &payload].concat())
        .collect();
    sluice_fuzz::run("records", &corpus("records"), 400, &[&known], &|input| {
        let folder = tempfile::tempdir().unwrap();
        let file = sealed(Seal::new(7), frame::header(1, 7, HEADER_BYTES as u32), &payloads(input));
        std::fs::write(folder.path().join(FILE), file).unwrap();
        runtime.block_on(async {
            if let Ok(broker) =
                Embedded::open(Config { disk_reserve_bytes: 0, ..Config::in_dir(folder.path()) })
            {
                broker.shutdown().await;
            }
        });
    });
}

#[test]
fn a_file_of_the_first_version_is_read_and_written_to_its_end() {
    let (seal, header) = frame::unplaced(1, 7, HEADER_BYTES as u32);
    let kept = "flow:tg:kept".parse().unwrap();
    let (mut topic, mut message) = (Vec::new(), Vec::new());
    frame::put_topic(&mut topic, 1, &kept, [("a", 2)].into_iter());
    frame::put_message(&mut message, 3, 1, [frame::Pending { queue: 2, attempts: 0 }].into_iter());
    frame::put_stored(&mut message, &Message::new("old"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), sealed(seal, header, &[&topic, &message])).unwrap();
    let config = Config { segment_bytes: 1 << 14, ..Config::default() };
    for round in 1..4_usize {
        let mut tail = recover::open(folder.path(), &config, &Arc::default()).unwrap().tail;
        assert_eq!(tail.ledger.messages.len(), round);
        tail.messages([(1, &Message::new("new"))].into_iter(), &mut Vec::new()).unwrap();
        if round == 2 {
            // What comes after is in a file of today.
            tail.roll().unwrap();
        }
        tail.close().unwrap();
    }
}
