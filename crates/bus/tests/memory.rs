//! What the embedded broker needs to open a log and to deliver what is in it, as Linux shows it.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::future;
use sluice_bus::{Address, Broker, BrokerAdmin, Config, Embedded, Message, Subscription, TopicSpec};
use sluice_schema::Topic;

const CHILD_DIR: &str = "SLUICE_BUS_TEST_DIR";
/// Whether a child keeps all messages in hand, or settles one after the other.
const CHILD_HOLDS: &str = "SLUICE_BUS_TEST_HOLDS";
const READER: &str = "kept";
const DEADLINE: Duration = Duration::from_secs(60);

const MESSAGES: u32 = 192;
const BODY_BYTES: u64 = 1 << 20;
/// The end of the log that a killed process left behind in the middle of a message.
const TORN_BYTES: u64 = 48 << 20;
/// Buffers and one body, with room to spare; an eighth of all bodies, and half of the torn end.
const NEEDED_BYTES_MAX: u64 = 24 << 20;

fn topic() -> Topic {
    "flow:tg:large".parse().unwrap()
}

/// Most memory that this process has had, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A log with large bodies.
async fn fill(dir: &Path) {
    let broker = Embedded::open(Config::in_dir(dir)).unwrap();
    broker.ensure(&TopicSpec::with(topic(), READER)).await.unwrap();
    let to = Address::Topic(topic());
    for _ in 0..MESSAGES / 16 {
        let message = || Message::new(vec![b'x'; BODY_BYTES as usize]);
        let sent = future::join_all((0..16).map(|_| broker.publish(&to, message()))).await;
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    }
    broker.shutdown().await;
}

fn last_file(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log-")).max().unwrap()
}

/// Writes the first part of a large message to the end of a log, full of what looks like the beginning of a record written later.
fn tear(dir: &Path) {
    let path = last_file(dir);
    let end = path.metadata().unwrap().len();
    let head = |payload_bytes: u64| {
        let length = u32::try_from(payload_bytes).unwrap().to_le_bytes();
        [&b"\xf5SLr"[..], &length, &(end + 1).to_le_bytes(), &[7; 4]].concat()
    };
    let mut torn = head(2 * TORN_BYTES);
    while (torn.len() as u64) < TORN_BYTES {
        torn.extend(head((TORN_BYTES - torn.len() as u64).saturating_sub(20)));
    }
    OpenOptions::new().append(true).open(path).unwrap().write_all(&torn).unwrap();
}

/// What a process needed to open a log, and to open it and take all its messages, in bytes.
fn needed(dir: &Path, holds: bool) -> (u64, u64) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["opens_a_log_and_takes_its_messages", "--exact", "--ignored", "--nocapture"]);
    let output = child.env(CHILD_DIR, dir).env(CHILD_HOLDS, holds.to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let number = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{said}"));
        line.trim().parse::<u64>().unwrap()
    };
    (number("opened:"), number("taken:"))
}

#[test]
#[ignore = "the other process of opening_a_log_needs_memory_for_numbers_and_not_for_bodies"]
fn opens_a_log_and_takes_its_messages() {
    let dir = std::env::var_os(CHILD_DIR).unwrap();
    let holds: bool = std::env::var(CHILD_HOLDS).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = peak_bytes();
        let broker = Embedded::open(Config::in_dir(dir)).unwrap();
        // A line of its own: the harness has begun one.
        println!("\nopened: {}", peak_bytes() - before);
        let prefetch = if holds { MESSAGES } else { 1 };
        let reader = Subscription::Shared { topic: topic(), name: READER.to_owned(), prefetch };
        let inbox = broker.subscribe(&reader).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..MESSAGES {
            let next = tokio::time::timeout(DEADLINE, inbox.next()).await;
            let delivery = next.expect("a message comes").unwrap();
            assert_eq!(delivery.message.body.len() as u64, BODY_BYTES);
            if holds {
                held.push(delivery);
            } else {
                delivery.ack();
            }
        }
        println!("\ntaken: {}", peak_bytes() - before);
    });
}

#[tokio::test]
async fn opening_a_log_needs_memory_for_numbers_and_not_for_bodies() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).await;
    // The look finds what has them all in hand, which come again to whoever opens the log next.
    let (opened, taken) = needed(folder.path(), true);
    println!("{opened} bytes to open it, {taken} to have all its messages in hand");
    assert!(opened < NEEDED_BYTES_MAX, "{opened} bytes to open a log");
    assert!(taken > u64::from(MESSAGES) * BODY_BYTES, "{taken} bytes for all messages in hand");

    let whole = last_file(folder.path()).metadata().unwrap().len();
    tear(folder.path());
    let (opened, taken) = needed(folder.path(), false);
    println!("{opened} bytes to open it with a torn end, {taken} to take its messages one by one");
    assert!(opened < NEEDED_BYTES_MAX, "{opened} bytes to open a log with a torn end");
    assert!(taken < NEEDED_BYTES_MAX, "{taken} bytes to take its messages one by one");
    assert!(last_file(folder.path()).metadata().unwrap().len() < whole + TORN_BYTES, "its end was not torn");
}
