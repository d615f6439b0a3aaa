//! Where bytes and programs of others run: in a child process, with limits that are set before it begins, an environment that
//! is empty, and a [confinement](enter) that it puts on itself before it reads. What documents are read by and what renders
//! prompts is started here, and how it ended is told here.
//!
//! The limits are set by the shell's `ulimit`, since every Unix has it and setting them from here takes unsafe code; the
//! shell then becomes the program.

mod check;
mod confine;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

pub use check::{Confinement, Lack, enter};

/// Exit code of a shell that cannot set the limits.
const NO_LIMITS: i32 = 71;
/// Sets limits and becomes the program. A limit that is lower already stays as it is.
const SCRIPT: &str = r#"
lower() {
  ulimit -S "$1" "$2" 2>/dev/null || [ "$(ulimit -H "$1")" != unlimited ] || exit 71
  ulimit -H "$1" "$3" 2>/dev/null
}
lower -v "$1" "$1"
lower -t "$2" "$3"
ulimit -c 0
shift 3
exec "$@"
"#;
/// Between the signal that says a process has computed too long, and the one that ends it, in seconds.
const CPU_GRACE_SECONDS: u64 = 5;
/// Bytes kept of what a dying process said.
const LAST_WORDS_BYTES_MAX: u64 = 4 * 1024;
/// How long the end of a process may take that was killed, or whose output has ended.
const END_TIMEOUT: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGXCPU: i32 = 24;

/// This program. By its process where the system tells, so that an upgrade under a running one does not change it.
pub(crate) fn own_program() -> PathBuf {
    let running = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    if running.exists() { running } else { std::env::current_exe().unwrap_or_default() }
}

/// A program that confines itself, and what its process may take.
pub(crate) struct Sandbox<'a> {
    /// What it is called where processes are listed.
    pub(crate) name: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [String],
    /// Bytes of address space.
    pub(crate) memory_bytes_max: u64,
    /// Seconds of computing, over its whole life.
    pub(crate) cpu_seconds_max: u64,
}

/// A process in a sandbox; dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    pub(crate) output: BufReader<ChildStdout>,
}

/// How a process ended.
pub(crate) enum Ended {
    /// It was not begun, since its limits cannot be set here.
    Unlimited,
    /// It wanted more memory than it may have.
    Memory,
    /// It computed longer than it may.
    Computing,
    /// From outside.
    Killed,
    /// By itself, or by a crash.
    Otherwise {
        status: ExitStatus,
        /// The last that it wrote to its standard error.
        words: String,
    },
}

impl Sandbox<'_> {
    /// Starts the process; its input is the caller's to close.
    pub(crate) fn start(&self) -> io::Result<(Process, ChildStdin)> {
        let mut child = self.command().spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no standard streams"));
        };
        Ok((Process { child, output: BufReader::new(output) }, input))
    }

    fn command(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SCRIPT, self.name])
            .arg((self.memory_bytes_max / 1024).to_string())
            .arg(self.cpu_seconds_max.to_string())
            .arg((self.cpu_seconds_max + CPU_GRACE_SECONDS).to_string())
            .arg(self.program)
            .args(self.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

impl Process {
    /// How a process ended whose output did; one that goes on without an output is killed, and has no end of its own.
    pub(crate) async fn ended(&mut self) -> Option<Ended> {
        let Ok(Ok(status)) = timeout(END_TIMEOUT, self.child.wait()).await else {
            self.kill().await;
            return None;
        };
        let words = self.last_words().await;
        if status.code() == Some(NO_LIMITS) {
            return Some(Ended::Unlimited);
        }
        if words.contains("memory allocation of") {
            return Some(Ended::Memory);
        }
        Some(match signal(status) {
            Some(SIGXCPU) => Ended::Computing,
            Some(SIGKILL | SIGTERM) => Ended::Killed,
            _ => Ended::Otherwise { status, words },
        })
    }

    /// Kills it and waits for its end.
    pub(crate) async fn kill(&mut self) {
        let ended = async {
            // An error means that it has ended already.
            let _ = self.child.start_kill();
            self.child.wait().await
        };
        if timeout(END_TIMEOUT, ended).await.is_err() {
            tracing::error!(process = self.child.id(), "a process that was killed does not end");
        }
    }

    async fn last_words(&mut self) -> String {
        let Some(errors) = self.child.stderr.take() else { return String::new() };
        let mut words = Vec::new();
        // What cannot be read is not said.
        let _ = timeout(END_TIMEOUT, errors.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut words)).await;
        String::from_utf8_lossy(&words).into_owned()
    }

    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }
}

#[cfg(unix)]
fn signal(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal(_: ExitStatus) -> Option<i32> {
    None
}
