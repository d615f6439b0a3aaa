//! The socket in the data folder by which commands on the same machine reach the process that holds it. Who may write to the
//! folder may use it, and nobody else.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::backup::{self, Source, Summary};
use crate::exit::{Code, Told};

const FILE: &str = "control.sock";
/// The longest question or answer.
const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How long a question may take to arrive.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Question {
    /// Make a backup in this folder.
    Backup(PathBuf),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done(Summary),
    Failed { message: String, next: Option<String> },
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

/// Removes the socket of a process that ended.
pub(crate) fn remove(folder: &Path) {
    // Where it stays, nobody answers on it.
    let _ = std::fs::remove_file(folder.join(FILE));
}

/// Waits until the socket in a folder is there no more.
pub(crate) async fn gone(folder: impl Fn() -> PathBuf) {
    while folder().join(FILE).exists() {
        tokio::time::sleep(crate::folder::PULSE).await;
    }
}

/// Answers one question after the other.
pub(crate) async fn serve(listener: UnixListener, source: impl Fn() -> Source) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = answer(stream, source()).await {
                    tracing::debug!(%error, "a command on this machine got no answer");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "commands on this machine cannot be answered");
                tokio::time::sleep(QUESTION_TIMEOUT).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, source: Source) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut limited = (&mut stream).take(LINE_BYTES_MAX);
    tokio::time::timeout(QUESTION_TIMEOUT, limited.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(Question::Backup(dir)) => {
            let made = backup::make(Arc::new(source), &dir).await;
            match made {
                Ok(summary) => {
                    tracing::info!(dir = %dir.display(), bytes = summary.bytes, copied = summary.copied_bytes, "a backup was made");
                    Answer::Done(summary)
                }
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), error = format!("{error:#}"), "a backup could not be made");
                    let told = error.chain().find_map(|cause| cause.downcast_ref::<Told>());
                    Answer::Failed {
                        message: format!("{error:#}"),
                        next: told.and_then(|told| told.next.clone()),
                    }
                }
            }
        }
        Err(error) => Answer::Failed { message: format!("the question cannot be read: {error}"), next: None },
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    stream.get_mut().write_all(text.as_bytes()).await
}

/// Asks the process that holds a folder for a backup; `None` if no process listens there.
pub(crate) async fn ask_for_backup(folder: &Path, dir: &Path) -> anyhow::Result<Option<Summary>> {
    let Ok((_held, path)) = socket(folder) else { return Ok(None) };
    let Ok(stream) = UnixStream::connect(path).await else { return Ok(None) };
    let mut stream = BufReader::new(stream);
    let mut text = serde_json::to_string(&Question::Backup(dir.to_owned()))?;
    text.push('\n');
    stream.get_mut().write_all(text.as_bytes()).await?;
    let mut line = String::new();
    (&mut stream).take(LINE_BYTES_MAX).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(Told::new(
            Code::Failed,
            "the process that holds the data folder ended before the backup was made",
        )
        .next("start it again, then make the backup again; an earlier one in the same place is still whole")
        .into());
    }
    match serde_json::from_str(&line)? {
        Answer::Done(summary) => Ok(Some(summary)),
        Answer::Failed { message, next } => {
            let mut told = Told::new(Code::Failed, message);
            told.next = next;
            Err(told.into())
        }
    }
}
