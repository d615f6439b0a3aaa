//! What the embedded broker keeps when the process is killed, the file is damaged, or the disk is full.
#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::{Rng, SeedableRng as _};
use sluice_bus::embedded::{LogEnd, Stamp};
use sluice_bus::{
    Address, Broker, BrokerAdmin, Config, Delivery, Embedded, Error, ErrorKind, Inbox, Message,
    SeenSubscription, Subscription, TopicSpec,
};
use sluice_schema::Topic;

const CHILD_DIR: &str = "SLUICE_BUS_TEST_DIR";
const DEADLINE: Duration = Duration::from_secs(30);

fn topic() -> Topic {
    "flow:tg:durable".parse().unwrap()
}

fn spec(subscription: &str) -> TopicSpec {
    TopicSpec::with(topic(), subscription)
}

fn small(dir: &Path) -> Config {
    Config { disk_reserve_bytes: 64 << 10, disk_wait_max: Duration::ZERO, ..Config::in_dir(dir) }
}

async fn reader(broker: &Embedded, subscription: &str, prefetch: u32) -> Box<dyn Inbox> {
    let name = subscription.to_owned();
    broker.subscribe(&Subscription::Shared { topic: topic(), name, prefetch }).await.unwrap()
}

async fn next(inbox: &dyn Inbox) -> Delivery {
    tokio::time::timeout(DEADLINE, inbox.next()).await.expect("a message comes").unwrap()
}

async fn publish(broker: &Embedded, body: impl Into<bytes::Bytes>) -> Result<(), Error> {
    broker.publish(&Address::Topic(topic()), Message::new(body)).await
}

async fn look(broker: &Embedded, subscription: &str) -> SeenSubscription {
    let seen = broker.observe(&[spec(subscription)]).await.unwrap().remove(0);
    seen.subscriptions.into_iter().find(|there| there.name == subscription).unwrap()
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.to_vec()).unwrap()
}

/// Everything that waits, settled.
async fn drain(broker: &Embedded, subscription: &str) -> Vec<(String, u32)> {
    let inbox = reader(broker, subscription, 1).await;
    let mut got = Vec::new();
    while look(broker, subscription).await.ready > 0 {
        let delivery = next(&*inbox).await;
        got.push((text(&delivery), delivery.attempt));
        delivery.ack();
    }
    got
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log-")).collect();
    files.sort();
    files
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

/// Starts one of the ignored tests below in a process of its own.
fn child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lines that a child says, from the first to the one that is enough, then it is killed.
fn said(mut child: Child, mut is_enough: impl FnMut(&str) -> bool) -> Vec<String> {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut heard = Vec::new();
    for line in &mut lines {
        heard.push(line.unwrap());
        if is_enough(heard.last().unwrap()) {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before it died counts too.
    heard.extend(lines.map_while(Result::ok));
    heard
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

#[test]
#[ignore = "the other process of a_killed_process_loses_nothing_acknowledged"]
fn publishes_until_it_is_killed() {
    let dir = std::env::var_os(CHILD_DIR).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let config = Config { segment_bytes: 64 << 10, ..small(Path::new(&dir)) };
        let broker = Embedded::open(config).unwrap();
        broker.ensure(&spec("kept")).await.unwrap();
        broker.ensure(&spec("worked")).await.unwrap();
        let publishers = (0..8u64).map(|publisher| {
            let broker = broker.clone();
            async move {
                for round in 0.. {
                    let number = round * 8 + publisher;
                    publish(&broker, number.to_string()).await.unwrap();
                    say(&format!("ack {number}"));
                }
            }
        });
        let worker = async {
            let inbox = reader(&broker, "worked", 1).await;
            loop {
                let delivery = next(&*inbox).await;
                say(&format!("handed {}", text(&delivery)));
                delivery.ack();
            }
        };
        tokio::join!(futures_util::future::join_all(publishers), worker);
    });
}

#[tokio::test]
async fn a_killed_process_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut acks = 0;
        let lines = said(child("publishes_until_it_is_killed", folder.path()), |line| {
            acks += usize::from(line.starts_with("ack "));
            acks >= 300
        });
        let numbers = |word: &str| -> BTreeSet<u64> {
            lines.iter().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
        };
        let (acknowledged, handed) = (numbers("ack"), numbers("handed"));
        assert!(acknowledged.len() >= 300, "the child said {lines:?}");

        let broker = Embedded::open(small(folder.path())).unwrap();
        let kept: BTreeSet<u64> =
            drain(&broker, "kept").await.into_iter().map(|(text, _)| text.parse().unwrap()).collect();
        let lost: Vec<_> = acknowledged.difference(&kept).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

        let worked = drain(&broker, "worked").await;
        let redelivered = worked.iter().map(|(text, attempt)| (text.parse::<u64>().unwrap(), *attempt));
        for (number, attempt) in redelivered.clone() {
            assert!(attempt <= 2, "{number} came as attempt {attempt}");
            assert!(attempt == 2 || !handed.contains(&number), "{number} was handed out and not counted");
        }
        let again: BTreeSet<u64> = redelivered.map(|(number, _)| number).collect();
        let lost: Vec<_> =
            acknowledged.iter().filter(|n| !again.contains(n) && !handed.contains(n)).collect();
        assert!(lost.is_empty(), "acknowledged, never handed out, and lost: {lost:?}");
        broker.shutdown().await;
    }
}

