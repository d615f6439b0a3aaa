//! Durable publishes, beside bare appends that are each synced.
//!
//! `cargo bench -p sluice-bus --bench publish`: `appends` writes a record of the same size and calls `fdatasync`, one
//! after the other; `publishes` is the bus with so many publishers at once, and a consumer that settles everything. Set
//! `TMPDIR` to the disk that is meant.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use std::fs::File;
use std::io::Write as _;

use divan::Bencher;
use divan::counter::ItemsCount;
use futures_util::future::join_all;
use sluice_bus::{Address, Broker, BrokerAdmin, Config, Embedded, Message, Subscription, TopicSpec};
use sluice_schema::Topic;

fn main() {
    divan::main();
}

const BODY_BYTES: usize = 1_024;
/// What the log adds to a body for one subscription, without properties.
const RECORD_BYTES: usize = BODY_BYTES + 57;
const APPENDS: usize = 256;

#[divan::bench]
fn appends(bencher: Bencher<'_, '_>) {
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::create(folder.path().join("appends")).unwrap();
    let record = vec![b'x'; RECORD_BYTES];
    bencher.counter(ItemsCount::new(APPENDS)).bench_local(|| {
        for _ in 0..APPENDS {
            file.write_all(&record).unwrap();
            file.sync_data().unwrap();
        }
    });
}

#[divan::bench(args = [1, 64])]
fn publishes(bencher: Bencher<'_, '_>, publishers: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let broker = Embedded::open(Config::in_dir(folder.path())).unwrap();
    let topic: Topic = "flow:tg:bench".parse().unwrap();
    runtime.block_on(async { broker.ensure(&TopicSpec::with(topic.clone(), "reader")).await.unwrap() });
    let (reader, to) = (
        broker.clone(),
        Subscription::Shared { topic: topic.clone(), name: "reader".to_owned(), prefetch: 64 },
    );
    let consumer = runtime.spawn(async move {
        let inbox = reader.subscribe(&to).await.unwrap();
        while let Ok(delivery) = inbox.next().await {
            delivery.ack();
        }
    });
    let each = APPENDS.max(publishers * 64) / publishers;
    let body = bytes::Bytes::from(vec![b'x'; BODY_BYTES]);
    bencher.counter(ItemsCount::new(each * publishers)).bench_local(|| {
        let running = (0..publishers).map(|_| {
            let (broker, to, body) = (broker.clone(), Address::Topic(topic.clone()), body.clone());
            runtime.spawn(async move {
                for _ in 0..each {
                    broker.publish(&to, Message::new(body.clone())).await.unwrap();
                }
            })
        });
        let running: Vec<_> = running.collect();
        runtime.block_on(async { join_all(running).await.into_iter().for_each(Result::unwrap) });
    });
    runtime.block_on(broker.shutdown());
    drop(consumer);
}
