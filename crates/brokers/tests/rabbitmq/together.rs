//! Publishes that share a channel, and answers that go to one inbox or to all.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use lapin::options::ExchangeDeleteOptions;
use sluice_bus::{
    Address, Broker, BrokerAdmin, Counting, Error, ErrorKind, Inbox, InboxAddress, Message, Patience,
    Replies, Subscription, TopicSpec, letter, property,
};
use sluice_schema::Class;
use sluice_schema::message::DeadLetter;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Server;
use crate::common::*;

cases! {
    "together":
    publishes_side_by_side_are_each_told_their_own_outcome,
    a_publish_that_fails_takes_no_other_with_it,
    a_parked_message_as_large_as_the_broker_takes_comes_as_it_is,
    more_calls_fail_than_a_connection_has_channels_and_all_goes_on,
    a_direct_answer_reaches_one_inbox_and_one_by_topic_all,
    an_answer_between_our_own_ends_is_delivered_once_with_one_gateway_or_ten,
}

/// Failing calls: more than a connection has channels.
const FAILING: u64 = 2_100;
/// Questions asked through one of the gateways.
const QUESTIONS: u64 = 20;

async fn publishes_side_by_side_are_each_told_their_own_outcome(server: Server) -> Outcome {
    let (_, broker, flow) = world(&server).await?;
    let served = TopicSpec::with(topic(Class::Request, "served"), "reader");
    let unserved = TopicSpec::bare(topic(Class::Request, "unserved"));
    let unread = TopicSpec::bare(topic(Class::Notify, "unread"));
    for spec in [&served, &unserved, &unread] {
        broker.ensure(spec).await.map_err(text)?;
    }
    let gone = Address::Inbox(InboxAddress("sluice.inbox.gone".into()));
    let to = [&served, &unserved, &unread, &flow].map(|spec| Address::from(spec.topic.clone()));
    for round in 0..25 {
        let sends = (0..100).map(|number| {
            let to = if number % 5 == 4 { &gone } else { &to[number % 5] };
            broker.publish(to, Message::new(format!("{round}.{number}")))
        });
        for (number, sent) in join_all(sends).await.into_iter().enumerate() {
            let is_so = match number % 5 {
                1 => matches!(sent, Err(Error::Unroutable { .. })),
                4 => matches!(sent, Err(Error::NoInbox { .. })),
                _ => sent.is_ok(),
            };
            check(is_so, format!("{round}.{number}: {sent:?}"))?;
        }
    }
    let seen = broker.observe(&[served, flow]).await.map_err(text)?;
    check(seen.iter().all(|seen| seen.subscriptions[0].ready == 500), seen)
}

async fn a_parked_message_as_large_as_the_broker_takes_comes_as_it_is(server: Server) -> Outcome {
    let (_, broker, flow) = world(&server).await?;
    let body = bytes::Bytes::from(vec![b'x'; broker.limits().message_bytes_max]);
    // As much is reported about it as there may be.
    let about = DeadLetter {
        id: "l1".to_owned(),
        reason: "r".repeat(10_000),
        properties: [("sluice-trace".to_owned(), "t".repeat(80_000))].into(),
        ..DeadLetter::default()
    };
    let parked = letter::message(about.clone(), &body, broker.limits());
    check(parked.get(property::LETTER).is_some(), "it travels as it is")?;
    broker.publish(&Address::Topic(flow.topic.clone()), parked).await.map_err(text)?;
    let inbox = read(&broker, &flow.topic, 1).await.map_err(text)?;
    let came = next(&*inbox).await?;
    let (told, raw) = letter::read(&came.message).map_err(text)?;
    check(raw.is_some_and(|raw| raw == body), "the body is another")?;
    check(told.properties == about.properties && told.id == about.id, &told.reason)?;
    came.ack();
    Ok(())
}

