//! The socket in the data folder by which commands on the same machine reach the process that holds it. Who may write to the
//! folder may use it, and nobody else.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::apart;
use crate::backup::{self, How, Source, Summary};
use crate::exit::{Code, Told};

const FILE: &str = "control.sock";
/// The longest question or answer.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How long a question may take to arrive, and a part of an answer to be taken.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands that are answered at once.
const ASKERS_MAX: usize = 16;
/// How often whoever waits is told that a backup goes on.
const WORD_EVERY: Duration = Duration::from_millis(500);
/// A backup that has not gone on for so long is reported once.
const STILL: Duration = Duration::from_secs(60);
/// What to do about a backup that is being made already.
const NEXT_OF_RUNNING: &str = "try again when it is done; where it does not go on, see whether the disk that it is made on hangs, \
    and start the process again if that is gone for good";
/// What is said of a question of another version.
const UNREADABLE: &str = "the question cannot be read";

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Question {
    /// Make a backup in this folder. Earlier versions ask so, and wait for one word.
    Backup(PathBuf),
    /// The same, and say that it goes on.
    Make { dir: PathBuf, older: bool },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// What was asked for is being done, and has gone on.
    Working,
    Done(Summary),
    Failed {
        message: String,
        next: Option<String>,
    },
}

/// The path of the socket of a folder, short enough for any folder, and what keeps it valid.
fn socket(folder: &Path) -> io::Result<(File, PathBuf)> {
    let held = File::open(folder)?;
    // A socket's path has room for some hundred bytes.
    let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())).join(FILE);
    Ok((held, path))
}

/// Listens in a folder that this process holds.
pub(crate) fn listen(folder: &Path) -> io::Result<UnixListener> {
    remove(folder);
    let (_held, path) = socket(folder)?;
    UnixListener::bind(path)
}

