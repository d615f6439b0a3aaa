//! Cases of the life-cycle path: making, seeing, removing.

use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::message::property;

case_list! {
    ensuring_twice_changes_nothing,
    ensuring_adds_subscriptions_and_leaves_others,
    a_class_without_subscriptions_takes_none,
    observing_answers_in_order_also_for_what_is_not_there,
    counts_are_exact,
    a_reader_given_up_half_way_leaves_nobody_attached,
    delayed_messages_are_counted,
    removing_takes_everything_and_may_be_repeated,
    removing_what_is_idle_takes_nothing_that_is_read_or_filled,
    readers_of_a_removed_topic_are_told,
    a_delivery_of_a_removed_topic_settles_into_nothing,
    a_topic_made_again_is_another_one,
    followers_of_a_removed_topic_follow_no_more,
    listing_finds_by_prefix,
    a_held_name_is_refused_to_others_until_it_is_let_go,
    calls_under_a_hold_do_what_they_do_without,
    a_hold_does_not_outlive_the_broker,
    poison_is_bounded_or_said_why_not,
    examining_changes_nothing,
}

async fn ensuring_twice_changes_nothing(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in Class::ALL {
        let spec = bench.made(&ends, class, "twice").await?;
        if class.has_subscriptions() {
            ends.send(&spec.topic, "kept").await?;
        }
        ends.admin.ensure(&spec).await?;
        let seen = ends.admin.observe(std::slice::from_ref(&spec)).await?;
        holds!(seen.first().is_some_and(|seen| seen.exists), "{class}: not there: {seen:?}");
        if class.has_subscriptions() {
            ends.until(&spec, "the message kept", |seen| seen.ready == 1).await?;
        }
    }
    Ok(())
}

async fn ensuring_adds_subscriptions_and_leaves_others(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let one = bench.made(&ends, Class::Flow, "more").await?;
    ends.send(&one.topic, "first").await?;
    let two = TopicSpec::with(one.topic.clone(), "second");
    ends.admin.ensure(&two).await?;
    ends.send(&one.topic, "later").await?;
    ends.until(&one, "two messages", |seen| seen.exists && seen.ready == 2).await?;
    ends.until(&two, "only the later message", |seen| seen.exists && seen.ready == 1).await?;
    Ok(())
}

async fn a_class_without_subscriptions_takes_none(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Response, Class::Notify] {
        let topic = bench.topic(class, "named")?;
        let made = ends.admin.ensure(&TopicSpec::with(topic.clone(), "reader")).await;
        let kind = made.as_ref().err().map(Error::kind);
        holds!(kind == Some(crate::ErrorKind::Refused), "{class}: {made:?}");
        let read = ends
            .broker
            .subscribe(&Subscription::Shared { topic, name: "reader".to_owned(), prefetch: 1 })
            .await;
        let kind = read.as_ref().err().map(Error::kind);
        holds!(kind == Some(crate::ErrorKind::Refused), "{class}: {:?}", read.err());
    }
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&ends, class, "shared").await?;
        let inbox = ends.own(&[]).await?;
        let followed = inbox.follow(&spec.topic).await;
        let kind = followed.as_ref().err().map(Error::kind);
        holds!(kind == Some(crate::ErrorKind::Refused), "{class}: {followed:?}");
    }
    Ok(())
}

async fn observing_answers_in_order_also_for_what_is_not_there(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let there = bench.made(&ends, Class::Flow, "there").await?;
    let absent = TopicSpec::with(bench.topic(Class::Request, "absent")?, "reader");
    let half = TopicSpec::with(there.topic.clone(), "missing");
    let asked = [absent, there, half];
    let seen = ends.admin.observe(&asked).await?;
    let topics: Vec<_> = seen.iter().map(|seen| &seen.topic).collect();
    holds!(topics == asked.iter().map(|spec| &spec.topic).collect::<Vec<_>>(), "answers about {topics:?}");
    let exist: Vec<_> = seen.iter().map(|seen| seen.exists).collect();
    holds!(exist == [false, true, true], "exist: {exist:?}");
    for (spec, seen) in asked.iter().zip(&seen) {
        let named = spec.subscriptions.iter().all(|name| seen.subscriptions.iter().any(|s| s.name == *name));
        holds!(named, "no answer about a subscription of {spec:?}: {seen:?}");
    }
    let missing = seen[2].subscriptions.iter().find(|there| there.name == "missing");
    holds!(missing.is_some_and(|missing| !missing.exists), "{missing:?}");
    Ok(())
}

