//! What the cases work with beside what all brokers' cases do: fresh vhosts, and strangers beside us.

use lapin::{Channel, Connection, ConnectionProperties};
use sluice_brokers::RabbitMq;
use sluice_bus::{BrokerAdmin, TopicSpec};
use sluice_schema::Class;

use crate::Server;
pub(crate) use crate::harness::{
    Outcome, VALUE_TIMEOUT, body, cases, check, next, read, send, text, topic, until,
};

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
