//! What only a real broker can do to us: stop, cut, delete behind our back, refuse, run out of memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use sluice_brokers::{Options, RabbitMq};
use sluice_bus::{
    Address, Broker, BrokerAdmin, Error, ErrorKind, Inbox, Message, PoisonBound, Subscription, TopicSpec,
};
use sluice_schema::Class;
use tokio::time::timeout;

use crate::Server;
use crate::common::*;

/// How often a queue is removed and made again under its reader: now and then the broker is late to handle the end.
const REMOVALS: usize = 60;

cases! {
    "faults":
    a_wrong_password_is_told_without_showing_it,
    a_vhost_that_is_not_there_is_told,
    a_broker_that_is_not_there_is_told,
    a_queue_with_other_properties_is_told_with_both,
    a_deleted_exchange_fails_publishes_until_its_owner_makes_it_again,
    a_deleted_queue_ends_its_reader_and_nobody_makes_it_but_its_owner,
    a_reader_ends_with_its_queue_however_soon_it_is_made_again,
    a_lost_binding_comes_back_with_the_owners_look,
    a_message_for_a_reader_on_record_is_refused_while_its_queue_is_missing,
    a_message_of_20_mb_goes_through,
    the_largest_message_is_the_brokers_own_once_it_has_refused_one,
    what_others_send_passes_through_untouched,
    readers_of_two_processes_share_the_work,
    attempts_are_counted_on_a_quorum_queue,
    only_messages_on_which_work_began_are_counted_whatever_ended,
    readers_that_leave_at_any_moment_leave_each_message_once,
    without_the_management_api_all_works_but_the_unknown,
    connections_closed_by_the_broker_are_rebuilt_and_inboxes_keep_their_address,
    a_broker_short_of_memory_holds_publishers_back_and_says_so,
    policies_and_limits_that_lose_or_refuse_messages_are_named,
    a_broker_killed_and_started_again_loses_nothing_acknowledged,
}

async fn a_wrong_password_is_told_without_showing_it(server: Server) -> Outcome {
    let url = server.lock().await.url("").replacen("guest:guest", "guest:hush", 1);
    let refused = RabbitMq::connect(&url, Options::default()).await.err().ok_or("it let us in")?;
    check(refused.kind() == ErrorKind::Refused, &refused)?;
    let told = refused.to_string();
    check(told.contains("guest") && told.contains("password") && !told.contains("hush"), told)
}

async fn a_vhost_that_is_not_there_is_told(server: Server) -> Outcome {
    let url = server.lock().await.url("nowhere");
    let refused = RabbitMq::connect(&url, Options::default()).await.err().ok_or("it let us in")?;
    check(refused.kind() == ErrorKind::Refused && refused.to_string().contains("nowhere"), &refused)
}

async fn a_broker_that_is_not_there_is_told(_server: Server) -> Outcome {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).map_err(text)?.port();
    let url = format!("amqp://u:hush@127.0.0.1:{port}/");
    let refused = RabbitMq::connect(&url, Options::default()).await.err().ok_or("somebody answers")?;
    let told = refused.to_string();
    check(refused.kind() == ErrorKind::Unavailable && told.contains(&port.to_string()), &refused)?;
    check(!told.contains("hush"), told)
}

async fn a_queue_with_other_properties_is_told_with_both(server: Server) -> Outcome {
    let (vhost, broker, _) = world(&server).await?;
    let (_connection, channel) = stranger(&server, &vhost).await?;
    let name = "tg.flow.other.reader";
    channel
        .queue_declare(name.into(), QueueDeclareOptions::default(), FieldTable::default())
        .await
        .map_err(text)?;
    let spec = TopicSpec::with(topic(Class::Flow, "other"), "reader");
    let told = broker.ensure(&spec).await.err().ok_or("it was taken as it is")?;
    check(matches!(&told, Error::Mismatch { name: named, .. } if named == name), &told)?;
    let told = told.to_string();
    check(told.contains("durable 'false', wanted durable 'true'"), told)?;
    // The call's channel is gone; the next one finds another.
    broker.ensure(&TopicSpec::with(topic(Class::Flow, "fine"), "reader")).await.map_err(text)
}

