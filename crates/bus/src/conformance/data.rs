//! Cases of the data path: publishing, reading, settling.

use std::time::Duration;

use super::*;
use crate::message::property;

case_list! {
    a_message_reaches_a_reader_with_its_properties,
    a_message_published_before_its_reader_is_kept,
    readers_of_one_subscription_compete,
    each_subscription_gets_its_own_copy,
    first_deliveries_keep_publish_order,
    a_publish_to_a_topic_that_nobody_made_fails,
    a_subscription_that_nobody_made_cannot_be_read,
    a_flow_message_without_subscription_is_counted_not_kept,
    a_flow_message_for_a_reader_on_record_is_refused_where_there_is_none,
    a_request_without_subscription_is_unroutable,
    a_request_is_answered_through_the_response_topic_and_directly,
    every_follower_gets_every_broadcast,
    a_broadcast_without_followers_is_fine,
    an_inbox_that_unfollows_hears_no_more,
    an_inbox_dies_with_its_reader,
    a_message_not_settled_comes_back_and_is_counted,
    a_message_given_back_untried_is_not_counted,
    a_message_wanted_again_comes_behind_good_ones_and_not_too_early,
    a_reader_that_leaves_gives_back_what_it_held,
    a_reader_holds_no_more_than_its_prefetch,
    a_reader_that_stops_waiting_loses_nothing,
    a_request_is_not_delivered_after_its_deadline,
    a_body_over_the_limit_is_refused,
    a_large_body_arrives_whole,
    flow_messages_survive_a_restart,
}

async fn a_message_reaches_a_reader_with_its_properties(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&ends, class, "properties").await?;
        let inbox = ends.reader(&spec, 1).await?;
        let sent = Message::new("{\"text\": \"é\"}").with(property::ID, "one").with("other", "two");
        ends.broker.publish(&Address::Topic(spec.topic.clone()), sent.clone()).await?;
        let got = next(&*inbox).await?;
        holds!(got.message.body == sent.body, "{class}: the body changed: {:?}", got.message.body);
        holds!(got.message.get(property::ID) == Some("one"), "{class}: the id is lost");
        holds!(got.message.get("other") == Some("two"), "{class}: a property is lost");
        holds!(got.topic == spec.topic, "{class}: came as from '{}'", got.topic);
        holds!(got.attempt == 1, "{class}: the first attempt is number {}", got.attempt);
        got.ack();
        ends.until(&spec, "a settled message forgotten", SeenSubscription::is_drained).await?;
    }
    Ok(())
}

async fn a_message_published_before_its_reader_is_kept(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&ends, class, "kept").await?;
        ends.send(&spec.topic, "early").await?;
        let inbox = ends.reader(&spec, 1).await?;
        let got = next(&*inbox).await?;
        holds!(text(&got) == "early", "{class}: got {}", text(&got));
        got.ack();
    }
    Ok(())
}

async fn readers_of_one_subscription_compete(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    bench.needs(&ends, Promise::ReadersCompete)?;
    let spec = bench.made(&ends, Class::Flow, "compete").await?;
    let (one, two) = (ends.reader(&spec, 1).await?, ends.reader(&spec, 1).await?);
    ends.send(&spec.topic, "a").await?;
    ends.send(&spec.topic, "b").await?;
    let (first, second) = (next(&*one).await?, next(&*two).await?);
    let mut got = [text(&first), text(&second)];
    got.sort();
    holds!(got == ["a", "b"], "two readers got {got:?}");
    first.ack();
    second.ack();
    ends.until(&spec, "an empty subscription", SeenSubscription::is_drained).await?;
    Ok(())
}

async fn each_subscription_gets_its_own_copy(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Flow, Class::Request] {
        let topic = bench.topic(class, "copies")?;
        let specs = [TopicSpec::with(topic.clone(), "one"), TopicSpec::with(topic.clone(), "two")];
        for spec in &specs {
            ends.admin.ensure(spec).await?;
        }
        ends.send(&topic, "both").await?;
        for spec in &specs {
            let inbox = ends.reader(spec, 1).await?;
            let got = next(&*inbox).await?;
            holds!(text(&got) == "both", "{class}: got {}", text(&got));
            got.ack();
            ends.until(spec, "an empty subscription", SeenSubscription::is_drained).await?;
        }
    }
    Ok(())
}

