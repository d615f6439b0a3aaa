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
use crate::embedded::config::{Config, LogEnd, Stamp};
use crate::message::Message;

/// How a file of a log begins.
const MAGIC: &[u8] = b"SLUICEB";
/// What the records of a log are called, by their first byte, which counts from one.
const KINDS: [&str; 10] =
    ["counters", "topic", "removed", "message", "handed", "settled", "stamp", "closed", "next", "gone"];
/// What the kept logs begin with that are not opened.
const REFUSED: &str = "refused-";
/// Where the kept inputs are written anew.
const WRITE_TO: &str = "SLUICE_FUZZ_WRITE";

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Each message with whom it waits for, how often it was handed out to them, and what it says.
type Held = BTreeMap<u64, (Vec<(u64, u32)>, Vec<u8>)>;

/// The files of a log by their numbers.
type Files = BTreeMap<u64, Vec<u8>>;

/// An input as the files that stand in it one after the other. Each is named as it says, and one that cannot be read as the one
/// after the one before.
fn files(input: &[u8]) -> Files {
    let mut begins: Vec<usize> = input
        .windows(MAGIC.len())
        .enumerate()
        .skip(1)
        .filter(|(_, at)| *at == MAGIC)
        .map(|(at, _)| at)
        .collect();
    begins.insert(0, 0);
    begins.push(input.len());
    let mut files = Files::new();
    let mut number = 0;
    for pair in begins.windows(2) {
        let file = &input[pair[0]..pair[1]];
        number = frame::read_header(file).map_or(number + 1, |head| head.number);
        files.insert(number, file.to_vec());
    }
    files
}

/// The kept log that nothing has happened to.
fn whole() -> Files {
    files(&std::fs::read(corpus("log").join("whole")).unwrap())
}

/// Where a log ends.
fn end_of(files: &Files) -> LogEnd {
    let ((first, _), (last, file)) = (files.first_key_value().unwrap(), files.last_key_value().unwrap());
    LogEnd { first_file: *first, last_file: *last, last_bytes: file.len() as u64 }
}

/// What the files say in the end, if they are opened.
fn opened(files: &Files, end: Option<LogEnd>) -> Result<Held, Error> {
    let folder = tempfile::tempdir().unwrap();
    for (number, file) in files {
        std::fs::write(folder.path().join(format!("log-{number:016}")), file).unwrap();
    }
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

/// Where frames of a file begin, and where the last one ends.
fn frames(file: &[u8]) -> Vec<usize> {
    let mut places = vec![HEADER_BYTES];
    while let Some(head) = places.last().and_then(|at| Head::read(&file[*at..])) {
        places.push(places.last().copied().unwrap_or(0) + FRAME_BYTES + head.payload_bytes);
    }
    assert_eq!(places.last(), Some(&file.len()));
    places
}

/// What each frame of a log says, in order.
fn said(files: &Files) -> Vec<&[u8]> {
    let of_file = |file: &'_ Vec<u8>| {
        frames(file).windows(2).map(|pair| (pair[0] + FRAME_BYTES, pair[1])).collect::<Vec<_>>()
    };
    files.values().flat_map(|file| of_file(file).into_iter().map(|(from, to)| &file[from..to])).collect()
}

/// A log with another file in the place of one, and without those after that.
fn up_to(files: &Files, number: u64, file: &[u8]) -> Files {
    let mut first: Files = files.range(..number).map(|(number, file)| (*number, file.clone())).collect();
    first.insert(number, file.to_vec());
    first
}

/// A log with another file in the place of one.
fn with(files: &Files, number: u64, file: Vec<u8>) -> Files {
    let mut changed = files.clone();
    changed.insert(number, file);
    changed
}

/// What a log said after each of its frames.
fn states(files: &Files) -> Vec<Held> {
    let mut states = Vec::new();
    for (number, file) in files {
        let begin = frame::read_header(file).unwrap().begin_bytes;
        for end in frames(file) {
            // What a file begins with is on the disk before it has its name, and the last frame of one that others follow says so.
            let is_torn_there =
                end as u64 >= begin && (end < file.len() || *number == end_of(files).last_file);
            match opened(&up_to(files, *number, &file[..end]), None) {
                Ok(held) if is_torn_there => states.push(held),
                Err(_) if !is_torn_there => {}
                told => panic!("file {number} cut at {end}, which begins with {begin} bytes: {told:?}"),
            }
        }
    }
    assert!(states.iter().any(|held| held.len() > 4) && states.last().is_some_and(|held| held.len() == 3));
    states
}

