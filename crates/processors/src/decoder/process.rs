//! A process that reads one document, in a [sandbox](crate::sandbox), and how long it is waited for. What it reports is taken as
//! far as a reader could have reported it.

use std::time::Duration;

use sluice_documents::child::{Conversation, Order, line_bytes_max};
use sluice_documents::{Event, Problem, ProblemKind};
use sluice_sdk::Failure;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::{Instant, timeout};

use super::reading::DecodingConfig;
use crate::sandbox::{self, Ended, Sandbox};

/// What a process said next.
enum Line {
    Event(Event),
    Nonsense,
    /// Nothing more.
    None,
}

pub(super) struct Process {
    process: sandbox::Process,
    conversation: Conversation,
    line_bytes_max: usize,
    memory_bytes_max: u64,
    cpu_seconds_max: u64,
    part_timeout: Duration,
    /// What is left of the time that all waiting for it together may take.
    patience: Duration,
    /// The part that it is busy with.
    at: Option<usize>,
    last: Option<Event>,
}

impl Process {
    /// Starts the program and hands it the document.
    pub(super) async fn start(
        config: &DecodingConfig,
        declared: &str,
        content: &[u8],
    ) -> Result<Self, Failure> {
        let cpu_seconds_max = config.cpu_seconds(content.len());
        let order = Order {
            declared: declared.to_owned(),
            content_bytes: content.len() as u64,
            limits: config.limits.clone(),
        };
        let sandbox = Sandbox {
            name: "sluice-decode",
            program: &config.program,
            arguments: &config.arguments,
            memory_bytes_max: config.memory_bytes_max,
            cpu_seconds_max,
        };
        let (process, input) = sandbox.start().map_err(|error| {
            Failure::again(format!("the program that reads documents could not be started: {error}"))
        })?;
        let mut process = Self {
            process,
            conversation: Conversation::new(config.limits.clone()),
            line_bytes_max: line_bytes_max(&config.limits),
            memory_bytes_max: config.memory_bytes_max,
            cpu_seconds_max,
            part_timeout: config.part_timeout,
            patience: config.part_timeout + Duration::from_secs(cpu_seconds_max),
            at: None,
            last: None,
        };
        let taken = hand_over(input, &order, content);
        if Self::within(taken, config.part_timeout, &mut process.patience).await.is_none() {
            process.last = Some(process.too_slow().await);
        }
        Ok(process)
    }

    /// Waits for the process to take or say something; `None` when that takes too long.
    async fn within<T>(
        wait: impl Future<Output = T>,
        part_timeout: Duration,
        patience: &mut Duration,
    ) -> Option<T> {
        let begun = Instant::now();
        let waited = timeout(part_timeout.min(*patience), wait).await.ok();
        *patience = patience.saturating_sub(begun.elapsed());
        waited
    }

    /// The next event; once it is the last, always that. However the process ends, it ends with a reason.
    pub(super) async fn next(&mut self) -> Result<Event, Failure> {
        if let Some(last) = &self.last {
            return Ok(last.clone());
        }
        let line = line(&mut self.process.output, self.line_bytes_max);
        let event = match Self::within(line, self.part_timeout, &mut self.patience).await {
            None => self.too_slow().await,
            Some(Line::Event(event)) if self.conversation.accepts(&event) => event,
            Some(Line::Event(_) | Line::Nonsense) => {
                self.process.kill().await;
                self.failed(ProblemKind::Damaged, "confuses the program that reads it")
            }
            Some(Line::None) => self.ended().await?,
        };
        match &event {
            Event::Begin { .. } => self.at = Some(1),
            Event::Part { number, .. } => self.at = Some(number + 1),
            Event::Lost { first, last, .. } if Some(*first) == self.at => self.at = Some(last + 1),
            Event::Lost { .. } => {}
            Event::End | Event::Failed(_) => {
                // The place that it takes is free once it is gone.
                self.process.kill().await;
                self.last = Some(event.clone());
            }
        }
        Ok(event)
    }

    async fn too_slow(&mut self) -> Event {
        self.process.kill().await;
        let seconds = self.part_timeout.as_secs();
        if self.patience.is_zero() {
            let seconds = seconds + self.cpu_seconds_max;
            return self
                .failed(ProblemKind::TooLarge, &format!("and all before took longer than {seconds} s"));
        }
        self.failed(ProblemKind::TooLarge, &format!("took longer than {seconds} s"))
    }