async fn first_deliveries_keep_publish_order(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "order").await?;
    for number in 0..100 {
        ends.send(&spec.topic, &number.to_string()).await?;
    }
    let inbox = ends.reader(&spec, 7).await?;
    for number in 0..100 {
        let got = next(&*inbox).await?;
        holds!(text(&got) == number.to_string(), "number {number} came as {}", text(&got));
        got.ack();
    }
    Ok(())
}

async fn a_publish_to_a_topic_that_nobody_made_fails(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in Class::ALL {
        let sent = ends.send(&bench.topic(class, "unmade")?, "x").await;
        holds!(matches!(sent, Err(Error::NoTopic { .. })), "{class}: {sent:?}");
    }
    Ok(())
}

async fn a_subscription_that_nobody_made_cannot_be_read(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Flow, Class::Request] {
        let topic = bench.topic(class, "unread")?;
        let wanted = Subscription::Shared { topic: topic.clone(), name: "reader".to_owned(), prefetch: 1 };
        let read = ends.broker.subscribe(&wanted).await.err();
        let is_absent = read.as_ref().is_some_and(|error| error.kind() == crate::ErrorKind::Absent);
        holds!(is_absent, "{class}: without a topic: {read:?}");
        ends.admin.ensure(&TopicSpec::bare(topic.clone())).await?;
        let read = ends.broker.subscribe(&wanted).await.err();
        holds!(matches!(read, Some(Error::NoSubscription { .. })), "{class}: {read:?}");
        let seen = ends.admin.observe(&[TopicSpec::with(topic, "reader")]).await?;
        let made = seen.iter().flat_map(|seen| &seen.subscriptions).any(|there| there.exists);
        holds!(!made, "{class}: a reader made a subscription");
    }
    let followed = ends
        .broker
        .subscribe(&Subscription::Own { topics: vec![bench.topic(Class::Notify, "unmade")?] })
        .await;
    holds!(matches!(followed.as_ref().err(), Some(Error::NoTopic { .. })), "follow: {:?}", followed.err());
    Ok(())
}

async fn a_flow_message_without_subscription_is_counted_not_kept(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let topic = bench.topic(Class::Flow, "nowhere")?;
    ends.admin.ensure(&TopicSpec::bare(topic.clone())).await?;
    ends.send(&topic, "lost").await?;
    let seen = ends.admin.observe(&[TopicSpec::bare(topic.clone())]).await?;
    let unroutable = seen.first().and_then(|seen| seen.unroutable);
    holds!(unroutable == Some(1), "counted {unroutable:?}");
    let spec = TopicSpec::with(topic, "reader");
    ends.admin.ensure(&spec).await?;
    let seen = ends.look(&spec).await?;
    holds!(seen.ready == 0, "a later subscription got it: {seen:?}");
    Ok(())
}

async fn a_flow_message_for_a_reader_on_record_is_refused_where_there_is_none(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let topic = bench.topic(Class::Flow, "lost-reader")?;
    ends.admin.ensure(&TopicSpec::bare(topic.clone())).await?;
    let to = Address::Subscribed(topic.clone());
    let sent = ends.broker.publish(&to, Message::new("early")).await;
    holds!(matches!(&sent, Err(Error::NoReader { topic: told }) if *told == topic), "{sent:?}");
    holds!(sent.is_err_and(|error| error.kind() == ErrorKind::Unavailable), "it is not to be tried again");
    if let Some(losses) = ends.broker.losses() {
        let noted = tokio::time::timeout(VALUE_TIMEOUT, losses.take()).await;
        holds!(noted.as_ref().is_ok_and(|noted| noted.contains_key(&topic)), "noted {noted:?}");
    }
    let spec = TopicSpec::with(topic, "reader");
    ends.admin.ensure(&spec).await?;
    ends.broker.publish(&to, Message::new("kept")).await?;
    let got = next(&*ends.reader(&spec, 1).await?).await?;
    holds!(text(&got) == "kept", "{got:?}");
    got.ack();
    Ok(())
}

