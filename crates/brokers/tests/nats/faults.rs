//! What a real server does to us: restarts, readers that are killed, owners that remove and make again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use sluice_brokers::nats::{Nats, Options};
use sluice_bus::{
    Address, Broker, BrokerAdmin, Error, ErrorKind, InboxAddress, Message, Patience, Replies, Seen,
    Subscription, TopicSpec, property,
};
use sluice_schema::{Class, Topic};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::Server;
use crate::harness::*;

const ACK_WAIT: Duration = Duration::from_secs(2);
/// A machine that is busy elsewhere for a while sends no word either.
const LONG_ACK_WAIT: Duration = Duration::from_secs(8);

cases! {
    "faults":
    readers_go_on_when_the_server_is_restarted_again_and_again,
    publishes_under_way_when_the_server_is_killed_end_and_what_was_acknowledged_is_kept,
    calls_under_way_when_the_server_is_killed_end_in_an_answer_or_a_typed_error_and_later_ones_go_on,
    a_killed_readers_message_comes_back_and_is_shown_as_unsettled_until_then,
    a_message_that_is_worked_on_longer_than_the_servers_patience_is_not_handed_out_twice,
    what_settles_a_message_of_a_removed_topic_settles_none_of_the_next,
    of_two_subscriptions_the_slow_one_loses_nothing_and_nothing_settled_stays,
    followers_and_requests_go_on_after_a_restart,
    a_beginning_is_noted_and_outlives_its_reader,
    a_topic_bound_half_way_is_seen_so_and_made_whole,
    a_reader_of_a_consumer_that_was_removed_alone_ends_and_its_owner_learns_of_it,
    a_stream_whose_folder_the_server_lost_is_made_anew_once_nothing_waits_in_it,
}

/// A topic of its own, whose messages come back sooner than usual from a reader that is not heard of.
async fn world(server: &Server, name: &str) -> Result<(Nats, TopicSpec), String> {
    patient_world(server, name, ACK_WAIT).await
}

async fn patient_world(server: &Server, name: &str, ack_wait: Duration) -> Result<(Nats, TopicSpec), String> {
    let options = Options { ack_wait, ..Options::default() };
    let broker = Nats::connect(&server.lock().await.url(), options).await.map_err(text)?;
    let name = format!("{name}:{}", uuid::Uuid::new_v4().simple());
    let spec = TopicSpec::with(topic(Class::Flow, &name), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    Ok((broker, spec))
}

async fn look(broker: &Nats, spec: &TopicSpec) -> Option<Seen> {
    broker.observe(std::slice::from_ref(spec)).await.ok()?.pop()
}

/// Ready and unsettled of the first subscription.
async fn counts(broker: &Nats, spec: &TopicSpec) -> Option<(u64, u64)> {
    let seen = look(broker, spec).await?;
    seen.subscriptions.first().map(|seen| (seen.ready, seen.unsettled.unwrap_or(0)))
}

async fn drained(broker: &Nats, spec: &TopicSpec) -> Outcome {
    until("an empty subscription", async || (counts(broker, spec).await? == (0, 0)).then_some(())).await
}

/// A client that is not ours, and so does nothing of what ours do when they leave.
async fn stranger(server: &Server) -> Result<async_nats::Client, String> {
    let url = server.lock().await.url();
    async_nats::connect(url).await.map_err(text)
}

/// As `names::stream` has it, for names of plain letters.
fn stream(topic: &Topic) -> String {
    format!("{}_{}_{}", topic.space(), topic.class(), topic.name())
}

async fn readers_go_on_when_the_server_is_restarted_again_and_again(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "restarts").await?;
    let inbox = read(&broker, &spec.topic, 4).await.map_err(text)?;
    for round in 0..5 {
        {
            let mut server = server.lock().await;
            server.stop(round % 2 == 0).await;
            server.run().await?;
        }
        let sent = format!("round {round}");
        until("a publish after the restart", async || send(&broker, &spec.topic, sent.clone()).await.ok())
            .await?;
        loop {
            // One whose outcome was unknown may have been sent twice.
            let got = next(&*inbox).await?;
            let is_it = body(&got) == sent;
            got.ack();
            if is_it {
                break;
            }
        }
    }
    until("an empty subscription", async || {
        if let Some(Ok(again)) = inbox.next().now_or_never() {
            again.ack();
        }
        (counts(&broker, &spec).await? == (0, 0)).then_some(())
    })
    .await
}

