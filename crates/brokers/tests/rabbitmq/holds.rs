//! Holds on a real broker: what ends them, and that nothing comes of them afterwards.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use sluice_brokers::RabbitMq;
use sluice_bus::{Broker as _, BrokerAdmin, Error, Subscription, TopicSpec};
use sluice_schema::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Server;
use crate::common::*;

cases! {
    "holds":
    a_hold_ends_with_its_connection_and_another_may_hold,
    a_holder_that_was_paused_changes_nothing_afterwards,
    a_hold_is_let_go_when_its_broker_end_is_shut_down,
    a_hold_outlives_calls_that_fail_at_once_and_are_given_up,
    more_may_be_absent_than_a_connection_has_channels,
    readers_of_quorum_queues_cost_their_connection_nothing,
    what_a_limit_refuses_is_no_mismatch,
}

const LEADER: &str = "leader";
/// Calls at once, and how often.
const TOGETHER: usize = 16;
const ROUNDS: usize = 20;
/// More than a connection has.
const CHANNELS: usize = 2_400;
const CONNECTION: &str = "sluice life cycle, leader";

async fn hold(broker: &RabbitMq) -> Result<Arc<dyn BrokerAdmin>, String> {
    until("the name free", || async { broker.hold(LEADER).await.ok() }).await
}

async fn cut(server: &Server, vhost: &str) -> Outcome {
    until("the holder's connection", || async {
        let closed = server.lock().await.close_connections(vhost, CONNECTION).await;
        closed.ok().filter(|closed| *closed > 0)
    })
    .await
    .map(drop)
}

fn is_lost<T: std::fmt::Debug>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::HoldLost { name }) if name == LEADER)
}

async fn a_hold_ends_with_its_connection_and_another_may_hold(server: Server) -> Outcome {
    let (vhost, one, spec) = world(&server).await?;
    let two = server.lock().await.connect(&vhost).await.map_err(text)?;
    let first = hold(&one).await?;
    first.ensure(&spec).await.map_err(text)?;
    let refused = two.hold(LEADER).await.err();
    check(matches!(refused, Some(Error::Held { .. })), &refused)?;
    cut(&server, &vhost).await?;
    until("the hold lost", || async { is_lost(&first.observe(&[]).await).then_some(()) }).await?;
    let late = TopicSpec::with(topic(Class::Flow, "late"), "reader");
    let calls = [
        first.ensure(&late).await,
        first.remove(&spec).await,
        first.bound_poison(&spec.topic).await.map(drop),
    ];
    check(calls.iter().all(is_lost), &calls)?;
    check(is_lost(&first.list("").await) && is_lost(&first.examine().await), "it lists or examines")?;
    let second = hold(&two).await?;
    let seen = second.observe(&[spec.clone(), late]).await.map_err(text)?;
    check(seen[0].exists && !seen[1].exists, &seen)?;
    // The first one's own path goes on, and it may stand by again.
    one.ensure(&spec).await.map_err(text)?;
    drop(second);
    hold(&one).await?.remove(&spec).await.map_err(text)
}

async fn a_holder_that_was_paused_changes_nothing_afterwards(server: Server) -> Outcome {
    let (vhost, two, spec) = world(&server).await?;
    let (proxy, paused) = proxy(&server.lock().await.url(&vhost)).await?;
    let options = server.lock().await.options();
    let one = RabbitMq::connect(&format!("{proxy}/{vhost}"), options).await.map_err(text)?;
    let first = hold(&one).await?;
    first.ensure(&spec).await.map_err(text)?;
    paused.send_replace(true);
    let late = TopicSpec::with(topic(Class::Flow, "late"), "reader");
    let (makes, takes_over) = (first.ensure(&late), async {
        cut(&server, &vhost).await?;
        let second = hold(&two).await?;
        paused.send_replace(false);
        Ok::<_, String>(second)
    });
    let (made, second) = tokio::join!(makes, takes_over);
    check(made.is_err(), "a call of the lost hold succeeded")?;
    until("the hold lost", || async { is_lost(&first.remove(&spec).await).then_some(()) }).await?;
    let seen = second?.observe(&[spec, late]).await.map_err(text)?;
    check(seen[0].exists && seen[0].subscriptions[0].exists, &seen)?;
    check(!seen[1].exists && !seen[1].subscriptions[0].exists, &seen)
}

async fn a_hold_is_let_go_when_its_broker_end_is_shut_down(server: Server) -> Outcome {
    let (vhost, one, _) = world(&server).await?;
    let two = server.lock().await.connect(&vhost).await.map_err(text)?;
    let first = hold(&one).await?;
    one.shutdown().await;
    hold(&two).await?;
    check(is_lost(&first.observe(&[]).await), "the first still holds")
}

