//! A process that does jobs for the renderer, one after the other, in a [sandbox](crate::sandbox).

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufWriter};
use tokio::process::ChildStdin;
use tokio::time::timeout;

use super::child::{self, ANSWER_BYTES_MAX, Answer, BUFFER_BYTES, HEAD_BYTES_MAX, HELLO, Head, Job, Verdict};
use super::{CPU_SECONDS_MAX, RendererConfig};
use crate::sandbox::{self, Ended, Sandbox};

/// Bytes that a program may print before it says that it is ready.
const PRELUDE_BYTES_MAX: u64 = 64 * 1024;

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
    process: sandbox::Process,
    input: BufWriter<ChildStdin>,
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
        let sandbox = Sandbox {
            name: "sluice-render",
            program: &config.program,
            arguments: &config.arguments,
            memory_bytes_max: config.address_bytes_max,
            cpu_seconds_max: CPU_SECONDS_MAX,
        };
        let started = sandbox.start();
        let (process, input) =
            started.map_err(|e| failed(&format!("the program that does it does not start: {e}")))?;
        let mut process = Self { process, input: BufWriter::with_capacity(BUFFER_BYTES, input), jobs: 0 };
        match timeout(config.start_timeout, process.is_ready()).await {
            Ok(true) => Ok(process),
            Err(_) => Err(failed("the program that does it is not ready in time")),
            Ok(false) => match process.process.ended().await {
                Some(Ended::Unlimited) => Err(failed("its memory cannot be limited here")),
                _ => Err(failed("the program that does it ends at once")),
            },
        }
    }

    /// Reads up to the line by which a program says that it is ready.
    async fn is_ready(&mut self) -> bool {
        let mut line = Vec::new();
        let mut prelude = (&mut self.process.output).take(PRELUDE_BYTES_MAX);
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
        let mut output = (&mut self.process.output).take(HEAD_BYTES_MAX);
        output.read_until(b'\n', &mut line).await.ok()?;
        let head: Head<Verdict> = serde_json::from_slice(&line).ok()?;
        let total = head.parts.iter().try_fold(0_usize, |sum, bytes| sum.checked_add(*bytes))?;
        if total > ANSWER_BYTES_MAX {
            return None;
        }
        let mut parts = Vec::with_capacity(head.parts.len());
        for bytes in head.parts {
            let mut part = vec![0; bytes];
            self.process.output.read_exact(&mut part).await.ok()?;
            parts.push(String::from_utf8(part).ok()?);
        }
        child::answer(&head.what, parts)
    }

    async fn failed(&mut self) -> Failed {
        let too_much = || {
            let mib = child::MEMORY_BYTES_MAX / (1024 * 1024);
            Failed::Ended(format!("the prompt takes more than {mib} MiB of memory; make it simpler"))
        };
        match self.process.ended().await {
            None => Failed::Ended("the prompt confuses the program that renders it".to_owned()),
            Some(Ended::Memory) => too_much(),
            Some(Ended::Computing) => Failed::Ended(TOO_LONG.to_owned()),
            Some(Ended::Killed | Ended::Unlimited) => Failed::Gone,
            Some(Ended::Otherwise { status, words }) => match status.code() {
                Some(child::EXIT_TIME) => Failed::Ended(TOO_LONG.to_owned()),
                Some(child::EXIT_MEMORY) => too_much(),
                Some(0) => Failed::Gone,
                _ => {
                    tracing::warn!(%status, words, "the program that renders prompts crashed");
                    let reason = "the prompt crashes the program that renders it; make it simpler";
                    Failed::Ended(reason.to_owned())
                }
            },
        }
    }
}

const TOO_LONG: &str = "the prompt takes more than 0.8 s of computing; make it simpler";