async fn counts_are_exact(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "counts").await?;
    for body in ["a", "b", "c"] {
        ends.send(&spec.topic, body).await?;
    }
    ends.until(&spec, "three ready", |seen| seen.ready == 3).await?;
    let inbox = ends.reader(&spec, 1).await?;
    let held = next(&*inbox).await?;
    let shows_unsettled = bench.is_promised(&ends, Promise::UnsettledIsShown);
    let shows_readers = bench.is_promised(&ends, Promise::ReadersAreShown);
    let so = |seen: &SeenSubscription| {
        // Where it is not counted apart, what is in hand may be counted with what waits.
        (seen.ready == 2 || (!shows_unsettled && seen.unsettled.is_none() && seen.ready == 3))
            && is_shown(seen.unsettled, 1, shows_unsettled)
            && is_shown(seen.consumers, 1, shows_readers)
    };
    ends.until(&spec, "two ready, one unsettled, one consumer", so).await?;
    held.ack();
    // The reader may have been given the next one, though it has not asked.
    let settled = |seen: &SeenSubscription| match seen.unsettled {
        Some(unsettled) => seen.ready + unsettled == 2,
        None => !shows_unsettled && (1..=2).contains(&seen.ready),
    };
    ends.until(&spec, "two left", settled).await?;
    drop(inbox);
    ends.until(&spec, "no consumer", |seen| is_shown(seen.consumers, 0, shows_readers)).await?;
    Ok(())
}

/// Whether a count is as it should be; where it is not promised, it may be left open.
fn is_shown(count: Option<u64>, wanted: u64, is_promised: bool) -> bool {
    count.map_or(!is_promised, |count| count == wanted)
}

/// However far attaching has got when nobody wants it any more.
async fn a_reader_given_up_half_way_leaves_nobody_attached(bench: &Bench<'_>) -> Outcome {
    const POLLS_MAX: usize = 1_000;
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "given-up").await?;
    for polls in 1..=POLLS_MAX {
        let mut attaching = std::pin::pin!(ends.reader(&spec, 1));
        let mut left = polls;
        let attached = std::future::poll_fn(|context| match attaching.as_mut().poll(context) {
            Poll::Pending if left == 1 => Poll::Ready(None),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
            Poll::Ready(attached) => Poll::Ready(Some(attached)),
        });
        if let Some(attached) = attached.await {
            drop(attached?);
            break;
        }
    }
    let shows_readers = bench.is_promised(&ends, Promise::ReadersAreShown);
    ends.until(&spec, "no consumer", |seen| is_shown(seen.consumers, 0, shows_readers)).await?;
    Ok(())
}

async fn delayed_messages_are_counted(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "delayed").await?;
    ends.send(&spec.topic, "later").await?;
    let inbox = ends.reader(&spec, 1).await?;
    next(&*inbox).await?.again(Duration::from_secs(600));
    let shows_unsettled = bench.is_promised(&ends, Promise::UnsettledIsShown);
    let counted = |seen: &SeenSubscription| match seen.unsettled {
        Some(unsettled) => seen.ready + unsettled == 1 && !seen.is_drained(),
        None => !shows_unsettled && seen.ready <= 1,
    };
    ends.until(&spec, "the delayed message", counted).await?;
    if bench.is_promised(&ends, Promise::DelayedIsReady) {
        // Whoever delays it, it is not lost with the reader.
        drop(inbox);
        ends.until(&spec, "the delayed message without its reader", |seen| seen.ready == 1).await?;
        return Ok(());
    }
    ends.send(&spec.topic, "soon").await?;
    next(&*inbox).await?.again(Duration::from_millis(500));
    drop(inbox);
    let both = |seen: &SeenSubscription| seen.ready + seen.unsettled.unwrap_or(0) == 2;
    ends.until(&spec, "both delayed messages without their reader", both).await?;
    // The broker delays, so a reader of another time gets it when it is due.
    let got = next(&*ends.reader(&spec, 1).await?).await?;
    holds!(text(&got) == "soon" && got.attempt == 2, "came {} as attempt {}", text(&got), got.attempt);
    got.ack();
    Ok(())
}

async fn removing_takes_everything_and_may_be_repeated(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in Class::ALL {
        let spec = bench.made(&ends, class, "removed").await?;
        if class.has_subscriptions() {
            ends.admin.ensure(&TopicSpec::with(spec.topic.clone(), "unnamed")).await?;
            ends.send(&spec.topic, "unread").await?;
        }
        ends.admin.remove(&spec).await?;
        ends.admin.remove(&spec).await?;
        let asked = TopicSpec { topic: spec.topic.clone(), subscriptions: Vec::new() };
        let seen = ends.admin.observe(&[asked]).await?;
        let left = seen.iter().any(|seen| seen.exists || seen.subscriptions.iter().any(|there| there.exists));
        holds!(!left, "{class}: left behind: {seen:?}");
        let sent = ends.send(&spec.topic, "x").await;
        holds!(matches!(sent, Err(Error::NoTopic { .. })), "{class}: {sent:?}");
    }
    Ok(())
}

