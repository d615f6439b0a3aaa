//! What a real broker does to us: restarts, readers that are killed, retention, owners that remove and make again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use sluice_brokers::kafka::{Kafka, Options};
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
use crate::victim::{Follower, kill_asker, kill_reader};

cases! {
    "faults":
    what_is_in_hand_is_counted_until_it_is_settled,
    a_message_that_kills_its_readers_is_counted_each_time,
    a_message_is_tried_more_often_than_the_broker_delivers_one,
    what_is_sent_once_more_is_for_its_subscription_only,
    a_late_request_is_dropped_by_the_reader_that_gets_it,
    a_reader_with_many_in_hand_gets_more_and_settles_them_in_any_order,
    messages_survive_a_killed_broker_and_those_settled_do_not_come_back,
    readers_go_on_when_the_broker_is_restarted,
    publishes_under_way_when_the_broker_is_killed_end_and_what_was_acknowledged_is_kept,
    calls_under_way_when_the_broker_is_killed_end_in_an_answer_or_a_typed_error_and_later_ones_go_on,
    a_broker_that_is_away_is_told_and_so_is_its_return,
    followers_and_requests_go_on_after_a_restart,
    followers_go_on_from_what_is_there_after_retention,
    what_settles_a_message_of_a_removed_topic_settles_none_of_the_next,
    of_two_subscriptions_the_slow_one_loses_nothing_and_nothing_settled_stays,
    a_reader_of_a_group_whose_messages_are_dropped_too_soon_is_refused_by_name,
    a_topic_that_was_removed_at_the_broker_is_made_again_by_its_owner,
    inboxes_of_a_process_that_was_killed_are_removed_and_others_stay,
    an_inbox_that_somebody_removed_ends,
    inboxes_whose_topic_was_removed_at_the_broker_end_and_are_made_again,
    a_topic_whose_maker_was_killed_before_it_was_on_record_is_removed,
}

/// A topic of its own.
async fn world(server: &Server, name: &str) -> Result<(Kafka, TopicSpec), String> {
    let broker = server.lock().await.connect().await.map_err(text)?;
    let name = format!("{name}:{}", uuid::Uuid::new_v4().simple());
    let spec = TopicSpec::with(topic(Class::Flow, &name), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    Ok((broker, spec))
}

async fn look(broker: &Kafka, spec: &TopicSpec) -> Option<Seen> {
    broker.observe(std::slice::from_ref(spec)).await.ok()?.pop()
}

/// What is not settled in the first subscription.
async fn count(broker: &Kafka, spec: &TopicSpec) -> Option<u64> {
    look(broker, spec).await?.subscriptions.first().map(|seen| seen.ready)
}

async fn drained(broker: &Kafka, spec: &TopicSpec) -> Outcome {
    until("an empty subscription", async || (count(broker, spec).await? == 0).then_some(())).await
}

async fn restart(server: &Server, in_good_order: bool) -> Outcome {
    let mut server = server.lock().await;
    server.stop(in_good_order).await;
    server.run().await
}

/// What a topic is called at the broker.
async fn place(server: &Server, of: &Topic) -> Result<String, String> {
    let shown = format!("sluice.{}.{}.", of.class(), of.name().replace(':', "-"));
    let topics = server.lock().await.topics().await?;
    topics.into_iter().find(|known| known.starts_with(&shown)).ok_or_else(|| format!("no topic {shown}…"))
}

async fn what_is_in_hand_is_counted_until_it_is_settled(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "counts").await?;
    for body in ["a", "b", "c"] {
        send(&broker, &spec.topic, body).await.map_err(text)?;
    }
    let inbox = read(&broker, &spec.topic, 2).await.map_err(text)?;
    let (first, second) = (next(&*inbox).await?, next(&*inbox).await?);
    let seen = look(&broker, &spec).await.ok_or("not seen")?;
    let reader = seen.subscriptions.first().ok_or("no subscription")?;
    check(
        reader.exists && reader.ready == 3 && reader.unsettled.is_none() && reader.consumers.is_none(),
        reader,
    )?;
    // Single ones are taken off the count, whatever their order.
    second.ack();
    until("two left", async || (count(&broker, &spec).await? == 2).then_some(())).await?;
    first.ack();
    next(&*inbox).await?.ack();
    drained(&broker, &spec).await
}

