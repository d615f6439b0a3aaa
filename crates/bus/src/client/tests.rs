//! Calls end the way they promise, played through the embedded broker.

use std::sync::Arc;
use std::time::Duration;

use sluice_schema::exchange::TextCompletion;
use sluice_schema::message::{TextCompletionRequest, TextCompletionResponse};
use sluice_schema::{Topic, wire};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::contract::{BrokerAdmin, Subscription, TopicSpec};
use crate::faulty::{Fault, Faulty, Operation, Plan};
use crate::{Delivery, Embedded, Lost};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(30);

/// A service played by the test, and a client of it.
struct Stage {
    broker: Faulty<Embedded>,
    replies: Replies,
    client: Client<TextCompletion>,
    service: Box<dyn Inbox>,
    response: Topic,
    stop: CancellationToken,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[expect(clippy::disallowed_methods, reason = "this crate cannot see the sdk's tasks; the stage stops it")]
async fn stage() -> Stage {
    let broker = Faulty::new(Embedded::in_memory());
    let request: Topic = "request:tg:text-completion".parse().unwrap();
    let response: Topic = "response:tg:text-completion".parse().unwrap();
    broker.ensure(&TopicSpec::with(request.clone(), "service")).await.unwrap();
    broker.ensure(&TopicSpec::bare(response.clone())).await.unwrap();
    let replies = Replies::new(Arc::new(broker.clone()));
    let stop = CancellationToken::new();
    tokio::spawn(replies.clone().run(stop.clone()));
    let client = Client::new(&replies, request.clone(), &response).await.unwrap();
    let shared = Subscription::Shared { topic: request, name: "service".to_owned(), prefetch: 16 };
    let service = broker.subscribe(&shared).await.unwrap();
    Stage { broker, replies, client, service, response, stop }
}

impl Stage {
    async fn asked(&self) -> Delivery {
        tokio::time::timeout(LONG, self.service.next()).await.expect("a question comes").unwrap()
    }

    async fn answer(&self, question: &Delivery, body: impl Into<bytes::Bytes>) {
        let answer =
            Message::new(body).with(property::ID, question.message.get(property::ID).expect("an id is set"));
        self.broker.publish(&Address::Topic(self.response.clone()), answer).await.unwrap();
    }

    async fn ask(&self, prompt: &str) -> Result<TextCompletionResponse> {
        self.client.call(&question(prompt), LONG).await
    }

