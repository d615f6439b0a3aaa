//! What a real broker does to us: restarts, readers that are killed, owners that remove and make again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use sluice_brokers::pulsar::Pulsar;
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
use crate::victim::kill_reader;

cases! {
    "faults":
    a_message_that_kills_its_readers_is_counted_each_time,
    counts_outlive_all_processes_and_the_broker_and_the_collection_of_notes,
    a_beginning_is_noted_and_outlives_its_reader,
    readers_go_on_when_the_broker_is_restarted,
    publishes_under_way_when_the_broker_is_killed_end_and_what_was_acknowledged_is_kept,
    calls_under_way_when_the_broker_is_killed_end_in_an_answer_or_a_typed_error_and_later_ones_go_on,
    followers_and_requests_go_on_after_a_restart,
    what_is_removed_under_strangers_that_are_attached_does_not_come_back,
    what_settles_a_message_of_a_removed_topic_settles_none_of_the_next,
    of_two_subscriptions_the_slow_one_loses_nothing_and_nothing_settled_stays,
    a_reader_of_a_subscription_that_was_removed_alone_ends_and_its_owner_learns_of_it,
    an_inbox_goes_with_its_reader_and_the_broker_looks_for_others,
    an_inbox_that_somebody_removed_is_made_again,
    namespaces_that_somebody_opened_are_closed_by_the_next_owner,
}

/// A topic of its own.
async fn world(server: &Server, name: &str) -> Result<(Pulsar, TopicSpec), String> {
    let broker = server.lock().await.connect().await.map_err(text)?;
    let name = format!("{name}:{}", uuid::Uuid::new_v4().simple());
    let spec = TopicSpec::with(topic(Class::Flow, &name), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    Ok((broker, spec))
}

async fn look(broker: &Pulsar, spec: &TopicSpec) -> Option<Seen> {
    broker.observe(std::slice::from_ref(spec)).await.ok()?.pop()
}

/// Ready and unsettled of the first subscription.
async fn counts(broker: &Pulsar, spec: &TopicSpec) -> Option<(u64, u64)> {
    let seen = look(broker, spec).await?;
    seen.subscriptions.first().map(|seen| (seen.ready, seen.unsettled.unwrap_or(0)))
}

async fn drained(broker: &Pulsar, spec: &TopicSpec) -> Outcome {
    until("an empty subscription", async || (counts(broker, spec).await? == (0, 0)).then_some(())).await
}

/// The admin API, as an operator uses it.
async fn operate(
    server: &Server,
    method: reqwest::Method,
    path: &str,
    body: Option<&str>,
) -> Result<String, String> {
    let url = format!("{}/admin/v2/{path}", server.lock().await.admin_url());
    let mut request = reqwest::Client::new().request(method, url);
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_owned());
    }
    let answer = request.send().await.map_err(text)?;
    let (status, said) = (answer.status(), answer.text().await.map_err(text)?);
    check(status.is_success(), format!("{path}: {status} {said}")).map(|()| said)
}

async fn restart(server: &Server, in_good_order: bool) -> Outcome {
    let mut server = server.lock().await;
    server.stop(in_good_order).await;
    server.run().await
}

async fn a_message_that_kills_its_readers_is_counted_each_time(server: Server) -> Outcome {
    const KILLS: u32 = 6;
    const KILLS_MAX: u32 = 40;
    let (broker, flow) = world(&server, "kills").await?;
    let request = TopicSpec::with(topic(Class::Request, flow.topic.name()), "reader");
    broker.ensure(&request).await.map_err(text)?;
    let url = server.lock().await.url();
    for spec in [&flow, &request] {
        send(&broker, &spec.topic, "kills").await.map_err(text)?;
        let mut counted = 0;
        for _ in 0..KILLS_MAX {
            let attempt = kill_reader(&url, spec).await?;
            // The first time of a request is not waited for until it is noted, and its reader is killed in that very moment.
            let is_first_again = (counted, attempt, spec.topic.class()) == (1, 1, Class::Request);
            let is_counted = attempt == counted + 1 || is_first_again;
            check(is_counted, format!("{}: after time {counted} comes {attempt}", spec.topic))?;
            counted = attempt;
            if counted == KILLS {
                break;
            }
        }
        let got = next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?;
        check((counted, got.attempt) == (KILLS, KILLS + 1), &got)?;
        drop(got);
    }
    Ok(())
}