async fn a_request_without_subscription_is_unroutable(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let topic = bench.topic(Class::Request, "nobody")?;
    ends.admin.ensure(&TopicSpec::bare(topic.clone())).await?;
    let sent = ends.send(&topic, "x").await;
    holds!(matches!(sent, Err(Error::Unroutable { .. })), "{sent:?}");
    Ok(())
}

async fn a_request_is_answered_through_the_response_topic_and_directly(bench: &Bench<'_>) -> Outcome {
    let (asker, server) = (bench.connect().await?, bench.connect().await?);
    let request = bench.made(&asker, Class::Request, "ask").await?;
    let response = bench.made(&asker, Class::Response, "answer").await?;
    let inbox = asker.own(&[&response.topic]).await?;
    let service = server.reader(&request, 1).await?;
    let question =
        Message::new("?").with(property::ID, "42").with(property::REPLY_TO, &address(&*inbox)?.to_string());
    asker.broker.publish(&Address::Topic(request.topic.clone()), question).await?;
    let asked = next(&*service).await?;
    let to = InboxAddress(asked.message.get(property::REPLY_TO).unwrap_or_default().into());
    for address in [Address::Topic(response.topic.clone()), Address::Inbox(to)] {
        server.broker.publish(&address, Message::new("!").with(property::ID, "42")).await?;
        let got = next(&*inbox).await?;
        holds!(got.message.get(property::ID) == Some("42") && text(&got) == "!", "{address:?}: {got:?}");
        got.ack();
    }
    asked.ack();
    Ok(())
}

async fn every_follower_gets_every_broadcast(bench: &Bench<'_>) -> Outcome {
    let (here, there) = (bench.connect().await?, bench.connect().await?);
    for class in [Class::Response, Class::Notify] {
        let spec = bench.made(&here, class, "news").await?;
        let (one, two) = (here.own(&[&spec.topic]).await?, there.own(&[]).await?);
        two.follow(&spec.topic).await?;
        two.follow(&spec.topic).await?;
        for body in ["a", "b"] {
            here.send(&spec.topic, body).await?;
        }
        for inbox in [&one, &two] {
            for body in ["a", "b"] {
                let got = next(&**inbox).await?;
                holds!(text(&got) == body, "{class}: {} instead of {body}", text(&got));
                holds!(got.topic == spec.topic, "{class}: came as from '{}'", got.topic);
                got.ack();
            }
        }
    }
    Ok(())
}

async fn a_broadcast_without_followers_is_fine(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Response, Class::Notify] {
        let spec = bench.made(&ends, class, "silence").await?;
        ends.send(&spec.topic, "unheard").await?;
        let inbox = ends.own(&[&spec.topic]).await?;
        ends.send(&spec.topic, "heard").await?;
        let got = next(&*inbox).await?;
        holds!(text(&got) == "heard", "{class}: what was sent before following came: {}", text(&got));
    }
    Ok(())
}

async fn an_inbox_that_unfollows_hears_no_more(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let (left, kept) =
        (bench.made(&ends, Class::Notify, "left").await?, bench.made(&ends, Class::Notify, "kept").await?);
    let inbox = ends.own(&[&left.topic, &kept.topic]).await?;
    inbox.unfollow(&left.topic).await?;
    inbox.unfollow(&left.topic).await?;
    ends.send(&left.topic, "left").await?;
    ends.send(&kept.topic, "kept").await?;
    let got = next(&*inbox).await?;
    holds!(text(&got) == "kept", "an unfollowed topic still came: {}", text(&got));
    Ok(())
}