#[test]
#[ignore = "the other process of a_message_that_kills_the_process_is_counted"]
fn takes_a_message_and_waits_to_be_killed() {
    let dir = std::env::var_os(CHILD_DIR).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = Embedded::open(small(Path::new(&dir))).unwrap();
        let inbox = reader(&broker, "kept", 1).await;
        let delivery = next(&*inbox).await;
        say(&format!("attempt {}", delivery.attempt));
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn a_message_that_kills_the_process_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    publish(&broker, "poison").await.unwrap();
    broker.shutdown().await;
    for attempt in 1..=3 {
        let lines = said(child("takes_a_message_and_waits_to_be_killed", folder.path()), |line| {
            line.contains("attempt")
        });
        // The test harness of the child writes its own words in front.
        let expected = format!("attempt {attempt}");
        assert!(lines.iter().any(|line| line.ends_with(&expected)), "not {expected}: {lines:?}");
    }
    let broker = Embedded::open(small(folder.path())).unwrap();
    assert_eq!(drain(&broker, "kept").await, [("poison".to_owned(), 4)]);
}

#[tokio::test]
async fn a_torn_end_is_cut_and_the_rest_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    for body in ["first", "second"] {
        publish(&broker, body).await.unwrap();
    }
    broker.shutdown().await;
    let file = log_files(folder.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    let torn: &[&[u8]] = &[b"\xf5", b"\xf5SLr\xff\xff\xff\xff", &[0; 4096], &whole[whole.len() - 60..]];
    for torn in torn {
        std::fs::write(&file, [&whole[..], torn].concat()).unwrap();
        let broker = Embedded::open(small(folder.path())).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), whole, "the torn end is still there");
        assert_eq!(look(&broker, "kept").await.ready, 2);
        broker.shutdown().await;
    }
    let broker = Embedded::open(small(folder.path())).unwrap();
    publish(&broker, "third").await.unwrap();
    let got: Vec<_> = drain(&broker, "kept").await.into_iter().map(|(text, _)| text).collect();
    assert_eq!(got, ["first", "second", "third"]);
}

#[tokio::test]
async fn damage_before_promised_records_refuses_to_open_and_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    for body in ["first message", "second message"] {
        publish(&broker, body).await.unwrap();
    }
    broker.shutdown().await;
    let file = log_files(folder.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    let first_frame = {
        let body = find(&whole, b"first message");
        whole[..body].windows(4).rposition(|window| window == b"\xf5SLr").unwrap()
    };
    let check = |at: usize, place: usize| {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let error = Embedded::open(small(folder.path())).err().expect("it must not open").to_string();
        let told = format!("log cannot be used: {} is damaged at byte {place},", file.display());
        assert!(error.contains(&told), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), damaged, "the file was changed");
    };
    check(find(&whole, b"first message"), first_frame);
    check(first_frame, first_frame);
    check(first_frame + 5, first_frame);
    check(3, 0);
}

#[tokio::test]
async fn a_missing_log_file_refuses_to_open() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config { segment_bytes: 1024, ..small(folder.path()) };
    let broker = Embedded::open(config()).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    for _ in 0..8 {
        publish(&broker, vec![b'x'; 600]).await.unwrap();
    }
    broker.shutdown().await;
    let files = log_files(folder.path());
    assert!(files.len() >= 3, "{files:?}");
    std::fs::remove_file(&files[1]).unwrap();
    let error = Embedded::open(config()).err().expect("it must not open").to_string();
    assert!(error.contains("lacks the log file of number 2"), "{error}");
}