async fn counts_outlive_all_processes_and_the_broker_and_the_collection_of_notes(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "counts").await?;
    send(&broker, &spec.topic, "tried").await.map_err(text)?;
    send(&broker, &spec.topic, "settled").await.map_err(text)?;
    let url = server.lock().await.url();
    kill_reader(&url, &spec).await?;
    broker.shutdown().await;
    restart(&server, false).await?;
    let notes = "persistent/tg/sluice/notes/compaction";
    operate(&server, reqwest::Method::PUT, notes, None).await?;
    until("the notes collected", async || {
        let said = operate(&server, reqwest::Method::GET, notes, None).await.ok()?;
        said.contains("SUCCESS").then_some(())
    })
    .await?;
    let broker = server.lock().await.connect().await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 2).await.map_err(text)?;
    let mut got = [next(&*inbox).await?, next(&*inbox).await?].map(|got| {
        let seen = (body(&got), got.attempt);
        got.ack();
        seen
    });
    got.sort();
    check(got == [("settled".to_owned(), 1), ("tried".to_owned(), 2)], got)?;
    drained(&broker, &spec).await
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
    // The note went with it: the same message is another one.
    send(&broker, &spec.topic, "ends processes").await.map_err(text)?;
    drop(next(&*inbox).await?);
    let got = inbox.begin(next(&*inbox).await?).await.map_err(text)?;
    check(got.begun == Some(2), got.begun)?;
    got.ack();
    Ok(())
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
        (counts(&broker, &spec).await? == (0, 0)).then_some(())
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

/// Another product's client, which attaches again by itself whenever it is cut off.
const STRANGER: &str = r#"
import sys, threading, time, pulsar
client = pulsar.Client(sys.argv[1], operation_timeout_seconds=5, logger=pulsar.FileLogger(pulsar.LoggerLevel.Warn, sys.argv[3]))
def insist(attach):
    while True:
        try: return attach()
        except pulsar.PulsarException: time.sleep(0.2)
consumer = insist(lambda: client.subscribe(sys.argv[2], "reader", consumer_type=pulsar.ConsumerType.Shared))
producer = insist(lambda: client.create_producer(sys.argv[2]))
print("attached", flush=True)
def send():
    while True:
        try: producer.send(b"from a stranger", send_timeout_millis=1000)
        except Exception: pass
threading.Thread(target=send, daemon=True).start()
sys.stdin.read()
"#;