/// A changed log is refused with its file, or holds what the whole one held at some moment.
fn is_told_or_earlier(files: &Files, states: &[Held], what: &dyn Fn() -> String) {
    match opened(files, None) {
        Err(error) => {
            let said = error.to_string();
            assert!(
                said.contains("log-") || said.contains("lacks the log file of number"),
                "{}: {said}",
                what()
            );
        }
        Ok(held) => assert!(states.contains(&held), "{}: it holds what it never held: {held:?}", what()),
    }
}

#[test]
fn any_damage_to_a_file_is_told_or_leaves_what_was_written_first() {
    let whole = whole();
    let (states, end) = (states(&whole), end_of(&whole));
    sluice_fuzz::run("log", &corpus("log"), 1_500, &[], &|input| {
        let files = files(input);
        is_told_or_earlier(&files, &states, &|| format!("{} bytes", input.len()));
        assert!(files == whole || opened(&files, Some(end)).is_err(), "it opens as if it were whole");
    });
}

#[test]
fn kept_logs_of_every_kind_are_opened_or_refused_as_when_they_were_written() {
    let whole = whole();
    let said = said(&whole);
    for (kind, name) in (1..).zip(KINDS) {
        assert!(said.iter().any(|payload| payload[0] == kind), "no record '{name}' is in the whole log");
    }
    assert!(opened(&whole, Some(end_of(&whole))).is_ok());
    let mut refused = 0;
    for entry in std::fs::read_dir(corpus("log")).unwrap() {
        let path = entry.unwrap().path();
        let is_refused = path.file_name().unwrap().to_str().unwrap().starts_with(REFUSED);
        let told = opened(&files(&std::fs::read(&path).unwrap()), None);
        assert_eq!(told.is_err(), is_refused, "{}: {told:?}", path.display());
        refused += usize::from(is_refused);
    }
    assert!(refused > 0);
}

#[test]
fn a_frame_that_is_missing_repeated_or_in_the_place_of_another_is_told_or_cut_off() {
    let whole = whole();
    let states = states(&whole);
    for (number, file) in &whole {
        let places = frames(file);
        let count = places.len() - 1;
        let frame = |number: usize| &file[places[number]..places[number + 1]];
        let check = |changed: &[&[u8]], what: &dyn Fn() -> String| {
            let what = || format!("file {number}, {}", what());
            is_told_or_earlier(&with(&whole, *number, changed.concat()), &states, &what);
        };
        for one in 0..count {
            check(&[&file[..places[one]]], &|| format!("cut before frame {one}"));
            check(&[&file[..places[one]], &file[places[one + 1]..]], &|| format!("without frame {one}"));
            for other in 0..=count {
                let twice = [&file[..places[other]], frame(one), &file[places[other]..]];
                check(&twice, &|| format!("frame {one} again before {other}"));
            }
            for other in one + 1..count {
                let between = &file[places[one + 1]..places[other]];
                let rest = &file[places[other + 1]..];
                let swapped = [&file[..places[one]], frame(other), between, frame(one), rest];
                check(&swapped, &|| format!("frames {one} and {other} swapped"));
            }
        }
    }
}

/// A log in two files: whose it is, topics that come and go, messages that are handed out and settled, with and without a sync
/// between.
fn made() -> Files {
    let folder = tempfile::tempdir().unwrap();
    let mut tail = Tail::begin(folder.path(), Ledger::default(), 1 << 14, Arc::default()).unwrap();
    tail.stamp(Stamp { folder: "a-folder".to_owned(), generation: 1 }).unwrap();
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
        if number == 3 {
            tail.roll().unwrap();
        }
    }
    tail.topology(|out| frame::put_removed(out, 4)).unwrap();
    tail.ledger.removed(4);
    tail.close().unwrap();
    let read =
        |number: u64| (number, std::fs::read(folder.path().join(format!("log-{number:016}"))).unwrap());
    [1, 2].map(read).into()
}

