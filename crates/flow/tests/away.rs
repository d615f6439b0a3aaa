//! The flow service while config is away and everybody misses topics.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::embedded::Embedded;
use sluice_bus::faulty::Operation;
use sluice_bus::{Broker as _, BrokerAdmin as _, Faulty, Lost, Plan, TopicSpec};
use sluice_flow::{Options, Parts};
use sluice_schema::{Topic, system};
use sluice_sdk::{Catalogue, ConfigClient, ConfigWatch, Process};
use tokio_util::sync::CancellationToken;

/// Nothing is fetched without a notice.
const NO_RESYNC: Duration = Duration::from_secs(3_600);
/// Topics that somebody reports as missing, one each millisecond.
const REPORTED: usize = 200;

#[tokio::test(start_paused = true)]
async fn config_that_is_away_is_asked_with_pauses_however_many_topics_are_reported_missing() {
    let broker = Faulty::new(Embedded::in_memory());
    let process = Process::new(Arc::new(broker.clone()), CancellationToken::new());
    // Its topics are there; it is not.
    let ask = system::config_request(None);
    broker.ensure(&TopicSpec::bare(ask.clone())).await.unwrap();
    broker.ensure(&TopicSpec::bare(system::config_response(None))).await.unwrap();
    broker.ensure(&TopicSpec::bare(system::config_notify())).await.unwrap();
    let parts = Parts {
        process: process.clone(),
        admin: Arc::new(broker.clone()),
        watch: ConfigWatch::start(&process, NO_RESYNC),
        config: ConfigClient::new(&process.replies).await.unwrap(),
        catalogue: Catalogue::default(),
        options: Options::default(),
    };
    process.tasks.spawn("test/flow", sluice_flow::start(parts));
    tokio::time::sleep(Duration::from_secs(1)).await;

    broker.plan(Plan::none());
    for number in 0..REPORTED {
        let missed: Topic = format!("flow:tg:missed:w:f{number}").parse().unwrap();
        broker.losses().unwrap().tell(&missed, Lost::Way);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let asked = broker
        .log()
        .iter()
        .filter(|made| made.operation == Operation::Publish && made.about == ask.as_str())
        .count();
    assert!(asked < REPORTED / 10, "config was asked {asked} times within {REPORTED} ms");
}