async fn a_message_that_kills_its_readers_is_counted_each_time(server: Server) -> Outcome {
    const KILLS: u32 = 3;
    let (broker, flow) = world(&server, "kills").await?;
    let request = TopicSpec::with(topic(Class::Request, flow.topic.name()), "reader");
    broker.ensure(&request).await.map_err(text)?;
    let url = server.lock().await.url();
    for spec in [&flow, &request] {
        send(&broker, &spec.topic, "kills").await.map_err(text)?;
        for kill in 1..=KILLS {
            let attempt = kill_reader(&url, spec).await?;
            check(attempt == kill, format!("{}: time {kill} is counted {attempt}", spec.topic))?;
        }
        let got = next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?;
        check(got.attempt == KILLS + 1, &got)?;
        drop(got);
    }
    Ok(())
}

async fn a_message_is_tried_more_often_than_the_broker_delivers_one(server: Server) -> Outcome {
    // The broker drops one after ten.
    const TIMES: u32 = 25;
    let (broker, spec) = world(&server, "often").await?;
    let sent = Message::new("tried often").with(property::ID, "one").with("other", "two");
    broker.publish(&Address::Topic(spec.topic.clone()), sent.clone()).await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    for time in 1..TIMES {
        let got = next(&*inbox).await?;
        check(got.attempt == time && got.message == sent, &got)?;
        drop(got);
    }
    // Another reader goes on counting; what was on its way to the first one may count.
    drop(inbox);
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check((TIMES..=TIMES + 1).contains(&got.attempt), &got)?;
    got.ack();
    drained(&broker, &spec).await
}

async fn what_is_sent_once_more_is_for_its_subscription_only(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "once-more").await?;
    let other = TopicSpec::with(spec.topic.clone(), "other");
    broker.ensure(&other).await.map_err(text)?;
    send(&broker, &spec.topic, "untried").await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    for _ in 0..3 {
        let got = next(&*inbox).await?;
        check(got.attempt == 1, &got)?;
        got.untried(Duration::ZERO);
    }
    next(&*inbox).await?.ack();
    send(&broker, &spec.topic, "last").await.map_err(text)?;
    let named = Subscription::Shared { topic: spec.topic.clone(), name: "other".to_owned(), prefetch: 1 };
    let elsewhere = broker.subscribe(&named).await.map_err(text)?;
    for wanted in ["untried", "last"] {
        let got = next(&*elsewhere).await?;
        check(body(&got) == wanted, body(&got))?;
        got.ack();
    }
    until("both empty", async || {
        let seen = look(&broker, &spec).await?;
        // The one for the reader of before is still to be read.
        seen.subscriptions.iter().all(|seen| seen.ready == u64::from(seen.name == "reader")).then_some(())
    })
    .await
}

async fn a_late_request_is_dropped_by_the_reader_that_gets_it(server: Server) -> Outcome {
    let (broker, flow) = world(&server, "late").await?;
    let spec = TopicSpec::with(topic(Class::Request, flow.topic.name()), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    let to = Address::Topic(spec.topic.clone());
    broker.publish(&to, Message::new("short").with(property::TTL, "50")).await.map_err(text)?;
    broker.publish(&to, Message::new("long").with(property::TTL, "60000")).await.map_err(text)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "long", body(&got))?;
    got.ack();
    drained(&broker, &spec).await
}

async fn a_reader_with_many_in_hand_gets_more_and_settles_them_in_any_order(server: Server) -> Outcome {
    const IN_HAND: usize = 24;
    let (broker, spec) = world(&server, "many").await?;
    for number in 0..2 * IN_HAND {
        send(&broker, &spec.topic, number.to_string()).await.map_err(text)?;
    }
    let inbox = read(&broker, &spec.topic, IN_HAND as u32).await.map_err(text)?;
    let mut held = Vec::new();
    for number in 0..IN_HAND {
        let got = next(&*inbox).await?;
        check(body(&got) == number.to_string(), body(&got))?;
        held.push(got);
    }
    check(timeout(Duration::from_millis(300), inbox.next()).await.is_err(), "more than it has room for")?;
    held.into_iter().rev().for_each(|got| got.ack());
    for number in IN_HAND..2 * IN_HAND {
        let got = next(&*inbox).await?;
        check(body(&got) == number.to_string() && got.attempt == 1, &got)?;
        got.ack();
    }
    drained(&broker, &spec).await
}

