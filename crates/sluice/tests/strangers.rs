//! Peers without a key against the real binary: whatever they send and hold, callers with a key are answered, and the
//! process grows by no more than a constant.
//!
//! `SLUICE_CALLS=3000 cargo test --release -p sluice --test strangers -- --nocapture` prints how long calls take meanwhile, beside the
//! same in quiet.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a measurement is printed")]

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{PATIENCE, Up};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

/// What the process may grow by under any of the attacks.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Calls with the key during each attack, unless `SLUICE_CALLS` says how many.
const CALLS: usize = 200;
const SILENT: usize = 4_200;
const HALF_BODIES: usize = 1_100;
const HALF_FRAMES: usize = 24;
const HALF_FRAME_BYTES: usize = 48 << 20;
const UPGRADE: &str = "GET /api/v1/socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The process under attack.
struct Target {
    up: Up,
    key: String,
}

impl Target {
    fn address(&self) -> &str {
        self.up.url.trim_start_matches("http://")
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A peer that has said something. It may be cut off while it does.
    fn says(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        stream
    }

    /// A socket that has sent something.
    fn socket(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.says(UPGRADE.as_bytes());
        let mut answer = Vec::new();
        let mut one = [0; 1];
        while !answer.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut one), Ok(1)) {
            answer.push(one[0]);
        }
        // As much of it as is taken.
        stream.set_nonblocking(true).unwrap();
        let mut rest = bytes;
        while let Ok(bytes) = stream.write(rest) {
            rest = &rest[bytes..];
            if rest.is_empty() {
                break;
            }
        }
        stream
    }

    /// Makes one call with the key, over a connection of its own; how long it took.
    fn calls(&self) -> Duration {
        let begun = Instant::now();
        let body = r#"{"operation":"list","type":"prompt"}"#;
        let mut stream = self.connect();
        let request = format!(
            "POST /api/v1/config HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.key,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        assert!(read.is_ok() && answer.starts_with("HTTP/1.1 200 "), "{read:?} {answer}\n{}", self.up.log());
        begun.elapsed()
    }

    fn is_healthy(&self) {
        for path in ["/healthz", "/readyz"] {
            let mut answer = String::new();
            let asked = self
                .says(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .read_to_string(&mut answer);
            assert!(
                asked.is_ok() && answer.starts_with("HTTP/1.1 200 "),
                "{path}: {answer}\n{}",
                self.up.log()
            );
        }
    }

    fn status(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.up.pid())).unwrap();
        let line = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that it took since the last time this was asked.
    fn peak(&self) -> u64 {
        let peak = self.status("VmHWM:");
        std::fs::write(format!("/proc/{}/clear_refs", self.up.pid()), "5").unwrap();
        peak
    }

    /// Makes calls while an attack is held, and looks at what it costs.
    fn under<T>(&self, name: &str, before: u64, quiet: &Latencies, attack: impl FnOnce() -> T) {
        self.peak();
        let held = attack();
        let loud = Latencies::of(self);
        self.is_healthy();
        let growth = self.peak().saturating_sub(before);
        drop(held);
        println!("| {name} | {} MiB | {loud} | {:.1} |", growth >> 20, loud.p99_ms() / quiet.p99_ms());
        assert!(growth <= GROWTH_BYTES_MAX, "{name}: it grew by {} MiB", growth >> 20);
    }
}

struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(target: &Target) -> Self {
        let calls = std::env::var("SLUICE_CALLS").map_or(CALLS, |calls| calls.parse().unwrap());
        let mut all: Vec<Duration> = (0..calls).map(|_| target.calls()).collect();
        all.sort_unstable();
        Self(all)
    }

    fn p99_ms(&self) -> f64 {
        self.0[(self.0.len() * 99 / 100).min(self.0.len() - 1)].as_secs_f64() * 1e3
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} ms | {:.1} ms", self.0[self.0.len() / 2].as_secs_f64() * 1e3, self.p99_ms())
    }
}

/// As many of these as this process may have files.
fn as_many(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let files = usize::try_from(limit.maximum.unwrap_or(1 << 20)).unwrap();
    wanted.min(files.saturating_sub(200))
}

/// The header of a masked text frame of so many bytes.
fn frame_header(bytes: usize) -> Vec<u8> {
    let mut header = vec![0x81, 0x80 | 127];
    header.extend_from_slice(&(bytes as u64).to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    header
}

/// A masked frame; the mask is zero, so the payload stands as it is.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = match payload.len() {
        short @ 0..126 => vec![first, 0x80 | u8::try_from(short).unwrap(), 0, 0, 0, 0],
        _ => frame_header(payload.len()),
    };
    frame[0] = first;
    frame.extend_from_slice(payload);
    frame
}