async fn removing_what_is_idle_takes_nothing_that_is_read_or_filled(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let shows_readers = bench.is_promised(&ends, Promise::ReadersAreShown);
    let in_use = async |spec: &TopicSpec| {
        let removed = ends.admin.remove_idle(spec).await;
        holds!(matches!(removed, Err(Error::InUse { .. })), "'{}': {removed:?}", spec.topic);
        Ok(())
    };
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&ends, class, "idle").await?;
        // Looked at before, as by an owner; a broker may remember what it saw then.
        ends.until(&spec, "the subscription", |seen| seen.exists).await?;
        ends.send(&spec.topic, "waits").await?;
        ends.until(&spec, "a message", |seen| seen.ready == 1).await?;
        if class == Class::Flow {
            in_use(&spec).await?;
            ends.until(&spec, "the message still", |seen| seen.ready == 1).await?;
        }
        let inbox = ends.reader(&spec, 1).await?;
        next(&*inbox).await?.ack();
        ends.until(&spec, "a reader", |seen| is_shown(seen.consumers, 1, shows_readers)).await?;
        in_use(&spec).await?;
        drop(inbox);
        ends.until(&spec, "no reader", |seen| is_shown(seen.consumers, 0, shows_readers)).await?;
        let started = tokio::time::Instant::now();
        // The acknowledgement may be on its way, and counts of what is in hand old.
        while let Err(error) = ends.admin.remove_idle(&spec).await {
            holds!(started.elapsed() < VALUE_TIMEOUT, "still in use: {error}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let seen = ends.admin.observe(std::slice::from_ref(&spec)).await?;
        holds!(seen.iter().all(|seen| !seen.exists), "still there: {seen:?}");
        ends.admin.remove_idle(&spec).await?;
    }
    let spec = bench.made(&ends, Class::Response, "idle").await?;
    let inbox = ends.own(&[&spec.topic]).await?;
    ends.admin.remove_idle(&spec).await?;
    let seen = ends.admin.observe(std::slice::from_ref(&spec)).await?;
    holds!(seen.iter().all(|seen| !seen.exists), "still there: {seen:?}");
    drop(inbox);
    Ok(())
}

async fn readers_of_a_removed_topic_are_told(bench: &Bench<'_>) -> Outcome {
    let (owner, reader) = (bench.connect().await?, bench.connect().await?);
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&owner, class, "told").await?;
        let inbox = reader.reader(&spec, 1).await?;
        let mut waiting = inbox.next();
        holds!(futures_util::FutureExt::now_or_never(&mut waiting).is_none(), "a delivery out of nothing");
        owner.admin.remove(&spec).await?;
        let told = match tokio::time::timeout(VALUE_TIMEOUT, waiting).await {
            Ok(told) => told.err(),
            Err(_) => return Err(Failed(format!("{class}: a waiting reader was not told"))),
        };
        holds!(matches!(told, Some(Error::NoSubscription { .. })), "{class}: {told:?}");
        let told = ending(&*inbox).await?;
        holds!(matches!(told, Error::NoSubscription { .. }), "{class}: told again: {told}");
    }
    Ok(())
}

async fn a_delivery_of_a_removed_topic_settles_into_nothing(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "nothing").await?;
    let inbox = ends.reader(&spec, 3).await?;
    for body in ["a", "b", "c"] {
        ends.send(&spec.topic, body).await?;
    }
    let (one, two, three) = (next(&*inbox).await?, next(&*inbox).await?, next(&*inbox).await?);
    ends.admin.remove(&spec).await?;
    ends.admin.ensure(&spec).await?;
    one.ack();
    two.again(Duration::ZERO);
    drop(three);
    let seen = ends.look(&spec).await?;
    holds!(seen.ready == 0, "an old delivery came back into a new topic: {seen:?}");
    Ok(())
}

async fn a_topic_made_again_is_another_one(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    for class in [Class::Flow, Class::Request] {
        let spec = bench.made(&ends, class, "again").await?;
        ends.send(&spec.topic, "old").await?;
        ends.admin.remove(&spec).await?;
        ends.admin.ensure(&spec).await?;
        ends.send(&spec.topic, "new").await?;
        let inbox = ends.reader(&spec, 1).await?;
        let got = next(&*inbox).await?;
        holds!(text(&got) == "new", "{class}: what was sent to the old topic came");
        got.ack();
    }
    Ok(())
}