async fn a_deleted_exchange_fails_publishes_until_its_owner_makes_it_again(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let other = TopicSpec::with(topic(Class::Flow, "other"), "reader");
    broker.ensure(&other).await.map_err(text)?;
    let (_connection, channel) = stranger(&server, &vhost).await?;
    channel.exchange_delete("tg.flow.work".into(), ExchangeDeleteOptions::default()).await.map_err(text)?;
    for _ in 0..3 {
        let sent = send(&broker, &spec.topic, "x").await;
        check(matches!(sent, Err(Error::NoTopic { .. })), &sent)?;
        send(&broker, &other.topic, "unharmed").await.map_err(text)?;
    }
    let seen = broker.observe(std::slice::from_ref(&spec)).await.map_err(text)?;
    check(!seen[0].exists && seen[0].subscriptions[0].exists, &seen)?;
    broker.ensure(&spec).await.map_err(text)?;
    send(&broker, &spec.topic, "again").await.map_err(text)?;
    let got = next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?;
    check(body(&got) == "again", got)
}

async fn a_deleted_queue_ends_its_reader_and_nobody_makes_it_but_its_owner(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let (_connection, channel) = stranger(&server, &vhost).await?;
    let name = "tg.flow.work.reader";
    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.map_err(text)?;
    let ended = timeout(VALUE_TIMEOUT, inbox.next()).await.map_err(|_| "the reader was not told")?;
    check(matches!(ended, Err(Error::NoSubscription { .. })), ended.err())?;
    // Its owner is notified, although others of the topic may have their queues and nobody who sends misses anything.
    let noted = broker.losses().ok_or("it takes no notes")?.take();
    let noted = timeout(VALUE_TIMEOUT, noted).await.map_err(|_| "it was not noted")?;
    check(noted.contains_key(&spec.topic), &noted)?;
    let again = read(&broker, &spec.topic, 1).await.err();
    check(matches!(again, Some(Error::NoSubscription { .. })), &again)?;
    send(&broker, &spec.topic, "into nothing").await.map_err(text)?;
    check(broker.unroutable() == 1, broker.unroutable())?;
    broker.ensure(&spec).await.map_err(text)?;
    send(&broker, &spec.topic, "kept").await.map_err(text)?;
    let got = next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?;
    check(body(&got) == "kept", got)
}

/// The broker moves a consumer of a removed queue to the one that is made again before it has handled the end, and forgets
/// that it did: what is settled goes nowhere then, and the next removal is not reported.
async fn a_reader_ends_with_its_queue_however_soon_it_is_made_again(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let (_connection, channel) = stranger(&server, &vhost).await?;
    let (queue, declared) =
        ("tg.flow.work.reader", QueueDeclareOptions { durable: true, ..Default::default() });
    for round in 0..REMOVALS {
        let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
        // Both are on their way before the broker has done either.
        let removed = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        let made = channel.queue_declare(queue.into(), declared, FieldTable::default());
        let (removed, made) = tokio::join!(removed, made);
        removed.map_err(text)?;
        made.map_err(text)?;
        let ended = timeout(VALUE_TIMEOUT, inbox.next()).await;
        let ended = ended.map_err(|_| format!("the reader was not told, round {round}"))?;
        check(matches!(ended, Err(Error::NoSubscription { .. })), ended.err())?;
    }
    broker.ensure(&spec).await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    // More than it has places for, so each has to be settled.
    for said in ["one", "two", "three"] {
        send(&broker, &spec.topic, said).await.map_err(text)?;
        let got = next(&*inbox).await?;
        check(body(&got) == said, &got)?;
        got.ack();
    }
    Ok(())
}

