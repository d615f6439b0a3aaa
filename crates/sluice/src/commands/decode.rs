//! `sluice decode`: reads one document for a processor, in this process alone, which is [confined](crate::confine) first. People
//! have no use for it; `--check` shows what keeps it from doing anything else.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sluice_processors::DecodingConfig;

use crate::confine::confine;

/// How long a process may take that only looks at itself.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn run(check: bool, bare: bool) -> anyhow::Result<()> {
    // What a parser says when it panics is of no use to anyone; that it did is told.
    std::panic::set_hook(Box::new(|_| {}));
    let missing = if bare { Vec::new() } else { confine() };
    if check {
        let missing = missing.into_iter().map(|(part, reason)| Missing { part: part.to_owned(), reason });
        println!("{}", serde_json::to_string(&tried(missing.collect()))?);
        return Ok(());
    }
    // What is missing was told when the program that starts this one began; here nobody could hear it.
    sluice_documents::child::serve(io::stdin(), io::stdout())
        .context("'sluice decode' is how processors read documents; it wants an order on standard input")
}

/// How well processes that read documents are confined on this machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// What this system lacks.
    pub(crate) missing: Vec<Missing>,
    /// What was tried and refused.
    pub(crate) refused: Vec<String>,
    /// What was tried and done.
    pub(crate) done: Vec<String>,
}

/// A part of the confinement that this system lacks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Missing {
    pub(crate) part: String,
    pub(crate) reason: String,
}

impl Confinement {
    /// As a process of this program finds it.
    pub(crate) async fn of_this_machine() -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::new(DecodingConfig::default().program);
        command.args(["decode", "--check"]).env_clear().stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output =
            tokio::time::timeout(CHECK_TIMEOUT, command.output()).await.context("it takes too long")??;
        serde_json::from_slice(&output.stdout).context("it ended without an answer")
    }

    /// Nothing is missing, and nothing that was tried was done.
    pub(crate) fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.done.is_empty()
    }

    /// What is missing and what can be done, for people.
    pub(crate) fn text(&self) -> String {
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

/// What a process that reads a document must not be able to do.
#[cfg(unix)]
const TRIES: [Try; 17] = [
    ("open a file", || std::fs::File::open("/dev/null").map(drop)),
    ("list a folder", || std::fs::read_dir("/").map(drop)),
    ("look at a file", || std::fs::metadata("/").map(drop)),
    ("read its program", || std::fs::File::open(std::env::current_exe()?).map(drop)),
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

fn tried(missing: Vec<Missing>) -> Confinement {
    let mut confinement = Confinement { missing, refused: Vec::new(), done: Vec::new() };
    for (what, done) in TRIES {
        let list = if done().is_ok() { &mut confinement.done } else { &mut confinement.refused };
        list.push(what.to_owned());
    }
    confinement
}
