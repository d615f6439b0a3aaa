//! What a confined process can still do, tried from inside.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;

use super::confine::{Missing, confine};
use super::own_program;

/// How long a process may take that only looks at itself.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// How well a process is confined.
#[derive(Debug, Serialize, Deserialize)]
pub struct Confinement {
    /// What this system lacks.
    pub missing: Vec<Lack>,
    /// What was tried and refused.
    pub refused: Vec<String>,
    /// What was tried and done.
    pub done: Vec<String>,
}

/// A part of the confinement that this system lacks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Lack {
    /// Its name.
    pub part: String,
    /// Why.
    pub reason: String,
}

/// Confines this process for good, unless it is to stay `bare`; it must have one thread only. With `check` it tries then what
/// a confined process must not be able to do, and returns what came of it.
#[must_use = "what came of a check is to be printed, and nothing else done"]
pub fn enter(check: bool, bare: bool) -> Option<Confinement> {
    let missing = if bare { Missing::new() } else { confine() };
    // Without a check, what is missing was reported when the program that starts this one began; here nobody could hear it.
    check.then(|| tried(missing))
}

impl Confinement {
    /// As a process of this program finds it that reads documents; those that render are confined by the same function.
    ///
    /// # Errors
    /// When no such process can be started, or it does not answer within 60 s.
    pub async fn of_this_machine() -> io::Result<Self> {
        let mut command = Command::new(own_program());
        command.args(["decode", "--check"]).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(CHECK_TIMEOUT, command.output()).await??;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Nothing is missing, and nothing that was tried was done.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.done.is_empty()
    }

    /// What is missing and what can be done, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let missing = self.missing.iter().map(|one| format!("{} ({})", one.part, one.reason));
        let mut text = format!("missing: {}", missing.collect::<Vec<_>>().join(", "));
        if !self.done.is_empty() {
            text.push_str(&format!("; such a process can {}", self.done.join(", ")));
        }
        text
    }
}

/// Something, and a try at it.
type Try = (&'static str, fn() -> io::Result<()>);

/// What a confined process must not be able to do.
#[cfg(unix)]
const TRIES: [Try; 18] = [
    ("open a file", || std::fs::File::open("/dev/null").map(drop)),
    ("list a folder", || std::fs::read_dir("/").map(drop)),
    ("look at a file", || std::fs::metadata("/").map(drop)),
    ("read its program", || std::fs::File::open(std::env::current_exe()?).map(drop)),
    ("write to a file", || std::fs::OpenOptions::new().write(true).open("/dev/null").map(drop)),
    ("make a file", || {
        let file = std::env::temp_dir().join(format!("sluice-check-{}", std::process::id()));
        std::fs::File::create(&file).map(drop)?;
        std::fs::remove_file(file)
    }),
    ("make a folder", || {
        let folder = std::env::temp_dir().join(format!("sluice-check-folder-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        std::fs::remove_dir(folder)
    }),
    ("change its folder", || std::env::set_current_dir("/")),
    ("make a pipe", || io::pipe().map(drop)),
    ("listen on an address", || std::net::TcpListener::bind("127.0.0.1:0").map(drop)),
    ("send to an address", || std::net::UdpSocket::bind("127.0.0.1:0")?.connect("127.0.0.1:9")),
    ("connect to an address", || {
        // One that nobody listens on refuses; that it was asked is too much.
        let connected = std::net::TcpStream::connect("127.0.0.1:9").map(drop);
        if connected.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return Ok(());
        }
        connected
    }),
    ("make a pair of sockets", || std::os::unix::net::UnixStream::pair().map(drop)),
    ("start a program", || std::process::Command::new("/bin/sh").args(["-c", "exit"]).status().map(drop)),
    ("signal its parent", || {
        let parent = rustix::process::getppid().ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::process::test_kill_process(parent)?)
    }),
    ("read the environment of its parent", || {
        let parent = rustix::process::getppid().ok_or(io::ErrorKind::NotFound)?;
        let file = if cfg!(target_os = "linux") {
            format!("/proc/{}/environ", parent.as_raw_nonzero())
        } else {
            "/dev/null".to_owned()
        };
        std::fs::read(file).map(drop)
    }),
    ("leave its group", || Ok(rustix::process::setsid().map(drop)?)),
    ("open more files than it may", || {
        use rustix::process::{Resource, Rlimit, setrlimit};
        Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(16), maximum: Some(16) })?)
    }),
];

#[cfg(not(unix))]
const TRIES: [Try; 1] = [("open a file", || std::fs::File::open(std::env::current_exe()?).map(drop))];

fn tried(missing: Missing) -> Confinement {
    let missing = missing.into_iter().map(|(part, reason)| Lack { part: part.to_owned(), reason }).collect();
    let mut confinement = Confinement { missing, refused: Vec::new(), done: Vec::new() };
    for (what, done) in TRIES {
        let list = if done().is_ok() { &mut confinement.done } else { &mut confinement.refused };
        list.push(what.to_owned());
    }
    confinement
}
