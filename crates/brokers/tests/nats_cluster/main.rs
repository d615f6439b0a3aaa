//! Three NATS servers that are one cluster: the contract of the bus case by case, each connection to the next server, and
//! what only a cluster can do to us. Where the program is missing and cannot be fetched, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

#[allow(dead_code, reason = "other programs of cases use more of it")]
#[path = "../harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harness::*;
use sluice_brokers::nats::{Nats, Options};
use sluice_brokers::testing::{NatsCluster, NatsServer};
use sluice_bus::conformance::{self, Backend, Ends};
use sluice_bus::{
    Address, BoxFuture, Broker as _, BrokerAdmin as _, Error, Message, Result as Outcomes, Subscription,
    TopicSpec,
};
use sluice_schema::Class;

pub(crate) type Server = harness::Shared<NatsCluster>;
pub(crate) type Case = harness::Case<NatsCluster>;

cases! {
    "cluster":
    what_is_made_over_one_server_can_be_used_at_once_over_the_others,
    who_follows_over_one_server_hears_what_is_published_at_once_over_another,
    an_inbox_of_one_server_is_answered_at_once_over_another,
    what_was_acknowledged_outlives_servers_that_are_killed_one_after_the_other,
    topics_are_made_and_used_while_a_server_is_away,
    where_too_few_servers_are_there_a_topic_is_made_with_one_and_gets_the_others_later,
    servers_that_are_away_are_passed_over,
}

fn main() -> ExitCode {
    let case = |case: conformance::Case| Case {
        name: format!("conformance::{}", case.name),
        run: Box::new(move |server| Box::pin(async move { case.run(&Whole::new(server)).await })),
    };
    let cases = conformance::cases().into_iter().map(case).chain(cases()).collect();
    harness::main(cases, NatsServer::missing(), NatsCluster::start, "async_nats")
}

/// All of a cluster; no two ends in a row are at the same server.
struct Whole {
    cluster: Server,
    next: AtomicUsize,
}

impl Whole {
    const fn new(cluster: Server) -> Self {
        Self { cluster, next: AtomicUsize::new(0) }
    }
}

impl Backend for Whole {
    fn connect(&self) -> BoxFuture<'_, Outcomes<Ends>> {
        Box::pin(async {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let broker = Arc::new(self.cluster.lock().await.connect(number).await?);
            Ok(Ends { broker: broker.clone(), admin: broker })
        })
    }

    fn restart(&self) -> BoxFuture<'_, Outcomes<bool>> {
        Box::pin(async {
            let mut cluster = self.cluster.lock().await;
            cluster.stop().await;
            cluster.run().await.map_err(|reason| Error::Unavailable { reason })?;
            Ok(true)
        })
    }
}

/// How often what happens at once is tried.
const TIMES: usize = 20;
/// After so long all servers know who reads no more.
const SETTLES: Duration = Duration::from_secs(3);

async fn connect(cluster: &Server, number: usize) -> Result<Nats, String> {
    cluster.lock().await.connect(number).await.map_err(text)
}

async fn everywhere(cluster: &Server) -> Result<[Nats; 3], String> {
    Ok([connect(cluster, 0).await?, connect(cluster, 1).await?, connect(cluster, 2).await?])
}

fn fresh(class: Class) -> TopicSpec {
    let topic = topic(class, &format!("cluster:{}", uuid::Uuid::new_v4().simple()));
    if class.has_subscriptions() { TopicSpec::with(topic, "reader") } else { TopicSpec::bare(topic) }
}

async fn what_is_made_over_one_server_can_be_used_at_once_over_the_others(cluster: Server) -> Outcome {
    let [owner, sender, reader] = everywhere(&cluster).await?;
    let mut removed = Vec::new();
    for time in 0..TIMES {
        let class = if time % 2 == 0 { Class::Flow } else { Class::Request };
        let spec = fresh(class);
        owner.ensure(&spec).await.map_err(text)?;
        send(&sender, &spec.topic, format!("{time}")).await.map_err(text)?;
        let got = next(&*read(&reader, &spec.topic, 1).await.map_err(text)?).await?;
        check(body(&got) == format!("{time}") && got.attempt == 1, &got)?;
        got.ack();
        owner.remove(&spec).await.map_err(text)?;
        removed.push(spec.topic);
    }
    // A server that has not heard of it yet passes on what the next one throws away: then nobody says anything.
    tokio::time::sleep(SETTLES).await;
    for topic in removed {
        let gone = send(&sender, &topic, "gone").await;
        check(matches!(gone, Err(Error::NoTopic { .. })), &gone)?;
    }
    Ok(())
}

async fn who_follows_over_one_server_hears_what_is_published_at_once_over_another(
    cluster: Server,
) -> Outcome {
    let [owner, sender, follower] = everywhere(&cluster).await?;
    for time in 0..TIMES {
        let spec = fresh(Class::Notify);
        owner.ensure(&spec).await.map_err(text)?;
        let own = Subscription::Own { topics: vec![spec.topic.clone()] };
        let own = follower.subscribe(&own).await.map_err(text)?;
        send(&sender, &spec.topic, format!("{time}")).await.map_err(text)?;
        let got = next(&*own).await?;
        check(body(&got) == format!("{time}"), body(&got))?;
        owner.remove(&spec).await.map_err(text)?;
    }
    Ok(())
}

