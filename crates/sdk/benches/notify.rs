//! How fast everybody hears of a started flow, and what hearing costs: from the request to start-flow until a first
//! process knows, until every processor has attached to its queue, and until the answer; questions to the config service
//! and bytes of its answers. On the embedded broker and on a real one. `cargo bench -p sluice-sdk`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench tells what it measured, or ends")]

#[path = "../tests/fleet/mod.rs"]
mod fleet;

use std::time::{Duration, Instant};

use fleet::{Fleet, System};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sluice_brokers::testing::RabbitServer;
use sluice_bus::{Broker, BrokerAdmin, Embedded};

/// Starts per line; the median counts.
const STARTS: usize = 5;
/// Connections of a fleet at most; beyond, processes share them.
const ENDS_MAX: usize = 40;
/// Processors of a flow that runs beside the measured ones; they belong to the first processes of the fleet.
const BESIDE: usize = 4;
/// Flows that are made to run beside, started at once.
const STARTING_MAX: usize = 16;
/// Processes, and processors that they share.
const SHAPES: [(usize, usize); 4] = [(1, 40), (1, 400), (40, 40), (400, 400)];
/// Flows that run beside.
const RUNNING: [usize; 3] = [1, 50, 400];

fn main() {
    // `cargo test` runs benches too, to see that they build.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    tokio::runtime::Runtime::new().unwrap().block_on(measure());
}

async fn measure() {
    println!(
        "| broker | processes | processors | flows beside | first knows, ms | all attached, ms | start-flow answered, ms | \
         config requests | bytes fetched | notices |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for shape in SHAPES {
        let broker = Embedded::in_memory();
        lines("embedded", vec![broker; ends(shape.0)], shape).await;
    }
    if let Some(why) = RabbitServer::missing() {
        println!("RabbitMQ: not measured, {why}");
        return;
    }
    let server = RabbitServer::start().await.unwrap();
    for shape in SHAPES {
        let vhost = server.vhost().await.unwrap();
        let connecting = stream::iter(0..ends(shape.0)).map(|_| server.connect(&vhost)).buffered(8);
        let brokers: Vec<_> = connecting.try_collect().await.unwrap();
        lines("RabbitMQ", brokers.clone(), shape).await;
        for broker in brokers {
            broker.shutdown().await;
        }
    }
}

/// Connections of a fleet, and one for the services.
fn ends(processes: usize) -> usize {
    processes.min(ENDS_MAX) + 1
}

async fn lines<B: Broker + BrokerAdmin + Clone>(name: &str, mut ends: Vec<B>, shape: (usize, usize)) {
    let (processes, processors) = shape;
    let system = System::start(ends.pop().unwrap()).await;
    system.put_blueprint("measured", processors).await;
    system.put_blueprint("beside", BESIDE).await;
    let fleet = Fleet::start(ends, processes, processors).await;
    let mut running = 0;
    // The growing number of flows is of interest where there is most to hear.
    let counts = if processors == 40 { &RUNNING[..] } else { &RUNNING[..1] };
    for &beside in counts {
        let before = fleet.attached_so_far();
        let (missing, system) = (running..beside, &system);
        running = beside;
        let starting = stream::iter(missing.clone())
            .map(async |id| system.start_flow(&format!("beside-{id}"), "beside").await);
        starting.buffer_unordered(STARTING_MAX).collect::<()>().await;
        fleet.attached(before + BESIDE * missing.len()).await;
        let (mut times, mut costs) = ([const { Vec::new() }; 3], Vec::new());
        for n in 0..STARTS {
            fleet.cost();
            let target = fleet.attached_so_far() + processors;
            let mut view = fleet.watches[0].interest::<&str>(&[]);
            view.mark_unchanged();
            let id = format!("measured-{beside:03}-{n}");
            let began = Instant::now();
            let (known, attached, answered) = tokio::join!(
                async { view.changed().await.map(|()| began.elapsed()).unwrap() },
                async { timed(began, fleet.attached(target)).await },
                async { timed(began, system.start_flow(&id, "measured")).await },
            );
            for (times, one) in times.iter_mut().zip([known, attached, answered]) {
                times.push(one);
            }
            costs.push(fleet.cost());
        }
        let [known, attached, answered] = times.map(|times| ms(median(times.into_iter())));
        let [requests, bytes, notices] = [
            median(costs.iter().map(|cost| cost.requests)),
            median(costs.iter().map(|cost| cost.fetched_bytes)),
            median(costs.iter().map(|cost| cost.notices)),
        ];
        println!(
            "| {name} | {processes} | {processors} | {beside} | {known:.1} | {attached:.1} | {answered:.1} | {requests} | \
             {bytes} | {notices} |"
        );
    }
    fleet.stop().await;
}

fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut sorted: Vec<T> = values.collect();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

async fn timed(began: Instant, doing: impl Future<Output = ()>) -> Duration {
    doing.await;
    began.elapsed()
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
