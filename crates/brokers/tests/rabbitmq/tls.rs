//! `amqps://`: a server with a certificate of its own authority.

use std::path::Path;

use sluice_brokers::testing::RabbitServer;
use sluice_brokers::{Options, RabbitMq, Secret};
use sluice_bus::{BrokerAdmin, ErrorKind, TopicSpec};
use sluice_schema::Class;

use crate::Server;
use crate::common::*;
use crate::harness::certify;

cases! {
    "tls":
    a_broker_is_reached_over_tls_and_one_of_another_authority_is_refused,
}

async fn a_broker_is_reached_over_tls_and_one_of_another_authority_is_refused(_: Server) -> Outcome {
    let folder = tempfile::tempdir().map_err(text)?;
    let other = tempfile::tempdir().map_err(text)?;
    certify(folder.path())?;
    certify(other.path())?;
    let server = RabbitServer::start_with_tls(folder.path()).await?;
    let url = server.tls_url("").ok_or("no address")?.replacen("guest:guest", "guest", 1);
    let ca = |folder: &Path| std::fs::read_to_string(folder.join("ca.pem")).map_err(text);
    let options = |ca_pem| Options { ca_pem, password: Some(Secret::new("guest")), ..server.options() };

    let broker = RabbitMq::connect(&url, options(Some(ca(folder.path())?))).await.map_err(text)?;
    check(broker.address().starts_with("amqps://guest@127.0.0.1:"), broker.address())?;
    let spec = TopicSpec::with(topic(Class::Flow, "work"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    send(&broker, &spec.topic, "over tls").await.map_err(text)?;
    let got = next(&*read(&broker, &spec.topic, 1).await.map_err(text)?).await?;
    check(body(&got) == "over tls", &got)?;
    got.ack();

    for ca_pem in [Some(ca(other.path())?), None] {
        let options = Options { password: Some(Secret::new("hush")), ..options(ca_pem) };
        let refused = RabbitMq::connect(&url, options).await.err().ok_or("it trusts anybody")?;
        check(refused.kind() == ErrorKind::Refused, &refused)?;
        let told = refused.to_string();
        check(told.contains("certificate") && told.contains("CA") && !told.contains("hush"), told)?;
    }
    Ok(())
}
