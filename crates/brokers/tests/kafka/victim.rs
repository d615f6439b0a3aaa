//! This program as a reader that somebody kills.

use std::process::{ExitCode, Stdio};

use sluice_brokers::kafka::{Kafka, Options};
use sluice_bus::{Broker as _, Subscription, TopicSpec};
use sluice_schema::Topic;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use crate::harness::*;

const ROLE: &str = "--victim";
/// Instead of a topic: it asks, and does not read.
const ASKER: &str = "asker";
/// Before a topic: it follows that one, and says what it hears.
const FOLLOWS: &str = "follows ";

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
        let broker = Kafka::connect(url, Options::default()).await.unwrap();
        if topic == ASKER {
            let own = broker.subscribe(&Subscription::Own { topics: vec![] }).await.unwrap();
            println!("{}", own.address().unwrap());
            let _ = tokio::io::stdin().read(&mut [0; 1]).await;
            return;
        }
        if let Some(topic) = topic.strip_prefix(FOLLOWS) {
            let topics = vec![topic.parse().unwrap()];
            let own = broker.subscribe(&Subscription::Own { topics }).await.unwrap();
            println!("following");
            loop {
                let heard = own.next().await.unwrap();
                println!("{}", body(&heard));
            }
        }
        let inbox = read(&broker, &topic.parse().unwrap(), 1).await.unwrap();
        let taken = next(&*inbox).await.unwrap();
        println!("{}", taken.attempt);
        let _ = tokio::io::stdin().read(&mut [0; 1]).await;
    });
    ExitCode::FAILURE
}

/// Has another process take a message of `reader`, and kills it as soon as it has said for which time it has that.
pub(crate) async fn kill_reader(url: &str, of: &TopicSpec) -> Result<u32, String> {
    kill(url, of.topic.as_str()).await?.parse().map_err(text)
}

/// Has another process make an inbox, and kills it as soon as it has said its address.
pub(crate) async fn kill_asker(url: &str) -> Result<String, String> {
    kill(url, ASKER).await
}

async fn kill(url: &str, what: &str) -> Result<String, String> {
    let mut victim = Victim::start(url, what)?;
    let line = victim.line().await;
    victim.process.kill().await.map_err(text)?;
    line
}

/// Another process.
struct Victim {
    process: Child,
    told: Lines<BufReader<ChildStdout>>,
}

impl Victim {
    fn start(url: &str, what: &str) -> Result<Self, String> {
        let mut command = tokio::process::Command::new(std::env::current_exe().map_err(text)?);
        command.args([ROLE, url, what]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(text)?;
        let told = process.stdout.take().ok_or("it has no output")?;
        Ok(Self { process, told: BufReader::new(told).lines() })
    }

    async fn line(&mut self) -> Result<String, String> {
        match tokio::time::timeout(VALUE_TIMEOUT, self.told.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            other => Err(format!("another process said nothing: {other:?}")),
        }
    }
}

/// Another process that follows a topic.
pub(crate) struct Follower(Victim);

impl Follower {
    pub(crate) async fn start(url: &str, topic: &Topic) -> Result<Self, String> {
        let mut victim = Victim::start(url, &format!("{FOLLOWS}{topic}"))?;
        check(victim.line().await? == "following", "it does not follow").map(|()| Self(victim))
    }

    pub(crate) async fn heard(&mut self) -> Result<String, String> {
        self.0.line().await
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) -> Outcome {
        let process = self.0.process.id().ok_or("it has ended")?.to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &process]).status().map_err(text)?;
        check(sent.success(), sent)
    }
}