/// A closed log of several files with these many messages, and where it ended.
async fn closed_log(dir: &Path, messages: usize) -> LogEnd {
    let broker = Embedded::open(Config { segment_bytes: 2048, ..small(dir) }).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    for number in 0..messages {
        publish(&broker, format!("{number} {}", "x".repeat(500))).await.unwrap();
    }
    broker.shutdown().await;
    broker.log_end().expect("it was closed in good order")
}

fn copy_log(from: &Path, to: &Path) {
    for file in log_files(from) {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

/// Something that is done to the files of a log.
type Damage<'a> = &'a dyn Fn(Vec<PathBuf>);

#[tokio::test]
async fn a_closed_log_that_does_not_end_where_it_was_closed_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let end = closed_log(folder.path(), 10).await;
    assert!(end.last_file >= 3 && end.first_file == 1, "{end:?}");
    let config = |dir: &Path| Config { end: Some(end), create: false, ..small(dir) };
    let damage: &[(&str, Damage<'_>)] = &[
        ("the last file is gone", &|files| std::fs::remove_file(files.last().unwrap()).unwrap()),
        ("the first file is gone", &|files| std::fs::remove_file(&files[0]).unwrap()),
        ("all files are gone", &|files| files.iter().for_each(|file| std::fs::remove_file(file).unwrap())),
        ("the end is cut by a byte", &|files| {
            let whole = std::fs::read(files.last().unwrap()).unwrap();
            std::fs::write(files.last().unwrap(), &whole[..whole.len() - 1]).unwrap();
        }),
        ("something was added", &|files| {
            let whole = std::fs::read(files.last().unwrap()).unwrap();
            std::fs::write(files.last().unwrap(), [&whole[..], b"\xf5"].concat()).unwrap();
        }),
        ("the last record is flipped", &|files| {
            let mut whole = std::fs::read(files.last().unwrap()).unwrap();
            *whole.last_mut().unwrap() ^= 1;
            std::fs::write(files.last().unwrap(), whole).unwrap();
        }),
    ];
    for (what, damage) in damage {
        let other = tempfile::tempdir().unwrap();
        copy_log(folder.path(), other.path());
        damage(log_files(other.path()));
        let before: Vec<_> =
            log_files(other.path()).iter().map(|file| std::fs::read(file).unwrap()).collect();
        let error = Embedded::open(config(other.path())).err().unwrap_or_else(|| panic!("{what}: it opens"));
        assert!(error.to_string().contains(other.path().to_str().unwrap()), "{what}: {error}");
        let after: Vec<_> = log_files(other.path()).iter().map(|file| std::fs::read(file).unwrap()).collect();
        assert!(before == after, "{what}: a refused log was changed");
    }
    let broker = Embedded::open(config(folder.path())).unwrap();
    assert_eq!(look(&broker, "kept").await.ready, 10);
    // Opened and closed without a change, it ends where it did.
    broker.shutdown().await;
    assert_eq!(broker.log_end(), Some(end));
}

#[tokio::test]
async fn after_a_crash_too_a_missing_file_is_found_and_a_cut_is_told_with_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config { segment_bytes: 2048, ..small(folder.path()) };
    let broker = Embedded::open(config()).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    for _ in 0..10 {
        publish(&broker, vec![b'x'; 500]).await.unwrap();
    }
    broker.crash().await;
    assert_eq!(broker.log_end(), None);
    let files = log_files(folder.path());
    for lost in [&files[0], files.last().unwrap()] {
        let whole = std::fs::read(lost).unwrap();
        std::fs::remove_file(lost).unwrap();
        let error = Embedded::open(config()).err().expect("it must not open").to_string();
        assert!(error.contains("lacks the log file of number"), "{error}");
        std::fs::write(lost, whole).unwrap();
    }
    let broker = Embedded::open(config()).unwrap();
    assert_eq!(broker.cut_bytes(), 0);
    broker.crash().await;
    let last = log_files(folder.path()).pop().unwrap();
    let used = std::fs::read(&last).unwrap();
    std::fs::write(&last, [&used[..], b"\xf5SLr torn", &[0; 1000]].concat()).unwrap();
    let broker = Embedded::open(config()).unwrap();
    assert_eq!(broker.cut_bytes(), b"\xf5SLr torn".len() as u64);
    assert_eq!(look(&broker, "kept").await.ready, 10);
}

#[tokio::test]
async fn a_log_says_whose_it_is_through_new_files_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let config = || Config { segment_bytes: 1024, ..small(folder.path()) };
    let broker = Embedded::open(config()).unwrap();
    assert_eq!(broker.stamp(), None);
    broker.ensure(&spec("kept")).await.unwrap();
    let stamp = Stamp { folder: "a folder".to_owned(), generation: 7 };
    broker.set_stamp(&stamp).await.unwrap();
    for _ in 0..8 {
        publish(&broker, vec![b'x'; 600]).await.unwrap();
    }
    drain(&broker, "kept").await;
    publish(&broker, "cleans up").await.unwrap();
    broker.crash().await;
    let broker = Embedded::open(config()).unwrap();
    assert_eq!(broker.stamp(), Some(stamp));
    let first = log_files(folder.path()).remove(0);
    assert!(!first.ends_with("log-0000000000000001"), "files were given back");
}

