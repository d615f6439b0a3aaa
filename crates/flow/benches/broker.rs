//! How long start-flow and stop-flow take on a real broker, beside bare declares and deletes of the same exchanges, queues
//! and bindings over sixteen channels in the same run. Run with `cargo bench -p sluice-flow --bench broker`.

#![allow(clippy::unwrap_used, reason = "a bench")]
#![allow(clippy::print_stdout, reason = "a bench prints")]

#[path = "../tests/scale/world.rs"]
mod world;

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use sluice_brokers::testing::RabbitServer;
use world::{World, topics};

const SIZES: [usize; 3] = [5, 50, 200];
const ROUNDS: usize = 9;
const CHANNELS: usize = 16;

fn main() {
    // `cargo test` runs benches too, to see that they start.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    match RabbitServer::missing() {
        Some(why) => println!("not measured: {why}"),
        None => tokio::runtime::Runtime::new().unwrap().block_on(measure()),
    }
}

async fn measure() {
    let world = World::new(&SIZES).await;
    let connection =
        Connection::connect(&world.server.url(&world.vhost), ConnectionProperties::default()).await.unwrap();
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        channels.push(connection.create_channel().await.unwrap());
    }
    println!("processors  start ms  bare ms  ratio   stop ms  bare ms  ratio   (medians of {ROUNDS})");
    for size in SIZES {
        let [mut start, mut stop, mut make, mut remove] = [const { Vec::new() }; 4];
        for round in 0..ROUNDS {
            let objects = objects(size, &format!("bare-{round}"));
            make.push(timed(each(&channels, &objects, declare)).await);
            remove.push(timed(each(&channels, &objects, delete)).await);
            let id = format!("of-{size}-{round}");
            start.push(timed(world.start(&id, size)).await);
            stop.push(timed(world.stop(&id)).await);
        }
        let [start, stop, make, remove] = [start, stop, make, remove].map(median);
        println!(
            "{size:>10}  {:>8.1}  {:>7.1}  {:>5.2}  {:>8.1}  {:>7.1}  {:>5.2}",
            ms(start),
            ms(make),
            ms(start) / ms(make),
            ms(stop),
            ms(remove),
            ms(stop) / ms(remove)
        );
    }
    connection.close(0, "done".into()).await.unwrap();
    world.end().await;
}

/// An exchange and the queue bound to it, if it has one.
type Object = (ShortString, Option<ShortString>);

fn objects(size: usize, run: &str) -> Vec<Object> {
    let object = |(topic, reader): (String, Option<String>)| {
        let exchange = topic.replacen("flow:tg:", "tg.flow.", 1);
        let queue = reader.map(|reader| format!("{exchange}.{reader}").into());
        (exchange.into(), queue)
    };
    topics(size, run).into_iter().map(object).collect()
}

async fn each<F>(channels: &[Channel], objects: &[Object], call: impl Fn(Channel, Object) -> F)
where
    F: Future<Output = lapin::Result<()>>,
{
    let call = &call;
    let lane = |n: usize| async move {
        for object in objects.iter().skip(n).step_by(CHANNELS) {
            call(channels[n].clone(), object.clone()).await?;
        }
        lapin::Result::Ok(())
    };
    try_join_all((0..CHANNELS).map(lane)).await.unwrap();
}

async fn declare(channel: Channel, (exchange, queue): Object) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(exchange.clone(), ExchangeKind::Fanout, options, FieldTable::default()).await?;
    let Some(queue) = queue else { return Ok(()) };
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.clone(), options, FieldTable::default()).await?;
    let options = QueueBindOptions::default();
    channel.queue_bind(queue.clone(), exchange, queue, options, FieldTable::default()).await
}

async fn delete(channel: Channel, (exchange, queue): Object) -> lapin::Result<()> {
    if let Some(queue) = queue {
        channel.queue_delete(queue, QueueDeleteOptions::default()).await?;
    }
    channel.exchange_delete(exchange, ExchangeDeleteOptions::default()).await
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