async fn what_is_removed_under_strangers_that_are_attached_does_not_come_back(server: Server) -> Outcome {
    // Longer than such clients wait between their attempts at first.
    const LOOKS: u32 = 300;
    let (broker, spec) = world(&server, "foreign").await?;
    let strangers = tokio::task::spawn_blocking(sluice_brokers::testing::PulsarServer::python_client).await;
    let folder = strangers.map_err(text)??;
    let url = server.lock().await.url();
    let url = url.split('?').next().unwrap_or_default();
    let log = tempfile::NamedTempFile::new().map_err(text)?;
    let place = format!("persistent://tg/flow/{}", spec.topic.name());
    let mut command = tokio::process::Command::new("python3");
    command.args(["-c", STRANGER, url, &place]).arg(log.path()).env("PYTHONPATH", folder);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut stranger = command.spawn().map_err(text)?;
    let told = stranger.stdout.take().ok_or("it has no output")?;
    let mut told = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(told));
    let line = timeout(VALUE_TIMEOUT, told.next_line()).await.map_err(|_| "it did not attach")?;
    check(line.map_err(text)?.as_deref() == Some("attached"), "it did not attach")?;
    broker.remove(&spec).await.map_err(text)?;
    for _ in 0..LOOKS {
        let seen = look(&broker, &spec).await;
        check(seen.as_ref().is_none_or(|seen| !seen.exists), seen)?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stranger.kill().await.map_err(text)
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

async fn a_reader_of_a_subscription_that_was_removed_alone_ends_and_its_owner_learns_of_it(
    server: Server,
) -> Outcome {
    let (broker, spec) = world(&server, "alone").await?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let path = format!("persistent/tg/flow/{}/subscription/reader?force=true", spec.topic.name());
    operate(&server, reqwest::Method::DELETE, &path, None).await?;
    let ended = timeout(VALUE_TIMEOUT, inbox.next()).await.map_err(|_| "the reader did not end")?;
    check(matches!(&ended, Err(Error::NoSubscription { .. })), ended.err())?;
    let losses = broker.losses().ok_or("no notes")?;
    let noted = timeout(VALUE_TIMEOUT, losses.take()).await.map_err(|_| "it was not noted")?;
    check(noted.contains_key(&spec.topic), noted)
}

async fn an_inbox_goes_with_its_reader_and_the_broker_looks_for_others(server: Server) -> Outcome {
    let (broker, _) = world(&server, "inboxes").await?;
    let own = broker.subscribe(&Subscription::Own { topics: vec![] }).await.map_err(text)?;
    let policies = operate(&server, reqwest::Method::GET, "namespaces/tg/inbox", None).await?;
    check(policies.contains("\"deleteWhileInactive\":true"), policies)?;
    // Its own end, in good order, takes it away at once.
    let address = own.address().ok_or("no address")?;
    let inboxes = async || operate(&server, reqwest::Method::GET, "persistent/tg/inbox", None).await;
    check(inboxes().await?.contains(&address.to_string()), "it is not there")?;
    broker.shutdown().await;
    let left = until("the inbox gone", async || {
        (!inboxes().await.ok()?.contains(&address.to_string())).then_some(())
    });
    left.await
}

async fn an_inbox_that_somebody_removed_is_made_again(server: Server) -> Outcome {
    let (broker, _) = world(&server, "robbed").await?;
    let inbox = broker.subscribe(&Subscription::Own { topics: Vec::new() }).await.map_err(text)?;
    let address = inbox.address().ok_or("an inbox has an address")?;
    let to = Address::Inbox(address.clone());
    for number in 0..3 {
        let sent = format!("before {number}");
        broker.publish(&to, Message::new(sent.clone())).await.map_err(text)?;
        check(body(&next(&*inbox).await?) == sent, "it hears")?;
        let path = format!("persistent/tg/inbox/{address}?force=true");
        operate(&server, reqwest::Method::DELETE, &path, None).await?;
        let is_back = async || broker.publish(&to, Message::new(format!("after {number}"))).await.ok();
        until("the inbox to be there again", is_back).await?;
        check(body(&next(&*inbox).await?) == format!("after {number}"), "it hears again")?;
    }
    Ok(())
}

async fn namespaces_that_somebody_opened_are_closed_by_the_next_owner(server: Server) -> Outcome {
    let (broker, spec) = world(&server, "opened").await?;
    let open = Some("{\"allowAutoTopicCreation\":true,\"topicType\":\"non-partitioned\"}");
    operate(&server, reqwest::Method::POST, "namespaces/tg/flow/autoTopicCreation", open).await?;
    let found = broker.examine().await.map_err(text)?;
    check(found.iter().any(|found| found.code == "auto-creation-on"), &found)?;
    let next = server.lock().await.connect().await.map_err(text)?;
    next.ensure(&spec).await.map_err(text)?;
    let found = next.examine().await.map_err(text)?;
    check(found.is_empty(), found)
}
