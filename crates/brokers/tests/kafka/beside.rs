//! Beside processes of TrustGraph 2.11, as their own library uses the broker: where the address says that they take part.

use std::process::Stdio;
use std::time::Duration;

use sluice_brokers::kafka::{Kafka, Options};
use sluice_brokers::testing::KafkaServer;
use sluice_bus::{
    Address, Broker, BrokerAdmin, Error, Message, PoisonBound, Subscription, TopicSpec, property,
};
use sluice_schema::{Class, Topic};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Server;
use crate::harness::*;
use crate::victim::kill_reader;

cases! {
    "beside":
    strangers_and_ours_read_the_same_subscription_in_turns,
    what_was_published_before_a_stranger_started_is_not_lost,
    a_message_that_kills_its_readers_is_counted_beside_others_too,
    a_reader_that_takes_over_gets_nothing_that_was_settled_behind_what_was_not,
    another_reader_waits_for_what_is_in_hand_before_it_takes_over,
    a_late_request_is_dropped_beside_others_too,
    topics_that_would_have_one_name_at_the_broker_are_refused,
    a_topic_of_the_other_shape_is_refused_by_name,
    a_group_that_nobody_reads_outlives_what_the_broker_keeps,
    a_topic_made_again_under_its_name_begins_anew,
}

/// Does what each line says, and tells how it went.
const STRANGER: &str = r#"
import asyncio, sys, uuid
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
consumers, producers = {}, {}
async def consume(server, place, group, reset):
    consumer = AIOKafkaConsumer(place, bootstrap_servers=server, group_id=group, auto_offset_reset=reset,
        enable_auto_commit=False, session_timeout_ms=6000, heartbeat_interval_ms=1000)
    await consumer.start()
    return consumer
async def do(server, what, place, text):
    if what == "share": consumers[place] = await consume(server, place, text, "latest")
    elif what == "follow": consumers[place] = await consume(server, place, text + "-" + str(uuid.uuid4()), "earliest")
    elif what == "leave": await consumers.pop(place).stop()
    elif what == "next":
        record = await asyncio.wait_for(consumers[place].getone(), int(text))
        await consumers[place].commit()
        return record.value.decode() + " " + ",".join(key + "=" + value.decode() for key, value in record.headers or [])
    elif what == "send":
        if place not in producers:
            producers[place] = AIOKafkaProducer(bootstrap_servers=server, acks="all")
            await producers[place].start()
        await producers[place].send_and_wait(place, value=text.encode(), headers=[("id", text.encode())])
    return "done"
async def main():
    while line := await asyncio.to_thread(sys.stdin.readline):
        try: print(await do(sys.argv[1], *line.rstrip("\n").split(" ", 2)), flush=True)
        except Exception as error: print("failed:", repr(error).replace("\n", " "), flush=True)
asyncio.run(main())
"#;

