//! Messages that are sent right after a start said OK, before any processor exists.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use sluice_bus::{Address, Broker, Message, Subscription};

use crate::common::{PATIENCE, Up};

const TOPIC: &str = "flow:tg:in:default:f1";

/// Starts a flow whose processor nobody runs, sends at once, then reads in the processor's place: every message is there.
pub(crate) fn are_all_delivered(
    up: &Up,
    folder: &Path,
    runtime: &tokio::runtime::Runtime,
    broker: &dyn Broker,
    messages: usize,
) {
    let blueprint = json!({
        "interfaces": {"text-load": {"flow": "flow:tg:in:{workspace}:{id}"}},
        "blueprint": {},
        "flow": {"sink:{id}": {"topics": {"input": "flow:tg:in:{workspace}:{id}"}}},
    });
    let file = folder.join("sink.json");
    std::fs::write(&file, blueprint.to_string()).unwrap();
    up.json(&["blueprint", "put", "sink", file.to_str().unwrap()]);
    up.json(&["flow", "start", "f1", "sink"]);
    runtime.block_on(async {
        let to = Address::Topic(TOPIC.parse().unwrap());
        let sends = (0..messages).map(|number| broker.publish(&to, Message::new(number.to_string())));
        let sent: Vec<_> = stream::iter(sends).buffer_unordered(256).collect().await;
        assert!(sent.iter().all(Result::is_ok), "{:?}", sent.iter().find(|sent| sent.is_err()));
        let name = "sink--default--f1--input".to_owned();
        let reader = Subscription::Shared { topic: TOPIC.parse().unwrap(), name, prefetch: 256 };
        let inbox = broker.subscribe(&reader).await.unwrap();
        let mut seen = BTreeSet::new();
        while seen.len() < messages {
            let next = tokio::time::timeout(PATIENCE, inbox.next()).await;
            let delivery = next.unwrap_or_else(|_| panic!("only {} of {messages} came", seen.len())).unwrap();
            seen.insert(delivery.message.body.clone());
            delivery.ack();
        }
    });
    up.stop("f1");
}