async fn a_publish_that_fails_takes_no_other_with_it(server: Server) -> Outcome {
    let (vhost, broker, work) = world(&server).await?;
    let gone = TopicSpec::with(topic(Class::Flow, "gone"), "reader");
    let (_connection, channel) = stranger(&server, &vhost).await?;
    let (mut sure, mut unsure) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..20 {
        broker.ensure(&gone).await.map_err(text)?;
        // All channels have published to it.
        for sent in join_all((0..64).map(|_| send(&broker, &gone.topic, "x"))).await {
            sent.map_err(text)?;
        }
        channel
            .exchange_delete("tg.flow.gone".into(), ExchangeDeleteOptions::default())
            .await
            .map_err(text)?;
        let sends = (0..64).map(|number| {
            let (broker, to) = (&broker, if number % 16 == 7 { &gone } else { &work });
            let name = format!("{round}.{number}");
            async move { (number, send(broker, &to.topic, name.clone()).await, name) }
        });
        let mut is_connection_lost = false;
        for (number, sent, name) in join_all(sends).await {
            is_connection_lost |=
                sent.as_ref().is_err_and(|error| error.to_string().contains("channel.open"));
            match sent {
                Err(Error::NoTopic { topic }) if number % 16 == 7 => check(topic == gone.topic, topic)?,
                Ok(()) if number % 16 != 7 => drop(sure.insert(name)),
                // It may be here, and it may be told so.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => drop(unsure.insert(name)),
                other => return Err(format!("{name}: {other:?}")),
            }
        }
        // However they were put together: nothing fails behind the last eight, so each of those is sure, unless the
        // client library had held some back and lost the connection over them.
        for last in (56..64).map(|number| format!("{round}.{number}")) {
            check(sure.contains(&last) || is_connection_lost, format!("{last} is not sure"))?;
        }
        let after = format!("{round} is over");
        send(&broker, &work.topic, after.clone()).await.map_err(text)?;
        sure.insert(after);
    }
    let inbox = read(&broker, &work.topic, 64).await.map_err(text)?;
    let mut seen = BTreeSet::new();
    while !sure.is_subset(&seen) {
        let got = next(&*inbox).await?;
        let name = body(&got);
        check(sure.contains(&name) || unsure.contains(&name), &name)?;
        check(seen.insert(name), format!("{} came twice", body(&got)))?;
        got.ack();
    }
    Ok(())
}

async fn more_calls_fail_than_a_connection_has_channels_and_all_goes_on(server: Server) -> Outcome {
    let (_, broker, work) = world(&server).await?;
    let (gone, silent) = (topic(Class::Flow, "gone"), topic(Class::Notify, "gone"));
    let told = TopicSpec::bare(topic(Class::Notify, "told"));
    broker.ensure(&told).await.map_err(text)?;
    let inbox = read(&broker, &work.topic, 1).await.map_err(text)?;
    let own = broker.subscribe(&Subscription::Own { topics: vec![] }).await.map_err(text)?;
    for number in 0..FAILING {
        let failed = send(&broker, &gone, "x").await;
        check(matches!(failed, Err(Error::NoTopic { .. })), (number, failed))?;
        let failed = read(&broker, &gone, 1).await.err();
        check(failed.as_ref().is_some_and(|error| error.kind() == ErrorKind::Absent), (number, failed))?;
        // On the same connection as the readers.
        let failed = own.follow(&silent).await.err();
        check(matches!(failed, Some(Error::NoTopic { .. } | Error::Unavailable { .. })), (number, failed))?;
    }
    send(&broker, &work.topic, "after all that").await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "after all that", body(&got))?;
    got.ack();
    let late = read(&broker, &work.topic, 1).await;
    check(late.is_ok(), late.err())?;
    // The inbox is made again with its connection.
    until("the inbox follow", async || own.follow(&told.topic).await.ok()).await
}

