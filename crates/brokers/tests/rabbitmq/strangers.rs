//! Readers that are not ours: they declare, read and give back as those of the dialect do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use sluice_bus::{Address, Broker, BrokerAdmin, Error, Message, PoisonBound, TopicSpec, property};
use sluice_schema::{Class, Topic};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::AbortHandle;

use crate::Server;
use crate::common::*;

cases! {
    "strangers":
    a_stranger_attaches_to_what_the_owner_made_whatever_the_default_queue_type,
    poison_that_a_stranger_gives_back_for_ever_is_parked_and_good_messages_pass,
    a_request_that_a_stranger_gives_back_for_ever_ends_by_its_deadline,
    a_loop_on_a_classic_queue_is_found_with_its_name,
    a_queue_that_a_stranger_makes_again_after_its_removal_is_listed_and_can_be_removed,
    headers_nested_without_measure_are_handed_out_and_end_nothing,
    what_is_idle_goes_with_the_queues_of_strangers_unless_they_hold_something,
}

/// A consumer as the dialect's: it declares what it reads, takes one message at a time, and gives back what it cannot do.
struct Stranger {
    reads: AbortHandle,
    taken: Arc<AtomicU64>,
    _connection: Connection,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.reads.abort();
    }
}

impl Stranger {
    async fn attach(server: &Server, vhost: &str, topic: &Topic) -> Result<Self, String> {
        let url = server.lock().await.url(vhost);
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.map_err(text)?;
        let channel = connection.create_channel().await.map_err(text)?;
        let consumer = consume(&channel, topic, true).await.map_err(text)?;
        let taken = Arc::new(AtomicU64::new(0));
        let (counts, topic) = (taken.clone(), topic.clone());
        #[expect(clippy::disallowed_methods, reason = "aborted when dropped")]
        let reads = tokio::spawn(async move {
            let mut consumer = consumer;
            loop {
                while let Some(Ok(delivery)) = consumer.next().await {
                    counts.fetch_add(1, Ordering::Relaxed);
                    let settled = if delivery.data.starts_with(b"bad") {
                        let options = BasicNackOptions { requeue: true, ..Default::default() };
                        delivery.acker.nack(options).await
                    } else {
                        delivery.acker.ack(BasicAckOptions::default()).await
                    };
                    if settled.is_err() {
                        return;
                    }
                }
                // Its queue was deleted: it makes it again, and has no exchange to bind it to.
                match consume(&channel, &topic, false).await {
                    Ok(again) => consumer = again,
                    Err(_) => return,
                }
            }
        });
        Ok(Self { reads: reads.abort_handle(), taken, _connection: connection })
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

async fn consume(channel: &Channel, topic: &Topic, binds: bool) -> Result<Consumer, lapin::Error> {
    let (exchange, queue) = (
        format!("tg.{}.{}", topic.class(), topic.name()),
        format!("tg.{}.{}.reader", topic.class(), topic.name()),
    );
    let none = FieldTable::default;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let options = QueueDeclareOptions { durable: topic.class() == Class::Flow, ..Default::default() };
    if binds {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, options, none()).await?;
    }
    channel.queue_declare(queue.as_str().into(), options, none()).await?;
    if binds {
        let (key, options) = (queue.as_str().into(), QueueBindOptions::default());
        channel.queue_bind(queue.as_str().into(), exchange.as_str().into(), key, options, none()).await?;
    }
    channel.basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), none()).await
}

async fn a_stranger_attaches_to_what_the_owner_made_whatever_the_default_queue_type(
    server: Server,
) -> Outcome {
    let guard = server.lock().await;
    let vhosts = [guard.vhost().await?, guard.quorum_vhost().await?];
    drop(guard);
    for vhost in vhosts {
        let broker = server.lock().await.connect(&vhost).await.map_err(text)?;
        for class in [Class::Flow, Class::Request] {
            let spec = TopicSpec::with(topic(class, "both"), "reader");
            broker.ensure(&spec).await.map_err(text)?;
            let stranger = Stranger::attach(&server, &vhost, &spec.topic).await?;
            // And the owner takes what is there as its own again.
            broker.ensure(&spec).await.map_err(text)?;
            send(&broker, &spec.topic, "good").await.map_err(text)?;
            until("the message taken", || async { (stranger.taken() == 1).then_some(()) }).await?;
        }
    }
    Ok(())
}

