//! What the cases work with: fresh vhosts, strangers beside us, and waiting for a value.

use std::time::Duration;

use lapin::{Channel, Connection, ConnectionProperties};
use sluice_brokers::RabbitMq;
use sluice_bus::{Address, Broker, BrokerAdmin, Delivery, Error, Inbox, Message, Subscription, TopicSpec};
use sluice_schema::{Class, Topic};
use tokio::time::{Instant, timeout};

use crate::Server;

/// Lists cases: their functions' names are the sentences.
macro_rules! cases {
    ($group:literal: $($name:ident),* $(,)?) => {
        pub(crate) fn cases() -> Vec<crate::Case> {
            vec![$(crate::Case {
                name: concat!($group, "::", stringify!($name)).to_owned(),
                run: Box::new(|server| Box::pin($name(server))),
            }),*]
        }
    };
}
pub(crate) use cases;

pub(crate) type Outcome = Result<(), String>;

/// How long a value may take to come.
pub(crate) const VALUE_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) fn topic(class: Class, name: &str) -> Topic {
    Topic::tg(class, name).unwrap()
}

pub(crate) async fn send(
    broker: &RabbitMq,
    topic: &Topic,
    body: impl Into<bytes::Bytes>,
) -> Result<(), Error> {
    broker.publish(&Address::Topic(topic.clone()), Message::new(body)).await
}

pub(crate) async fn read(broker: &RabbitMq, topic: &Topic, prefetch: u32) -> Result<Box<dyn Inbox>, Error> {
    broker
        .subscribe(&Subscription::Shared { topic: topic.clone(), name: "reader".to_owned(), prefetch })
        .await
}

pub(crate) async fn next(inbox: &dyn Inbox) -> Result<Delivery, String> {
    timeout(VALUE_TIMEOUT, inbox.next()).await.map_err(|_| "nothing came")?.map_err(text)
}

pub(crate) fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// Looks again until it is so.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return Ok(seen);
        }
        if started.elapsed() > VALUE_TIMEOUT {
            return Err(format!("never saw {what}"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) fn check(holds: bool, why: impl std::fmt::Debug) -> Outcome {
    if holds { Ok(()) } else { Err(format!("{why:?}")) }
}

/// A fresh vhost, our end of it, and a flow topic with one subscription.
pub(crate) async fn world(server: &Server) -> Result<(String, RabbitMq, TopicSpec), String> {
    let server = server.lock().await;
    let vhost = server.vhost().await?;
    let broker = server.connect(&vhost).await.map_err(text)?;
    let spec = TopicSpec::with(topic(Class::Flow, "work"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    Ok((vhost, broker, spec))
}

/// A stranger's channel.
pub(crate) async fn stranger(server: &Server, vhost: &str) -> Result<(Connection, Channel), String> {
    let url = server.lock().await.url(vhost);
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.map_err(text)?;
    let channel = connection.create_channel().await.map_err(text)?;
    Ok((connection, channel))
}