async fn messages_survive_a_killed_broker_and_those_settled_do_not_come_back(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "survive").await?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    for body in ["settled", "held", "waiting"] {
        send(&broker, &spec.topic, body).await.map_err(text)?;
    }
    next(&*inbox).await?.ack();
    let held = next(&*inbox).await?;
    check(body(&held) == "held", body(&held))?;
    until("the first one settled", async || (count(&broker, &spec).await? == 2).then_some(())).await?;
    // This end goes with the broker, as in a crash of all.
    server.lock().await.stop(false).await;
    drop((broker, inbox, held));
    server.lock().await.run().await?;
    let broker = server.lock().await.connect().await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 2).await.map_err(text)?;
    for wanted in ["held", "waiting"] {
        let got = next(&*inbox).await?;
        check(body(&got) == wanted && got.attempt <= 2, &got)?;
        got.ack();
    }
    drained(&broker, &spec).await
}

async fn readers_go_on_when_the_broker_is_restarted(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "restarts").await?;
    let inbox = read(&broker, &spec.topic, 4).await.map_err(text)?;
    for in_good_order in [true, false] {
        restart(&server, in_good_order).await?;
        let sent = format!("{in_good_order}");
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
        (count(&broker, &spec).await? == 0).then_some(())
    })
    .await
}

