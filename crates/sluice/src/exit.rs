//! Exit codes, and how a failure is told: what happened, why, and what to do next.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

/// How the command ended; others script against these numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Ok = 0,
    Failed = 1,
    Differs = 2,
    NotFound = 3,
    Denied = 4,
    TimedOut = 5,
    /// As far as can be seen it is so, and not all can be seen.
    Unseen = 6,
    Usage = 64,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// A failure told to a person, with its exit code and the next thing to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) next: Option<String>,
    /// The stable type of a failure that a service told; empty for any other.
    pub(crate) kind: String,
}

impl Told {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), next: None, kind: String::new() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    #[must_use]
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Told {}

/// Prints a failure with its causes and returns its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Where nobody can be told, as after a terminal was closed, the exit code says it.
    let mut to = std::io::stderr().lock();
    let _ = writeln!(to, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(to, "  because: {cause}");
    }
    let told = error.chain().find_map(|cause| cause.downcast_ref::<Told>());
    if let Some(next) = told.and_then(|told| told.next.as_ref()) {
        let _ = writeln!(to, "  try: {next}");
    }
    told.map_or(Code::Failed, |told| told.code).into()
}