async fn an_inbox_dies_with_its_reader(bench: &Bench<'_>) -> Outcome {
    let (reader, sender) = (bench.connect().await?, bench.connect().await?);
    let inbox = reader.own(&[]).await?;
    let to = Address::Inbox(address(&*inbox)?);
    sender.broker.publish(&to, Message::new("x")).await?;
    next(&*inbox).await?.ack();
    drop(inbox);
    let started = tokio::time::Instant::now();
    loop {
        match sender.broker.publish(&to, Message::new("x")).await {
            Err(Error::NoInbox { .. }) => return Ok(()),
            other => {
                holds!(started.elapsed() < VALUE_TIMEOUT, "the inbox outlives its reader: {other:?}");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

async fn a_message_not_settled_comes_back_and_is_counted(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&ends, class, "back").await?;
        let inbox = ends.reader(&spec, 1).await?;
        ends.send(&spec.topic, "again").await?;
        for attempt in 1..=3 {
            let got = next(&*inbox).await?;
            holds!(got.attempt == attempt, "{class}: attempt {attempt} is counted {}", got.attempt);
            if attempt == 3 { got.ack() } else { drop(got) }
        }
        ends.until(&spec, "an empty subscription", SeenSubscription::is_drained).await?;
    }
    Ok(())
}

async fn a_message_given_back_untried_is_not_counted(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&ends, class, "untried").await?;
        let inbox = ends.reader(&spec, 1).await?;
        ends.send(&spec.topic, "untried").await?;
        for (attempt, delay) in [(1, Duration::ZERO), (1, Duration::from_millis(50)), (1, Duration::ZERO)] {
            let got = next(&*inbox).await?;
            holds!(got.attempt == attempt, "{class}: untried, it is counted {}", got.attempt);
            got.untried(delay);
        }
        drop(next(&*inbox).await?);
        let got = next(&*inbox).await?;
        holds!(got.attempt == 2, "{class}: tried once, it is counted {}", got.attempt);
        got.untried(Duration::ZERO);
        let got = next(&*inbox).await?;
        holds!(got.attempt == 2, "{class}: tried once, given back untried, it is counted {}", got.attempt);
        got.ack();
        ends.until(&spec, "an empty subscription", SeenSubscription::is_drained).await?;
    }
    Ok(())
}

async fn a_message_wanted_again_comes_behind_good_ones_and_not_too_early(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "later").await?;
    let inbox = ends.reader(&spec, 1).await?;
    for body in ["bad", "good", "better"] {
        ends.send(&spec.topic, body).await?;
    }
    // Longer than a busy broker takes to hand out the good ones.
    let delay = Duration::from_secs(2);
    let bad = next(&*inbox).await?;
    holds!(text(&bad) == "bad", "first came {}", text(&bad));
    let settled = tokio::time::Instant::now();
    bad.again(delay);
    for body in ["good", "better"] {
        let got = next(&*inbox).await?;
        holds!(text(&got) == body, "{} came before {body}", text(&got));
        got.ack();
    }
    let got = next(&*inbox).await?;
    holds!(text(&got) == "bad" && got.attempt == 2, "came {} as attempt {}", text(&got), got.attempt);
    holds!(settled.elapsed() >= delay, "came after {:?}", settled.elapsed());
    got.ack();
    Ok(())
}

async fn a_reader_that_leaves_gives_back_what_it_held(bench: &Bench<'_>) -> Outcome {
    let (leaving, staying) = (bench.connect().await?, bench.connect().await?);
    let spec = bench.made(&staying, Class::Flow, "leaving").await?;
    staying.send(&spec.topic, "held").await?;
    let inbox = leaving.reader(&spec, 1).await?;
    let held = next(&*inbox).await?;
    drop(inbox);
    let other = staying.reader(&spec, 1).await?;
    let got = next(&*other).await?;
    holds!(text(&got) == "held" && got.attempt == 2, "got {} as attempt {}", text(&got), got.attempt);
    // The late verdict of the reader that left means nothing.
    held.ack();
    drop(got);
    let got = next(&*other).await?;
    holds!(text(&got) == "held", "a late ack of a reader that left took {}", text(&got));
    got.ack();
    Ok(())
}

async fn a_reader_holds_no_more_than_its_prefetch(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "prefetch").await?;
    let inbox = ends.reader(&spec, 2).await?;
    for body in ["a", "b", "c"] {
        ends.send(&spec.topic, body).await?;
    }
    let (first, second) = (next(&*inbox).await?, next(&*inbox).await?);
    let mut third = inbox.next();
    let early = tokio::time::timeout(Duration::from_millis(100), &mut third).await;
    holds!(early.is_err(), "a third was handed out beyond a prefetch of two");
    first.ack();
    let third = tokio::time::timeout(VALUE_TIMEOUT, third).await;
    let Ok(third) = third else { return Err(Failed("settling one did not let the next through".to_owned())) };
    let third = third?;
    holds!(text(&third) == "c", "third came {}", text(&third));
    second.ack();
    third.ack();
    Ok(())
}

