//! Who is let in, and what somebody is reported who may not do a thing.

use std::path::Path;

use sluice_brokers::Secret;
use sluice_brokers::pulsar::{Options, Pulsar};
use sluice_brokers::testing::PulsarServer;
use sluice_bus::{BrokerAdmin, ErrorKind, TopicSpec};
use sluice_schema::Class;

use crate::Server;
use crate::harness::*;

cases! {
    "access":
    a_token_is_let_in_and_nobody_else_and_what_it_may_not_do_is_refused_and_says_so,
    a_broker_is_reached_over_tls_and_one_of_another_authority_is_refused,
    a_broker_with_tiny_messages_is_refused_by_name,
}

/// A key for tests only, and what it signed: tokens of the subjects `owner` and `reader`.
const KEY: &str = "IpUKHOh/BJZn9XF8t25hmhBlprE3iDkE5CC7m8ifc7U=";
const OWNER: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJvd25lciJ9.e2G8Jt6LoHjmwXRAvtUI8jUtU8tCod_RPfLSZzgEFdM";
const READER: &str =
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJyZWFkZXIifQ.rSKLbYoUvAoSJZENEUq2XJwhwa_UdGrYYxTIqBAu1XE";

async fn round_trip(owner: &Pulsar, user: &Pulsar, name: &str) -> Outcome {
    let spec = TopicSpec::with(topic(Class::Flow, name), "reader");
    owner.ensure(&spec).await.map_err(text)?;
    send(user, &spec.topic, "let through").await.map_err(text)?;
    let inbox = read(user, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "let through", &got)?;
    got.ack();
    Ok(())
}

async fn a_token_is_let_in_and_nobody_else_and_what_it_may_not_do_is_refused_and_says_so(
    server: Server,
) -> Outcome {
    // One broker at a time is enough for a small machine.
    server.lock().await.stop(true).await;
    let more = format!(
        "authenticationEnabled=true\nauthorizationEnabled=true\nsuperUserRoles=owner\ntokenSecretKey=data:;base64,{KEY}\n\
         authenticationProviders=org.apache.pulsar.broker.authentication.AuthenticationProviderToken\n\
         brokerClientAuthenticationPlugin=org.apache.pulsar.client.impl.auth.AuthenticationToken\n\
         brokerClientAuthenticationParameters=token:{OWNER}\n"
    );
    let closed = PulsarServer::start_with_token(&more, OWNER).await?;
    let login = async |token: &str| {
        let options = Options { token: Some(Secret::new(token)), ..Options::default() };
        Pulsar::connect(&closed.url(), options).await
    };
    let owner = login(OWNER).await.map_err(text)?;
    round_trip(&owner, &owner, "own").await?;
    for token in ["hush", ""] {
        let error = login(token).await.err().ok_or("it lets anybody in")?;
        let told = error.to_string();
        check(error.kind() == ErrorKind::Refused && !told.contains("hush"), told)?;
    }
    let nobody = Pulsar::connect(&closed.url(), Options::default()).await.err().ok_or("nobody is let in")?;
    check(nobody.kind() == ErrorKind::Refused, nobody)?;
    let reader = login(READER).await.map_err(text)?;
    let error =
        reader.ensure(&TopicSpec::bare(topic(Class::Flow, "denied"))).await.err().ok_or("it was let")?;
    let told = error.to_string();
    check(error.kind() == ErrorKind::Refused && told.contains("does not allow"), told)?;
    round_trip(&owner, &owner, "granted").await?;
    for namespace in ["flow", "sluice"] {
        let url = format!("{}/admin/v2/namespaces/tg/{namespace}/permissions/reader", closed.admin_url());
        let granted = reqwest::Client::new().post(url).bearer_auth(OWNER).json(&["produce", "consume"]);
        let granted = granted.send().await.map_err(text)?;
        check(granted.status().is_success(), granted.status())?;
    }
    round_trip(&owner, &reader, "granted").await?;
    owner.shutdown().await;
    reader.shutdown().await;
    drop(closed);
    server.lock().await.run().await
}

async fn a_broker_is_reached_over_tls_and_one_of_another_authority_is_refused(server: Server) -> Outcome {
    server.lock().await.stop(true).await;
    let (folder, other) = (tempfile::tempdir().map_err(text)?, tempfile::tempdir().map_err(text)?);
    certify(folder.path())?;
    certify(other.path())?;
    let tls = PulsarServer::start_with_tls(folder.path()).await?;
    let url = tls.tls_url();
    let ca = |folder: &Path| std::fs::read_to_string(folder.join("ca.pem")).map_err(text);
    let options = |ca_pem| Options { ca_pem, token: Some(Secret::new("hush")), ..Options::default() };
    let broker = Pulsar::connect(&url, options(Some(ca(folder.path())?))).await.map_err(text)?;
    round_trip(&broker, &broker, "over-tls").await?;
    broker.shutdown().await;
    for ca_pem in [Some(ca(other.path())?), None] {
        let error = Pulsar::connect(&url, options(ca_pem)).await.err().ok_or("it trusts anybody")?;
        let told = error.to_string();
        check(
            error.kind() == ErrorKind::Refused && told.contains("certificate") && !told.contains("hush"),
            told,
        )?;
    }
    drop(tls);
    server.lock().await.run().await
}

async fn a_broker_with_tiny_messages_is_refused_by_name(server: Server) -> Outcome {
    server.lock().await.stop(true).await;
    let tiny = PulsarServer::start_with("maxMessageSize=65536").await?;
    let error = tiny.connect().await.err().ok_or("it was taken")?;
    check(error.kind() == ErrorKind::Refused && error.to_string().contains("maxMessageSize"), error)?;
    drop(tiny);
    server.lock().await.run().await
}