async fn publishes_under_way_when_the_server_is_killed_end_and_what_was_acknowledged_is_kept(
    server: Server,
) -> Outcome {
    let (broker, spec) = world(&server, "killed").await?;
    let publish = async |number: usize| (number, send(&broker, &spec.topic, number.to_string()).await);
    let mut sent = BTreeSet::new();
    let mut under_way = futures_util::stream::iter((0..400).map(publish)).buffer_unordered(64);
    while let Some((number, outcome)) = under_way.next().await {
        match outcome {
            Ok(()) => _ = sent.insert(number),
            Err(error) => {
                let is_typed = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::OutcomeUnknown);
                check(is_typed, error)?;
            }
        }
        if sent.len() == 100 {
            let mut server = server.lock().await;
            server.stop(false).await;
            server.run().await?;
        }
    }
    drop(under_way);
    let inbox = read(&broker, &spec.topic, 64).await.map_err(text)?;
    while !sent.is_empty() {
        let got = next(&*inbox).await?;
        sent.remove(&body(&got).parse::<usize>().map_err(text)?);
        got.ack();
    }
    Ok(())
}

async fn calls_under_way_when_the_server_is_killed_end_in_an_answer_or_a_typed_error_and_later_ones_go_on(
    server: Server,
) -> Outcome {
    const AT_ONCE: usize = 64;
    const CALLS: usize = 2_000;
    const KILLED_AFTER: usize = 500;
    const PATIENCE: Duration = Duration::from_secs(5);
    let (broker, spec) = world(&server, "calls").await?;
    let asked = TopicSpec::with(topic(Class::Request, spec.topic.name()), "reader");
    broker.ensure(&asked).await.map_err(text)?;
    let stop = CancellationToken::new();
    let asker = server.lock().await.connect().await.map_err(text)?;
    let replies = Replies::new(Arc::new(asker));
    let mut running = JoinSet::new();
    running.spawn(replies.clone().run(stop.clone()));
    let service = read(&broker, &asked.topic, AT_ONCE as u32).await.map_err(text)?;
    let serve = async {
        loop {
            let question = next(&*service).await?;
            let property = |name| question.message.get(name).unwrap_or_default().to_owned();
            let answer = Message::new("answer").with(property::ID, &property(property::ID));
            let to = Address::Inbox(InboxAddress(property(property::REPLY_TO).into()));
            // Its asker may be away just now; the call has its deadline.
            let sent = broker.publish(&to, answer).await;
            if sent.is_ok() { question.ack() } else { question.again(Duration::from_millis(100)) }
        }
    };
    let call = async |number: usize| {
        let outcome = match replies.ask(&asked.topic, Message::new("?"), Patience::total(PATIENCE)).await {
            Ok(mut call) => call.next().await.map(drop),
            Err(error) => Err(error),
        };
        (number, outcome)
    };
    let ask = async {
        let mut ended = 0;
        let mut calls = futures_util::stream::iter((0..CALLS).map(call)).buffer_unordered(AT_ONCE);
        while let Some((number, outcome)) = calls.next().await {
            ended += 1;
            if ended == KILLED_AFTER {
                let mut server = server.lock().await;
                server.stop(false).await;
                server.run().await?;
            }
            let Err(error) = outcome else { continue };
            let is_typed = matches!(
                error.kind(),
                ErrorKind::Unavailable | ErrorKind::OutcomeUnknown | ErrorKind::Absent
            );
            check(is_typed && number < CALLS - AT_ONCE, format!("call {number}: {error}"))?;
        }
        check(ended == CALLS, ended)
    };
    let outcome = tokio::select! { outcome = serve => outcome, outcome = ask => outcome };
    stop.cancel();
    running.join_all().await;
    outcome
}

