//! Clients of others beside ours, as TrustGraph 2.11 uses the broker: where the address says that they take part.

use std::process::Stdio;
use std::time::Instant;

use futures_util::future::try_join_all;
use sluice_brokers::pulsar::{Options, Pulsar};
use sluice_brokers::testing::PulsarServer;
use sluice_bus::{Address, Broker, BrokerAdmin, Message, Subscription, TopicSpec};
use sluice_schema::{Class, Topic, system};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Server;
use crate::harness::*;

cases! {
    "beside":
    the_last_stranger_that_leaves_takes_no_subscription_along,
    a_keeper_and_a_mirror_are_there_again_after_a_restart_and_gone_with_their_topic,
    what_strangers_send_and_read_elsewhere_crosses_once,
    every_subscription_of_many_has_a_keeper,
}

/// Does what each line says, and tells how it went.
const STRANGER: &str = r#"
import sys, pulsar
client = pulsar.Client(sys.argv[1], operation_timeout_seconds=20, logger=pulsar.FileLogger(pulsar.LoggerLevel.Warn, sys.argv[2]))
shared, alone = pulsar.ConsumerType.Shared, pulsar.ConsumerType.Exclusive
consumers, producers = {}, {}
def do(what, place, text):
    if what == "share": consumers[place] = client.subscribe(place, text, consumer_type=shared)
    elif what == "follow": consumers[place] = client.subscribe(place, text, consumer_type=alone)
    elif what == "leave": consumers.pop(place).unsubscribe()
    elif what == "next":
        message = consumers[place].receive(timeout_millis=int(text))
        consumers[place].acknowledge(message)
        return message.data().decode()
    elif what == "send":
        if place not in producers: producers[place] = client.create_producer(place)
        producers[place].send(text.encode(), properties={"id": text})
    return "done"
for line in sys.stdin:
    try: print(do(*line.rstrip("\n").split(" ", 2)), flush=True)
    except Exception as error: print("failed:", str(error).replace("\n", " "), flush=True)
"#;

struct Stranger {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _log: tempfile::NamedTempFile,
}

impl Stranger {
    async fn start(url: &str) -> Result<Self, String> {
        let folder = tokio::task::spawn_blocking(PulsarServer::python_client).await.map_err(text)??;
        let log = tempfile::NamedTempFile::new().map_err(text)?;
        let mut command = Command::new("python3");
        command.args(["-c", STRANGER, url.split('?').next().unwrap_or_default()]).arg(log.path());
        command.env("PYTHONPATH", folder).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(text)?;
        let input = process.stdin.take().ok_or("it has no input")?;
        let output = BufReader::new(process.stdout.take().ok_or("it has no output")?).lines();
        Ok(Self { _process: process, input, output, _log: log })
    }

    async fn tells(&mut self, what: &str, place: &str, more: &str) -> Result<String, String> {
        self.input.write_all(format!("{what} {place} {more}\n").as_bytes()).await.map_err(text)?;
        let line = timeout(VALUE_TIMEOUT, self.output.next_line()).await;
        line.map_err(|_| format!("no word after {what} {place}"))?.map_err(text)?.ok_or("it ended".to_owned())
    }

    async fn does(&mut self, what: &str, place: &str, more: &str) -> Outcome {
        let told = self.tells(what, place, more).await?;
        check(told == "done", format!("{what} {place} {more}: {told}"))
    }
}

/// A broker of its own: others in one cluster with it would close its namespaces again.
async fn world() -> Result<(PulsarServer, Pulsar, Stranger), String> {
    let server = PulsarServer::start().await?;
    let broker = connect(&server).await?;
    let stranger = Stranger::start(&server.url()).await?;
    Ok((server, broker, stranger))
}

async fn connect(server: &PulsarServer) -> Result<Pulsar, String> {
    Pulsar::connect(&format!("{}&beside=2.11", server.url()), Options::default()).await.map_err(text)
}

/// The first subscription: whether it is there, messages, readers, whether it has a keeper.
async fn seen(broker: &Pulsar, spec: &TopicSpec) -> Result<(bool, u64, Option<u64>, Option<bool>), String> {
    let seen = broker.observe(std::slice::from_ref(spec)).await.map_err(text)?;
    let one = &seen[0].subscriptions[0];
    Ok((one.exists, one.ready + one.unsettled.unwrap_or(0), one.consumers, one.is_bound))
}

async fn the_last_stranger_that_leaves_takes_no_subscription_along(_server: Server) -> Outcome {
    let (_server, broker, mut stranger) = world().await?;
    let flow = TopicSpec::with(topic(Class::Flow, "leaves"), "reader");
    let request = TopicSpec::with(topic(Class::Request, "leaves"), "reader");
    for spec in [&flow, &request] {
        broker.ensure(spec).await.map_err(text)?;
        send(&broker, &spec.topic, "kept").await.map_err(text)?;
        check(seen(&broker, spec).await? == (true, 1, Some(0), Some(true)), seen(&broker, spec).await?)?;
        let place = format!("persistent://tg/{}/leaves", spec.topic.class());
        check(
            spec == &flow || (broker.naming().name)(&spec.topic) == place,
            "an entry says where requests are",
        )?;
        stranger.does("share", &place, "reader").await?;
        check(seen(&broker, spec).await?.2 == Some(1), "a stranger is counted, a keeper is not")?;
        let told = stranger.tells("leave", &place, "").await?;
        check(told.starts_with("failed:"), format!("it removed the subscription: {told}"))?;
        let (exists, messages, ..) = seen(&broker, spec).await?;
        check((exists, messages) == (true, 1), (exists, messages))?;
    }
    Ok(())
}