#[tokio::test]
async fn a_log_of_a_newer_version_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    closed_log(folder.path(), 1).await;
    let file = log_files(folder.path()).remove(0);
    let mut newer = std::fs::read(&file).unwrap();
    newer[7] = b'3';
    std::fs::write(&file, newer).unwrap();
    let error = Embedded::open(small(folder.path())).err().expect("it must not open").to_string();
    assert!(error.contains("a newer version wrote"), "{error}");
}

/// What chance does to the files of a log.
fn mutate(random: &mut impl Rng, files: &[PathBuf]) -> String {
    let file = &files[random.random_range(0..files.len())];
    let name = file.file_name().unwrap().to_str().unwrap();
    let mut bytes = std::fs::read(file).unwrap();
    let at = random.random_range(0..bytes.len());
    let count = random.random_range(1..=(bytes.len() - at).min(700));
    let what = match random.random_range(0..8) {
        0 => {
            bytes[at] ^= 1 << random.random_range(0..8);
            "a bit is flipped"
        }
        1 => {
            bytes.truncate(at);
            "cut"
        }
        2 => {
            bytes[at..at + count].fill(0);
            "zeros"
        }
        3 => {
            bytes[at..at + count].fill_with(|| random.random());
            "noise"
        }
        4 => {
            drop(bytes.splice(at..at, vec![random.random(); count]));
            "put in"
        }
        5 => {
            drop(bytes.drain(at..at + count));
            "taken out"
        }
        6 => {
            let part = bytes[at..at + count].to_vec();
            bytes.extend(part);
            "repeated at the end"
        }
        _ => {
            std::fs::remove_file(file).unwrap();
            return format!("{name} is removed");
        }
    };
    std::fs::write(file, bytes).unwrap();
    format!("{name}: {what} at {at}, {count} bytes")
}