/// What may befall a log, by name.
fn befallen(whole: &Files) -> Vec<(String, Files)> {
    let last = end_of(whole).last_file;
    let mut all = vec![
        ("first-file-alone".to_owned(), up_to(whole, 1, &whole[&1])),
        ("last-file-alone".to_owned(), Files::from([(last, whole[&last].clone())])),
    ];
    let mut seen = Vec::new();
    for (number, file) in whole {
        let places = frames(file);
        for pair in places.windows(2) {
            let (payload, middle) = (pair[0] + FRAME_BYTES, (pair[0] + FRAME_BYTES + pair[1]) / 2);
            let kind = KINDS[usize::from(file[payload]) - 1];
            if seen.contains(&kind) {
                continue;
            }
            seen.push(kind);
            all.push((format!("cut-in-{kind}"), up_to(whole, *number, &file[..middle])));
            let mut flipped = file.clone();
            flipped[middle] ^= 4;
            all.push((format!("flipped-{kind}"), with(whole, *number, flipped)));
        }
        let (count, is_last) = (places.len() - 1, *number == last);
        if !is_last {
            // At the border of a frame, so that only the next file knows.
            all.push((
                "first-file-shortened".to_owned(),
                with(whole, *number, file[..places[count - 3]].to_vec()),
            ));
            continue;
        }
        let killed = [&file[..places[count - 1]], &[0; 512]].concat();
        all.push(("killed".to_owned(), with(whole, *number, killed.clone())));
        let is_message = |at: &usize| file[places[*at] + FRAME_BYTES] == 4;
        let messages: Vec<usize> = (0..count).filter(is_message).collect();
        let blank = |at: usize| {
            let mut blank = killed.clone();
            blank[places[at] + FRAME_BYTES + 9..places[at + 1]].fill(0);
            with(whole, *number, blank)
        };
        all.push(("killed-with-a-torn-end".to_owned(), blank(messages[messages.len() - 1])));
        all.push(("killed-with-a-hole".to_owned(), blank(messages[0])));
    }
    all
}

#[test]
#[ignore = "writes a corpus anew into the folder that SLUICE_FUZZ_WRITE names"]
fn writes_a_corpus() {
    let folder = PathBuf::from(std::env::var_os(WRITE_TO).unwrap());
    let write = |corpus: &str, name: &str, input: &[u8]| {
        std::fs::create_dir_all(folder.join(corpus)).unwrap();
        std::fs::write(folder.join(corpus).join(name), input).unwrap();
    };
    let joined = |files: &Files| files.values().flatten().copied().collect::<Vec<u8>>();
    let whole = made();
    write("log", "whole", &joined(&whole));
    for (name, files) in befallen(&whole) {
        let verdict = if opened(&files, None).is_err() { REFUSED } else { "" };
        write("log", &format!("{verdict}{name}"), &joined(&files));
    }
    let said = said(&whole);
    let backwards: Vec<&[u8]> = said.iter().rev().copied().collect();
    let alone: Vec<&[u8]> =
        said.iter().filter(|payload| KINDS[usize::from(payload[0]) - 1] != "next").copied().collect();
    let strangers: Vec<&[u8]> =
        alone.iter().filter(|payload| KINDS[usize::from(payload[0]) - 1] != "topic").copied().collect();
    let cut: Vec<&[u8]> = alone.iter().map(|payload| &payload[..payload.len() - payload.len() / 3]).collect();
    let twice = [&alone[..], &alone].concat();
    let all = [
        ("as-written", said),
        ("of-one-file", alone),
        ("backwards", backwards),
        ("twice", twice),
        ("of-topics-nobody-made", strangers),
        ("each-cut", cut),
    ];
    for (name, payloads) in all {
        write("records", name, &listed(&payloads));
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

/// Payloads as one input, each after its length.
fn listed(payloads: &[&[u8]]) -> Vec<u8> {
    payloads
        .iter()
        .flat_map(|payload| [&(payload.len() as u16).to_le_bytes()[..], payload].concat())
        .collect()
}

/// Splits such an input again.
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
    sluice_fuzz::run("records", &corpus("records"), 400, &[], &|input| {
        let folder = tempfile::tempdir().unwrap();
        let file = sealed(Seal::new(7), frame::header(1, 7, HEADER_BYTES as u32), &payloads(input));
        std::fs::write(folder.path().join("log-0000000000000001"), file).unwrap();
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
    std::fs::write(folder.path().join("log-0000000000000001"), sealed(seal, header, &[&topic, &message]))
        .unwrap();
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