async fn a_keeper_and_a_mirror_are_there_again_after_a_restart_and_gone_with_their_topic(
    _server: Server,
) -> Outcome {
    let (mut server, broker, mut stranger) = world().await?;
    let flow = TopicSpec::with(topic(Class::Flow, "stays"), "reader");
    let answers = TopicSpec::bare(topic(Class::Response, "stays"));
    for spec in [&flow, &answers] {
        broker.ensure(spec).await.map_err(text)?;
    }
    server.stop(false).await;
    server.run().await?;
    // Another process sees only what is at the broker.
    let next = connect(&server).await?;
    let is_kept = async || (seen(&next, &flow).await.ok()?.3 == Some(true)).then_some(());
    until("a keeper again", is_kept).await?;
    let mirror = "non-persistent://tg/response/stays";
    let mut stranger_again = Stranger::start(&server.url()).await?;
    let begun = Instant::now();
    while stranger_again.tells("follow", mirror, "one").await? != "done" {
        check(begun.elapsed() < VALUE_TIMEOUT, "the mirror is not made again")?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // The next owner finds both, and a subscription that nobody keeps is shown as one to be made again.
    broker.shutdown().await;
    let is_free = async || (seen(&next, &flow).await.ok()?.3 == Some(false)).then_some(());
    until("the keeper to leave with its owner", is_free).await?;
    let acting = next.hold("acting").await.map_err(text)?;
    acting.observe(&[flow.clone(), answers.clone()]).await.map_err(text)?;
    check(seen(&next, &flow).await?.3 == Some(true), "who acts next keeps it once it has looked")?;
    next.publish(&Address::Topic(answers.topic.clone()), Message::new("crosses")).await.map_err(text)?;
    let told = stranger_again.tells("next", mirror, "20000").await?;
    check(told == "crosses", format!("and mirrors it: {told}"))?;
    for spec in [&flow, &answers] {
        acting.remove(spec).await.map_err(text)?;
    }
    let told = stranger.tells("follow", mirror, "two").await?;
    check(told.starts_with("failed:"), format!("the mirror is still there: {told}"))
}

/// `SLUICE_KEEPERS=2000` makes more, and tells what they take.
async fn every_subscription_of_many_has_a_keeper(_server: Server) -> Outcome {
    let count = std::env::var("SLUICE_KEEPERS").map_or(60, |text| text.parse().unwrap());
    let (_server, broker, _stranger) = world().await?;
    let spec = |number| TopicSpec::with(topic(Class::Flow, &format!("many-{number}")), "reader");
    let specs: Vec<TopicSpec> = (0..count).map(spec).collect();
    let (begun, before) = (Instant::now(), resident_kib()?);
    for some in specs.chunks(16) {
        let calls: Vec<_> = some.iter().map(|spec| broker.ensure(spec)).collect();
        try_join_all(calls).await.map_err(text)?;
    }
    let (made_in, kept) = (begun.elapsed(), resident_kib()?.saturating_sub(before));
    let seen = broker.observe(&specs).await.map_err(text)?;
    let unkept = seen.iter().filter(|seen| seen.subscriptions[0].is_bound != Some(true)).count();
    check(unkept == 0, format!("{unkept} of {count} have none"))?;
    println!("{count} subscriptions with keepers: made in {made_in:.1?}, {kept} KiB more here");
    Ok(())
}

fn resident_kib() -> Result<u64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(text)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().map_err(text)
}

async fn what_strangers_send_and_read_elsewhere_crosses_once(_server: Server) -> Outcome {
    let (_server, broker, mut stranger) = world().await?;
    let (request, response) = (system::config_request(None), system::config_response(None));
    let asked = TopicSpec::with(request.clone(), "reader");
    broker.ensure(&asked).await.map_err(text)?;
    broker.ensure(&TopicSpec::bare(response.clone())).await.map_err(text)?;
    let elsewhere = |topic: &Topic| format!("non-persistent://tg/{}/{}", topic.class(), topic.name());
    stranger.does("follow", &elsewhere(&response), "theirs").await?;
    let service = read(&broker, &request, 4).await.map_err(text)?;
    let ours = broker.subscribe(&Subscription::Own { topics: vec![response.clone()] }).await.map_err(text)?;
    // A question of theirs, and its answer, which those of ours who follow the topic get as well.
    stranger.does("send", &elsewhere(&request), "question").await?;
    let question = next(&*service).await?;
    check(body(&question) == "question" && question.message.get("id") == Some("question"), &question)?;
    question.ack();
    broker.publish(&Address::Topic(response.clone()), Message::new("answer")).await.map_err(text)?;
    let told = stranger.tells("next", &elsewhere(&response), "20000").await?;
    check(told == "answer", told)?;
    check(body(&next(&*ours).await?) == "answer", "ours follow too")?;
    // An answer of theirs.
    stranger.does("send", &elsewhere(&response), "theirs").await?;
    let got = next(&*ours).await?;
    check(body(&got) == "theirs", &got)?;
    let told = stranger.tells("next", &elsewhere(&response), "20000").await?;
    check(told == "theirs", "who sent it follows its own topic")?;
    // Nothing came back over the other side: what is sent next comes next.
    for last in ["last", "very last"] {
        broker.publish(&Address::Topic(response.clone()), Message::new(last)).await.map_err(text)?;
        check(body(&next(&*ours).await?) == last, "it crossed twice")?;
        let told = stranger.tells("next", &elsewhere(&response), "20000").await?;
        check(told == last, format!("it crossed twice: {told}"))?;
    }
    let waiting = seen(&broker, &asked).await?;
    check(waiting.1 == 0, waiting)
}
