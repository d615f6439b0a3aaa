//! Readers that are not ours: they declare, read and give back as those of the dialect do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};
use sluice_bus::{Address, Broker, BrokerAdmin, Error, Message, PoisonBound, TopicSpec, property};
use sluice_schema::{Class, Topic};
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
    broker.publish(&to, Message::new("bad").with(property::TTL, "1000")).await.map_err(text)?;
    until("a loop", || async { (stranger.taken() > 20).then_some(()) }).await?;
    until("its end", || async {
        let (before, seen) = (stranger.taken(), broker.observe(std::slice::from_ref(&ask)).await.ok()?);
        let there = &seen[0].subscriptions[0];
        (there.ready == 0 && there.unsettled == Some(0) && before == stranger.taken()).then_some(())
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