struct Stranger {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Stranger {
    async fn start(server: &Server) -> Result<Self, String> {
        let folder = tokio::task::spawn_blocking(KafkaServer::python_client).await.map_err(text)??;
        let at = server.lock().await.url().replace("kafka://", "");
        let mut command = Command::new("python3");
        command.args(["-c", STRANGER, &at]).env("PYTHONPATH", folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().map_err(text)?;
        let input = process.stdin.take().ok_or("it has no input")?;
        let output = BufReader::new(process.stdout.take().ok_or("it has no output")?).lines();
        Ok(Self { _process: process, input, output })
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

async fn url(server: &Server) -> String {
    format!("{}?beside=2.11", server.lock().await.url())
}

async fn connect(server: &Server) -> Result<Kafka, String> {
    Kafka::connect(&url(server).await, Options::default()).await.map_err(text)
}

/// A name that no other case has.
fn fresh(class: Class, name: &str) -> Topic {
    topic(class, &format!("{name}:{}", uuid::Uuid::new_v4().simple()))
}

/// A topic with a subscription as their processors have it.
async fn world(server: &Server, name: &str) -> Result<(Kafka, TopicSpec), String> {
    let broker = connect(server).await?;
    let topic = fresh(Class::Flow, name);
    let spec = TopicSpec::with(topic.clone(), format!("{}--default--main--input", place(&topic)));
    broker.ensure(&spec).await.map_err(text)?;
    Ok((broker, spec))
}

/// What they call a topic.
fn place(topic: &Topic) -> String {
    format!("tg.{}.{}", topic.class(), topic.name().replace(':', "."))
}

async fn reader(
    broker: &Kafka,
    spec: &TopicSpec,
    prefetch: u32,
) -> Result<Box<dyn sluice_bus::Inbox>, String> {
    let name = spec.subscriptions[0].clone();
    let to = Subscription::Shared { topic: spec.topic.clone(), name, prefetch };
    broker.subscribe(&to).await.map_err(text)
}

async fn left(broker: &Kafka, spec: &TopicSpec) -> Option<u64> {
    let seen = broker.observe(std::slice::from_ref(spec)).await.ok()?;
    Some(seen.first()?.subscriptions.first()?.ready)
}

async fn strangers_and_ours_read_the_same_subscription_in_turns(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "turns").await?;
    let mut stranger = Stranger::start(&server).await?;
    let name = spec.subscriptions[0].clone();
    stranger.does("share", &place(&spec.topic), &name).await?;
    let message = Message::new("ours").with(property::ID, "one");
    broker.publish(&Address::Topic(spec.topic.clone()), message).await.map_err(text)?;
    let told = stranger.tells("next", &place(&spec.topic), "60").await?;
    check(told == "ours id=one", told)?;
    stranger.does("leave", &place(&spec.topic), "").await?;
    stranger.does("send", &place(&spec.topic), "theirs").await?;
    let inbox = reader(&broker, &spec, 4).await?;
    let got = next(&*inbox).await?;
    check(body(&got) == "theirs" && got.message.get(property::ID) == Some("theirs"), &got)?;
    got.ack();
    until("nothing left", async || (left(&broker, &spec).await? == 0).then_some(())).await?;
    // What they follow has answers of ours, and ours follow theirs.
    let answers = TopicSpec::bare(fresh(Class::Response, "turns"));
    broker.ensure(&answers).await.map_err(text)?;
    let own = Subscription::Own { topics: vec![answers.topic.clone()] };
    let own = broker.subscribe(&own).await.map_err(text)?;
    stranger.does("send", &place(&answers.topic), "answer").await?;
    check(body(&next(&*own).await?) == "answer", "an answer of theirs")?;
    send(&broker, &answers.topic, "of ours").await.map_err(text)?;
    stranger.does("follow", &place(&answers.topic), "rr").await?;
    let told = [
        stranger.tells("next", &place(&answers.topic), "60").await?,
        stranger.tells("next", &place(&answers.topic), "60").await?,
    ];
    check(told == ["answer id=answer", "of ours "], &told)?;
    broker.remove(&spec).await.map_err(text)?;
    broker.remove(&answers).await.map_err(text)
}

async fn what_was_published_before_a_stranger_started_is_not_lost(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "early").await?;
    send(&broker, &spec.topic, "early").await.map_err(text)?;
    let mut stranger = Stranger::start(&server).await?;
    stranger.does("share", &place(&spec.topic), &spec.subscriptions[0]).await?;
    let told = stranger.tells("next", &place(&spec.topic), "60").await?;
    check(told == "early ", told)?;
    broker.remove(&spec).await.map_err(text)
}

async fn a_message_that_kills_its_readers_is_counted_beside_others_too(server: Server) -> Outcome {
    const KILLS: u32 = 2;
    let broker = connect(&server).await?;
    for class in [Class::Flow, Class::Request] {
        let spec = TopicSpec::with(fresh(class, "kills"), "reader");
        broker.ensure(&spec).await.map_err(text)?;
        send(&broker, &spec.topic, "kills").await.map_err(text)?;
        for kill in 1..=KILLS {
            let attempt = kill_reader(&url(&server).await, &spec).await?;
            check(attempt == kill, format!("{class}: time {kill} is counted {attempt}"))?;
        }
        let inbox = reader(&broker, &spec, 1).await?;
        let got = next(&*inbox).await?;
        check(got.attempt == KILLS + 1, &got)?;
        got.ack();
    }
    Ok(())
}

async fn a_reader_that_takes_over_gets_nothing_that_was_settled_behind_what_was_not(
    server: Server,
) -> Outcome {
    let (broker, spec) = world(&server, "over").await?;
    for number in 0..10 {
        send(&broker, &spec.topic, format!("{number}")).await.map_err(text)?;
    }
    let leaving = connect(&server).await?;
    let inbox = reader(&leaving, &spec, 10).await?;
    let mut held = Vec::new();
    for number in 0..10 {
        let got = next(&*inbox).await?;
        check(body(&got) == format!("{number}"), body(&got))?;
        if number % 3 == 0 { held.push(got) } else { got.ack() }
    }
    drop(held);
    drop(inbox);
    let inbox = reader(&broker, &spec, 10).await?;
    for number in [0, 3, 6, 9] {
        let got = next(&*inbox).await?;
        check(body(&got) == format!("{number}") && got.attempt == 2, &got)?;
        got.ack();
    }
    until("nothing left", async || (left(&broker, &spec).await? == 0).then_some(())).await?;
    leaving.shutdown().await;
    broker.remove(&spec).await.map_err(text)
}

async fn another_reader_waits_for_what_is_in_hand_before_it_takes_over(server: Server) -> Outcome {
    const MESSAGES: usize = 200;
    let (broker, spec) = world(&server, "waits").await?;
    let other = connect(&server).await?;
    let inbox = reader(&broker, &spec, 8).await?;
    let second = reader(&other, &spec, 8).await?;
    let sending = async {
        for number in 0..MESSAGES {
            send(&broker, &spec.topic, format!("{number}")).await.map_err(text)?;
        }
        Ok::<_, String>(())
    };
    let receiving = async {
        let mut seen = vec![0; MESSAGES];
        while seen.contains(&0) {
            let got = tokio::select! {
                got = next(&*inbox) => got?,
                got = next(&*second) => got?,
            };
            tokio::time::sleep(Duration::from_millis(2)).await;
            seen[body(&got).parse::<usize>().map_err(text)?] += 1;
            got.ack();
        }
        Ok::<_, String>(seen)
    };
    let (_, seen) = tokio::try_join!(sending, receiving)?;
    let twice = seen.iter().filter(|times| **times > 1).count();
    check(twice == 0, format!("{twice} of {MESSAGES} came twice though nobody was killed"))?;
    broker.remove(&spec).await.map_err(text)
}

async fn a_late_request_is_dropped_beside_others_too(server: Server) -> Outcome {
    let broker = connect(&server).await?;
    let spec = TopicSpec::with(fresh(Class::Request, "late"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    let to = Address::Topic(spec.topic.clone());
    broker.publish(&to, Message::new("short").with(property::TTL, "50")).await.map_err(text)?;
    broker.publish(&to, Message::new("long").with(property::TTL, "600000")).await.map_err(text)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let inbox = reader(&broker, &spec, 1).await?;
    let got = next(&*inbox).await?;
    check(body(&got) == "long", body(&got))?;
    got.ack();
    until("nothing left", async || (left(&broker, &spec).await? == 0).then_some(())).await?;
    broker.remove(&spec).await.map_err(text)
}

async fn topics_that_would_have_one_name_at_the_broker_are_refused(server: Server) -> Outcome {
    let broker = connect(&server).await?;
    let name = uuid::Uuid::new_v4().simple().to_string();
    let one = TopicSpec::bare(topic(Class::Flow, &format!("a:{name}")));
    broker.ensure(&one).await.map_err(text)?;
    for (name, says) in
        [(format!("a.{name}"), "another name"), (format!("b {name}"), "there can be no topic")]
    {
        let refused = broker.ensure(&TopicSpec::bare(topic(Class::Flow, &name))).await;
        check(matches!(&refused, Err(Error::Refused { reason }) if reason.contains(says)), &refused)?;
    }
    let poison = broker.bound_poison(&one.topic).await.map_err(text)?;
    check(matches!(poison, PoisonBound::Unbounded { .. }), poison)?;
    broker.remove(&one).await.map_err(text)
}

async fn a_topic_of_the_other_shape_is_refused_by_name(server: Server) -> Outcome {
    let (beside, alone) = (connect(&server).await?, server.lock().await.connect().await.map_err(text)?);
    for (one, other) in [(&beside, &alone), (&alone, &beside)] {
        let spec = TopicSpec::with(fresh(Class::Flow, "shape"), "reader");
        one.ensure(&spec).await.map_err(text)?;
        let refused = other.ensure(&spec).await;
        check(matches!(&refused, Err(Error::Mismatch { .. })), &refused)?;
        one.remove(&spec).await.map_err(text)?;
        other.ensure(&spec).await.map_err(text)?;
        other.remove(&spec).await.map_err(text)?;
    }
    Ok(())
}

async fn a_group_that_nobody_reads_outlives_what_the_broker_keeps(_server: Server) -> Outcome {
    // Looked at each five seconds, and kept for one minute.
    let more = "offsets.retention.minutes=1\noffsets.retention.check.interval.ms=5000\n";
    let server = KafkaServer::start_with(more).await?;
    let url = format!("{}?beside=2.11", server.url());
    let options = Options { silence_max: Duration::from_secs(6), ..Options::default() };
    let broker = Kafka::connect(&url, options).await.map_err(text)?;
    let spec = TopicSpec::with(fresh(Class::Flow, "kept"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    send(&broker, &spec.topic, "kept").await.map_err(text)?;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let got = next(&*reader(&broker, &spec, 1).await?).await?;
    check(body(&got) == "kept", body(&got))?;
    got.ack();
    Ok(())
}

async fn a_topic_made_again_under_its_name_begins_anew(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "anew").await?;
    for round in 0..5 {
        for number in 0..=round {
            send(&broker, &spec.topic, format!("{round}:{number}")).await.map_err(text)?;
        }
        let inbox = reader(&broker, &spec, 1).await?;
        let got = next(&*inbox).await?;
        check(body(&got) == format!("{round}:0") && got.attempt == 1, &got)?;
        // Settled while it goes: what is made next knows nothing of it.
        let (removed, ()) = tokio::join!(broker.remove(&spec), async { got.ack() });
        removed.map_err(text)?;
        broker.ensure(&spec).await.map_err(text)?;
        drop(inbox);
    }
    broker.remove(&spec).await.map_err(text)
}