/// Passes bytes on to the broker, but for while it is paused; answers its address without a vhost.
async fn proxy(url: &str) -> Result<(String, watch::Sender<bool>), String> {
    let url = url::Url::parse(url).map_err(text)?;
    let (host, port) = (url.host_str().unwrap_or("127.0.0.1").to_owned(), url.port().unwrap_or(5672));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(text)?;
    let here = listener.local_addr().map_err(text)?.port();
    let paused = watch::Sender::new(false);
    let gate = paused.clone();
    #[expect(clippy::disallowed_methods, reason = "ends with the runtime")]
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect((host.as_str(), port)).await else { return };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(pass(near_in, far_out, gate.subscribe()));
            tokio::spawn(pass(far_in, near_out, gate.subscribe()));
        }
    });
    let user = url.username();
    Ok((format!("amqp://{user}:{}@127.0.0.1:{here}", url.password().unwrap_or_default()), paused))
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut paused: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let is_open = tokio::time::timeout(Duration::from_secs(120), paused.wait_for(|paused| !paused)).await;
        if !is_open.is_ok_and(|open| open.is_ok()) || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

async fn a_hold_outlives_calls_that_fail_at_once_and_are_given_up(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let (_connection, stranger) = stranger(&server, &vhost).await?;
    let specs: Vec<_> = (0..TOGETHER)
        .map(|number| TopicSpec::with(topic(Class::Flow, &format!("other{number}")), "reader"))
        .collect();
    for number in 0..TOGETHER {
        let name = format!("tg.flow.other{number}.reader");
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut otherwise = FieldTable::default();
        otherwise.insert("x-max-length".into(), AMQPValue::LongInt(7));
        stranger.queue_declare(name.into(), options, otherwise).await.map_err(text)?;
    }
    let held = hold(&broker).await?;
    for _ in 0..ROUNDS {
        // The first failure gives the others up, which fail at that moment too.
        let made = futures_util::future::try_join_all(specs.iter().map(|spec| held.ensure(spec))).await;
        check(matches!(made, Err(Error::Mismatch { .. })), &made)?;
        let seen = held.observe(std::slice::from_ref(&spec)).await;
        check(seen.is_ok(), &seen)?;
    }
    Ok(())
}

async fn more_may_be_absent_than_a_connection_has_channels(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let held = hold(&broker).await?;
    let reader = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let before = kept_connections(&server, &vhost).await?;
    check(before.len() >= 3, &before)?;
    let absent: Vec<_> = (0..CHANNELS / 2)
        .map(|n| TopicSpec::with(topic(Class::Flow, &format!("absent{n}")), "reader"))
        .collect();
    for _ in 0..2 {
        let seen = held.observe(&absent).await.map_err(text)?;
        check(seen.iter().all(|seen| !seen.exists), "one is there")?;
        let seen = broker.observe(&absent).await.map_err(text)?;
        check(seen.iter().all(|seen| !seen.exists), "one is there")?;
    }
    for spec in &absent {
        let to = Subscription::Shared { topic: spec.topic.clone(), name: "reader".to_owned(), prefetch: 1 };
        let (read, published) = tokio::join!(broker.subscribe(&to), send(&broker, &spec.topic, "to nobody"));
        check(matches!(read.err(), Some(Error::NoSubscription { .. })), "it was read")?;
        check(matches!(published, Err(Error::NoTopic { .. })), &published)?;
    }
    held.ensure(&spec).await.map_err(text)?;
    send(&broker, &spec.topic, "kept").await.map_err(text)?;
    let got = next(&*reader).await?;
    check(body(&got) == "kept" && got.attempt == 1, &got)?;
    got.ack();
    // Those for publishing and for looks may be others by now.
    let after = kept_connections(&server, &vhost).await?;
    check(before == after, format!("{before:?} became {after:?}"))
}

async fn readers_of_quorum_queues_cost_their_connection_nothing(server: Server) -> Outcome {
    let vhost = server.lock().await.quorum_vhost().await?;
    let broker = server.lock().await.connect(&vhost).await.map_err(text)?;
    let spec = TopicSpec::with(topic(Class::Flow, "work"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    let stays = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let before = kept_connections(&server, &vhost).await?;
    for _ in 0..CHANNELS {
        drop(read(&broker, &spec.topic, 1).await.map_err(text)?);
    }
    let after = kept_connections(&server, &vhost).await?;
    drop(stays);
    check(before == after, format!("{before:?} became {after:?}"))
}

/// The connections that readers and holders have.
async fn kept_connections(server: &Server, vhost: &str) -> Result<Vec<String>, String> {
    let asked = ["list_connections", "pid", "vhost", "client_properties"];
    let listed = server.lock().await.control(&asked).await?;
    let is_kept = |line: &&str| line.contains("consuming") || line.contains("life cycle");
    let ours = listed.lines().filter(|line| line.contains(vhost)).filter(is_kept);
    let mut pids: Vec<_> = ours.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    pids.sort();
    Ok(pids)
}

async fn what_a_limit_refuses_is_no_mismatch(server: Server) -> Outcome {
    let (vhost, broker, _) = world(&server).await?;
    let limit = ["set_vhost_limits", "-p", &vhost, r#"{"max-queues": 1}"#];
    server.lock().await.control(&limit).await?;
    let made = broker.ensure(&TopicSpec::with(topic(Class::Flow, "more"), "reader")).await;
    let is_named = matches!(&made, Err(Error::Refused { reason }) if reason.contains("limit"));
    check(is_named, &made)
}