async fn poison_that_a_stranger_gives_back_for_ever_is_parked_and_good_messages_pass(
    server: Server,
) -> Outcome {
    let vhost = server.lock().await.quorum_vhost().await?;
    let broker = server.lock().await.connect(&vhost).await.map_err(text)?;
    let letters = TopicSpec::with(topic(Class::Flow, "dead-letters:default"), "reader");
    broker.ensure(&letters).await.map_err(text)?;
    let bound = broker.bound_poison(&letters.topic).await.map_err(text)?;
    let PoisonBound::Bounded { deliveries } = bound else { return Err(format!("{bound:?}")) };
    check(broker.bound_poison(&letters.topic).await.map_err(text)? == bound, "another answer")?;
    let work = TopicSpec::with(topic(Class::Flow, "work:w:f1"), "reader");
    broker.ensure(&work).await.map_err(text)?;
    for body in ["bad", "good 1", "good 2"] {
        let message = Message::new(body).with(property::ID, body);
        broker.publish(&Address::Topic(work.topic.clone()), message).await.map_err(text)?;
    }
    let stranger = Stranger::attach(&server, &vhost, &work.topic).await?;
    let inbox = read(&broker, &letters.topic, 1).await.map_err(text)?;
    let letter = next(&*inbox).await?;
    check(body(&letter) == "bad" && letter.message.get(property::ID) == Some("bad"), &letter)?;
    let told = [property::DEAD_TOPIC, property::DEAD_SUBSCRIPTION, property::DEAD_REASON];
    let told = told.map(|name| letter.message.get(name).unwrap_or_default().to_owned());
    check(told == ["flow:tg:work:w:f1", "reader", "delivery_limit"], told)?;
    // Given back by its own reader too, it stays a dead letter and goes round in no circle.
    letter.again(Duration::ZERO);
    let letter = next(&*inbox).await?;
    check(letter.attempt == 2 && letter.message.get(property::DEAD_TOPIC).is_some(), &letter)?;
    letter.ack();
    until("the good ones taken", || async { (stranger.taken() == u64::from(deliveries) + 2).then_some(()) })
        .await?;
    let seen = broker.observe(&[work, letters]).await.map_err(text)?;
    check(seen.iter().all(|seen| seen.subscriptions[0].ready == 0), seen)?;
    let findings = broker.examine().await.map_err(text)?;
    check(findings.iter().all(|found| found.code != "poison-unbounded"), findings)
}

async fn a_request_that_a_stranger_gives_back_for_ever_ends_by_its_deadline(server: Server) -> Outcome {
    let (vhost, broker, _) = world(&server).await?;
    let ask = TopicSpec::with(topic(Class::Request, "ask"), "reader");
    broker.ensure(&ask).await.map_err(text)?;
    let stranger = Stranger::attach(&server, &vhost, &ask.topic).await?;
    let to = Address::Topic(ask.topic.clone());
    let ttl = Duration::from_secs(5);
    let bad = Message::new("bad").with(property::TTL, &ttl.as_millis().to_string());
    broker.publish(&to, bad).await.map_err(text)?;
    let sent = Instant::now();
    until("a loop", || async { (stranger.taken() > 20).then_some(()) }).await?;
    until("its end", || async {
        let (before, seen) = (stranger.taken(), broker.observe(std::slice::from_ref(&ask)).await.ok()?);
        let there = &seen[0].subscriptions[0];
        let is_gone = there.ready == 0 && there.unsettled == Some(0) && before == stranger.taken();
        (is_gone && sent.elapsed() > ttl).then_some(())
    })
    .await?;
    let before = stranger.taken();
    send(&broker, &ask.topic, "good").await.map_err(text)?;
    until("the next request taken", || async { (stranger.taken() == before + 1).then_some(()) }).await
}

