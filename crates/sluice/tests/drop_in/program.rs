//! Runs programs to their end, or to the end of patience.
#![allow(dead_code, reason = "not every test uses every part")]

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What a program said, and how it ended.
pub(crate) struct Said {
    /// `None` if a signal ended it, or it had to be ended.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    called: String,
}

/// Runs a program; one that takes longer than `limit` is ended, and its text tells so.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(command: &mut Command, limit: Duration) -> std::io::Result<Said> {
    let called = format!("{:?} {:?}", command.get_program(), command.get_args().collect::<Vec<_>>());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + limit;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let left = || until.saturating_duration_since(Instant::now());
    let read = |text: &mpsc::Receiver<String>| text.recv_timeout(left()).ok();
    let (mut out, mut err) = (read(&stdout), read(&stderr));
    let overdue = out.is_none() || err.is_none();
    if overdue {
        child.kill()?;
        let grace = Duration::from_secs(5);
        out = out.or_else(|| stdout.recv_timeout(grace).ok());
        err = err.or_else(|| stderr.recv_timeout(grace).ok());
    }
    let code = child.wait()?.code();
    let mut said = Said { code, stdout: out.unwrap_or_default(), stderr: err.unwrap_or_default(), called };
    if overdue {
        said.code = None;
        said.stderr.push_str(&format!("\n(ended after {limit:?})"));
    }
    Ok(said)
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (text, read) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before a broken pipe is as good as it gets.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = text.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    read
}

impl Said {
    pub(crate) fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// It ended well and said all of this.
    #[track_caller]
    pub(crate) fn shows(&self, texts: &[&str]) -> &Self {
        self.ended(0);
        for text in texts {
            assert!(self.text().contains(text), "wanted '{text}' from {}:\n{}", self.called, self.text());
        }
        self
    }

    /// It said none of this.
    #[track_caller]
    pub(crate) fn lacks(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(!self.text().contains(text), "'{text}' from {}:\n{}", self.called, self.text());
        }
        self
    }

    #[track_caller]
    pub(crate) fn ended(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{}:\n{}", self.called, self.text());
        self
    }

    /// The end of what it said.
    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<_> = text.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}