async fn followers_of_a_removed_topic_follow_no_more(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let gone = bench.made(&ends, Class::Response, "gone").await?;
    let inbox = ends.own(&[&gone.topic]).await?;
    ends.admin.remove(&gone).await?;
    ends.admin.ensure(&gone).await?;
    ends.send(&gone.topic, "unheard").await?;
    // The inbox itself lives on and may follow what was made again.
    inbox.follow(&gone.topic).await?;
    ends.broker
        .publish(&Address::Topic(gone.topic.clone()), Message::new("heard").with(property::ID, "1"))
        .await?;
    let got = next(&*inbox).await?;
    holds!(text(&got) == "heard", "came {}", text(&got));
    Ok(())
}

async fn listing_finds_by_prefix(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    if let Err(not_promised) = bench.needs(&ends, Promise::TopicsAreListed) {
        let listed = ends.admin.list("").await;
        holds!(matches!(&listed, Err(error) if error.kind() == crate::ErrorKind::Refused), "{listed:?}");
        return Err(not_promised);
    }
    let flow = bench.made(&ends, Class::Flow, "listed").await?;
    let other = bench.made(&ends, Class::Flow, "other").await?;
    let prefix = "flow:tg:listed";
    let seen = ends.admin.list(prefix).await?;
    let found = seen.iter().find(|seen| seen.topic == flow.topic);
    holds!(found.is_some_and(|found| found.exists), "'{}' is not listed: {seen:?}", flow.topic);
    let named = found.is_some_and(|found| found.subscriptions.iter().any(|there| there.name == "reader"));
    holds!(named, "its subscription is not listed: {found:?}");
    let strangers = seen.iter().any(|seen| !seen.topic.as_str().starts_with(prefix));
    holds!(!strangers, "listed under '{prefix}': {seen:?}");
    let all = ends.admin.list("").await?;
    holds!(all.iter().any(|seen| seen.topic == other.topic), "'{}' is not listed under all", other.topic);
    Ok(())
}