async fn a_direct_answer_reaches_one_inbox_and_one_by_topic_all(server: Server) -> Outcome {
    let (_, broker, _) = world(&server).await?;
    let answers = TopicSpec::bare(topic(Class::Response, "answers"));
    broker.ensure(&answers).await.map_err(text)?;
    let to = Subscription::Own { topics: vec![answers.topic.clone()] };
    let inboxes = join_all((0..10).map(|_| broker.subscribe(&to))).await;
    let inboxes: Vec<Arc<dyn Inbox>> =
        inboxes.into_iter().map(|inbox| inbox.map(Arc::from)).collect::<Result<_, _>>().map_err(text)?;
    let caller = inboxes[3].address().ok_or("no address")?;
    broker.publish(&Address::Inbox(caller), Message::new("direct")).await.map_err(text)?;
    send(&broker, &answers.topic, "by topic").await.map_err(text)?;
    let mut deliveries = Vec::new();
    for inbox in &inboxes {
        // What was sent directly was sent first.
        let first = next(&**inbox).await?;
        if body(&first) == "direct" {
            deliveries.push("direct");
            check(body(&next(&**inbox).await?) == "by topic", "nothing by topic")?;
        }
        deliveries.push("by topic");
    }
    let direct = deliveries.iter().filter(|how| **how == "direct").count();
    check((direct, deliveries.len() - direct) == (1, 10), deliveries)
}

/// A gateway asks with one inbox on a connection of its own, bound to the response topic as foreign services need it.
async fn an_answer_between_our_own_ends_is_delivered_once_with_one_gateway_or_ten(server: Server) -> Outcome {
    for (gateways, is_direct) in [(1, true), (10, true), (1, false), (10, false)] {
        let (vhost, broker, _) = world(&server).await?;
        let asked = TopicSpec::with(topic(Class::Request, "asked"), "reader");
        let answers = TopicSpec::bare(topic(Class::Response, "answers"));
        for spec in [&asked, &answers] {
            broker.ensure(spec).await.map_err(text)?;
        }
        let stop = CancellationToken::new();
        let (mut ends, mut running) = (Vec::new(), JoinSet::new());
        for _ in 0..gateways {
            let end = Counting::new(server.lock().await.connect(&vhost).await.map_err(text)?);
            let replies = Replies::new(Arc::new(end.clone()));
            running.spawn(replies.clone().run(stop.clone()));
            let following = replies.follow(&answers.topic).await.map_err(text)?;
            ends.push((end, replies, following));
        }
        let inbox = read(&broker, &asked.topic, 8).await.map_err(text)?;
        let serve = async {
            for _ in 0..QUESTIONS {
                let question = next(&*inbox).await?;
                let told =
                    |name| question.message.get(name).ok_or("a question without it").map(str::to_owned);
                let to = if is_direct {
                    Address::Inbox(InboxAddress(told(property::REPLY_TO)?.into()))
                } else {
                    Address::Topic(answers.topic.clone())
                };
                let answer = Message::new("answer").with(property::ID, &told(property::ID)?);
                broker.publish(&to, answer).await.map_err(text)?;
                question.ack();
            }
            Ok::<(), String>(())
        };
        let ask = async {
            for _ in 0..QUESTIONS {
                let asks = ends[0].1.ask(&asked.topic, Message::new("?"), Patience::total(VALUE_TIMEOUT));
                asks.await.map_err(text)?.next().await.map_err(text)?;
            }
            Ok::<(), String>(())
        };
        tokio::try_join!(serve, ask)?;
        // Comes last to every inbox.
        send(&broker, &answers.topic, "the end").await.map_err(text)?;
        let expected = if is_direct { QUESTIONS } else { QUESTIONS * gateways } + gateways;
        let delivered = || ends.iter().map(|(end, ..)| end.total().delivered).sum::<u64>();
        until("every delivery", || async { (delivered() >= expected).then_some(()) }).await?;
        check(delivered() == expected, format!("{gateways} gateways: {} for {expected}", delivered()))?;
        stop.cancel();
        running.join_all().await;
    }
    Ok(())
}