async fn a_killed_readers_message_comes_back_and_is_shown_as_unsettled_until_then(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "left").await?;
    send(&broker, &spec.topic, "held").await.map_err(text)?;
    let client = stranger(&server).await?;
    let inbox = client.new_inbox();
    let mut messages = client.subscribe(inbox.clone()).await.map_err(text)?;
    let ask = format!("$JS.API.CONSUMER.MSG.NEXT.{}.reader", stream(&spec.topic));
    client
        .publish_with_reply(ask, inbox, "{\"batch\":1,\"expires\":5000000000}".into())
        .await
        .map_err(text)?;
    timeout(VALUE_TIMEOUT, messages.next()).await.map_err(|_| "nothing came")?.ok_or("it ended")?;
    drop((messages, client));
    let seen = counts(&broker, &spec).await;
    check(seen == Some((0, 1)), seen)?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(got.attempt == 2, &got)?;
    got.ack();
    drained(&broker, &spec).await
}

async fn a_message_that_is_worked_on_longer_than_the_servers_patience_is_not_handed_out_twice(
    server: Server,
) -> Outcome {
    let (broker, spec) = patient_world(&server, "long", LONG_ACK_WAIT).await?;
    send(&broker, &spec.topic, "long").await.map_err(text)?;
    let (one, two) = (
        read(&broker, &spec.topic, 1).await.map_err(text)?,
        read(&broker, &spec.topic, 1).await.map_err(text)?,
    );
    let held = tokio::select! {
        held = next(&*one) => held?,
        held = next(&*two) => held?,
    };
    // Longer than what the server waits for a word; nothing has to come, so there is nothing to wait for.
    let other = async {
        tokio::select! { got = one.next() => got, got = two.next() => got }
    };
    let twice = timeout(LONG_ACK_WAIT + ACK_WAIT, other).await;
    check(twice.is_err(), twice.map(|got| got.map(|got| got.attempt)))?;
    held.ack();
    drained(&broker, &spec).await
}

async fn what_settles_a_message_of_a_removed_topic_settles_none_of_the_next(server: Server) -> Outcome {
    let (broker, spec) = patient_world(&server, "twice", LONG_ACK_WAIT).await?;
    let old = read(&broker, &spec.topic, 2).await.map_err(text)?;
    for body in ["old 1", "old 2"] {
        send(&broker, &spec.topic, body).await.map_err(text)?;
    }
    // Its hands are full, so it asks for nothing and does not learn of the removal: it goes on with what is made again.
    let (first, second) = (next(&*old).await?, next(&*old).await?);
    broker.remove(&spec).await.map_err(text)?;
    broker.ensure(&spec).await.map_err(text)?;
    for body in ["new 1", "new 2"] {
        send(&broker, &spec.topic, body).await.map_err(text)?;
    }
    let new = read(&broker, &spec.topic, 2).await.map_err(text)?;
    let (one, two) = (next(&*new).await?, next(&*new).await?);
    first.ack();
    second.ack();
    // It asks once it has settled, so what it gets shows that the server has seen that.
    send(&broker, &spec.topic, "new 3").await.map_err(text)?;
    let third = next(&*old).await?;
    check(body(&third) == "new 3", body(&third))?;
    third.ack();
    drop(old);
    until("both that are held", async || (counts(&broker, &spec).await? == (0, 2)).then_some(())).await?;
    drop((one, two));
    for _ in 0..2 {
        let got = next(&*new).await?;
        check(body(&got).starts_with("new") && got.attempt == 2, body(&got))?;
        got.ack();
    }
    drained(&broker, &spec).await
}