async fn a_lost_binding_comes_back_with_the_owners_look(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let (_connection, channel) = stranger(&server, &vhost).await?;
    let (queue, exchange) = ("tg.flow.work.reader", "tg.flow.work");
    channel
        .queue_unbind(queue.into(), exchange.into(), queue.into(), FieldTable::default())
        .await
        .map_err(text)?;
    send(&broker, &spec.topic, "lost").await.map_err(text)?;
    let seen = broker.observe(std::slice::from_ref(&spec)).await.map_err(text)?;
    check(seen[0].unroutable == Some(1), &seen)?;
    broker.ensure(&spec).await.map_err(text)?;
    send(&broker, &spec.topic, "found").await.map_err(text)?;
    let got = next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?;
    check(body(&got) == "found", got)
}

async fn a_message_for_a_reader_on_record_is_refused_while_its_queue_is_missing(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let (_connection, channel) = stranger(&server, &vhost).await?;
    let (queue, exchange) = ("tg.flow.work.reader", "tg.flow.work");
    let to = Address::Subscribed(spec.topic.clone());
    let is_bound = async || {
        let seen = broker.observe(std::slice::from_ref(&spec)).await.map_err(text)?;
        Ok::<_, String>(seen[0].subscriptions[0].is_bound)
    };
    for damage in ["nothing", "queue", "binding", "exchange"] {
        match damage {
            "queue" => {
                channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.map_err(text)?;
            }
            "binding" => channel
                .queue_unbind(queue.into(), exchange.into(), queue.into(), FieldTable::default())
                .await
                .map_err(text)?,
            "exchange" => channel
                .exchange_delete(exchange.into(), ExchangeDeleteOptions::default())
                .await
                .map_err(text)?,
            _ => {}
        }
        let sent = broker.publish(&to, Message::new("x")).await;
        let noted = broker.losses().ok_or("it takes no notes")?.take();
        match (damage, &sent) {
            ("nothing", Ok(())) => {}
            ("queue" | "binding", Err(Error::NoReader { topic })) if *topic == spec.topic => {}
            ("exchange", Err(Error::NoTopic { topic })) if *topic == spec.topic => {}
            _ => return Err(format!("{damage}: {sent:?}")),
        }
        if damage != "nothing" {
            let noted = timeout(VALUE_TIMEOUT, noted).await.map_err(|_| "it was not noted")?;
            check(noted.contains_key(&spec.topic), &noted)?;
            check(is_bound().await? == Some(false), damage)?;
        }
        broker.ensure(&spec).await.map_err(text)?;
        check(is_bound().await? == Some(true), damage)?;
    }
    broker.publish(&to, Message::new("kept")).await.map_err(text)
}

async fn a_message_of_20_mb_goes_through(server: Server) -> Outcome {
    let (_, broker, spec) = world(&server).await?;
    let large: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    send(&broker, &spec.topic, large.clone()).await.map_err(text)?;
    // Twice, for a copy is made when it comes back.
    next(&*inbox).await?.again(Duration::ZERO);
    let got = next(&*inbox).await?;
    check(got.attempt == 2 && got.message.body == large, got.attempt)
}

