//! Who is let in, and what somebody is reported who may not do a thing.

use std::path::Path;

use sluice_brokers::Secret;
use sluice_brokers::kafka::{Kafka, Options};
use sluice_brokers::testing::KafkaServer;
use sluice_bus::{BrokerAdmin, ErrorKind, TopicSpec};
use sluice_schema::Class;

use crate::Server;
use crate::harness::*;

cases! {
    "access":
    users_are_let_in_over_either_mechanism_and_others_are_refused_by_what_they_lack,
    over_tls_only_a_broker_that_is_vouched_for_is_spoken_to,
}

async fn round_trip(user: &Kafka, name: &str) -> Outcome {
    let spec = TopicSpec::with(topic(Class::Flow, name), "reader");
    user.ensure(&spec).await.map_err(text)?;
    send(user, &spec.topic, "let through").await.map_err(text)?;
    let inbox = read(user, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "let through", &got)?;
    got.ack();
    Ok(())
}

/// Does something with a broker that asks who one is; one broker at a time is enough for a small machine.
async fn closed(server: &Server, doing: impl AsyncFnOnce(&KafkaServer, &Path) -> Outcome) -> Outcome {
    server.lock().await.stop(true).await;
    let folder = tempfile::tempdir().map_err(text)?;
    certify(folder.path())?;
    let closed = KafkaServer::start_closed(folder.path()).await?;
    let outcome = doing(&closed, folder.path()).await;
    drop(closed);
    server.lock().await.run().await?;
    outcome
}

async fn users_are_let_in_over_either_mechanism_and_others_are_refused_by_what_they_lack(
    server: Server,
) -> Outcome {
    closed(&server, async |closed, _| users(closed).await).await
}

async fn users(closed: &KafkaServer) -> Outcome {
    let users = closed.users();
    let login = async |user: &str, password: &str, mechanism: &str| {
        let options = Options { password: Some(Secret::new(password)), ..Options::default() };
        Kafka::connect(&format!("kafka://{user}@{users}?mechanism={mechanism}"), options).await
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let owner = login("owner", "open sesame", mechanism).await.map_err(text)?;
        round_trip(&owner, &format!("own-{mechanism}")).await?;
        owner.shutdown().await;
        let error = login("owner", "hush", mechanism).await.err().ok_or("it lets anybody in")?;
        let told = error.to_string();
        check(error.kind() == ErrorKind::Refused && !told.contains("hush"), told)?;
    }
    let error = login("reader", "hush", "PLAIN").await.err().ok_or("it may do all")?;
    let told = error.to_string();
    check(error.kind() == ErrorKind::Refused && told.contains("does not allow"), told)
}

async fn over_tls_only_a_broker_that_is_vouched_for_is_spoken_to(server: Server) -> Outcome {
    closed(&server, async |closed, folder| tls(closed, folder).await).await
}

async fn tls(closed: &KafkaServer, folder: &Path) -> Outcome {
    let other = tempfile::tempdir().map_err(text)?;
    certify(other.path())?;
    let ca = |folder: &Path| std::fs::read_to_string(folder.join("ca.pem")).map_err(text);
    let options = |ca_pem| Options { ca_pem, ..Options::default() };
    let url = closed.tls_url();
    let broker = Kafka::connect(&url, options(Some(ca(folder)?))).await.map_err(text)?;
    round_trip(&broker, "over-tls").await?;
    broker.shutdown().await;
    for ca_pem in [Some(ca(other.path())?), None] {
        let error = Kafka::connect(&url, options(ca_pem)).await.err().ok_or("it trusts anybody")?;
        let told = error.to_string();
        check(error.kind() == ErrorKind::Refused && told.contains("certificate"), told)?;
    }
    Ok(())
}