fn many<T>(count: usize, mut one: impl FnMut(usize) -> T) -> Vec<T> {
    (0..as_many(count)).map(&mut one).collect()
}

fn start(folder: &Path) -> Target {
    let up = Up::start(folder);
    let key = up.key();
    Target { up, key }
}

#[test]
fn peers_without_a_key_cost_a_constant_and_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let target = start(folder.path());
    // What is set up once is set up before.
    for _ in 0..200 {
        target.calls();
    }
    drop(target.socket(&frame(0x81, b"{}")));
    let quiet = Latencies::of(&target);
    let before = target.memory();
    println!("| attack | growth | p50 | p99 | times quiet |\n|---|---|---|---|---|\n| none | | {quiet} | |");
    let under = |name: &str, attack: &dyn Fn() -> Vec<TcpStream>| target.under(name, before, &quiet, attack);

    under("silent connections", &|| many(SILENT, |_| target.connect()));
    under("heads that do not end", &|| many(SILENT, |_| target.says(b"GET /healthz HTTP/1.1\r\nX: ")));
    under("long heads that do not end", &|| {
        let head = format!("GET /healthz HTTP/1.1\r\nX: {}", "x".repeat(31 << 10));
        many(HALF_BODIES, |_| target.says(head.as_bytes()))
    });
    under("half handshakes", &|| many(HALF_BODIES, |_| target.says(b"\x16\x03\x01\x02\x00\x01\x00")));
    under("half bodies", &|| {
        let paths = ["/api/v1/iam", "/api/v1/auth/login", "/api/v1/config", "/api/v1/auth/change-password"];
        many(HALF_BODIES, |n| {
            let path = paths[n % paths.len()];
            target.says(
                format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{")
                    .as_bytes(),
            )
        })
    });
    under("bodies in parts that do not end", &|| {
        let part = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        many(HALF_BODIES, |_| {
            let head = "POST /api/v1/iam HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
            target.says(format!("{head}{part}").as_bytes())
        })
    });
    under("half frames", &|| {
        let mut half = frame_header(HALF_FRAME_BYTES + 1);
        half.resize(HALF_FRAME_BYTES, b'x');
        many(HALF_FRAMES, |_| target.socket(&half))
    });
    under("half messages in small frames", &|| {
        let part = frame(0x01, &[b'x'; 100]);
        let next = frame(0x00, &[b'x'; 100]).repeat(100_000);
        many(HALF_FRAMES, |_| target.socket(&[&*part, &*next].concat()))
    });
    under("frames of many values", &|| {
        let text = format!(r#"{{"token":[{}0]}}"#, "0,".repeat(24 << 20));
        let whole = frame(0x81, text.as_bytes());
        many(HALF_FRAMES, |_| target.socket(&whole))
    });
    under("sockets that only ping", &|| {
        let pings = frame(0x89, &[b'p'; 100]).repeat(1_000);
        many(HALF_BODIES, |_| target.socket(&pings))
    });
    under("sockets that guess", &|| {
        let guesses: Vec<u8> = (0..1_000)
            .flat_map(|n| frame(0x81, format!(r#"{{"type":"auth","token":"tg_{n:040}"}}"#).as_bytes()))
            .collect();
        many(300, |_| target.socket(&guesses))
    });
    under("sockets that do not read what they are told", &|| {
        let id = "i".repeat(1_000);
        let ask = format!(r#"{{"id":"{id}","service":"config","request":{{"operation":"list"}}}}"#);
        let asked = frame(0x81, ask.as_bytes()).repeat(3_000);
        many(300, |_| target.socket(&asked))
    });
    under("answers that are not read", &|| {
        let asked = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3_000);
        many(HALF_BODIES, |_| target.says(asked.as_bytes()))
    });
    under("guesses over HTTP", &|| {
        many(HALF_BODIES, |n| {
            let head = format!(
                "GET /api/metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer tg_{n:040}\r\n\r\n"
            );
            target.says(head.as_bytes())
        })
    });
    let seed = rand::rng().random();
    println!("bytes at random come from seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let streams: Vec<Vec<u8>> = (0..2_000).map(|_| anything(&mut random)).collect();
    under("bytes at random", &|| {
        many(streams.len(), |n| {
            let stream = target.connect();
            // As much of it as is taken.
            stream.set_nonblocking(true).unwrap();
            let _ = (&stream).write(&streams[n]);
            stream
        })
    });
    assert!(!target.up.log().contains("panicked"), "{}", target.up.log());
    let log = target.up.log();
    assert!(log.contains("an authentication failed"), "guesses leave nothing in the log");
    assert!(log.lines().count() < 100, "strangers flood the log:\n{log}");
}

/// Whoever is turned away leaves a line of a kind and a minute, without what it showed or sent.
#[test]
fn denials_of_every_kind_are_logged_once_and_without_secrets() {
    const CANARY: &str = "canary7d1f";
    let folder = tempfile::tempdir().unwrap();
    let target = start(folder.path());
    let call = |head: &str, body: &str| {
        let length = body.len();
        let request = format!(
            "POST /api/v1/config HTTP/1.1\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        let mut answer = String::new();
        let _ = target.says(request.as_bytes()).read_to_string(&mut answer);
        answer.get(9..12).unwrap_or_default().to_owned()
    };
    let body = format!(r#"{{"operation":"list","type":"{CANARY}"}}"#);
    // Beyond the tries of an address, guesses are not even looked at.
    let guesses: Vec<String> = (0..100)
        .map(|n| call(&format!("Host: localhost\r\nAuthorization: Bearer tg_{CANARY}{n}\r\n"), &body))
        .collect();
    assert!(guesses.contains(&"401".to_owned()) && guesses.contains(&"429".to_owned()), "{guesses:?}");
    for _ in 0..20 {
        assert_eq!(call("Host: evil.example\r\nAuthorization: Bearer tg_canary7d1f\r\n", &body), "403");
    }
    // A frame that is too large for a stranger, and one that is none.
    for text in [format!(r#"{{"x":"{}"}}"#, CANARY.repeat(2_000)), CANARY.to_owned()] {
        let mut socket = target.socket(&frame(0x81, text.as_bytes()).repeat(300));
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        // What it is told, if anything: it is closed sooner or later.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    target.is_healthy();
    let log = target.up.log();
    for line in [
        "an authentication failed",
        "somebody was turned away",
        "a request of a foreign host or page was refused",
    ] {
        // The first may come again in the next minute of a slow run.
        let count = log.matches(line).count();
        assert!((1..=3).contains(&count), "{line}: {count}\n{log}");
    }
    assert!(!log.contains(CANARY), "what was shown is in the log:\n{log}");
}

/// What somebody may send who knows the protocols and keeps to none of them.
fn anything(random: &mut SmallRng) -> Vec<u8> {
    let paths = [
        "/api/v1/iam",
        "/api/v1/auth/login",
        "/api/v1/socket",
        "/api/v1/flow/f/service/embeddings",
        "/api/metrics",
        "/",
    ];
    let lines = [
        "Host: localhost",
        "Content-Length: 10",
        "Content-Length: 100000000",
        "Transfer-Encoding: chunked",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Expect: 100-continue",
        "Authorization: Bearer tg_x",
        "Authorization: Basic x",
        "X: ",
        "",
    ];
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(1..4) {
        match random.random_range(0..5) {
            0 => bytes.extend_from_slice(UPGRADE.as_bytes()),
            1 => {
                let mut header = frame_header(random.random_range(0..1 << 40));
                header[0] = random.random();
                bytes.extend_from_slice(&header);
            }
            2 => bytes.extend((0..random.random_range(0..5_000)).map(|_| random.random::<u8>())),
            3 => {
                let payload = vec![b'{'; random.random_range(0..20_000)];
                bytes.extend_from_slice(&frame(
                    *[0x81, 0x01, 0x00, 0x80, 0x89, 0x88].choose(random).unwrap(),
                    &payload,
                ));
            }
            _ => {
                let method = ["GET", "POST", "PUT", "BREW"].choose(random).unwrap();
                bytes.extend_from_slice(
                    format!("{method} {} HTTP/1.1\r\n", paths.choose(random).unwrap()).as_bytes(),
                );
                for _ in 0..random.random_range(0..8) {
                    bytes.extend_from_slice(format!("{}\r\n", lines.choose(random).unwrap()).as_bytes());
                }
            }
        }
    }
    bytes
}

#[test]
fn few_files_are_kept_for_the_inside_and_for_health_checks() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 1024; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sluice")]);
    let up = Up::start_as(command, folder.path(), &[]);
    let target = Target { key: up.key(), up };
    let files = || std::fs::read_dir(format!("/proc/{}/fd", target.up.pid())).unwrap().count();
    let mut held = Vec::new();
    for n in 0..as_many(3_000) {
        held.push(target.says(if n % 2 == 0 { b"" } else { b"GET /" }));
        if n % 200 == 0 {
            target.calls();
            target.is_healthy();
            assert!(files() < 1_024 - 100, "{} files are open", files());
        }
    }
    // The oldest were closed; their peers see it.
    held[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let ended = held[0].read(&mut [0; 1]);
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    let log = target.up.log();
    assert!(!log.contains("Too many open files") && !log.contains("could not be accepted"), "{log}");
}
