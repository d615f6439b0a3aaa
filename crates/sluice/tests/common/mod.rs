//! Runs the `sluice` binary as a person would, each system in a folder and on a port of its own.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "a test that cannot go on fails; not every test file uses every part"
)]

pub(crate) mod cases;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Generous: machines that run tests are slow and shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between looks at what others do.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A command without anything of the caller's environment that would change what it does.
pub(crate) fn sluice() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    let matters =
        |name: &str| ["SLUICE_", "TRUSTGRAPH_", "AWS_"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars().filter(|(name, _)| matters(name)) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A child process whose log is kept; it ends when it is dropped.
pub(crate) struct Program {
    child: Child,
    log: std::sync::Arc<std::sync::Mutex<String>>,
    /// Ends when the whole log has been read.
    reader: std::thread::JoinHandle<()>,
}

impl Program {
    /// Starts it and waits for a line of its log that says it is ready; gives that line.
    pub(crate) fn start(mut command: Command, ready: &str) -> (Self, String) {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (kept, ready) = (log.clone(), ready.to_owned());
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
                if line.contains(&ready) {
                    // Nobody listens any more once it was ready.
                    let _ = tell.send(line);
                }
            }
        });
        let program = Self { child, log, reader };
        match told.recv_timeout(PATIENCE) {
            Ok(line) => (program, line),
            Err(_) => panic!("it did not come up:\n{}", program.log()),
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it the hard way.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to stop and waits for its exit code.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.signal("-TERM");
        self.ended()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits until it has ended and its last words are in the log; its exit code.
    pub(crate) fn ended(&mut self) -> i32 {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap()
                && self.reader.is_finished()
            {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < until, "it did not stop:\n{}", self.log());
            std::thread::yield_now();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A whole system that serves until it is dropped.
pub(crate) struct Up {
    program: Program,
    pub(crate) url: String,
    pub(crate) data: PathBuf,
    /// Whether [`Up::stop`] asks again where a stop takes longer than it waits.
    pub(crate) asks_again: bool,
}

/// The address in the line with which a gateway says that it serves.
pub(crate) fn url_in(line: &str) -> String {
    let at = line.find("address=").unwrap() + "address=".len();
    format!("http://{}", line[at..].split_whitespace().next().unwrap())
}

impl Up {
    pub(crate) fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    pub(crate) fn start_with(data: &Path, more: &[&str]) -> Self {
        Self::start_as(sluice(), data, more)
    }

    /// With variables of the environment.
    pub(crate) fn start_in(data: &Path, more: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = sluice();
        command.envs(environment.iter().copied());
        Self::start_as(command, data, more)
    }

    /// Starts it by a command that may have an environment of its own.
    pub(crate) fn start_as(mut command: Command, data: &Path, more: &[&str]) -> Self {
        command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(more);
        let (program, line) = Program::start(command, "address=127.0.0.1:");
        Self { program, url: url_in(&line), data: data.to_owned(), asks_again: false }
    }

    /// Runs a command against it.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        sluice().args(args).args(["--url", &self.url, "--data"]).arg(&self.data).output().unwrap()
    }

    /// Runs a command that must succeed, and reads its JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let output = self.run(&all);
        assert!(output.status.success(), "{args:?}: {}\n{}", text(&output), self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Stops a flow, and is told how it ended.
    pub(crate) fn stop(&self, flow: &str) -> Value {
        const NOT_FOUND: i32 = 3;
        const TIMED_OUT: i32 = 5;
        if !self.asks_again {
            return self.json(&["flow", "stop", flow]);
        }
        let until = Instant::now() + 5 * PATIENCE;
        let mut asked_before = false;
        loop {
            let output = self.run(&["flow", "stop", flow, "-o", "json"]);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).unwrap();
            }
            // It went between the two.
            if asked_before && output.status.code() == Some(NOT_FOUND) {
                return Value::Null;
            }
            asked_before = true;
            let is_under_way = output.status.code() == Some(TIMED_OUT) && Instant::now() < until;
            let seen = || text(&self.run(&["flow", "describe", flow]));
            assert!(is_under_way, "{}\n{}\n{}", text(&output), seen(), self.log());
        }
    }

    /// Posts a body to a path, with the key; the status line and the answer.
    pub(crate) fn post(&self, path: &str, body: &Value) -> String {
        let address = self.url.trim_start_matches("http://");
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.key(),
            body.len()
        );
        std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
        read_all(stream)
    }

    pub(crate) fn key(&self) -> String {
        std::fs::read_to_string(self.data.join("admin.key")).unwrap().trim().to_owned()
    }

    pub(crate) fn log(&self) -> String {
        self.program.log()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Ends it the hard way.
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Tells it to stop and waits for its exit code.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.program.terminate()
    }

    /// Waits until it has ended by itself; its exit code.
    pub(crate) fn ended(&mut self) -> i32 {
        self.program.ended()
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Asserts an exit code and that the text says something.
pub(crate) fn ends(output: &Output, code: i32, says: &str) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.to_lowercase().contains(&says.to_lowercase()), "wanted '{says}' in:\n{said}");
}

pub(crate) fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

/// Asks until the answer holds.
#[track_caller]
pub(crate) fn until(what: &str, holds: impl FnMut() -> bool, log: impl Fn() -> String) {
    until_within(PATIENCE, what, holds, log);
}

/// The same where others take their time.
#[track_caller]
pub(crate) fn until_within(
    patience: Duration,
    what: &str,
    mut holds: impl FnMut() -> bool,
    log: impl Fn() -> String,
) {
    let until = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain for {what}\n{}", log());
        std::thread::park_timeout(LOOK_EVERY);
    }
}