/// Where the socket of a folder is.
pub(crate) fn place(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Removes the socket of a process that ended.
pub(crate) fn remove(folder: &Path) {
    // Where it stays, nobody answers on it.
    let _ = std::fs::remove_file(folder.join(FILE));
}

/// Waits until the socket in a folder is there no more.
pub(crate) async fn gone(folder: impl Fn() -> PathBuf) {
    while place(&folder()).exists() {
        tokio::time::sleep(crate::folder::PULSE).await;
    }
}

/// Where a backup is being made, if one is.
#[derive(Clone, Default)]
pub(crate) struct Running(Arc<Mutex<Option<PathBuf>>>);

/// Ends with the backup.
struct Run(Running);

impl Running {
    /// Begins one; if there is one, says where.
    fn begin(&self, dir: &Path) -> Result<Run, PathBuf> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*running {
            Some(other) => Err(other.clone()),
            None => {
                *running = Some(dir.to_owned());
                Ok(Run(self.clone()))
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Why a folder is in use by a process that no command reaches.
pub(crate) fn unreached(folder: &Path, error: anyhow::Error) -> anyhow::Error {
    let is_locked = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(sluice_store::Error::Locked { .. }))
    };
    if !error.chain().any(is_locked) {
        return error;
    }
    let socket = place(folder);
    let (is, next) = match std::fs::symlink_metadata(&socket) {
        Ok(it) if it.file_type().is_socket() => {
            ("leads to nobody", "run this as the user of that process, or stop it first")
        }
        Ok(_) => (
            "is no socket",
            "move away what is there, and the process makes its socket within seconds; or stop it first",
        ),
        Err(_) => ("is not there", "wait until the process serves, which makes its socket; or stop it first"),
    };
    Told::new(Code::Failed, format!("{error:#}: it is not reached, since '{}' {is}", socket.display()))
        .next(next)
        .into()
}

/// Answers commands; one backup is made at a time.
pub(crate) async fn serve(listener: UnixListener, running: &Running, source: impl Fn() -> Source) {
    let mut answers = FuturesUnordered::new();
    loop {
        // Both may be dropped at any time: what was begun stays in `answers`.
        tokio::select! {
            accepted = listener.accept(), if answers.len() < ASKERS_MAX => match accepted {
                Ok((stream, _)) => answers.push(answer(stream, source(), running)),
                Err(error) => {
                    tracing::warn!(%error, "commands on this machine cannot be answered");
                    tokio::time::sleep(WORD_EVERY).await;
                }
            },
            Some(answered) = answers.next(), if !answers.is_empty() => {
                if let Err(error) = answered {
                    tracing::debug!(%error, "a command on this machine got no answer");
                }
            }
        }
    }
}

async fn answer(stream: UnixStream, source: Source, running: &Running) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut limited = (&mut stream).take(LINE_BYTES_MAX);
    tokio::time::timeout(QUESTION_TIMEOUT, limited.read_line(&mut line)).await??;
    let stream = stream.get_mut();
    let answer = match serde_json::from_str(&line) {
        Ok(Question::Backup(dir)) => make(None, source, &dir, How::default(), running).await,
        Ok(Question::Make { dir, older }) => {
            let how = How { older, ..How::default() };
            // Whoever has left by now wants none.
            say(&mut *stream, &Answer::Working).await?;
            make(Some(&mut *stream), source, &dir, how, running).await
        }
        Err(error) => Answer::Failed { message: format!("{UNREADABLE}: {error}"), next: None },
    };
    say(stream, &answer).await
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_string(answer)?;
    text.push('\n');
    tokio::time::timeout(QUESTION_TIMEOUT, stream.write_all(text.as_bytes())).await?
}

/// Makes a backup, unless one is being made; whoever waits is told that it goes on, and may leave.
async fn make(
    mut asker: Option<&mut UnixStream>,
    source: Source,
    dir: &Path,
    how: How,
    running: &Running,
) -> Answer {
    let run = match running.begin(dir) {
        Ok(run) => run,
        Err(other) => {
            let message =
                format!("no backup was made: this process is making one in '{}' already", other.display());
            return Answer::Failed { message, next: Some(NEXT_OF_RUNNING.to_owned()) };
        }
    };
    let (to, how_made) = (dir.to_owned(), how.clone());
    let mut making = std::pin::pin!(apart::run(move || async move {
        // Where a disk holds the thread, there is one such thread at most.
        let _run = run;
        backup::make(Arc::new(source), &to, &how_made).await
    }));
    let mut words = tokio::time::interval(WORD_EVERY);
    let (mut told, mut goes_on_at, mut is_reported) = (None, Instant::now(), false);
    let made = loop {
        tokio::select! {
            made = &mut making => break made,
            _ = words.tick() => {
                let come_to = Some(how.progress.come_to());
                if told != come_to {
                    (told, goes_on_at) = (come_to, Instant::now());
                    if let Some(stream) = asker.as_deref_mut()
                        && say(stream, &Answer::Working).await.is_err()
                    {
                        asker = None;
                    }
                } else if goes_on_at.elapsed() > STILL && !std::mem::replace(&mut is_reported, true) {
                    tracing::warn!(dir = %dir.display(), "a backup does not go on: see whether the disk that it is made on hangs; no other one is made meanwhile");
                }
            }
        }
    };
    match made.and_then(|made| made) {
        Ok(summary) => {
            tracing::info!(dir = %dir.display(), bytes = summary.bytes, copied = summary.copied_bytes, "a backup was made");
            Answer::Done(summary)
        }
        Err(error) => {
            tracing::warn!(dir = %dir.display(), error = format!("{error:#}"), "a backup could not be made");
            let told = error.chain().find_map(|cause| cause.downcast_ref::<Told>());
            Answer::Failed { message: format!("{error:#}"), next: told.and_then(|told| told.next.clone()) }
        }
    }
}

/// Asks the process that holds a folder for a backup; `None` if no process listens there. It is waited for as long as it says
/// in time that the backup goes on.
pub(crate) async fn ask_for_backup(
    folder: &Path,
    dir: &Path,
    older: bool,
    timeout: Duration,
) -> anyhow::Result<Option<Summary>> {
    let Ok((_held, path)) = socket(folder) else { return Ok(None) };
    let late = |what: &str, next: &str| {
        let what =
            format!("the process that works in '{}' {what} for {} s", folder.display(), timeout.as_secs());
        Told::new(Code::TimedOut, what).next(next)
    };
    let silent = || {
        late(
            "has not answered",
            "see whether it is stopped or its disk hangs; wait longer with --timeout SECONDS",
        )
    };
    let Ok(connected) = tokio::time::timeout(timeout, UnixStream::connect(path)).await else {
        return Err(silent().into());
    };
    let Ok(stream) = connected else { return Ok(None) };
    let mut stream = BufReader::new(stream);
    if dir.to_str().is_none() {
        let what = format!(
            "the process that works in '{}' is named the folder of a backup as text",
            folder.display()
        );
        return Err(Told::usage(format!("{what}, and '{}' is no UTF-8", dir.display()))
            .next("name another folder, or a link to this one")
            .into());
    }
    let mut text = serde_json::to_string(&Question::Make { dir: dir.to_owned(), older })?;
    text.push('\n');
    stream.get_mut().write_all(text.as_bytes()).await?;
    let mut has_begun = false;
    loop {
        let mut line = String::new();
        let mut limited = (&mut stream).take(LINE_BYTES_MAX);
        let Ok(read) = tokio::time::timeout(timeout, limited.read_line(&mut line)).await else {
            let stuck = late(
                "has not gone on with the backup",
                "see whether the disk that it is made on hangs; the backup may still come to its end, which the log of the process \
                 says; wait longer with --timeout SECONDS",
            );
            return Err(if has_begun { stuck } else { silent() }.into());
        };
        read?;
        if line.is_empty() {
            return Err(Told::new(
                Code::Failed,
                "the process that holds the data folder ended before the backup was made",
            )
            .next(
                "start it again, then make the backup again; an earlier one in the same place is still whole",
            )
            .into());
        }
        match serde_json::from_str(&line)? {
            Answer::Working => has_begun = true,
            Answer::Done(summary) => return Ok(Some(summary)),
            Answer::Failed { message, next } => {
                let is_of_another_version = message.starts_with(UNREADABLE);
                let mut told = Told::new(Code::Failed, message);
                let by_it = "make the backup with the `sluice` of the version that works in the folder";
                told.next = next.or_else(|| is_of_another_version.then(|| by_it.to_owned()));
                return Err(told.into());
            }
        }
    }
}