#[tokio::test]
async fn a_log_with_any_damage_is_refused_or_opens_with_what_was_written_first() {
    let seed: u64 = std::env::var("SLUICE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(11);
    let rounds = std::env::var("SLUICE_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(300);
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let end = closed_log(folder.path(), 12).await;
    let (mut refused, mut opened) = (0, 0);
    for round in 0..rounds {
        let other = tempfile::tempdir().unwrap();
        copy_log(folder.path(), other.path());
        let before: Vec<_> =
            log_files(other.path()).iter().map(|file| std::fs::read(file).unwrap()).collect();
        let what = mutate(&mut random, &log_files(other.path()));
        let after: Vec<_> = log_files(other.path()).iter().map(|file| std::fs::read(file).unwrap()).collect();
        let told = || format!("SLUICE_SEED={seed}, round {round}: {what}");
        let closed = Config { end: Some(end), ..small(other.path()) };
        assert!(
            before == after || Embedded::open(closed).is_err(),
            "{}: it opens as if it were whole",
            told()
        );
        let Ok(broker) = Embedded::open(small(other.path())) else {
            refused += 1;
            continue;
        };
        opened += 1;
        // A log from which even the topic was cut holds nothing.
        if !broker.observe(&[spec("kept")]).await.unwrap()[0].exists {
            continue;
        }
        let got: Vec<_> = drain(&broker, "kept").await.into_iter().map(|(text, _)| text).collect();
        let first: Vec<_> = (0..got.len()).map(|number| format!("{number} {}", "x".repeat(500))).collect();
        assert!(got == first, "{}: {} messages, not the first ones", told(), got.len());
    }
    println!("{refused} refused, {opened} opened");
    assert!(refused > 0 && opened > 0);
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_free_after_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    let error = Embedded::open(small(folder.path())).err().expect("it must not open");
    assert!(error.to_string().contains("in use by another broker"), "{error}");
    let still_held = broker.clone();
    broker.shutdown().await;
    Embedded::open(small(folder.path())).unwrap().shutdown().await;
    assert_eq!(publish(&still_held, "x").await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop((broker, still_held));
    drop(Embedded::open(small(folder.path())).unwrap());
    Embedded::open(small(folder.path())).unwrap();
}

#[tokio::test]
async fn on_a_full_disk_messages_are_refused_but_settled_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    broker.disk_faults().unwrap().set_free_bytes(Some(20_000));
    let mut published = 0;
    let refused = loop {
        match publish(&broker, vec![b'x'; 1024]).await {
            Ok(()) => published += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Disk { .. }), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!((10..20).contains(&published), "{published} of 1 KiB fitted into 20 000 bytes");
    assert!(broker.pressure().disk_full && broker.pressure().is_high());
    let findings = broker.examine().await.unwrap();
    assert_eq!(findings.iter().map(|found| found.code).collect::<Vec<_>>(), ["disk-full"]);

    let inbox = reader(&broker, "kept", 1).await;
    for _ in 0..published - 1 {
        next(&*inbox).await.ack();
    }
    drop(inbox);
    assert_eq!(look(&broker, "kept").await.ready, 1);
    let other = TopicSpec::with("flow:tg:other".parse().unwrap(), "reader");
    broker.ensure(&other).await.unwrap();
    broker.remove(&other).await.unwrap();

    broker.disk_faults().unwrap().set_free_bytes(None);
    publish(&broker, "room again").await.unwrap();
    assert!(!broker.pressure().disk_full);
    assert_eq!(broker.examine().await.unwrap(), []);
    broker.shutdown().await;

    let broker = Embedded::open(small(folder.path())).unwrap();
    let left: Vec<_> = drain(&broker, "kept").await.into_iter().map(|(text, _)| text).collect();
    assert_eq!(left, ["x".repeat(1024), "room again".to_owned()]);
    assert!(!broker.observe(&[other]).await.unwrap()[0].exists);
}

#[tokio::test]
async fn a_publisher_waits_for_space_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { disk_wait_max: DEADLINE, disk_reserve_bytes: 0, ..small(folder.path()) };
    let broker = Embedded::open(config).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    broker.disk_faults().unwrap().set_free_bytes(Some(0));
    let mut waits = Box::pin(publish(&broker, "patient"));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut waits).await;
    assert!(early.is_err(), "there is no space: {early:?}");
    broker.disk_faults().unwrap().set_free_bytes(None);
    waits.await.unwrap();
    assert_eq!(drain(&broker, "kept").await, [("patient".to_owned(), 1)]);
}

#[tokio::test]
async fn a_failed_sync_ends_the_broker_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    publish(&broker, "safe").await.unwrap();
    let inbox = reader(&broker, "kept", 2).await;
    next(&*inbox).await.again(Duration::from_secs(600));
    broker.disk_faults().unwrap().fail_next_sync();
    let unknown = publish(&broker, "who knows").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown, "{unknown}");
    let reason = tokio::time::timeout(DEADLINE, broker.failed()).await.expect("the failure is told");
    assert!(reason.contains("check the disk"), "{reason}");
    let told = tokio::time::timeout(DEADLINE, inbox.next()).await.expect("a reader is told").unwrap_err();
    assert!(matches!(told, Error::Disk { .. }), "{told}");
    for error in [
        publish(&broker, "refused").await.unwrap_err(),
        broker.ensure(&spec("new")).await.unwrap_err(),
        broker.list("").await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("a sync failed"), "{error}");
        assert!(matches!(error, Error::Disk { .. }), "{error}");
    }
    drop((broker, inbox));
    let broker = Embedded::open(small(folder.path())).unwrap();
    assert_eq!(drain(&broker, "kept").await[0], ("safe".to_owned(), 2));
}

#[tokio::test]
async fn what_memory_cannot_hold_is_read_again_from_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { memory_bytes_max: 8 << 10, segment_bytes: 32 << 10, ..small(folder.path()) };
    let broker = Embedded::open(config).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    broker.ensure(&spec("worked")).await.unwrap();
    let body = |number: usize| format!("{number} {}", "x".repeat(1000));
    for number in 0..100 {
        publish(&broker, body(number)).await.unwrap();
    }
    assert!(broker.pressure().bytes > 100_000, "{:?}", broker.pressure());
    for subscription in ["kept", "worked"] {
        let got = drain(&broker, subscription).await;
        let expected: Vec<_> = (0..100).map(|number| (body(number), 1)).collect();
        assert_eq!(got, expected);
    }
    assert_eq!(broker.pressure().bytes, 0);
}

