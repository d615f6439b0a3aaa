//! A queue does what a simple model of it does, whatever the order of publishing, taking, settling and restarting.
#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use sluice_bus::{
    Address, Broker, BrokerAdmin, Config, Delivery, Embedded, Inbox, Message, Subscription, TopicSpec,
};

#[derive(Debug, Clone, Copy)]
enum Step {
    Publish,
    Take,
    Ack(usize),
    Again(usize),
    Drop(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Publish),
        6 => Just(Step::Take),
        3 => any::<usize>().prop_map(Step::Ack),
        1 => any::<usize>().prop_map(Step::Again),
        1 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::Restart),
    ]
}

/// A message as the model sees it: its number and how often it was handed out.
type Known = (u32, u32);

#[derive(Default)]
struct Model {
    published: u32,
    ready: VecDeque<Known>,
    held: Vec<Known>,
}

struct Real {
    broker: Embedded,
    inbox: Box<dyn Inbox>,
    held: Vec<Delivery>,
}

fn spec() -> TopicSpec {
    TopicSpec::with("flow:tg:model".parse().unwrap(), "reader")
}

impl Real {
    async fn open(dir: &Path) -> Self {
        let config = Config {
            segment_bytes: 512,
            memory_bytes_max: 1024,
            disk_reserve_bytes: 0,
            ..Config::in_dir(dir)
        };
        let broker = Embedded::open(config).unwrap();
        broker.ensure(&spec()).await.unwrap();
        let to = Subscription::Shared { topic: spec().topic, name: "reader".to_owned(), prefetch: u32::MAX };
        let inbox = broker.subscribe(&to).await.unwrap();
        Self { broker, inbox, held: Vec::new() }
    }
}

async fn run(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let mut real = Real::open(folder.path()).await;
    for step in steps {
        match step {
            Step::Publish => {
                let to = Address::Topic(spec().topic);
                real.broker.publish(&to, Message::new(model.published.to_string())).await.unwrap();
                model.ready.push_back((model.published, 0));
                model.published += 1;
            }
            Step::Take => {
                let Some((number, attempts)) = model.ready.pop_front() else { continue };
                let next = tokio::time::timeout(Duration::from_secs(20), real.inbox.next());
                let delivery = next.await.expect("a message comes").unwrap();
                assert_eq!(delivery.message.body, number.to_string());
                assert_eq!(delivery.attempt, attempts + 1);
                real.held.push(delivery);
                model.held.push((number, attempts + 1));
            }
            Step::Ack(at) | Step::Again(at) | Step::Drop(at) => {
                if model.held.is_empty() {
                    continue;
                }
                let at = at % model.held.len();
                let (known, delivery) = (model.held.remove(at), real.held.remove(at));
                match step {
                    Step::Ack(_) => {
                        delivery.ack();
                        continue;
                    }
                    Step::Again(_) => delivery.again(Duration::ZERO),
                    _ => drop(delivery),
                }
                model.ready.push_back(known);
            }
            Step::Restart => {
                real.broker.shutdown().await;
                real = Real::open(folder.path()).await;
                let mut all: Vec<Known> = model.ready.drain(..).chain(model.held.drain(..)).collect();
                all.sort_unstable();
                model.ready = all.into();
            }
        }
        let seen = real.broker.observe(&[spec()]).await.unwrap().remove(0);
        let seen = &seen.subscriptions[0];
        assert_eq!(seen.ready, model.ready.len() as u64);
        assert_eq!(seen.unsettled, Some(model.held.len() as u64));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_does_what_its_model_does(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
