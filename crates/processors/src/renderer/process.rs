//! A process that does jobs for the renderer, one after the other, under limits that the shell sets.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::RendererConfig;
use super::child::{self, ANSWER_BYTES_MAX, Answer, BUFFER_BYTES, HEAD_BYTES_MAX, HELLO, Head, Job, Verdict};

/// Exit code of a shell that cannot set the limit.
const NO_LIMITS: i32 = 71;
/// Limits the memory, so far as that can be done here, and becomes the program.
const SCRIPT: &str = r#"
ulimit -S -v "$1" 2>/dev/null || [ "$(ulimit -H -v)" != unlimited ] || exit 71
ulimit -H -v "$1" 2>/dev/null
ulimit -c 0
shift
exec "$@"
"#;
/// Bytes that a program may print before it says that it is ready.
const PRELUDE_BYTES_MAX: u64 = 64 * 1024;
/// Bytes kept of what a dying process said.
const LAST_WORDS_BYTES_MAX: u64 = 4 * 1024;
/// How long the end of a process may take whose output has ended.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
pub(super) enum Failed {
    /// The job cannot be done; the process can go on.
    Refused(String),
    /// The job ended the process.
    Ended(String),
    /// The process was gone before it could take the job, or was ended from outside.
    Gone,
}

pub(super) struct Process {
    child: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// How many it has done.
    pub(super) jobs: usize,
}

impl Process {
    /// Starts the program and waits until it is ready.
    pub(super) async fn start(config: &RendererConfig) -> Result<Self, String> {
        let failed = |why: &str| {
            tracing::error!(program = %config.program.display(), why, "prompts cannot be rendered");
            format!("prompts cannot be rendered at the moment: {why}")
        };
        let spawned = command(config).spawn();
        let mut child =
            spawned.map_err(|e| failed(&format!("the program that does it does not start: {e}")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("the program that does it has no standard streams"));
        };
        let input = BufWriter::with_capacity(BUFFER_BYTES, input);
        let mut process = Self { child, input, output: BufReader::new(output), jobs: 0 };
        match timeout(config.start_timeout, process.is_ready()).await {
            Ok(true) => Ok(process),
            Err(_) => Err(failed("the program that does it is not ready in time")),
            Ok(false) => match process.ended().await.0 {
                Some(status) if status.code() == Some(NO_LIMITS) => {
                    Err(failed("its memory cannot be limited here"))
                }
                _ => Err(failed("the program that does it ends at once")),
            },
        }
    }

    /// Reads up to the line by which a program says that it is ready.
    async fn is_ready(&mut self) -> bool {
        let mut line = Vec::new();
        let mut prelude = (&mut self.output).take(PRELUDE_BYTES_MAX);
        loop {
            line.clear();
            match prelude.read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return false,
                Ok(_) if line.strip_suffix(b"\n") == Some(HELLO.as_bytes()) => return true,
                Ok(_) => {}
            }
        }
    }

    /// Has one job done. After anything but an answer or a refusal the process is of no use.
    pub(super) async fn run(&mut self, config: &RendererConfig, job: &Job<'_>) -> Result<Answer, Failed> {
        self.jobs += 1;
        match timeout(config.answer_timeout, self.ask(job)).await {
            Ok(Some(answer)) => answer.map_err(Failed::Refused),
            Ok(None) => Err(self.failed().await),
            Err(_) => Err(Failed::Ended(TOO_LONG.to_owned())),
        }
    }

    /// `None` when the process ended or talks nonsense.
    async fn ask(&mut self, job: &Job<'_>) -> Option<Result<Answer, String>> {
        let head = job.head();
        // One that takes no more tells why by how it ends.
        let sent = async {
            self.input.write_all(&head).await?;
            for part in job.parts() {
                self.input.write_all(part).await?;
            }
            self.input.flush().await
        };
        if sent.await.is_err() {
            return None;
        }
        let mut line = Vec::new();
        let mut output = (&mut self.output).take(HEAD_BYTES_MAX);
        output.read_until(b'\n', &mut line).await.ok()?;
        let head: Head<Verdict> = serde_json::from_slice(&line).ok()?;
        let total = head.parts.iter().try_fold(0_usize, |sum, bytes| sum.checked_add(*bytes))?;
        if total > ANSWER_BYTES_MAX {
            return None;
        }
        let mut parts = Vec::with_capacity(head.parts.len());
        for bytes in head.parts {
            let mut part = vec![0; bytes];
            self.output.read_exact(&mut part).await.ok()?;
            parts.push(String::from_utf8(part).ok()?);
        }
        child::answer(&head.what, parts)
    }

    async fn failed(&mut self) -> Failed {
        let (status, words) = self.ended().await;
        let Some(status) = status else {
            return Failed::Ended("the prompt confuses the program that renders it".to_owned());
        };
        if status.code() == Some(child::EXIT_TIME) {
            return Failed::Ended(TOO_LONG.to_owned());
        }
        if status.code() == Some(child::EXIT_MEMORY) || words.contains("memory allocation of") {
            let mib = child::MEMORY_BYTES_MAX / (1024 * 1024);
            return Failed::Ended(format!("the prompt takes more than {mib} MiB of memory; make it simpler"));
        }
        if is_killed(status) || status.success() {
            return Failed::Gone;
        }
        tracing::warn!(%status, words, "the program that renders prompts crashed");
        Failed::Ended("the prompt crashes the program that renders it; make it simpler".to_owned())
    }

    /// How the process ended, and what it said last; one that goes on without an output is killed.
    async fn ended(&mut self) -> (Option<ExitStatus>, String) {
        let status = timeout(END_TIMEOUT, self.child.wait()).await.ok().and_then(Result::ok);
        let Some(errors) = self.child.stderr.take().filter(|_| status.is_some()) else {
            // An error means that it has ended already.
            let _ = self.child.start_kill();
            return (None, String::new());
        };
        let mut words = Vec::new();
        // What cannot be read is not said.
        let _ = timeout(END_TIMEOUT, errors.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut words)).await;
        (status, String::from_utf8_lossy(&words).into_owned())
    }
}

const TOO_LONG: &str = "the prompt takes more than 0.8 s of computing; make it simpler";

fn command(config: &RendererConfig) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SCRIPT, "sluice-render"])
        .arg((config.address_bytes_max / 1024).to_string())
        .arg(&config.program)
        .args(&config.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

#[cfg(unix)]
fn is_killed(status: ExitStatus) -> bool {
    const SIGKILL: i32 = 9;
    const SIGTERM: i32 = 15;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    matches!(signal, Some(SIGKILL | SIGTERM))
}

#[cfg(not(unix))]
fn is_killed(_: ExitStatus) -> bool {
    false
}
