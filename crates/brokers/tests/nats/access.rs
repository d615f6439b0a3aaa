//! Who is let in, and what somebody is reported who may not do a thing.

use std::path::Path;

use sluice_brokers::Secret;
use sluice_brokers::nats::{Nats, Options};
use sluice_brokers::testing::NatsServer;
use sluice_bus::{Broker, BrokerAdmin, ErrorKind, TopicSpec};
use sluice_schema::Class;

use crate::Server;
use crate::harness::*;

cases! {
    "access":
    a_user_a_token_and_a_key_are_let_in_and_nobody_else,
    a_server_is_reached_over_tls_and_one_of_another_authority_is_refused,
    what_a_user_may_not_do_is_refused_and_says_so,
    a_server_without_jetstream_or_with_tiny_messages_is_refused_by_name,
    an_examination_names_what_loses_messages,
}

/// A key for tests only.
const SEED: &str = "SUALJRV73MYI5YQACI3ZGYJNRRBPDTAAFT2XBIB7UFTAK7NBRKOKW5WEVA";
const KEY: &str = "UD77IOKMJLF4F6OH3JFMZRDSDEFDJ3LJSMYC4RGSWF3QPKMDRHZSYNON";

async fn connect(server: &NatsServer, login: &str, query: &str) -> Result<Nats, sluice_bus::Error> {
    let url = server.url().replacen("nats://", &format!("nats://{login}"), 1);
    Nats::connect(&format!("{url}{query}"), Options::default()).await
}

async fn refused(server: &NatsServer, login: &str, query: &str) -> Outcome {
    let error = connect(server, login, query).await.err().ok_or("it lets anybody in")?;
    let told = error.to_string();
    check(error.kind() == ErrorKind::Refused && !told.contains("hush"), told)
}

async fn a_user_a_token_and_a_key_are_let_in_and_nobody_else(_: Server) -> Outcome {
    let user = NatsServer::start_with("authorization { user: ann, password: \"p@ss\" }").await?;
    connect(&user, "ann:p%40ss@", "").await.map_err(text)?.shutdown().await;
    refused(&user, "ann:hush@", "").await?;
    refused(&user, "", "").await?;
    let token = NatsServer::start_with("authorization { token: \"s3cret\" }").await?;
    connect(&token, ":s3cret@", "").await.map_err(text)?.shutdown().await;
    refused(&token, ":hush@", "").await?;
    let folder = tempfile::tempdir().map_err(text)?;
    let seed = folder.path().join("seed");
    std::fs::write(&seed, SEED).map_err(text)?;
    let key = NatsServer::start_with(&format!("authorization {{ users: [{{ nkey: {KEY} }}] }}")).await?;
    let query = format!("?nkey={}", seed.display());
    connect(&key, "", &query).await.map_err(text)?.shutdown().await;
    refused(&key, "", "").await
}

async fn a_server_is_reached_over_tls_and_one_of_another_authority_is_refused(_: Server) -> Outcome {
    let (folder, other) = (tempfile::tempdir().map_err(text)?, tempfile::tempdir().map_err(text)?);
    certify(folder.path())?;
    certify(other.path())?;
    let at = folder.path().display();
    let more = format!("tls {{ cert_file: \"{at}/cert.pem\", key_file: \"{at}/key.pem\" }}");
    let server = NatsServer::start_with(&more).await?;
    let url = server.url().replacen("nats://", "tls://", 1);
    let ca = |folder: &Path| std::fs::read_to_string(folder.join("ca.pem")).map_err(text);
    let options = |ca_pem| Options { ca_pem, password: Some(Secret::new("hush")), ..Options::default() };

    let broker = Nats::connect(&url, options(Some(ca(folder.path())?))).await.map_err(text)?;
    let spec = TopicSpec::with(topic(Class::Flow, "work"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    send(&broker, &spec.topic, "over tls").await.map_err(text)?;
    let inbox = read(&broker, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "over tls", &got)?;
    got.ack();
    for ca_pem in [Some(ca(other.path())?), None] {
        let error = Nats::connect(&url, options(ca_pem)).await.err().ok_or("it trusts anybody")?;
        let told = error.to_string();
        check(
            error.kind() == ErrorKind::Refused && told.contains("certificate") && !told.contains("hush"),
            told,
        )?;
    }
    Ok(())
}

async fn what_a_user_may_not_do_is_refused_and_says_so(_: Server) -> Outcome {
    let more = "authorization { users: [
        { user: owner, password: p }
        { user: reader, password: p, permissions: { publish: { deny: [\"$JS.API.STREAM.CREATE.>\"] } } }
    ] }";
    let server = NatsServer::start_with(more).await?;
    let url = server.url().replacen("nats://", "nats://reader:p@", 1);
    let options = Options { call_timeout: std::time::Duration::from_secs(10), ..Options::default() };
    let reader = Nats::connect(&url, options).await.map_err(text)?;
    let spec = TopicSpec::with(topic(Class::Flow, "denied"), "reader");
    let error = reader.ensure(&spec).await.err().ok_or("it was let")?;
    let told = error.to_string();
    check(error.kind() == ErrorKind::Refused && told.contains("STREAM.CREATE"), told)?;
    let owner = connect(&server, "owner:p@", "").await.map_err(text)?;
    owner.ensure(&spec).await.map_err(text)?;
    send(&reader, &spec.topic, "let through").await.map_err(text)?;
    let inbox = read(&reader, &spec.topic, 1).await.map_err(text)?;
    let got = next(&*inbox).await?;
    check(body(&got) == "let through", &got)?;
    got.ack();
    Ok(())
}

async fn a_server_without_jetstream_or_with_tiny_messages_is_refused_by_name(_: Server) -> Outcome {
    let told = async |more: &str| {
        let server = NatsServer::start_with(more).await?;
        let error = connect(&server, "", "").await.err().ok_or("it was taken")?;
        Ok::<_, String>((error.kind(), error.to_string()))
    };
    let tiny = told("max_payload: 65536").await?;
    check(tiny.0 == ErrorKind::Refused && tiny.1.contains("max_payload"), tiny)?;
    let off = told("accounts { A { users: [{ user: a, password: a }] } }\nno_auth_user: a").await?;
    check(off.0 == ErrorKind::Refused && off.1.contains("JetStream"), off)
}

async fn an_examination_names_what_loses_messages(_: Server) -> Outcome {
    let server = NatsServer::start_with("max_payload: 1048576").await?;
    let broker = server.connect().await.map_err(text)?;
    let spec = TopicSpec::with(topic(Class::Flow, "bounded"), "reader");
    broker.ensure(&spec).await.map_err(text)?;
    let codes = async || {
        let found = broker.examine().await.map_err(text)?;
        Ok::<_, String>(found.iter().map(|found| (found.code, found.topic.clone())).collect::<Vec<_>>())
    };
    check(codes().await? == [("max-payload-small", None)], codes().await?)?;
    check(broker.limits().message_bytes_max < 1 << 20, broker.limits())?;
    let client = async_nats::connect(server.url()).await.map_err(text)?;
    let info = client.request("$JS.API.STREAM.INFO.tg_flow_bounded", "".into()).await.map_err(text)?;
    let info: serde_json::Value = serde_json::from_slice(&info.payload).map_err(text)?;
    let mut config = info["config"].clone();
    config["max_msgs"] = 10.into();
    client.request("$JS.API.STREAM.UPDATE.tg_flow_bounded", config.to_string().into()).await.map_err(text)?;
    let found = codes().await?;
    check(found.contains(&("policy-loses-messages", Some(spec.topic.clone()))), found)
}