    fn waiting(&self) -> usize {
        lock(&self.replies.shared.waiting).len()
    }
}

async fn until(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("it comes to hold");
}

fn question(prompt: &str) -> TextCompletionRequest {
    TextCompletionRequest { prompt: prompt.to_owned(), ..Default::default() }
}

fn part(response: &str, is_last: bool) -> bytes::Bytes {
    wire::encode(&TextCompletionResponse {
        response: response.to_owned(),
        end_of_stream: is_last,
        ..Default::default()
    })
}

fn said(response: &TextCompletionResponse) -> &str {
    &response.response
}

#[tokio::test]
async fn a_call_ends_with_the_last_message_of_its_answer() {
    let stage = stage().await;
    let serve = async {
        let asked = stage.asked().await;
        assert_eq!(wire::decode::<TextCompletionRequest>(&asked.message.body).unwrap().prompt, "hello");
        stage.answer(&asked, part("not ", false)).await;
        stage.answer(&asked, part("this", true)).await;
        asked.ack();
    };
    let (answer, ()) = tokio::join!(stage.ask("hello"), serve);
    assert_eq!(said(&answer.unwrap()), "this");
    assert_eq!(stage.waiting(), 0);
}

#[tokio::test]
async fn a_stream_hands_out_parts_and_ends() {
    let stage = stage().await;
    let mut call = stage.client.stream(&question("x"), Patience::total(LONG)).await.unwrap();
    let asked = stage.asked().await;
    for (text, is_last) in [("a", false), ("b", false), ("c", true)] {
        stage.answer(&asked, part(text, is_last)).await;
    }
    let mut heard = String::new();
    while let Some(part) = call.next().await.unwrap() {
        heard.push_str(said(&part));
    }
    assert_eq!(heard, "abc");
    assert!(call.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let stage = stage().await;
    let error = stage.client.call(&question("x"), SHORT).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert_eq!(stage.waiting(), 0);
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_before_its_total_deadline() {
    let stage = stage().await;
    let patience = Patience { idle: SHORT, total: LONG };
    let mut call = stage.client.stream(&question("x"), patience).await.unwrap();
    let asked = stage.asked().await;
    stage.answer(&asked, part("a", false)).await;
    assert!(call.next().await.unwrap().is_some());
    let error = call.next().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { after_ms, .. } if after_ms < 30_000), "{error}");
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_does_not_answer_the_next_call() {
    let stage = stage().await;
    let mut first = stage.client.stream(&question("first"), Patience::total(SHORT)).await.unwrap();
    let late = stage.asked().await;
    assert!(first.next().await.is_err());
    drop(first);
    let serve = async {
        let asked = stage.asked().await;
        stage.answer(&late, part("late", true)).await;
        stage.answer(&asked, part("in time", true)).await;
    };
    let (answer, ()) = tokio::join!(stage.ask("second"), serve);
    assert_eq!(said(&answer.unwrap()), "in time");
}

#[tokio::test]
async fn a_body_that_cannot_be_read_fails_its_call_only() {
    let stage = stage().await;
    let serve = async {
        let (one, two) = (stage.asked().await, stage.asked().await);
        for asked in [one, two] {
            let prompt = wire::decode::<TextCompletionRequest>(&asked.message.body).unwrap().prompt;
            let answer = if prompt == "bad" { "[1".into() } else { part("fine", true) };
            stage.answer(&asked, answer).await;
        }
    };
    let (good, bad) = (question("good"), question("bad"));
    let (bad, good, ()) = tokio::join!(stage.client.call(&bad, LONG), stage.client.call(&good, LONG), serve);
    assert!(matches!(bad.unwrap_err(), Error::Decode(_)));
    assert_eq!(said(&good.unwrap()), "fine");
}

#[tokio::test]
async fn a_dropped_call_stops_waiting() {
    let stage = stage().await;
    let call = stage.client.stream(&question("x"), Patience::total(LONG)).await.unwrap();
    assert_eq!(stage.waiting(), 1);
    drop(call);
    assert_eq!(stage.waiting(), 0);
}

#[tokio::test]
async fn parts_that_nobody_reads_fail_the_call_not_the_inbox() {
    let stage = stage().await;
    let mut flooded = stage.client.stream(&question("flooded"), Patience::total(LONG)).await.unwrap();
    let asked = stage.asked().await;
    for _ in 0..=UNREAD_PARTS_MAX {
        stage.answer(&asked, part("x", false)).await;
    }
    let serve = async {
        let asked = stage.asked().await;
        stage.answer(&asked, part("fine", true)).await;
    };
    let (answer, ()) = tokio::join!(stage.ask("next"), serve);
    assert_eq!(said(&answer.unwrap()), "fine");
    let mut parts = 0;
    let error = loop {
        match flooded.next().await {
            Ok(_) => parts += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(parts, UNREAD_PARTS_MAX);
    assert!(matches!(error, Error::Full { .. }), "{error}");
}

#[tokio::test]
async fn bytes_that_nobody_reads_fail_the_call_and_read_ones_do_not_count() {
    const PART_BYTES: usize = 8 * 1024 * 1024;
    let stage = stage().await;
    let mut call = stage.client.stream(&question("large"), Patience::total(LONG)).await.unwrap();
    let asked = stage.asked().await;
    let large = part(&"x".repeat(PART_BYTES), false);
    for _ in 0..2 * UNREAD_BYTES_MAX / PART_BYTES {
        stage.answer(&asked, large.clone()).await;
        assert!(call.next().await.unwrap().is_some());
    }
    let fit = UNREAD_BYTES_MAX / large.len();
    for parts in 1..=fit {
        stage.answer(&asked, large.clone()).await;
        until(|| call.raw.parts.unread_bytes() == parts * large.len()).await;
    }
    stage.answer(&asked, large.clone()).await;
    until(|| stage.waiting() == 0).await;
    let error = loop {
        if let Err(error) = call.next().await {
            break error;
        }
    };
    assert!(matches!(error, Error::Full { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_for_which_there_was_no_room_fails_its_call() {
    let stage = stage().await;
    let serve = async {
        let asked = stage.asked().await;
        let id = asked.message.get(property::ID).unwrap();
        let notice = Message::default().with(property::ID, id).with(property::DROPPED, "true");
        let to = Address::Inbox(InboxAddress(asked.message.get(property::REPLY_TO).unwrap().into()));
        stage.broker.publish(&to, notice).await.unwrap();
    };
    let (answer, ()) = tokio::join!(stage.ask("large"), serve);
    assert!(matches!(answer, Err(Error::Full { .. })), "{answer:?}");
    assert_eq!(stage.waiting(), 0);
}

#[tokio::test]
async fn a_lost_inbox_is_attached_again_with_what_it_followed() {
    let stage = stage().await;
    let first = stage.replies.inbox().await.unwrap().address();
    stage.broker.plan(Plan::nth(0, Fault::Before, |made| {
        made.operation == Operation::Next && made.about.starts_with("response:")
    }));
    stage.broker.publish(&Address::Topic(stage.response.clone()), Message::new("lost")).await.unwrap();
    let mut inbox = stage.replies.shared.inbox.subscribe();
    let is_new = |inbox: &Option<Arc<Renewing>>| inbox.as_ref().is_some_and(|inbox| inbox.address() != first);
    tokio::time::timeout(LONG, inbox.wait_for(is_new)).await.expect("it attaches again").unwrap();
    assert_eq!(stage.broker.faults().len(), 1);
    let serve = async {
        let asked = stage.asked().await;
        stage.answer(&asked, part("heard", true)).await;
    };
    let (answer, ()) = tokio::join!(stage.ask("x"), serve);
    assert_eq!(said(&answer.unwrap()), "heard");
}

#[tokio::test]
async fn a_service_that_has_too_much_waiting_is_asked_once_it_has_room() {
    let stage = stage().await;
    let large = Message::new(vec![b' '; 63 << 20]);
    stage.broker.publish(&Address::Topic(stage.client.request_topic().clone()), large).await.unwrap();
    let prompt = "x".repeat(2 << 20);
    let refused = stage.client.call(&question(&prompt), SHORT).await.unwrap_err();
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    let serve = async {
        tokio::time::sleep(4 * FULL_PAUSE_MIN).await;
        stage.asked().await.ack();
        let asked = stage.asked().await;
        stage.answer(&asked, part("yes", true)).await;
        asked.ack();
    };
    let (answer, ()) = tokio::join!(stage.ask(&prompt), serve);
    assert_eq!(answer.unwrap().response, "yes");
}

#[tokio::test]
async fn a_question_that_nobody_can_receive_fails_at_once() {
    let stage = stage().await;
    let nobody: Topic = "request:tg:nobody".parse().unwrap();
    stage.broker.ensure(&TopicSpec::bare(nobody.clone())).await.unwrap();
    let asked = stage.replies.ask(&nobody, Message::new("{}"), Patience::total(LONG)).await;
    assert!(matches!(asked.err(), Some(Error::Unroutable { .. })));
    assert_eq!(stage.waiting(), 0);
}

#[tokio::test]
async fn who_works_on_a_question_is_told_when_its_asker_leaves() {
    let stage = stage().await;
    let patience = Patience::total(LONG);
    let call = stage.client.stream(&question("a long one"), patience).await.unwrap();
    let asked = stage.asked().await;
    let left = stage.replies.left(&asked.message).expect("the asker is here");
    assert!(!left.is_cancelled());
    drop(call);
    assert!(left.is_cancelled());
    let late = stage.replies.left(&asked.message).expect("the asker was here");
    assert!(late.is_cancelled());
    let stranger = Message::new("").with(property::ID, "1").with(property::REPLY_TO, "elsewhere");
    assert!(stage.replies.left(&stranger).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_question_went_with_its_queue_ends_and_no_other_call_does() {
    let stage = stage().await;
    let worker = worker(&stage).await;
    let losses = stage.broker.losses().expect("the broker notes what is missing");
    let request = stage.client.request_topic().clone();
    let ask = async |prompt| stage.client.stream(&question(prompt), Patience::total(LONG)).await.unwrap();
    let (mut begun, mut taken, mut streamed) =
        (ask("begun").await, ask("taken").await, ask("streamed").await);
    let asked = [stage.asked().await, stage.asked().await, stage.asked().await];
    assert!(stage.replies.left(&asked[0].message).is_some(), "it is worked on in this process");
    worker.foreign(&asked[1].message).expect("it is of another process").announce().await;
    stage.answer(&asked[2], part("so ", false)).await;
    assert_eq!(said(&streamed.next().await.unwrap().unwrap()), "so ");
    let mut lost = ask("lost").await;

    // A lost binding or exchange loses nothing that waits, and other queues are none of its.
    losses.tell(&request, Lost::Way);
    losses.tell(&stage.response, Lost::Queue);
    losses.tell(&request, Lost::Queue);
    tokio::task::yield_now().await;
    // Asked when the queue was there again; its other readers report late that it was gone.
    let mut after = ask("after").await;
    losses.tell(&request, Lost::Queue);
    let told = tokio::time::timeout(LONG / 2, lost.next()).await.expect("it ends before its deadline");
    let error = told.expect_err("nobody answered it");
    assert!(matches!(&error, Error::QuestionLost { topic } if *topic == request), "{error}");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);

    tokio::time::sleep(LONG / 3).await;
    let last = [(0, &mut begun), (1, &mut taken), (2, &mut streamed)];
    for (at, call) in last {
        stage.answer(&asked[at], part("far", true)).await;
        assert_eq!(said(&call.next().await.unwrap().unwrap()), "far", "{at}");
    }
    assert_eq!(
        wire::decode::<TextCompletionRequest>(&stage.asked().await.message.body).unwrap().prompt,
        "lost"
    );
    let asked = stage.asked().await;
    stage.answer(&asked, part("well", true)).await;
    assert_eq!(said(&after.next().await.unwrap().unwrap()), "well");
}

#[tokio::test(start_paused = true)]
async fn each_of_two_removals_in_a_second_ends_the_calls_of_its_queue() {
    let stage = stage().await;
    let losses = stage.broker.losses().expect("the broker notes what is missing");
    let request = stage.client.request_topic().clone();
    let ask = async |prompt| stage.client.stream(&question(prompt), Patience::total(LONG)).await.unwrap();
    let mut lost = Vec::new();
    for prompt in ["first", "second"] {
        lost.push(ask(prompt).await);
        losses.tell(&request, Lost::Removed);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    for call in &mut lost {
        let told = tokio::time::timeout(LONG / 2, call.next()).await.expect("it ends before its deadline");
        assert!(matches!(told, Err(Error::QuestionLost { .. })), "{told:?}");
    }
}

/// Another process on the same broker, which works on questions.
#[expect(clippy::disallowed_methods, reason = "this crate cannot see the sdk's tasks; the stage stops it")]
async fn worker(stage: &Stage) -> Replies {
    let replies = Replies::new(Arc::new(stage.broker.clone()));
    tokio::spawn(replies.clone().run(stage.stop.clone()));
    replies.inbox().await.unwrap();
    replies
}

#[tokio::test]
async fn who_works_for_another_process_learns_that_its_asker_has_left() {
    let stage = stage().await;
    let worker = worker(&stage).await;
    let question = TextCompletionRequest::default();
    let mut asked = stage.client.stream(&question, Patience::total(LONG)).await.unwrap();
    let taken = stage.asked().await;
    assert!(stage.replies.foreign(&taken.message).is_none(), "it is of this process");
    let foreign = worker.foreign(&taken.message).unwrap();
    foreign.announce().await;
    // What follows an announcement on the same way shows that it has arrived, and that it is no part of the answer.
    stage.answer(&taken, r#"{"response": "so far"}"#).await;
    assert_eq!(asked.next().await.unwrap().unwrap().response, "so far");
    assert!(!foreign.left().is_cancelled());
    drop(asked);
    tokio::time::timeout(LONG, foreign.left().cancelled()).await.expect("the worker is told");
    drop(foreign);

    // One that has left before is known as soon as somebody asks.
    drop(stage.client.stream(&question, Patience::total(LONG)).await.unwrap());
    let taken = stage.asked().await;
    let foreign = worker.foreign(&taken.message).unwrap();
    foreign.announce().await;
    tokio::time::timeout(LONG, foreign.left().cancelled()).await.expect("the worker is told");
    drop(foreign);
    assert!(lock(&worker.shared.foreign).is_empty());
}

#[tokio::test]
async fn an_asker_whose_inbox_is_gone_has_left() {
    let stage = stage().await;
    let worker = worker(&stage).await;
    let gone = Message::new("{}").with(property::ID, "1").with(property::REPLY_TO, "nobody's");
    let foreign = worker.foreign(&gone).unwrap();
    foreign.announce().await;
    assert!(foreign.left().is_cancelled());
    assert!(worker.foreign(&Message::new("{}").with(property::ID, "2")).is_none(), "it has no inbox");
}
