//! This program as a reader that somebody kills.

use std::process::{ExitCode, Stdio};

use sluice_brokers::pulsar::{Options, Pulsar};
use sluice_bus::TopicSpec;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::harness::*;

const ROLE: &str = "--victim";

/// What this program is where its arguments say so.
pub(crate) fn role() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [role, url, topic] = &args[..] else { return None };
    (role == ROLE).then(|| be_killed(url, topic))
}

/// Reads one message and keeps it until it is killed, or whoever started it is gone.
fn be_killed(url: &str, topic: &str) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let broker = Pulsar::connect(url, Options::default()).await.unwrap();
        let inbox = read(&broker, &topic.parse().unwrap(), 1).await.unwrap();
        let taken = next(&*inbox).await.unwrap();
        println!("{}", taken.attempt);
        let _ = tokio::io::stdin().read(&mut [0; 1]).await;
    });
    ExitCode::FAILURE
}

/// Has another process take a message of `reader`, and kills it as soon as it has said for which time it has that.
pub(crate) async fn kill_reader(url: &str, of: &TopicSpec) -> Result<u32, String> {
    let mut command = tokio::process::Command::new(std::env::current_exe().map_err(text)?);
    command.args([ROLE, url, of.topic.as_str()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut victim = command.spawn().map_err(text)?;
    let told = victim.stdout.take().ok_or("it has no output")?;
    let line = tokio::time::timeout(VALUE_TIMEOUT, BufReader::new(told).lines().next_line()).await;
    victim.kill().await.map_err(text)?;
    let Ok(Ok(Some(attempt))) = &line else { return Err(format!("another process took nothing: {line:?}")) };
    attempt.parse().map_err(text)
}