async fn a_loop_on_a_classic_queue_is_found_with_its_name(server: Server) -> Outcome {
    let (vhost, broker, work) = world(&server).await?;
    let bound = broker.bound_poison(&work.topic).await.map_err(text)?;
    check(matches!(&bound, PoisonBound::Unbounded { why } if why.contains("quorum")), &bound)?;
    let findings = broker.examine().await.map_err(text)?;
    check(findings.is_empty(), findings)?;
    send(&broker, &work.topic, "bad").await.map_err(text)?;
    let _stranger = Stranger::attach(&server, &vhost, &work.topic).await?;
    let found = until("the loop found", || async {
        let findings = broker.examine().await.ok()?;
        findings.into_iter().find(|found| found.code == "requeue-loop")
    })
    .await?;
    check(found.topic.as_ref() == Some(&work.topic), &found)?;
    check(found.subscription.as_deref() == Some("reader"), &found)?;
    check(found.text.contains("tg.flow.work.reader") && found.next.contains("stop its flow"), &found)
}

async fn a_queue_that_a_stranger_makes_again_after_its_removal_is_listed_and_can_be_removed(
    server: Server,
) -> Outcome {
    let (vhost, broker, work) = world(&server).await?;
    let stranger = Stranger::attach(&server, &vhost, &work.topic).await?;
    let removed = broker.remove(&work).await;
    check(matches!(removed, Ok(()) | Err(Error::InUse { .. })), &removed)?;
    let listed = until("the queue made again", || async {
        let listed = broker.list("flow:").await.ok()?;
        listed.into_iter().find(|seen| seen.topic == work.topic)
    })
    .await?;
    let there = listed.subscriptions.iter().any(|there| there.name == "reader" && there.exists);
    check(!listed.exists && there, &listed)?;
    drop(stranger);
    broker
        .remove(&TopicSpec { topic: listed.topic, subscriptions: vec!["reader".to_owned()] })
        .await
        .map_err(text)?;
    let listed = broker.list("flow:").await.map_err(text)?;
    check(listed.iter().all(|seen| seen.topic != work.topic), listed)
}

async fn what_is_idle_goes_with_the_queues_of_strangers_unless_they_hold_something(
    server: Server,
) -> Outcome {
    let guard = server.lock().await;
    let vhosts = [guard.vhost().await?, guard.quorum_vhost().await?];
    drop(guard);
    for vhost in vhosts {
        let broker = server.lock().await.connect(&vhost).await.map_err(text)?;
        // Under a hold, which a refusal must not end.
        let held = broker.hold("flow").await.map_err(text)?;
        let work = TopicSpec::with(topic(Class::Flow, "work"), "reader");
        held.ensure(&work).await.map_err(text)?;
        held.observe(std::slice::from_ref(&work)).await.map_err(text)?;
        let (_connection, channel) = stranger(&server, &vhost).await?;
        let (queue, none) = ("tg.flow.work.other", FieldTable::default);
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), options, none()).await.map_err(text)?;
        let bound =
            channel.queue_bind(queue.into(), "tg.flow.work".into(), queue.into(), Default::default(), none());
        bound.await.map_err(text)?;
        send(&broker, &work.topic, "for both").await.map_err(text)?;
        next(&*read(&broker, &work.topic, 1).await.map_err(text)?).await?.ack();
        // Whoever's queue it is: nothing is lost.
        until("ours removed and theirs in the way", || async {
            let removed = held.remove_idle(&work).await;
            matches!(removed, Err(Error::InUse { name, .. }) if name == queue).then_some(())
        })
        .await?;
        channel.queue_purge(queue.into(), Default::default()).await.map_err(text)?;
        until("all removed", || async { held.remove_idle(&work).await.ok() }).await?;
        let listed = held.list("flow:").await.map_err(text)?;
        check(listed.iter().all(|seen| seen.topic != work.topic), listed)?;
    }
    Ok(())
}

/// One who writes frames by hand: the client library would not survive what is sent here.
struct ByHand(tokio::net::TcpStream);