#[tokio::test]
async fn disk_use_is_bounded_by_what_lives() {
    let folder = tempfile::tempdir().unwrap();
    let segment_bytes = 16 << 10;
    let config = || Config { segment_bytes, ..small(folder.path()) };
    let broker = Embedded::open(config()).unwrap();
    broker.ensure(&spec("kept")).await.unwrap();
    broker.ensure(&spec("worked")).await.unwrap();
    let inbox = reader(&broker, "worked", 1).await;
    let other = reader(&broker, "kept", 2).await;
    publish(&broker, "old survivor").await.unwrap();
    let survivor = next(&*other).await;
    next(&*inbox).await.ack();
    let mut most = 0;
    for _ in 0..500 {
        publish(&broker, vec![b'x'; 1000]).await.unwrap();
        next(&*inbox).await.ack();
        next(&*other).await.ack();
        most = most.max(broker.disk_bytes());
    }
    assert!(most < 6 * segment_bytes, "half a megabyte passed, {most} bytes were used at most");
    survivor.again(Duration::from_secs(600));
    drop((inbox, other));
    broker.shutdown().await;
    let broker = Embedded::open(config()).unwrap();
    assert_eq!(drain(&broker, "kept").await, [("old survivor".to_owned(), 2)]);
    assert_eq!(look(&broker, "worked").await.ready, 0);
}

#[tokio::test]
async fn a_log_in_which_nothing_lives_gives_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    broker.ensure(&spec("worked")).await.unwrap();
    // Files come and go meanwhile.
    let bytes = |file: &PathBuf| file.metadata().map_or(0, |meta| meta.len());
    let on_disk = || log_files(folder.path()).iter().map(bytes).sum::<u64>();
    for _ in 0..40 {
        publish(&broker, vec![b'x'; 256 << 10]).await.unwrap();
    }
    assert!(on_disk() > 10 << 20, "ten mebibytes wait, in {}", on_disk());
    assert_eq!(drain(&broker, "worked").await.len(), 40);
    tokio::time::timeout(DEADLINE, async {
        while on_disk() > 2 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("nothing waits any more, so nothing is kept");
    publish(&broker, "later").await.unwrap();
    broker.shutdown().await;
    let broker = Embedded::open(small(folder.path())).unwrap();
    assert_eq!(drain(&broker, "worked").await, [("later".to_owned(), 1)]);
}

#[tokio::test]
async fn only_flow_topics_outlive_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    let request = TopicSpec::with("request:tg:service".parse().unwrap(), "service");
    let removed = TopicSpec::with("flow:tg:removed".parse().unwrap(), "reader");
    for made in [&spec("kept"), &spec("worked"), &request, &removed] {
        broker.ensure(made).await.unwrap();
    }
    broker.remove(&removed).await.unwrap();
    broker.shutdown().await;
    let broker = Embedded::open(small(folder.path())).unwrap();
    let seen = broker.list("").await.unwrap();
    assert_eq!(seen.iter().map(|seen| &seen.topic).collect::<Vec<_>>(), [&topic()]);
    let names: BTreeSet<_> = seen[0].subscriptions.iter().map(|there| there.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["kept", "worked"]));
}

#[tokio::test]
async fn a_file_of_the_log_says_whether_it_is_what_was_written_to_it() {
    use std::os::unix::fs::FileExt as _;

    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(small(folder.path())).unwrap();
    broker.ensure(&spec("s")).await.unwrap();
    for n in 0..20 {
        publish(&broker, format!("message {n}")).await.unwrap();
    }
    let (files, ()) = broker.freeze(|| ()).unwrap();
    assert!(!files.is_empty() && files.iter().all(|file| file.is_whole().unwrap()));
    for file in &files {
        let path = folder.path().join(&file.name);
        let whole = std::fs::read(&path).unwrap();
        let raw = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for at in (0..file.bytes).step_by(7) {
            raw.write_all_at(&[whole[at as usize] ^ 0x10], at).unwrap();
            assert!(!file.is_whole().unwrap(), "byte {at} of {}", file.bytes);
            raw.write_all_at(&[whole[at as usize]], at).unwrap();
        }
        raw.set_len(file.bytes - 1).unwrap();
        assert!(!file.is_whole().unwrap());
        raw.write_all_at(&whole, 0).unwrap();
        assert!(file.is_whole().unwrap());
    }
    broker.shutdown().await;
}