async fn the_largest_message_is_the_brokers_own_once_it_has_refused_one(server: Server) -> Outcome {
    let guard = server.lock().await;
    if !guard.is_ours() {
        return Ok(());
    }
    let vhost = guard.vhost().await?;
    let bytes_max = async |bytes: usize| {
        let set = format!("application:set_env(rabbit, max_message_size, {bytes}).");
        guard.control(&["eval", &set]).await.map(drop)
    };
    bytes_max(1 << 20).await?;
    let broker = guard.connect(&vhost).await.map_err(text)?;
    let spec = TopicSpec::with(topic(Class::Flow, "large"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    let before = broker.limits().message_bytes_max;
    let refused = [
        send(&broker, &spec.topic, vec![b'x'; 3 << 20]).await,
        send(&broker, &spec.topic, vec![b'x'; 2 << 20]).await,
    ];
    let sent = send(&broker, &spec.topic, vec![b'x'; 1 << 20]).await;
    bytes_max(128 << 20).await?;
    let is_named =
        |sent: &Result<(), Error>| matches!(sent, Err(Error::TooLarge { max, .. }) if *max == 1 << 20);
    check(refused.iter().all(is_named), &refused)?;
    check((before, broker.limits().message_bytes_max) == (64 << 20, 1 << 20), broker.limits())?;
    sent.map_err(text)
}

async fn what_others_send_passes_through_untouched(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let (_connection, channel) = stranger(&server, &vhost).await?;
    let mut headers = FieldTable::default();
    headers.insert("id".into(), AMQPValue::ByteArray(b"bytes".to_vec().into()));
    headers.insert("number".into(), AMQPValue::LongInt(7));
    let with_headers = BasicProperties::default().with_headers(headers);
    let bodies: [(&[u8], BasicProperties); 4] = [
        (b"no json", BasicProperties::default()),
        (b"[1, 2]", with_headers),
        (b"\xff\xfe", BasicProperties::default()),
        (b"", BasicProperties::default()),
    ];
    for (body, properties) in &bodies {
        let (exchange, options) = ("tg.flow.work".into(), BasicPublishOptions::default());
        channel.basic_publish(exchange, "".into(), options, body, properties.clone()).await.map_err(text)?;
    }
    let inbox = read(&broker, &spec.topic, 10).await.map_err(text)?;
    for (at, (body, _)) in bodies.iter().enumerate() {
        let got = next(&*inbox).await?;
        check(got.message.body == *body && got.attempt == 1, &got)?;
        let (id, number) = (got.message.get("id"), got.message.get("number"));
        check((id, number) == if at == 1 { (Some("bytes"), Some("7")) } else { (None, None) }, (id, number))?;
        got.ack();
    }
    Ok(())
}

async fn readers_of_two_processes_share_the_work(server: Server) -> Outcome {
    let (vhost, broker, spec) = world(&server).await?;
    let other = server.lock().await.connect(&vhost).await.map_err(text)?;
    let (one, two) = (read(&broker, &spec.topic, 1).await, read(&other, &spec.topic, 1).await);
    let (one, two) = (one.map_err(text)?, two.map_err(text)?);
    for number in 0..40 {
        send(&broker, &spec.topic, number.to_string()).await.map_err(text)?;
    }
    let (mut seen, mut shares) = (BTreeSet::new(), [0, 0]);
    while seen.len() < 40 {
        let (who, got) = tokio::select! { got = next(&*one) => (0, got?), got = next(&*two) => (1, got?) };
        shares[who] += 1;
        check(seen.insert(body(&got)), format!("{} came twice", body(&got)))?;
        got.ack();
    }
    check(shares.iter().all(|share| *share > 0), shares)
}

async fn attempts_are_counted_on_a_quorum_queue(server: Server) -> Outcome {
    let guard = server.lock().await;
    let vhost = guard.quorum_vhost().await?;
    let broker = guard.connect(&vhost).await.map_err(text)?;
    drop(guard);
    let spec = TopicSpec::with(topic(Class::Flow, "quorum"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    broker.ensure(&spec).await.map_err(text)?;
    let guard = server.lock().await;
    if guard.is_ours() {
        let queues = guard.control(&["list_queues", "-q", "-p", &vhost, "name", "type"]).await?;
        check(queues.contains("tg.flow.quorum.reader\tquorum"), queues)?;
    }
    drop(guard);
    send(&broker, &spec.topic, "bad").await.map_err(text)?;
    send(&broker, &spec.topic, "good").await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let bad = next(&*inbox).await?;
    check(body(&bad) == "bad" && bad.attempt == 1, &bad)?;
    bad.again(Duration::from_millis(200));
    let good = next(&*inbox).await?;
    check(body(&good) == "good" && good.attempt == 1, &good)?;
    good.ack();
    for attempt in 2..5 {
        let bad = next(&*inbox).await?;
        check(body(&bad) == "bad" && bad.attempt == attempt, &bad)?;
        if attempt == 4 { bad.ack() } else { drop(bad) }
    }
    Ok(())
}

/// As a stop does that cannot park what is left, and is tried again.
async fn readers_that_leave_at_any_moment_leave_each_message_once(server: Server) -> Outcome {
    const MESSAGES: u64 = 40;
    const ROUNDS: usize = 12;
    let (_, broker, spec) = world(&server).await?;
    for number in 0..MESSAGES {
        send(&broker, &spec.topic, vec![number as u8; 64 * 1024]).await.map_err(text)?;
    }
    for round in 0..ROUNDS {
        let inbox = read(&broker, &spec.topic, 16).await.map_err(text)?;
        let got = next(&*inbox).await?;
        // The others were handed out before, and are being copied with their new counts.
        if round % 2 == 0 {
            drop(got)
        } else {
            got.untried(Duration::from_secs(30))
        }
        drop(inbox);
    }
    let back = until("every message back", || async {
        let seen = broker.observe(std::slice::from_ref(&spec)).await.ok()?;
        let seen = seen.first()?.subscriptions.first()?.clone();
        (seen.consumers == Some(0) && seen.unsettled == Some(0)).then_some(seen.ready)
    });
    let back = back.await?;
    check(back == MESSAGES, format!("{back} messages of {MESSAGES}"))
}

async fn only_messages_on_which_work_began_are_counted_whatever_ended(server: Server) -> Outcome {
    const MESSAGES: usize = 8;
    const ENDS: u32 = 4;
    if !server.lock().await.is_ours() {
        return Ok(());
    }
    for is_quorum in [false, true] {
        let guard = server.lock().await;
        let vhost = if is_quorum { guard.quorum_vhost().await? } else { guard.vhost().await? };
        let broker = guard.connect(&vhost).await.map_err(text)?;
        drop(guard);
        let spec = TopicSpec::with(topic(Class::Flow, "work"), "reader");
        broker.ensure(&spec).await.map_err(text)?;
        for number in 0..MESSAGES {
            send(&broker, &spec.topic, number.to_string()).await.map_err(text)?;
        }
        broker.shutdown().await;
        // A process holds them all and works on one, then ends, and once the broker with it.
        for end in 0..=ENDS {
            let broker = server.lock().await.connect(&vhost).await.map_err(text)?;
            // A quorum queue takes its time after a crash of its broker.
            // With places for those that a killed broker kept beside their copies.
            let reading = async || read(&broker, &spec.topic, 2 * MESSAGES as u32).await.ok();
            let inbox = until("a reader", reading).await?;
            let (mut held, mut killer) = (Vec::new(), None);
            while held.len() + 1 < MESSAGES || killer.is_none() {
                let got = next(&*inbox).await?;
                match body(&got).as_str() {
                    "3" if end > 0 && killer.is_none() => {
                        let begun = inbox.begin(got).await.map_err(text)?;
                        check(begun.begun == Some(end + 1), (is_quorum, end, &begun))?;
                        killer = Some(begun);
                    }
                    "3" if end == 0 => killer = Some(got),
                    _ => held.push(got),
                }
            }
            // A quorum queue is not there for long after its only node was killed.
            if end == 2 && !is_quorum {
                let mut server = server.lock().await;
                server.stop(false).await;
                server.run().await?;
            }
            broker.shutdown().await;
        }
        let broker = server.lock().await.connect(&vhost).await.map_err(text)?;
        let inbox = read(&broker, &spec.topic, 2 * MESSAGES as u32).await.map_err(text)?;
        let (mut seen, mut most) = (BTreeSet::new(), 0);
        while seen.len() < MESSAGES {
            let got = next(&*inbox).await?;
            most = most.max(got.attempt);
            let begun = inbox.begin(got).await.map_err(text)?;
            // A broker that was killed may have kept a message beside its copy.
            if seen.insert(body(&begun)) {
                let expected = if body(&begun) == "3" { ENDS + 2 } else { 2 };
                check(begun.begun == Some(expected), (is_quorum, body(&begun), &begun))?;
            }
            begun.ack();
        }
        // The broker counted more than was begun.
        check(most > 2, (is_quorum, most))?;
        until("no note to be left, and no message", || async {
            if let Ok(Ok(again)) = timeout(Duration::ZERO, inbox.next()).await {
                again.ack();
            }
            let names = server.lock().await.names(&vhost).await.ok()?;
            let seen = broker.observe(std::slice::from_ref(&spec)).await.ok()?;
            let is_noted = names.iter().any(|name| name.starts_with("sluice.begun."));
            (!is_noted && seen[0].subscriptions[0].is_drained()).then_some(())
        })
        .await?;
        broker.shutdown().await;
    }
    Ok(())
}

async fn without_the_management_api_all_works_but_the_unknown(server: Server) -> Outcome {
    let (vhost, _, spec) = world(&server).await?;
    let url = server.lock().await.url(&vhost);
    let broker = RabbitMq::connect(&url, Options::default()).await.map_err(text)?;
    let more = TopicSpec::with(spec.topic.clone(), "more");
    broker.ensure(&more).await.map_err(text)?;
    send(&broker, &spec.topic, "x").await.map_err(text)?;
    let seen = broker.observe(std::slice::from_ref(&spec)).await.map_err(text)?;
    let reader = &seen[0].subscriptions[0];
    check(reader.ready == 1 && reader.unsettled.is_none() && reader.consumers == Some(0), &seen)?;
    let findings = broker.examine().await.map_err(text)?;
    check(findings.iter().map(|found| found.code).eq(["management-missing"]), &findings)?;
    let bound = broker.bound_poison(&spec.topic).await.map_err(text)?;
    check(matches!(&bound, PoisonBound::Unbounded { why } if why.contains("management")), &bound)?;
    let listed = broker.list("").await;
    check(matches!(&listed, Err(Error::Refused { reason }) if reason.contains("management")), &listed)?;
    check(broker.management_answers().await.is_none(), "it answers")?;
    // What this process made is known to it.
    broker.remove(&spec).await.map_err(text)?;
    let asked = TopicSpec { topic: spec.topic, subscriptions: vec!["reader".to_owned(), "more".to_owned()] };
    let seen = broker.observe(&[asked]).await.map_err(text)?;
    check(!seen[0].exists && seen[0].subscriptions.iter().all(|there| !there.exists), &seen)
}

async fn connections_closed_by_the_broker_are_rebuilt_and_inboxes_keep_their_address(
    server: Server,
) -> Outcome {
    if !server.lock().await.is_ours() {
        return Ok(());
    }
    let (_, broker, spec) = world(&server).await?;
    let news = topic(Class::Notify, "news");
    let gone = topic(Class::Notify, "gone");
    for topic in [&news, &gone] {
        broker.ensure(&TopicSpec::bare(topic.clone())).await.map_err(text)?;
    }
    let followed = Subscription::Own { topics: vec![news.clone(), gone.clone()] };
    let own = broker.subscribe(&followed).await.map_err(text)?;
    let address = own.address().ok_or("no address")?;
    let shared = read(&broker, &spec.topic, 1).await.map_err(text)?;
    send(&broker, &spec.topic, "held").await.map_err(text)?;
    let held = next(&*shared).await?;
    broker.remove(&TopicSpec::bare(gone.clone())).await.map_err(text)?;
    server.lock().await.control(&["close_all_connections", "--global", "a test"]).await?;
    // What was held comes back to the same reader, and the late verdict means nothing.
    let got = next(&*shared).await?;
    check(body(&got) == "held" && got.attempt == 2, &got)?;
    held.ack();
    got.ack();
    let direct = Address::Inbox(address);
    until("the inbox at its address again", || async {
        broker.publish(&direct, Message::new("direct")).await.ok()
    })
    .await?;
    let got = next(&*own).await?;
    check(body(&got) == "direct", &got)?;
    // Bound again to what is still there: the copy may be the second of several.
    until("a signal", || async {
        send(&broker, &news, "signal").await.ok()?;
        let got = timeout(Duration::from_millis(500), own.next()).await.ok()?.ok()?;
        (body(&got) == "signal").then_some(())
    })
    .await
}

async fn a_broker_short_of_memory_holds_publishers_back_and_says_so(server: Server) -> Outcome {
    if !server.lock().await.is_ours() {
        return Ok(());
    }
    let (vhost, _, spec) = world(&server).await?;
    let guard = server.lock().await;
    let options = Options { publish_timeout: Duration::from_secs(2), ..guard.options() };
    let broker = RabbitMq::connect(&guard.url(&vhost), options).await.map_err(text)?;
    drop(guard);
    send(&broker, &spec.topic, "before").await.map_err(text)?;
    check(!broker.pressure().is_some_and(|pressure| pressure.is_high()), "high at rest")?;
    server.lock().await.control(&["set_vm_memory_high_watermark", "0.000001"]).await?;
    let held =
        until("a publish held back", || async { send(&broker, &spec.topic, "held").await.err() }).await;
    let pressure = broker.pressure();
    let second = send(&broker, &spec.topic, "held").await;
    let findings = broker.examine().await.map_err(text)?;
    // Who knows the management API of none, and has sent nothing yet, finds out too.
    let url = server.lock().await.url(&vhost);
    let blind = RabbitMq::connect(&url, Options::default()).await.map_err(text)?;
    let found_blind = blind.examine().await.map_err(text)?;
    let troubles = [broker.trouble(), blind.trouble()];
    // Who begins while it lasts, and has the time, is through when it is over.
    let patient = server.lock().await.connect(&vhost).await.map_err(text)?;
    let (waits, lifts) = (send(&patient, &spec.topic, "patient"), async {
        until("the patient one held back", || async { patient.pressure().filter(|p| p.is_high()) }).await?;
        server.lock().await.control(&["set_vm_memory_high_watermark", "0.6"]).await
    });
    let (waited, lifted) = tokio::join!(waits, lifts);
    if lifted.is_err() {
        server.lock().await.control(&["set_vm_memory_high_watermark", "0.6"]).await?;
    }
    lifted?;
    waited.map_err(text)?;
    check(findings.iter().any(|found| found.code == "publishers-blocked"), &findings)?;
    check(found_blind.iter().any(|found| found.code == "publishers-blocked"), &found_blind)?;
    let is_told = |trouble: &Option<String>| trouble.as_ref().is_some_and(|why| why.contains("memory"));
    check(troubles.iter().all(is_told), &troubles)?;
    let held = held?;
    check(held.kind() == ErrorKind::OutcomeUnknown, &held)?;
    check(pressure.is_some_and(|pressure| pressure.is_high()), pressure)?;
    check(matches!(&second, Err(error) if error.kind() == ErrorKind::Unavailable), &second)?;
    until("publishing again", || async { send(&broker, &spec.topic, "after").await.ok() }).await?;
    check(broker.trouble().is_none(), broker.trouble())?;
    // What the management API tells of nodes is some seconds old.
    until("nothing wrong any more", || async { broker.examine().await.ok()?.is_empty().then_some(()) })
        .await?;
    check(!broker.pressure().is_some_and(|pressure| pressure.is_high()), "still high")
}

async fn policies_and_limits_that_lose_or_refuse_messages_are_named(server: Server) -> Outcome {
    if !server.lock().await.is_ours() {
        return Ok(());
    }
    let (vhost, broker, spec) = world(&server).await?;
    let control = async |args: &[&str]| {
        let args = [&[args[0], "-p", vhost.as_str()], &args[1..]].concat();
        server.lock().await.control(&args).await
    };
    let found = async |code: &'static str| {
        until(code, || async { broker.examine().await.ok()?.into_iter().find(|found| found.code == code) })
            .await
    };
    let findings = broker.examine().await.map_err(text)?;
    check(findings.is_empty(), findings)?;
    for (definition, code, told) in [
        (r#"{"message-ttl": 60000}"#, "policy-loses-messages", "60000 ms"),
        (r#"{"expires": 600000}"#, "policy-loses-messages", "expires"),
        (r#"{"max-length": 100}"#, "policy-loses-messages", "oldest"),
        (
            r#"{"max-length": 1, "overflow": "reject-publish"}"#,
            "policy-refuses-messages",
            "beyond 1 messages",
        ),
    ] {
        control(&["set_policy", "theirs", r"^tg\.", definition]).await?;
        until(told, || async {
            let findings = broker.examine().await.ok()?;
            findings.iter().any(|found| found.code == code && found.text.contains(told)).then_some(())
        })
        .await?;
    }
    send(&broker, &spec.topic, "fits").await.map_err(text)?;
    let refused = until("a refusal", || async { send(&broker, &spec.topic, "more").await.err() }).await?;
    check(refused.kind() == ErrorKind::Unavailable && refused.to_string().contains("limit"), &refused)?;
    let full = found("queue-full").await?;
    check(full.topic.as_ref() == Some(&spec.topic) && full.text.contains("it takes no more"), &full)?;
    control(&["clear_policy", "theirs"]).await?;
    control(&["set_vhost_limits", r#"{"max-queues": 1}"#]).await?;
    found("vhost-limit").await?;
    control(&["clear_vhost_limits"]).await?;
    until("nothing wrong any more", || async { broker.examine().await.ok()?.is_empty().then_some(()) }).await
}

async fn a_broker_killed_and_started_again_loses_nothing_acknowledged(server: Server) -> Outcome {
    if !server.lock().await.is_ours() {
        return Ok(());
    }
    let (_, broker, spec) = world(&server).await?;
    let request = TopicSpec::with(topic(Class::Request, "ask"), "reader");
    broker.ensure(&request).await.map_err(text)?;
    let asked = read(&broker, &request.topic, 1).await.map_err(text)?;
    let inbox: Arc<dyn Inbox> = Arc::from(read(&broker, &spec.topic, 8).await.map_err(text)?);
    let stop = Arc::new(AtomicBool::new(false));
    let (publisher, work, ended) = (broker.clone(), spec.topic.clone(), stop.clone());
    #[expect(clippy::disallowed_methods, reason = "joined below")]
    let sending = tokio::spawn(async move {
        let (mut confirmed, mut failed) = (BTreeSet::new(), 0);
        for number in 0_u32.. {
            if ended.load(Ordering::Relaxed) {
                break;
            }
            match send(&publisher, &work, number.to_string()).await {
                Ok(()) => drop(confirmed.insert(number.to_string())),
                Err(_) => failed += 1,
            }
        }
        (confirmed, failed)
    });
    let mut seen = BTreeSet::new();
    while seen.len() < 50 {
        let got = next(&*inbox).await?;
        seen.insert(body(&got));
        got.ack();
    }
    {
        let mut server = server.lock().await;
        server.stop(false).await;
        server.run().await?;
    }
    // Both ends work again without anybody's doing.
    let before = seen.len();
    while seen.len() < before + 50 {
        let got = next(&*inbox).await?;
        seen.insert(body(&got));
        got.ack();
    }
    stop.store(true, Ordering::Relaxed);
    let (confirmed, failed) = sending.await.map_err(text)?;
    check(failed > 0, "the broker was not away: no publish failed")?;
    let mut missing: BTreeSet<_> = confirmed.difference(&seen).cloned().collect();
    while !missing.is_empty() {
        let got = next(&*inbox).await.map_err(|why| format!("{why}; missing {missing:?}"))?;
        missing.remove(&body(&got));
        got.ack();
    }
    // Queues of requests do not survive; who made them makes them again, and readers may attach.
    drop(asked);
    let serve = async || {
        let reader = read(&broker, &request.topic, 1).await.map_err(|why| format!("no reader: {why}"))?;
        send(&broker, &request.topic, "again").await.map_err(|why| format!("not sent: {why}"))?;
        let got = timeout(Duration::from_secs(5), reader.next()).await.map_err(|_| "nothing came")?;
        let got = got.map_err(|why| format!("the reader ended: {why}"))?;
        check(body(&got) == "again", &got)?;
        got.ack();
        Ok(())
    };
    let last = std::sync::Mutex::new(String::new());
    let served = until("a request served again", || async {
        serve().await.map_err(|why: String| *last.lock().unwrap() = why).ok()
    });
    served.await.map_err(|why| format!("{why}; {}", last.lock().unwrap()))
}