impl ByHand {
    async fn attach(server: &Server, vhost: &str) -> Result<Self, String> {
        let url = url::Url::parse(&server.lock().await.url(vhost)).map_err(text)?;
        let (host, port) = (url.host_str().unwrap_or("127.0.0.1"), url.port().unwrap_or(5672));
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap_or_default());
        let mut own = Self(tokio::net::TcpStream::connect((host, port)).await.map_err(text)?);
        own.0.write_all(b"AMQP\0\0\x09\x01").await.map_err(text)?;
        own.hear([10, 10]).await?;
        let start = [&long(b"")[..], &short("PLAIN"), &long(login.as_bytes()), &short("en_US")].concat();
        own.say(0, [10, 11], &start).await?;
        let tune = own.hear([10, 30]).await?;
        // No heartbeats.
        own.say(0, [10, 31], &[&tune[..6], &[0, 0]].concat()).await?;
        own.say(0, [10, 40], &[&short(vhost)[..], &short(""), &[0]].concat()).await?;
        own.hear([10, 41]).await?;
        own.say(1, [20, 10], &short("")).await?;
        own.hear([20, 11]).await?;
        own.say(1, [85, 10], &[0]).await?;
        own.hear([85, 11]).await?;
        Ok(own)
    }

    /// Publishes to an exchange with one member of the headers; on return the broker has it.
    async fn publish(&mut self, exchange: &str, name: &str, value: &[u8], body: &str) -> Result<(), String> {
        self.say(1, [60, 40], &[&[0, 0][..], &short(exchange), &short(""), &[0]].concat()).await?;
        let headers = [&short(name)[..], value].concat();
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &(1_u16 << 13).to_be_bytes(), &long(&headers)].concat();
        self.frame(2, 1, &header).await?;
        self.frame(3, 1, body.as_bytes()).await?;
        self.hear([60, 80]).await.map(drop)
    }

    async fn say(&mut self, channel: u8, method: [u16; 2], rest: &[u8]) -> Result<(), String> {
        let method = method.map(u16::to_be_bytes).concat();
        self.frame(1, channel, &[&method[..], rest].concat()).await
    }

    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) -> Result<(), String> {
        let size = u32::try_from(payload.len()).map_err(text)?.to_be_bytes();
        let frame = [&[kind, 0, channel][..], &size, payload, &[0xce]].concat();
        self.0.write_all(&frame).await.map_err(text)
    }

    /// What the next method says, which has to be this one.
    async fn hear(&mut self, method: [u16; 2]) -> Result<Vec<u8>, String> {
        let mut head = [0; 7];
        let read = self.0.read_exact(&mut head);
        tokio::time::timeout(VALUE_TIMEOUT, read).await.map_err(|_| "nothing heard")?.map_err(text)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; size as usize + 1];
        self.0.read_exact(&mut payload).await.map_err(text)?;
        let told = [[payload[0], payload[1]], [payload[2], payload[3]]].map(u16::from_be_bytes);
        if told != method {
            return Err(format!("{told:?} instead of {method:?}: {}", String::from_utf8_lossy(&payload)));
        }
        payload.pop();
        Ok(payload.split_off(4))
    }
}

fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A value of tables and arrays within each other.
fn nested(kinds: &[u8], depth: usize) -> Vec<u8> {
    let mut value = b"t\x01".to_vec();
    for level in 0..depth {
        let kind = kinds[level % kinds.len()];
        let content = if kind == b'F' { [&short("")[..], &value].concat() } else { value };
        value = [&[kind][..], &long(&content)].concat();
    }
    value
}

async fn headers_nested_without_measure_are_handed_out_and_end_nothing(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let mut by_hand = ByHand::attach(&server, &vhost).await?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    for (kinds, depth) in [(&b"F"[..], 3_000), (b"A", 3_000), (b"FA", 3_000), (b"AAF", 15_000), (b"F", 10)] {
        let sent = format!("{} {depth}", String::from_utf8_lossy(kinds));
        by_hand.publish("tg.flow.work", "deep", &nested(kinds, depth), &sent).await?;
        send(&broker, &spec.topic, "after").await.map_err(text)?;
        let first = next(&*inbox).await?;
        check(body(&first) == sent && first.message.get("deep").is_some(), &first)?;
        // It comes back, as a copy that is counted, and can be given back uncounted too.
        drop(first);
        for expected in ["after", &sent] {
            let delivery = next(&*inbox).await?;
            check(body(&delivery) == expected, &delivery)?;
            delivery.ack();
        }
    }
    Ok(())
}
