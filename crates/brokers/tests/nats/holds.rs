//! A hold is a lease: its holder stops before the server lets the name go, whatever keeps it from being renewed.

use std::time::Duration;

use sluice_brokers::nats::Nats;
use sluice_bus::{BoxFuture, BrokerAdmin, Error, TopicSpec};
use sluice_schema::Class;

use crate::Server;
use crate::harness::*;

cases! {
    "holds":
    a_holder_that_hears_nothing_of_the_server_acts_no_more,
    a_hold_that_somebody_took_away_is_lost_for_good,
    what_is_signed_under_a_hold_outlives_it_and_the_server,
    a_hold_says_who_has_it_and_is_let_go_at_the_end_of_its_process,
}

fn name() -> String {
    format!("leader-{}", uuid::Uuid::new_v4().simple())
}

fn is_lost<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::HoldLost { .. }))
}

async fn connect(server: &Server) -> Result<Nats, String> {
    server.lock().await.connect().await.map_err(text)
}

async fn a_holder_that_hears_nothing_of_the_server_acts_no_more(server: Server) -> Outcome {
    let (one, name) = (connect(&server).await?, name());
    let hold = one.hold(&name).await.map_err(text)?;
    hold.observe(&[]).await.map_err(text)?;
    server.lock().await.stop(false).await;
    until("the hold lost while nobody can be asked", async || {
        is_lost(&hold.observe(&[]).await).then_some(())
    })
    .await?;
    server.lock().await.run().await?;
    let two = connect(&server).await?;
    let next = until("the name free", async || two.hold(&name).await.ok()).await?;
    let spec = TopicSpec::with(topic(Class::Flow, &name), "reader");
    let calls: [BoxFuture<'_, bool>; 5] = [
        Box::pin(async { is_lost(&hold.ensure(&spec).await) }),
        Box::pin(async { is_lost(&hold.observe(&[]).await) }),
        Box::pin(async { is_lost(&hold.list("").await) }),
        Box::pin(async { is_lost(&hold.remove(&spec).await) }),
        Box::pin(async { is_lost(&hold.examine().await) }),
    ];
    for (at, call) in calls.into_iter().enumerate() {
        check(call.await, format!("call {at} was made under a lost hold"))?;
    }
    let seen = next.observe(std::slice::from_ref(&spec)).await.map_err(text)?;
    check(seen.iter().all(|seen| !seen.exists), seen)
}

async fn a_hold_that_somebody_took_away_is_lost_for_good(server: Server) -> Outcome {
    let (one, two, name) = (connect(&server).await?, connect(&server).await?, name());
    let hold = one.hold(&name).await.map_err(text)?;
    let client = async_nats::connect(server.lock().await.url()).await.map_err(text)?;
    let purge = serde_json::json!({"filter": format!("$KV.sluice_holds.{name}")}).to_string();
    client.request("$JS.API.STREAM.PURGE.KV_sluice_holds", purge.into()).await.map_err(text)?;
    let next = until("the name free", async || two.hold(&name).await.ok()).await?;
    until("the first hold lost", async || is_lost(&hold.observe(&[]).await).then_some(())).await?;
    drop(hold);
    // Letting go what is not one's own any more takes nothing away.
    tokio::time::timeout(Duration::from_secs(2), async {
        while next.observe(&[]).await.is_ok() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await
    .map_or(Ok(()), |()| Err("the second holder lost it".to_owned()))
}

async fn a_hold_says_who_has_it_and_is_let_go_at_the_end_of_its_process(server: Server) -> Outcome {
    let (one, two, name) = (connect(&server).await?, connect(&server).await?, name());
    check(two.holder(&name).await.map_err(text)?.is_none(), "held by nobody")?;
    let hold = one.hold(&name).await.map_err(text)?;
    let who = two.holder(&name).await.map_err(text)?.unwrap_or_default();
    check(who.contains(&format!("process {}", std::process::id())), who)?;
    one.shutdown().await;
    until("the name let go", async || two.hold(&name).await.ok()).await?;
    check(is_lost(&hold.observe(&[]).await), "the old one goes on")
}

async fn what_is_signed_under_a_hold_outlives_it_and_the_server(server: Server) -> Outcome {
    let (one, two, name) = (connect(&server).await?, connect(&server).await?, name());
    let hold = one.hold(&name).await.map_err(text)?;
    check(hold.signature().await.map_err(text)?.is_none(), "signed by nobody")?;
    for by in ["first", "second"] {
        hold.sign(Some(by)).await.map_err(text)?;
    }
    {
        let mut server = server.lock().await;
        server.stop(false).await;
        server.run().await?;
    }
    one.shutdown().await;
    let next = until("the name free", async || two.hold(&name).await.ok()).await?;
    check(
        is_lost(&hold.sign(Some("late")).await) && is_lost(&hold.signature().await),
        "signed without a hold",
    )?;
    let signed = next.signature().await.map_err(text)?;
    check(signed.as_deref() == Some("second"), signed)?;
    for _ in 0..2 {
        next.sign(None).await.map_err(text)?;
        check(next.signature().await.map_err(text)?.is_none(), "signed still")?;
    }
    Ok(())
}