async fn of_two_subscriptions_the_slow_one_loses_nothing_and_nothing_settled_stays(
    server: Server,
) -> Outcome {
    const MESSAGES: u64 = 200;
    let (broker, fast) = world(&server, "two").await?;
    let slow = TopicSpec::with(fast.topic.clone(), "slow");
    broker.ensure(&slow).await.map_err(text)?;
    for number in 0..MESSAGES {
        send(&broker, &fast.topic, number.to_string()).await.map_err(text)?;
    }
    let named =
        |name: &str| Subscription::Shared { topic: fast.topic.clone(), name: name.to_owned(), prefetch: 16 };
    let of = async |name: &str| {
        let seen = look(&broker, &fast).await?;
        seen.subscriptions
            .iter()
            .find(|seen| seen.name == name)
            .map(|seen| seen.ready + seen.unsettled.unwrap_or(0))
    };
    for (name, left_of_slow) in [("reader", MESSAGES), ("slow", 0)] {
        let inbox = broker.subscribe(&named(name)).await.map_err(text)?;
        for number in 0..MESSAGES {
            let got = next(&*inbox).await?;
            check(body(&got) == number.to_string(), format!("{name}: {} instead of {number}", body(&got)))?;
            got.ack();
        }
        until("what was read settled", async || (of(name).await? == 0).then_some(())).await?;
        check(of("slow").await == Some(left_of_slow), of("slow").await)?;
    }
    let client = stranger(&server).await?;
    let path = format!("$JS.API.STREAM.INFO.{}", stream(&fast.topic));
    until("an empty stream", async || {
        let info = client.request(path.clone(), "".into()).await.ok()?;
        let info: serde_json::Value = serde_json::from_slice(&info.payload).ok()?;
        (info["state"]["messages"] == 0).then_some(())
    })
    .await
}

async fn followers_and_requests_go_on_after_a_restart(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "after").await?;
    let request = TopicSpec::with(topic(Class::Request, spec.topic.name()), "reader");
    let notify = TopicSpec::bare(topic(Class::Notify, spec.topic.name()));
    for spec in [&request, &notify] {
        broker.ensure(spec).await.map_err(text)?;
    }
    let service = read(&broker, &request.topic, 1).await.map_err(text)?;
    let own =
        broker.subscribe(&Subscription::Own { topics: vec![notify.topic.clone()] }).await.map_err(text)?;
    {
        let mut server = server.lock().await;
        server.stop(false).await;
        server.run().await?;
    }
    // Nobody makes anything again.
    let again = async |topic: &Topic| {
        until("a publish after the restart", async || send(&broker, topic, "after").await.ok()).await
    };
    again(&request.topic).await?;
    again(&notify.topic).await?;
    let (asked, heard) = (next(&*service).await?, next(&*own).await?);
    check(body(&asked) == "after" && body(&heard) == "after", (&asked, &heard))?;
    asked.ack();
    let to = Address::Inbox(own.address().ok_or("no address")?);
    broker.publish(&to, Message::new("direct")).await.map_err(text)?;
    let got = next(&*own).await?;
    check(body(&got) == "direct", body(&got))
}

async fn a_beginning_is_noted_and_outlives_its_reader(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "begun").await?;
    send(&broker, &spec.topic, "ends processes").await.map_err(text)?;
    drop(next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?);
    for begun in [2, 3] {
        let other = server.lock().await.connect().await.map_err(text)?;
        let inbox = read(&other, &spec.topic, 1).await.map_err(text)?;
        let got = inbox.begin(next(&*inbox).await?).await.map_err(text)?;
        check(got.begun == Some(begun), got.begun)?;
        // Handed out and given back untried, it has not begun.
        got.untried(Duration::ZERO);
        next(&*inbox).await?.untried(Duration::ZERO);
        other.shutdown().await;
    }
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    next(&*inbox).await?.ack();
    drained(&broker, &spec).await?;
    // The note goes with it, a moment later: then the same message is another one.
    until("a message without a note", async || {
        send(&broker, &spec.topic, "ends processes").await.ok()?;
        drop(next(&*inbox).await.ok()?);
        let got = inbox.begin(next(&*inbox).await.ok()?).await.ok()?;
        let is_another = got.begun == Some(2);
        got.ack();
        is_another.then_some(())
    })
    .await
}