async fn an_inbox_of_one_server_is_answered_at_once_over_another(cluster: Server) -> Outcome {
    let [_, sender, asker] = everywhere(&cluster).await?;
    let mut gone = Vec::new();
    for time in 0..TIMES {
        let own = asker.subscribe(&Subscription::Own { topics: vec![] }).await.map_err(text)?;
        let to = Address::Inbox(own.address().ok_or("no address")?);
        sender.publish(&to, Message::new(format!("{time}"))).await.map_err(text)?;
        let got = next(&*own).await?;
        check(body(&got) == format!("{time}"), body(&got))?;
        drop(own);
        gone.push(to);
    }
    // A server that has not heard of it yet passes on what the next one throws away: then nobody says anything.
    tokio::time::sleep(SETTLES).await;
    for to in gone {
        let sent = sender.publish(&to, Message::new("gone")).await;
        check(matches!(sent, Err(Error::NoInbox { .. })), &sent)?;
    }
    Ok(())
}

async fn what_was_acknowledged_outlives_servers_that_are_killed_one_after_the_other(
    cluster: Server,
) -> Outcome {
    const EACH: usize = 100;
    let [owner, sender, _] = everywhere(&cluster).await?;
    let spec = fresh(Class::Flow);
    owner.ensure(&spec).await.map_err(text)?;
    let mut acknowledged = BTreeSet::new();
    for number in 0..3 {
        cluster.lock().await.server(number).stop(false).await;
        for time in 0..EACH {
            let one = format!("{number}:{time}");
            if send(&sender, &spec.topic, one.clone()).await.is_ok() {
                acknowledged.insert(one);
            }
        }
        cluster.lock().await.run().await?;
    }
    // Those while its own server was away may have failed, the others not for ever.
    check(acknowledged.len() >= EACH, acknowledged.len())?;
    let reader = connect(&cluster, 0).await?;
    let inbox = read(&reader, &spec.topic, 32).await.map_err(text)?;
    while !acknowledged.is_empty() {
        let got = next(&*inbox).await?;
        acknowledged.remove(&body(&got));
        got.ack();
    }
    owner.remove(&spec).await.map_err(text)
}

/// Topics whose streams have fewer replicas than are wanted.
async fn exposed(broker: &Nats) -> Option<Vec<String>> {
    let findings = broker.examine().await.ok()?;
    let few = findings.into_iter().filter(|finding| finding.code == "replicas-few");
    Some(few.filter_map(|finding| Some(finding.topic?.to_string())).collect())
}

async fn topics_are_made_and_used_while_a_server_is_away(cluster: Server) -> Outcome {
    let owner = connect(&cluster, 0).await?;
    cluster.lock().await.server(2).stop(false).await;
    let spec = fresh(Class::Flow);
    let used = async {
        // Whoever led may be the one that is away; until another one does, calls fail.
        until("a topic", async || owner.ensure(&spec).await.ok()).await?;
        until("a message sent", async || send(&owner, &spec.topic, "kept").await.ok()).await?;
        let inbox = read(&owner, &spec.topic, 1).await.map_err(text)?;
        let got = next(&*inbox).await?;
        check(body(&got) == "kept", body(&got))?;
        got.ack();
        until("its removal", async || owner.remove(&spec).await.ok()).await
    };
    let used = used.await;
    cluster.lock().await.run().await?;
    used
}

async fn where_too_few_servers_are_there_a_topic_is_made_with_one_and_gets_the_others_later(
    cluster: Server,
) -> Outcome {
    let url = cluster.lock().await.server(0).url();
    let wanting = Nats::connect(&format!("{url}?replicas=5"), Options::default()).await.map_err(text)?;
    let spec = fresh(Class::Flow);
    wanting.ensure(&spec).await.map_err(text)?;
    send(&wanting, &spec.topic, "kept").await.map_err(text)?;
    let is_exposed = async |broker: &Nats| Some(exposed(broker).await?.contains(&spec.topic.to_string()));
    check(is_exposed(&wanting).await == Some(true), "an examination does not name it")?;
    // Three are enough for who wants three.
    let owner = connect(&cluster, 1).await?;
    check(is_exposed(&owner).await == Some(true), "it has one replica only")?;
    owner.ensure(&spec).await.map_err(text)?;
    check(is_exposed(&owner).await == Some(false), "it has no more replicas")?;
    let got = next(&*read(&owner, &spec.topic, 1).await.map_err(text)?).await?;
    check(body(&got) == "kept", body(&got))?;
    got.ack();
    owner.remove(&spec).await.map_err(text)
}

async fn servers_that_are_away_are_passed_over(cluster: Server) -> Outcome {
    let url = {
        let mut cluster = cluster.lock().await;
        let servers: Vec<String> = (0..3).map(|number| cluster.server(number).url()).collect();
        cluster.server(0).stop(true).await;
        servers.join(",").replace(",nats://", ",")
    };
    let options = Options { call_timeout: Duration::from_secs(30), ..Options::default() };
    let url = format!("{url}?replicas=1");
    // Whoever led may be the one that is away; until another one does, JetStream answers nobody.
    let connected = until("a connection", async || Nats::connect(&url, options.clone()).await.ok()).await;
    cluster.lock().await.run().await?;
    let broker = connected?;
    let spec = fresh(Class::Flow);
    broker.ensure(&spec).await.map_err(text)?;
    check(exposed(&broker).await.is_some_and(|few| few.is_empty()), "one replica is what is wanted")?;
    broker.remove(&spec).await.map_err(text)
}
