//! Cold start, memory and size of the release binary: `cargo bench -p sluice --bench footprint`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on fails, and it prints"
)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_sluice");

fn main() {
    // `cargo test` runs benches too, to see that they build; only `cargo bench` measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut starts: Vec<f64> = (0..10).map(|_| cold_start(&data).0).collect();
    starts.sort_by(f64::total_cmp);
    println!("cold start to ready         median {:.0} ms, worst of 10 {:.0} ms", starts[5], starts[9]);
    println!("resident memory, idle       {:.1} MB", cold_start(&data).1);
    println!("resident memory, after demo {:.1} MB", after_demo());
    println!("binary                      {:.1} MB", std::fs::metadata(BINARY).unwrap().len() as f64 / 1e6);
}

/// Milliseconds from start to the first answer of `POST /api/v1/config`, and resident megabytes then.
fn cold_start(data: &std::path::Path) -> (f64, f64) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let began = Instant::now();
    let child = Command::new(BINARY)
        .args(["up", "--listen", &format!("127.0.0.1:{port}"), "--data"])
        .arg(data)
        .env("SLUICE_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = Guard(child);
    while !is_ready(port) {
        std::thread::park_timeout(Duration::from_millis(1));
        assert!(began.elapsed() < Duration::from_secs(60), "it did not come up");
    }
    let took = began.elapsed().as_secs_f64() * 1e3;
    (took, resident_mb(child.0.id()))
}

fn is_ready(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
    let request =
        "POST /api/v1/config HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && (answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 401"))
}

fn after_demo() -> f64 {
    let mut child = Command::new(BINARY).args(["demo", "--keep"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let child = Guard(child);
    let served = lines.map_while(Result::ok).any(|line| line.starts_with("Serving until"));
    assert!(served, "the demo did not get to its end");
    resident_mb(child.0.id())
}

fn resident_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.0.wait();
    }
}