    /// What the end of a process means that has not said its last word.
    async fn ended(&mut self) -> Result<Event, Failure> {
        let (memory, cpu) = (self.memory_bytes_max / (1024 * 1024), self.cpu_seconds_max);
        let (kind, what) = match self.process.ended().await {
            // It lived and closed its output.
            None => (ProblemKind::Damaged, "confuses the program that reads it".to_owned()),
            Some(Ended::Memory) => (ProblemKind::TooLarge, format!("takes more than {memory} MiB of memory")),
            Some(Ended::Computing) => {
                (ProblemKind::TooLarge, format!("takes more than {cpu} s of computing"))
            }
            Some(Ended::Unlimited) => {
                return Err(Failure::again(
                    "documents are not read, because their memory cannot be limited here",
                ));
            }
            Some(Ended::Killed) => {
                return Err(Failure::again(
                    "the program that reads documents was killed, perhaps for lack of memory on this machine",
                ));
            }
            Some(Ended::Otherwise { status, words }) => {
                tracing::warn!(%status, words, "the program that reads documents crashed");
                (ProblemKind::Damaged, "crashes the program that reads it".to_owned())
            }
        };
        Ok(self.failed(kind, &what))
    }

    fn failed(&self, kind: ProblemKind, what: &str) -> Event {
        let part = match self.at {
            Some(number) => format!("part {number} of the document"),
            None => "the document".to_owned(),
        };
        Event::Failed(Problem::new(
            kind,
            format!("reading {part} {what}; it may be damaged or made to do so"),
        ))
    }
}

async fn line(output: &mut BufReader<ChildStdout>, bytes_max: usize) -> Line {
    let mut line = Vec::new();
    let mut output = output.take(bytes_max as u64);
    let read = output.read_until(b'\n', &mut line).await;
    if line.pop_if(|last| *last == b'\n').is_some() {
        serde_json::from_slice(&line).map_or(Line::Nonsense, Line::Event)
    } else if read.is_ok_and(|bytes| bytes == bytes_max) {
        Line::Nonsense
    } else {
        Line::None
    }
}