impl Bench<'_> {
    /// Waits until a name that was let go can be held.
    async fn held(&self, ends: &Ends, name: &str) -> Result<Arc<dyn BrokerAdmin>, Stop> {
        let started = tokio::time::Instant::now();
        loop {
            match ends.admin.hold(name).await {
                Ok(hold) => return Ok(hold),
                Err(Error::Held { .. }) if started.elapsed() < VALUE_TIMEOUT => {}
                Err(error) => return Err(Failed(format!("'{name}' cannot be held: {error}"))),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn a_held_name_is_refused_to_others_until_it_is_let_go(bench: &Bench<'_>) -> Outcome {
    let (one, two) = (bench.connect().await?, bench.connect().await?);
    let name = format!("leader-{}", bench.mark);
    let hold = one.admin.hold(&name).await?;
    for ends in [&one, &two] {
        let second = ends.admin.hold(&name).await.err();
        let names_it = matches!(&second, Some(Error::Held { name: told }) if *told == name);
        holds!(names_it, "held twice: {second:?}");
    }
    hold.observe(&[]).await?;
    let other = two.admin.hold(&format!("{name}-other")).await?;
    let nested = other.hold("another").await.err();
    holds!(nested.as_ref().map(Error::kind) == Some(crate::ErrorKind::Refused), "nested: {nested:?}");
    drop(hold);
    bench.held(&two, &name).await?;
    other.observe(&[]).await?;
    Ok(())
}

async fn calls_under_a_hold_do_what_they_do_without(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let hold = ends.admin.hold(&format!("leader-{}", bench.mark)).await?;
    let under = Ends { broker: ends.broker.clone(), admin: hold };
    let spec = bench.made(&under, Class::Flow, "under").await?;
    ends.send(&spec.topic, "kept").await?;
    under.until(&spec, "the message", |seen| seen.exists && seen.ready == 1).await?;
    if bench.is_promised(&ends, Promise::TopicsAreListed) {
        let listed = under.admin.list(spec.topic.as_str()).await?;
        holds!(listed.iter().any(|seen| seen.topic == spec.topic), "not listed: {listed:?}");
    }
    under.admin.examine().await?;
    under.admin.remove(&spec).await?;
    let seen = ends.admin.observe(std::slice::from_ref(&spec)).await?;
    holds!(seen.iter().all(|seen| !seen.exists), "still there: {seen:?}");
    Ok(())
}

async fn a_hold_does_not_outlive_the_broker(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let name = format!("leader-{}", bench.mark);
    let hold = ends.admin.hold(&name).await?;
    if !bench.backend.restart().await? {
        return Err(NEEDS_RESTART);
    }
    let again = bench.connect().await?;
    let spec = TopicSpec::with(bench.topic(Class::Flow, "late")?, "reader");
    if let HoldEnd::Lease { term, .. } = ends.admin.traits().hold {
        bench.is_promised(&ends, Promise::HoldEndsWithConnection);
        return lease_outlives_or_ends(&again, hold, &name, term).await;
    }
    let next = bench.held(&again, &name).await?;
    let calls = [hold.ensure(&spec).await.err(), hold.observe(&[]).await.err(), hold.list("").await.err()];
    for error in calls {
        holds!(matches!(&error, Some(Error::HoldLost { name: told }) if *told == name), "{error:?}");
    }
    let seen = next.observe(std::slice::from_ref(&spec)).await?;
    holds!(seen.iter().all(|seen| !seen.exists), "made under a lost hold: {seen:?}");
    Ok(())
}

/// A lease lasts where the broker is back within its term, and then nobody else holds the name until it is let go; or it is
/// lost for good. Never both.
async fn lease_outlives_or_ends(
    again: &Ends,
    hold: Arc<dyn BrokerAdmin>,
    name: &str,
    term: Duration,
) -> Outcome {
    let started = tokio::time::Instant::now();
    let (mut other, mut lost) = (None, None);
    // One that is lost is free in the end, also where the broker takes its time to come back.
    while other.is_none() && started.elapsed() < if lost.is_some() { VALUE_TIMEOUT } else { term * 2 } {
        match again.admin.hold(name).await {
            Ok(taken) => other = Some(taken),
            Err(Error::Held { .. } | Error::Unavailable { .. } | Error::TimedOut { .. }) => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => return Err(error.into()),
        }
        lost = hold.observe(&[]).await.err().filter(|error| matches!(error, Error::HoldLost { .. }));
    }
    if other.is_some() {
        holds!(matches!(&lost, Some(Error::HoldLost { name: told }) if told == name), "held twice: {lost:?}");
        return Ok(());
    }
    holds!(lost.is_none(), "nobody holds it: {lost:?}");
    drop(hold);
    while let Err(error) = again.admin.hold(name).await {
        holds!(started.elapsed() < term * 2 + VALUE_TIMEOUT, "still held after it was let go: {error}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn poison_is_bounded_or_said_why_not(bench: &Bench<'_>) -> Outcome {
    if bench.backend.is_shared() {
        return Err(Stop::NotRun("needs to say where the poison of all flows at the server goes"));
    }
    let ends = bench.connect().await?;
    let letters = bench.made(&ends, Class::Flow, "letters").await?;
    let hold = ends.admin.hold(&format!("leader-{}", bench.mark)).await?;
    let strangers_take_part = bench.is_promised(&ends, Promise::StrangersTakePart);
    for admin in [&ends.admin, &ends.admin, &hold] {
        let bound = admin.bound_poison(&letters.topic).await?;
        let says_so = match &bound {
            PoisonBound::Bounded { deliveries } => *deliveries > 1,
            PoisonBound::Unbounded { why } => !why.is_empty(),
            PoisonBound::Unneeded => !strangers_take_part,
        };
        holds!(says_so, "{bound:?}");
    }
    let request = bench.made(&ends, Class::Request, "letters").await?;
    let refused = ends.admin.bound_poison(&request.topic).await.err();
    holds!(refused.as_ref().map(Error::kind) == Some(crate::ErrorKind::Refused), "{refused:?}");
    let absent = ends.admin.bound_poison(&bench.topic(Class::Flow, "absent")?).await.err();
    holds!(matches!(absent, Some(Error::NoTopic { .. })), "{absent:?}");
    Ok(())
}

async fn examining_changes_nothing(bench: &Bench<'_>) -> Outcome {
    let ends = bench.connect().await?;
    let spec = bench.made(&ends, Class::Flow, "examined").await?;
    ends.send(&spec.topic, "kept").await?;
    for _ in 0..2 {
        for finding in ends.admin.examine().await? {
            let is_told = !finding.text.is_empty() && !finding.next.is_empty();
            let is_kebab = finding.code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            holds!(is_told && is_kebab, "{finding:?}");
        }
    }
    ends.until(&spec, "the message", |seen| seen.exists && seen.ready == 1).await?;
    Ok(())
}
