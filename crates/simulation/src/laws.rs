//! What must hold in the end, whatever happened before.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::world::{BLUEPRINTS, Broken, FLOWS, Known, World, entry_of, is_of, routed};

/// In peace everything is as it should be within this virtual time.
pub(crate) const SETTLE_MAX: Duration = Duration::from_secs(6 * 60);

/// Looks until nothing is broken; what was last, if that takes too long.
async fn settles(
    world: &mut World,
    what: &str,
    look: impl AsyncFn(&mut World) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let begun = world.chance.now();
    loop {
        let Err(broken) = look(world).await else { return Ok(()) };
        if world.chance.now() - begun > SETTLE_MAX {
            return Err(format!("{what}: {broken}"));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Peace: every line heals, nothing fails any more. Then every law is looked at.
pub(crate) async fn judge(world: &mut World) -> Result<(), Broken> {
    world.chance.make_peace();
    world.chance.tell(|| "peace".to_owned());
    for node in &world.nodes {
        node.line.cut(false);
    }
    if let Some(history) = &world.history {
        // Those who still write end by their deadlines.
        tokio::time::sleep(Duration::from_secs(120)).await;
        history.judge().await?;
        let calls = world.calls.lock();
        if let Some(wrong) = calls.wrong.first() {
            return Err(wrong.clone());
        }
        if calls.ended < calls.begun {
            return Err(format!("{} of {} calls hang", calls.begun - calls.ended, calls.begun));
        }
    }
    let mut running = BTreeSet::new();
    for id in FLOWS {
        if let Known::Running { run } = world.resolve(id).await? {
            running.insert(run);
        }
    }
    settles(world, "what flows own is what is there", async |world| owned(world, &running).await).await?;
    settles(world, "routes are the running flows", async |world| {
        world.look_at_routes().await?;
        let wanted = running
            .iter()
            .map(|run| routed(run.split("-r").next().unwrap_or(run), Some(run), true))
            .collect();
        let routes = world.routes_now().unwrap_or_default();
        if routes == wanted { Ok(()) } else { Err(format!("{routes:?} beside {wanted:?}")) }
    })
    .await?;
    for run in &running {
        world.publish_into(run).await?;
    }
    settles(world, "every message is done or parked", async |world| accounted(world)).await?;
    for id in FLOWS {
        if matches!(world.known[id], Known::Running { .. }) && !world.stop(id, None).await? {
            return Err(format!("{id} cannot be stopped in peace"));
        }
    }
    settles(world, "nothing is left", async |world| owned(world, &BTreeSet::new()).await).await?;
    settles(world, "every message is done or parked", async |world| accounted(world)).await?;
    world.insist_on_blueprints().await;
    for id in FLOWS {
        if !world.start(id, BLUEPRINTS[0]).await? {
            return Err(format!("{id} cannot be started again in peace"));
        }
        let Known::Running { run } = world.known[id].clone() else { continue };
        world.publish_into(&run).await?;
        settles(world, "a message goes through", async |world| accounted(world)).await?;
        if !world.stop(id, None).await? {
            return Err(format!("{id} cannot be stopped again in peace"));
        }
    }
    settles(world, "nothing is left in the end", async |world| owned(world, &BTreeSet::new()).await).await
}

/// Config that is restored from an older copy while all others run is what they follow from then on: what was started since
/// is not routed, what was stopped since runs again and can be stopped.
pub(crate) async fn judge_a_restore(world: &mut World) -> Result<(), Broken> {
    let [kept, lost] = *world.chance.pick(&[["f1", "f2"], ["f2", "f3"], ["f3", "f1"]]);
    if !world.start(kept, BLUEPRINTS[0]).await? {
        return Err(format!("{kept} cannot be started before a restore"));
    }
    let Known::Running { run } = world.known[kept].clone() else { return Ok(()) };
    let copy = world.shared.tables.copy();
    if !world.stop(kept, None).await? || !world.start(lost, BLUEPRINTS[1]).await? {
        return Err("flows cannot be started and stopped before a restore".to_owned());
    }
    world.restore_config(copy).await;
    for (id, expected) in [(kept, Known::Running { run: run.clone() }), (lost, Known::Stopped)] {
        settles(world, "flows are those of the restored config", async |world| {
            let known = world.resolve(id).await?;
            if known == expected { Ok(()) } else { Err(format!("{id} is {known:?}, not {expected:?}")) }
        })
        .await?;
    }
    settles(world, "routes are those of the restored config", async |world| {
        world.look_at_routes().await?;
        let (routes, wanted) = (world.routes_now().unwrap_or_default(), routed(kept, Some(&run), true));
        if routes.iter().eq([&wanted]) { Ok(()) } else { Err(format!("{routes:?} beside {wanted}")) }
    })
    .await?;
    settles(world, "what was restored is wired", async |world| world.assert_wired(&run).await).await?;
    if world.stop(kept, None).await? {
        Ok(())
    } else {
        Err(format!("{kept} cannot be stopped after a restore"))
    }
}

/// Topics and records are those of these runs, and all of theirs.
async fn owned(world: &World, running: &BTreeSet<String>) -> Result<(), Broken> {
    let names = world.topic_names().await;
    let is_shared = |name: &str| {
        let last = name.rsplit(':').next().unwrap_or_default();
        !running.is_empty()
            && BLUEPRINTS
                .iter()
                .any(|blueprint| last == *blueprint || last.starts_with(&format!("{blueprint}-r")))
    };
    let strange: Vec<_> =
        names.iter().filter(|name| !is_shared(name) && !running.iter().any(|run| is_of(name, run))).collect();
    if !strange.is_empty() {
        return Err(format!("nobody owns {strange:?}"));
    }
    for run in running {
        for name in [
            format!("flow:tg:load:acme:{run}"),
            format!("flow:tg:chunks:acme:{run}"),
            format!("request:tg:embeddings:acme:{run}"),
            format!("response:tg:embeddings:acme:{run}"),
        ] {
            if !names.contains(&name) {
                return Err(format!("{run} runs without {name}"));
            }
        }
    }
    let records = world.records().await.ok_or("config does not answer")?;
    let seen = world.topics().await;
    for (run, (topic, subscription)) in
        running.iter().flat_map(|run| world.queues[run].iter().map(move |q| (run, q)))
    {
        let is_there = seen.iter().any(|seen| {
            seen.topic.as_str() == topic
                && seen.subscriptions.iter().any(|s| s.exists && s.name == *subscription)
        });
        if !is_there {
            return Err(format!("{run} runs without {topic} / {subscription}"));
        }
        // Whose entry is gone, nobody reads for.
        if let Some(entry) = entry_of(subscription).filter(|entry| !records.contains(entry)) {
            return Err(format!("{run} runs without {entry}"));
        }
    }
    if running.is_empty() && !records.is_empty() {
        return Err(format!("records are left: {records:?}"));
    }
    for run in running {
        for part in ["first", "second", "vectors"] {
            let record = format!("processor:{part}/{run}");
            if !records.contains(&record) {
                return Err(format!("{run} runs without {record}"));
            }
        }
    }
    Ok(())
}

/// Every message that was taken in came out, or is parked.
fn accounted(world: &World) -> Result<(), Broken> {
    for (run, remembered) in &world.runs {
        if remembered.may_lose {
            continue;
        }
        let is_lost = |id: &&String| !world.shared.done.has(id) && !world.letters.has(id);
        let lost: Vec<_> = remembered.accepted.iter().filter(is_lost).collect();
        if !lost.is_empty() {
            return Err(format!("{} messages of {run} are neither done nor parked: {lost:?}", lost.len()));
        }
    }
    Ok(())
}
