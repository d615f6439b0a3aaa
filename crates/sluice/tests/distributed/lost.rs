//! A question waits in a queue that somebody removes at the broker, and its asker is another process than the queue's owner.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use sluice_brokers::testing::Damage;
use sluice_bus::{BrokerAdmin as _, TopicSpec};

use crate::common::cases::Shared;
use crate::common::until;
use crate::door::{Answer, Door};
use crate::fleet::{Fleet, PROCESSES};

/// Whose queue the question waits in: that processor is not here.
const READER: &str = "embeddings--default--f1--request";

pub(crate) fn a_question_that_went_with_its_queue_ends_its_call_in_another_process(shared: &mut Shared) {
    let vhost = shared.vhost();
    let parts: Vec<_> = PROCESSES.iter().filter(|(name, _)| *name != "intake").copied().collect();
    let fleet = Fleet::start(shared, &vhost, &parts);
    let client = fleet.client.clone();
    client.json(&["flow", "start", "f1", "document-rag"]);
    let key = std::fs::read_to_string(client.data.join("admin.key")).unwrap();
    let door = Door { url: client.url.clone(), key: key.trim().to_owned() };
    let (path, question) = ("/api/v1/flow/f1/service/embeddings", json!({"texts": ["a"]}));
    let broker = shared.runtime.block_on(shared.server.connect(&vhost)).unwrap();
    let spec = TopicSpec::with("request:tg:embeddings:default:f1".parse().unwrap(), READER);
    let waits = || {
        let seen = shared.runtime.block_on(broker.observe(std::slice::from_ref(&spec))).unwrap();
        seen[0].subscriptions[0].ready == 1
    };
    let queue = format!("tg.request.embeddings:default:f1.{READER}");

    let told = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asks = || {
            let answer = door.post(path, &question);
            told.store(true, Ordering::SeqCst);
            answer
        };
        let asked = scope.spawn(asks);
        until("the question to wait", waits, || fleet.logs());
        shared.runtime.block_on(shared.server.damage(&vhost, Damage::Queue(&queue))).unwrap();
        // Whoever asks next runs into the gap, and lets the owner know.
        let missed = door.post(path, &question);
        assert!(matches!(&missed, Answer::Refused(said) if said.contains("nobody serves")), "{missed:?}");
        until("the first to be told", || told.load(Ordering::SeqCst), || fleet.logs());
        let answer = asked.join().unwrap();
        let Answer::Refused(said) = &answer else { panic!("{answer:?}\n{}", fleet.logs()) };
        let head = said.to_lowercase();
        assert!(head.starts_with("http/1.1 503") && head.contains("retry-after:"), "{said}");
        assert!(said.contains("removed at the message broker") && said.contains("send it again"), "{said}");
        // The queue is there again, and what waits in it now is nobody's loss.
        let next = scope.spawn(|| door.post(path, &question));
        until("the next question to wait", waits, || fleet.logs());
        assert!(!next.is_finished(), "it was told that it is lost");
        fleet.stop();
        assert!(next.join().is_ok());
    });
}