async fn a_reader_that_stops_waiting_loses_nothing(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "cancelled").await?;
    let (one, two) = (ends.reader(&spec, 1).await?, ends.reader(&spec, 1).await?);
    for number in 0..20 {
        let mut waits = [one.next(), two.next()];
        for waiting in &mut waits {
            holds!(futures_util::FutureExt::now_or_never(waiting).is_none(), "a delivery out of nothing");
        }
        ends.send(&spec.topic, &number.to_string()).await?;
        let [gives_up, waits] = waits;
        // Whichever of the two was chosen gets it, be it only when it asks again.
        drop(gives_up);
        let got = tokio::time::timeout(VALUE_TIMEOUT, futures_util::future::select(waits, one.next())).await;
        let Ok(got) = got else { return Err(Failed(format!("message {number} came to neither reader"))) };
        let got = got.factor_first().0?;
        holds!(text(&got) == number.to_string(), "message {number} came as {}", text(&got));
        got.ack();
    }
    Ok(())
}

async fn a_request_is_not_delivered_after_its_deadline(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    bench.needs(&ends, Promise::RequestsExpire)?;
    let spec = bench.made(&ends, Class::Request, "late").await?;
    let to = Address::Topic(spec.topic.clone());
    ends.broker.publish(&to, Message::new("short").with(property::TTL, "50")).await?;
    ends.broker.publish(&to, Message::new("long").with(property::TTL, "60000")).await?;
    ends.until(&spec, "the late request gone", |seen| seen.ready == 1).await?;
    let inbox = ends.reader(&spec, 1).await?;
    let got = next(&*inbox).await?;
    holds!(text(&got) == "long", "a late request came: {}", text(&got));
    got.ack();
    Ok(())
}

async fn a_body_over_the_limit_is_refused(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "too-large").await?;
    let max = ends.broker.limits().message_bytes_max;
    let sent =
        ends.broker.publish(&Address::Topic(spec.topic.clone()), Message::new(vec![b' '; max + 1])).await;
    holds!(matches!(sent, Err(Error::TooLarge { .. })), "{sent:?}");
    Ok(())
}

async fn a_large_body_arrives_whole(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "large").await?;
    let bytes = ends.broker.limits().message_bytes_max.min(8 << 20);
    let body: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    ends.broker.publish(&Address::Topic(spec.topic.clone()), Message::new(body.clone())).await?;
    let inbox = ends.reader(&spec, 1).await?;
    let got = next(&*inbox).await?;
    holds!(got.message.body == body, "{} bytes came as {}, or changed", bytes, got.message.body.len());
    got.ack();
    Ok(())
}

async fn flow_messages_survive_a_restart(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "survive").await?;
    let inbox = ends.reader(&spec, 1).await?;
    for body in ["settled", "held", "waiting"] {
        ends.send(&spec.topic, body).await?;
    }
    next(&*inbox).await?.ack();
    let held = next(&*inbox).await?;
    // This end goes with the broker, as in a crash of all; a reader that lived on would compete with the next.
    drop(ends);
    if !bench.backend.restart().await? {
        held.ack();
        return Err(NEEDS_RESTART);
    }
    let ends = bench.connect().await?;
    let inbox = ends.reader(&spec, 3).await?;
    let mut left = vec![("held", 2), ("waiting", 1)];
    while !left.is_empty() {
        let got = next(&*inbox).await?;
        let at = left.iter().position(|expected| *expected == (&*text(&got), got.attempt));
        match at {
            Some(at) => drop(left.remove(at)),
            // The acknowledgement just before may be lost, which shows as one more delivery; nothing else may.
            None => holds!(text(&got) == "settled", "came {} as attempt {}", text(&got), got.attempt),
        }
        got.ack();
    }
    ends.until(&spec, "an empty subscription", SeenSubscription::is_drained).await?;
    Ok(())
}
