//! Work on files in folders that somebody names. Their disk may stand still, as that of a file server that is gone, and whoever
//! calls it waits for as long as it does. No thread of the async runtime may be that one: the whole process would wait with it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::exit::{Code, Told};

/// Does work on a thread of its own. Where nobody waits for it any more, it ends at the next point at which it would wait; a
/// thread that a disk holds is left behind, and keeps no process from ending.
pub(crate) async fn run<F>(work: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<F::Output>
where
    F: Future<Output: Send + 'static>,
{
    let left = CancellationToken::new();
    let _leaves = left.clone().drop_guard();
    let runtime = Handle::current();
    let working = tokio::task::spawn_blocking(move || runtime.block_on(left.run_until_cancelled(work())));
    working.await.ok().flatten().context("the work was cut off")
}

/// What a look at a folder comes to, if its disk answers in time.
pub(crate) async fn look<T: Send + 'static>(
    folder: &Path,
    within: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    match tokio::time::timeout(within, tokio::task::spawn_blocking(look)).await {
        Ok(looked) => looked.context("the look was cut off"),
        Err(_) => {
            let (shown, seconds) = (folder.display(), within.as_secs());
            Err(Told::new(Code::TimedOut, format!("the disk of '{shown}' has not answered for {seconds} s"))
                .next("see whether the disk or the file server hangs; wait longer with --timeout SECONDS")
                .into())
        }
    }
}

/// Insists that the disks of these folders answer in time, whether the folders are there or not.
pub(crate) async fn insist_answering(folders: &[&Path], within: Duration) -> anyhow::Result<()> {
    for folder in folders {
        let looked_at = (*folder).to_owned();
        // What is wrong with it is told by whoever works in it.
        look(folder, within, move || drop(fs::read_dir(looked_at).map(|mut entries| entries.next()))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_a_disk_holds_holds_nobody_else_and_ends_once_nobody_waits_for_it() {
        let (disk, stands_still) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let work = run(move || async move {
            let _ended = ended;
            let _ = stands_still.recv();
            std::future::pending::<()>().await;
        });
        let waited = tokio::time::timeout(Duration::from_millis(50), work).await;
        assert!(waited.is_err(), "the runtime goes on meanwhile");
        drop(disk);
        let waiting = tokio::task::spawn_blocking(move || end.recv_timeout(Duration::from_secs(60)));
        let told: Result<(), _> = waiting.await.unwrap();
        assert_eq!(told, Err(mpsc::RecvTimeoutError::Disconnected), "it is over");
        assert_eq!(run(async || 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_in_time_is_named() {
        let (disk, stands_still) = mpsc::channel::<()>();
        let looked = look(Path::new("/mnt/b"), Duration::from_millis(50), move || {
            let _ = stands_still.recv();
        });
        let told = looked.await.unwrap_err().downcast::<Told>().unwrap();
        assert!(told.code == Code::TimedOut && told.message.contains("'/mnt/b'"), "{told:?}");
        drop(disk);
    }
}