async fn publishes_under_way_when_the_broker_is_killed_end_and_what_was_acknowledged_is_kept(
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
            restart(&server, false).await?;
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

async fn calls_under_way_when_the_broker_is_killed_end_in_an_answer_or_a_typed_error_and_later_ones_go_on(
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
                restart(&server, false).await?;
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

async fn a_broker_that_is_away_is_told_and_so_is_its_return(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "away").await?;
    let hold = broker.hold(spec.topic.as_str()).await.map_err(text)?;
    check(broker.trouble().is_none(), broker.trouble())?;
    server.lock().await.stop(true).await;
    hold.lost().await;
    let told = until("the trouble", async || broker.trouble()).await;
    server.lock().await.run().await?;
    told?;
    until("a publish", async || send(&broker, &spec.topic, "after").await.ok()).await?;
    check(broker.trouble().is_none(), broker.trouble())
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
    let heard =
        broker.subscribe(&Subscription::Own { topics: vec![notify.topic.clone()] }).await.map_err(text)?;
    restart(&server, false).await?;
    // Sent while followers are not attached again yet: nothing of it is missed, whether or not anything came before.
    let other = server.lock().await.connect().await.map_err(text)?;
    send(&other, &notify.topic, "at once").await.map_err(text)?;
    for own in [&own, &heard] {
        check(body(&next(&**own).await?) == "at once", "something else came")?;
    }
    restart(&server, true).await?;
    send(&server.lock().await.connect().await.map_err(text)?, &notify.topic, "again").await.map_err(text)?;
    for own in [&own, &heard] {
        check(body(&next(&**own).await?) == "again", "something else came")?;
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

async fn what_settles_a_message_of_a_removed_topic_settles_none_of_the_next(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "twice").await?;
    let old = read(&broker, &spec.topic, 2).await.map_err(text)?;
    for body in ["old 1", "old 2"] {
        send(&broker, &spec.topic, body).await.map_err(text)?;
    }
    let (first, second) = (next(&*old).await?, next(&*old).await?);
    broker.remove(&spec).await.map_err(text)?;
    broker.ensure(&spec).await.map_err(text)?;
    for body in ["new 1", "new 2"] {
        send(&broker, &spec.topic, body).await.map_err(text)?;
    }
    first.ack();
    second.again(Duration::ZERO);
    // The first reader ended with its topic, or goes on with the next one.
    drop(old);
    let new = read(&broker, &spec.topic, 2).await.map_err(text)?;
    for _ in 0..2 {
        let got = next(&*new).await?;
        check(body(&got).starts_with("new"), body(&got))?;
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
    Ok(())
}

async fn followers_go_on_from_what_is_there_after_retention(server: Server) -> Outcome {
    let (broker, flow) = world(&server, "cut").await?;
    let notify = topic(Class::Notify, flow.topic.name());
    broker.ensure(&TopicSpec::bare(notify.clone())).await.map_err(text)?;
    let url = server.lock().await.url();
    let mut follower = Follower::start(&url, &notify).await?;
    send(&broker, &notify, "before").await.map_err(text)?;
    check(follower.heard().await? == "before", "it is not followed")?;
    // While it stands still, what it would read next goes.
    follower.signal("STOP")?;
    for number in 0..5 {
        send(&broker, &notify, number.to_string()).await.map_err(text)?;
    }
    let place = place(&server, &notify).await?;
    server.lock().await.cut(&place, 6).await?;
    send(&broker, &notify, "after").await.map_err(text)?;
    follower.signal("CONT")?;
    // What the broker had sent it before it stood still may come.
    while follower.heard().await? != "after" {}
    Ok(())
}

async fn a_reader_of_a_group_whose_messages_are_dropped_too_soon_is_refused_by_name(
    server: Server,
) -> Outcome {
    let (broker, spec) = world(&server, "limit").await?;
    let group = format!("{}/reader", place(&server, &spec.topic).await?);
    server.lock().await.limit(&group, 2).await?;
    let error = read(&broker, &spec.topic, 1).await.err().ok_or("it reads")?;
    let told = error.to_string();
    check(error.kind() == ErrorKind::Refused && told.contains("share.delivery.count.limit"), told)?;
    server.lock().await.limit(&group, 3).await?;
    read(&broker, &spec.topic, 1).await.map(drop).map_err(text)
}

async fn a_topic_that_was_removed_at_the_broker_is_made_again_by_its_owner(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "by-hand").await?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let place = place(&server, &spec.topic).await?;
    server.lock().await.remove(&place).await?;
    let seen = look(&broker, &spec).await.ok_or("not seen")?;
    check(!seen.exists && seen.subscriptions.iter().all(|seen| !seen.exists), &seen)?;
    broker.ensure(&spec).await.map_err(text)?;
    let ended = timeout(VALUE_TIMEOUT, inbox.next()).await.map_err(|_| "the reader did not end")?;
    check(matches!(&ended, Err(Error::NoSubscription { .. })), ended.err())?;
    send(&broker, &spec.topic, "again").await.map_err(text)?;
    let got = next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?;
    check(body(&got) == "again", body(&got))?;
    got.ack();
    Ok(())
}

/// Processes that are missed soon.
async fn hasty(server: &Server) -> Result<Kafka, String> {
    let options = Options { silence_max: Duration::from_secs(6), ..Options::default() };
    Kafka::connect(&server.lock().await.url(), options).await.map_err(text)
}

async fn inboxes_of_a_process_that_was_killed_are_removed_and_others_stay(server: Server) -> Outcome {
    let (_, flow) = world(&server, "inboxes").await?;
    let (owner, asker) = (hasty(&server).await?, hasty(&server).await?);
    let own = asker.subscribe(&Subscription::Own { topics: vec![] }).await.map_err(text)?;
    let url = server.lock().await.url();
    let left = kill_asker(&url).await?;
    let to = Address::Inbox(InboxAddress(left.as_str().into()));
    owner.publish(&to, Message::new("?")).await.map_err(text)?;
    // Who makes something sees to what others left behind.
    owner.ensure(&flow).await.map_err(text)?;
    until("the inbox gone", async || {
        let sent = owner.publish(&to, Message::new("?")).await;
        matches!(sent, Err(Error::NoInbox { .. })).then_some(())
    })
    .await?;
    let to = Address::Inbox(own.address().ok_or("no address")?);
    owner.publish(&to, Message::new("direct")).await.map_err(text)?;
    let got = next(&*own).await?;
    check(body(&got) == "direct", body(&got))
}

async fn an_inbox_that_somebody_removed_ends(server: Server) -> Outcome {
    let (broker, _) = world(&server, "deaf").await?;
    let own = broker.subscribe(&Subscription::Own { topics: vec![] }).await.map_err(text)?;
    // A process that cannot be heard of, as one that stood still: its owner takes it for gone.
    let owner = Options { silence_max: Duration::from_millis(1), ..Options::default() };
    let owner = Kafka::connect(&server.lock().await.url(), owner).await.map_err(text)?;
    let spec = TopicSpec::bare(topic(Class::Flow, &uuid::Uuid::new_v4().simple().to_string()));
    owner.ensure(&spec).await.map_err(text)?;
    let ended = timeout(VALUE_TIMEOUT, own.next()).await.map_err(|_| "it is deaf")?;
    check(matches!(&ended, Err(Error::Unavailable { .. })), ended.err())?;
    owner.shutdown().await;
    let again = broker.subscribe(&Subscription::Own { topics: vec![] }).await.map_err(text)?;
    let to = Address::Inbox(again.address().ok_or("no address")?);
    broker.publish(&to, Message::new("direct")).await.map_err(text)?;
    let got = next(&*again).await?;
    check(body(&got) == "direct", body(&got))
}

async fn inboxes_whose_topic_was_removed_at_the_broker_end_and_are_made_again(server: Server) -> Outcome {
    let before = server.lock().await.topics().await?;
    let broker = hasty(&server).await?;
    let inbox = async || broker.subscribe(&Subscription::Own { topics: vec![] }).await.map_err(text);
    let owns = [inbox().await?, inbox().await?];
    // Other cases may have made one of their own meanwhile; theirs end and are made again too.
    let topics = server.lock().await.topics().await?;
    let made = |place: &&String| place.starts_with("sluice.inbox.") && !before.contains(place);
    for place in topics.iter().filter(made) {
        server.lock().await.remove(place).await?;
    }
    for own in &owns {
        let ended = timeout(VALUE_TIMEOUT, own.next()).await.map_err(|_| "it is deaf")?;
        check(matches!(&ended, Err(Error::Unavailable { .. })), ended.err())?;
        let to = Address::Inbox(own.address().ok_or("no address")?);
        until("nobody answers into nothing", async || {
            let sent = broker.publish(&to, Message::new("?")).await;
            matches!(sent, Err(Error::NoInbox { .. })).then_some(())
        })
        .await?;
    }
    let again = inbox().await?;
    let to = Address::Inbox(again.address().ok_or("no address")?);
    broker.publish(&to, Message::new("direct")).await.map_err(text)?;
    let got = next(&*again).await?;
    check(body(&got) == "direct", body(&got))
}

async fn a_topic_whose_maker_was_killed_before_it_was_on_record_is_removed(server: Server) -> Outcome {
    let options = Options {
        silence_max: Duration::from_secs(6),
        call_timeout: Duration::from_millis(2500),
        ..Options::default()
    };
    let owner = Kafka::connect(&server.lock().await.url(), options).await.map_err(text)?;
    let number = uuid::Uuid::new_v4().simple().to_string();
    let begun = format!("sluice.flow.begun.{number}");
    let others = [format!("others.flow.begun.{number}"), format!("sluice.other.begun.{number}")];
    for place in others.iter().chain([&begun]) {
        server.lock().await.make(place).await?;
    }
    let spec = TopicSpec::with(topic(Class::Flow, &format!("kept:{number}")), "reader");
    owner.ensure(&spec).await.map_err(text)?;
    let kept = place(&server, &spec.topic).await?;
    until("what was begun is removed", async || {
        let topics = server.lock().await.topics().await.ok()?;
        (!topics.contains(&begun)).then_some(())
    })
    .await?;
    let topics = server.lock().await.topics().await?;
    check(others.iter().chain([&kept]).all(|place| topics.contains(place)), &topics)
}