async fn a_topic_bound_half_way_is_seen_so_and_made_whole(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "half").await?;
    let client = stranger(&server).await?;
    // As an owner leaves it that ended before its last step.
    let name = stream(&spec.topic);
    let info = client.request(format!("$JS.API.STREAM.INFO.{name}"), "".into()).await.map_err(text)?;
    let info: serde_json::Value = serde_json::from_slice(&info.payload).map_err(text)?;
    let mut config = info["config"].clone();
    config["subjects"] = serde_json::json!([format!("sluice.nowhere.{name}")]);
    let update = client.request(format!("$JS.API.STREAM.UPDATE.{name}"), config.to_string().into()).await;
    let update = String::from_utf8_lossy(&update.map_err(text)?.payload).into_owned();
    check(!update.contains("\"error\""), update)?;
    let is_bound = async || look(&broker, &spec).await?.subscriptions.first()?.is_bound;
    check(is_bound().await == Some(false), is_bound().await)?;
    let to = Address::Subscribed(spec.topic.clone());
    let sent = broker.publish(&to, Message::new("early")).await;
    check(matches!(&sent, Err(Error::NoReader { .. })), sent)?;
    broker.ensure(&spec).await.map_err(text)?;
    check(is_bound().await == Some(true), is_bound().await)?;
    broker.publish(&to, Message::new("kept")).await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "kept", body(&got))?;
    got.ack();
    Ok(())
}

async fn a_reader_of_a_consumer_that_was_removed_alone_ends_and_its_owner_learns_of_it(
    server: Server,
) -> Outcome {
    let (broker, spec) = world(&server, "alone").await?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let client = stranger(&server).await?;
    let path = format!("$JS.API.CONSUMER.DELETE.{}.reader", stream(&spec.topic));
    client.request(path, "".into()).await.map_err(text)?;
    let ended = timeout(VALUE_TIMEOUT, inbox.next()).await.map_err(|_| "the reader did not end")?;
    check(matches!(&ended, Err(Error::NoSubscription { .. })), ended.err())?;
    let losses = broker.losses().ok_or("no notes")?;
    let noted = timeout(VALUE_TIMEOUT, losses.take()).await.map_err(|_| "it was not noted")?;
    check(noted.contains_key(&spec.topic), noted)
}

async fn a_stream_whose_folder_the_server_lost_is_made_anew_once_nothing_waits_in_it(
    server: Server,
) -> Outcome {
    let (broker, waits) = world(&server, "waits").await?;
    let (_, empty) = world(&server, "empty").await?;
    send(&broker, &waits.topic, "kept").await.map_err(text)?;
    for spec in [&waits, &empty] {
        let folder = server.lock().await.folder_of(&stream(&spec.topic));
        std::fs::remove_dir_all(folder).map_err(text)?;
    }
    // What waits may still be read, so it is not removed.
    let refused = broker.ensure(&waits).await.err();
    check(refused.as_ref().is_some_and(|error| error.kind() == ErrorKind::Unavailable), refused)?;
    check(counts(&broker, &waits).await == Some((1, 0)), "what waited is gone")?;
    broker.ensure(&empty).await.map_err(text)?;
    let folder = server.lock().await.folder_of(&stream(&empty.topic));
    check(folder.join("meta.inf").exists(), "it is not on the disk")?;
    send(&broker, &empty.topic, "next").await.map_err(text)?;
    let inbox = read(&broker, &empty.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "next", body(&got))?;
    got.ack();
    drained(&broker, &empty).await
}