/// Gives the document to the process. One that does not take it all tells why by how it ends.
async fn hand_over(mut input: ChildStdin, order: &Order, content: &[u8]) {
    for bytes in [&order.line()[..], content] {
        if input.write_all(bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_documents::Kind;

    use super::*;

    /// A process that is a shell script, which hears its order first and may tell `BEGIN` and `PAGE 1`.
    async fn script(text: &str, change: impl FnOnce(&mut DecodingConfig)) -> Vec<Event> {
        told(started(text, change).await).await
    }

    async fn started(text: &str, change: impl FnOnce(&mut DecodingConfig)) -> Process {
        let prelude = r#"cat > /dev/null
begin='{"begin":{"kind":"pdf","unit":"page","count":3}}'
page='{"part":{"number":1,"text":"One."}}'
"#;
        let mut config = DecodingConfig {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), format!("{prelude}{text}")],
            // Nothing here takes this long unless it hangs.
            part_timeout: Duration::from_secs(60),
            ..DecodingConfig::default()
        };
        change(&mut config);
        let content = b"%PDF-".to_vec();
        Process::start(&config, "", &content).await.unwrap()
    }

    async fn told(mut process: Process) -> Vec<Event> {
        let mut told = Vec::new();
        loop {
            let event = process.next().await.unwrap_or_else(|failure| panic!("{failure} after {told:?}"));
            told.push(event);
            if let Some(Event::End | Event::Failed(_)) = told.last() {
                assert_eq!(&process.next().await.unwrap(), told.last().unwrap());
                return told;
            }
        }
    }

    fn last_reason(told: &[Event]) -> (ProblemKind, String) {
        match told.last() {
            Some(Event::Failed(problem)) => (problem.kind, problem.reason.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_the_process_tells_comes_through_in_order() {
        let told = script(r#"echo "$begin"; echo "$page"; echo '"end"'"#, |_| {}).await;
        let part = Event::Part { number: 1, text: "One.".to_owned() };
        let begin = Event::Begin { kind: Kind::Pdf, unit: sluice_documents::Unit::Page, count: 3 };
        assert_eq!(told, [begin, part, Event::End]);
    }

    #[tokio::test]
    async fn a_process_that_hangs_is_ended_and_what_it_told_stays() {
        let hang = r#"echo "$begin"; echo "$page"; exec sleep 1000"#;
        let told = script(hang, |config| config.part_timeout = Duration::from_secs(10)).await;
        assert_eq!(told.len(), 3, "{told:?}");
        let (kind, reason) = last_reason(&told);
        assert_eq!(kind, ProblemKind::TooLarge);
        assert!(reason.contains("part 2 of the document took longer than 10 s"), "{reason}");
    }

    #[tokio::test]
    async fn a_process_that_dawdles_is_ended_after_its_budget_however_many_parts_it_has() {
        let dawdle = r#"echo "$begin"; echo "$page"; sleep 1; echo '{"part":{"number":2,"text":"Two."}}'; exec sleep 1000"#;
        // Both waits are within what a part may take; together they are not.
        let change = |config: &mut DecodingConfig| config.part_timeout = Duration::from_secs(600);
        let mut process = started(dawdle, change).await;
        process.patience = Duration::from_secs(15);
        let told = told(process).await;
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(
            last_reason(&told).1.contains("part 3 of the document and all before took longer"),
            "{told:?}"
        );
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_reading_that_is_given_up_leaves_no_process() {
        let begin = r#"echo "$begin"; exec sleep 1000"#;
        let mut processes = Vec::new();
        for _ in 0..4 {
            let mut process = started(begin, |_| {}).await;
            process.next().await.unwrap();
            processes.push(process);
        }
        let ids: Vec<u32> = processes.iter().map(|process| process.process.id().unwrap()).collect();
        drop(processes);
        // Neither running nor waiting to be noticed.
        for id in ids {
            while std::path::Path::new(&format!("/proc/{id}")).exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_process_that_computes_without_end_is_ended_by_the_system() {
        let told = script(r#"echo "$begin"; while :; do :; done"#, |config| config.cpu_seconds_max = 1).await;
        let (kind, reason) = last_reason(&told);
        assert_eq!(kind, ProblemKind::TooLarge);
        assert!(reason.contains("more than 1 s of computing"), "{reason}");
    }

    #[tokio::test]
    async fn memory_is_limited() {
        // The shell says what it can allocate: its own limit, in KiB.
        let bounded = |config: &mut DecodingConfig| config.memory_bytes_max = 96 * 1024 * 1024;
        let limit = r#"echo "{\"failed\":{\"kind\":\"damaged\",\"reason\":\"$(ulimit -v) $(ulimit -Hv)\"}}""#;
        assert_eq!(last_reason(&script(limit, bounded).await).1, "98304 98304");
        // One that needs more than that does not get it.
        let eat = r#"x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"#;
        let (kind, reason) = last_reason(&script(&format!(r#"echo "$begin"; {eat}"#), bounded).await);
        assert_eq!(kind, ProblemKind::Damaged);
        assert!(reason.contains("crashes"), "{reason}");
    }

    #[tokio::test]
    async fn a_process_that_dies_or_talks_nonsense_fails_its_document_with_a_reason() {
        for (text, expected) in [
            ("echo \"$begin\"; echo \"$page\"; kill -SEGV $$", "part 2 of the document crashes"),
            ("echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$", "memory"),
            ("echo \"$begin\"; exit 0", "part 1 of the document crashes"),
            ("echo hello; exec sleep 1000", "confuse"),
            // A document may have taken over the program.
            ("echo \"$page\"; exec sleep 1000", "confuse"),
            ("echo \"$begin\"; while :; do echo \"$page\"; done", "confuse"),
            (
                "echo '{\"begin\":{\"kind\":\"pdf\",\"unit\":\"page\",\"count\":99999999}}'; exec sleep 1000",
                "confuse",
            ),
            ("exit 3", "the document crashes"),
        ] {
            let (_, reason) = last_reason(&script(text, |_| {}).await);
            assert!(reason.contains(expected), "{text}: {reason}");
        }
    }

    #[tokio::test]
    async fn a_process_that_is_killed_from_outside_is_tried_again() {
        let config = DecodingConfig {
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), "cat > /dev/null; kill -KILL $$".to_owned()],
            ..DecodingConfig::default()
        };
        let mut process = Process::start(&config, "", b"x").await.unwrap();
        assert!(matches!(process.next().await, Err(Failure::Again(_))));
    }

    #[tokio::test]
    async fn a_process_gets_no_environment() {
        let told = script(
            r#"echo "{\"failed\":{\"kind\":\"damaged\",\"reason\":\"home:$HOME cargo:$CARGO_PKG_NAME\"}}""#,
            |_| {},
        )
        .await;
        assert_eq!(last_reason(&told).1, "home: cargo:");
    }
}
