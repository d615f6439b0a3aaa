//! A hold is a lease, and is never back by itself.

use sluice_brokers::kafka::Kafka;
use sluice_bus::{BoxFuture, BrokerAdmin, Error, TopicSpec};
use sluice_schema::Class;

use crate::Server;
use crate::harness::*;

cases! {
    "holds":
    a_holder_whose_broker_is_gone_acts_no_more,
    a_hold_outlives_the_broker_that_is_back_within_its_term_or_is_lost_for_good,
    of_many_that_claim_a_name_at_once_one_has_it,
    what_is_signed_under_a_hold_outlives_it_and_the_broker,
    a_hold_says_who_has_it_and_is_let_go_at_the_end_of_its_process,
}

fn name() -> String {
    format!("leader {}", uuid::Uuid::new_v4().simple())
}

fn is_lost<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::HoldLost { .. }))
}

async fn connect(server: &Server) -> Result<Kafka, String> {
    server.lock().await.connect().await.map_err(text)
}

async fn a_holder_whose_broker_is_gone_acts_no_more(server: Server) -> Outcome {
    let (one, name) = (connect(&server).await?, name());
    let hold = one.hold(&name).await.map_err(text)?;
    hold.observe(&[]).await.map_err(text)?;
    server.lock().await.stop(false).await;
    hold.lost().await;
    server.lock().await.run().await?;
    let two = connect(&server).await?;
    let next = until("the name free", async || two.hold(&name).await.ok()).await?;
    let spec = TopicSpec::with(topic(Class::Flow, &name), "reader");
    let calls: [BoxFuture<'_, bool>; 6] = [
        Box::pin(async { is_lost(&hold.ensure(&spec).await) }),
        Box::pin(async { is_lost(&hold.observe(&[]).await) }),
        Box::pin(async { is_lost(&hold.list("").await) }),
        Box::pin(async { is_lost(&hold.remove(&spec).await) }),
        Box::pin(async { is_lost(&hold.remove_idle(&spec).await) }),
        Box::pin(async { is_lost(&hold.examine().await) }),
    ];
    for (at, call) in calls.into_iter().enumerate() {
        check(call.await, format!("call {at} was made under a lost hold"))?;
    }
    let seen = next.observe(std::slice::from_ref(&spec)).await.map_err(text)?;
    check(seen.iter().all(|seen| !seen.exists), seen)
}

async fn a_hold_outlives_the_broker_that_is_back_within_its_term_or_is_lost_for_good(
    server: Server,
) -> Outcome {
    let (one, two, name) = (connect(&server).await?, connect(&server).await?, name());
    let hold = one.hold(&name).await.map_err(text)?;
    {
        let mut server = server.lock().await;
        server.stop(true).await;
        server.run().await?;
    }
    match two.hold(&name).await {
        Ok(next) => {
            check(is_lost(&hold.observe(&[]).await), "held twice")?;
            next.observe(&[]).await.map(drop).map_err(text)
        }
        Err(Error::Held { .. }) => match hold.observe(&[]).await {
            // Its holder gives it up before others may have it.
            lost if is_lost(&lost) => {
                let _next = until("the name free", async || two.hold(&name).await.ok()).await?;
                check(is_lost(&hold.observe(&[]).await), "held twice")
            }
            outcome => outcome.map(drop).map_err(text),
        },
        Err(error) => Err(text(error)),
    }
}

async fn of_many_that_claim_a_name_at_once_one_has_it(server: Server) -> Outcome {
    const CLAIMS: usize = 8;
    let (one, two, name) = (connect(&server).await?, connect(&server).await?, name());
    let claims = (0..CLAIMS).map(|number| if number % 2 == 0 { one.hold(&name) } else { two.hold(&name) });
    let claims = futures_util::future::join_all(claims).await;
    let held = claims.iter().filter(|claim| claim.is_ok()).count();
    let refused = claims.iter().filter(|claim| matches!(claim, Err(Error::Held { .. }))).count();
    check(held == 1 && refused == CLAIMS - 1, format!("{held} have it, {refused} are refused"))
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

async fn what_is_signed_under_a_hold_outlives_it_and_the_broker(server: Server) -> Outcome {
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
