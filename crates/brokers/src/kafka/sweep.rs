//! What nobody sees to any more: inboxes of processes that were killed, removals that were begun and not ended, and topics whose
//! maker was killed before it put them on record. An owner looks for it each minute.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::time::Duration;

use krafka::admin::{DeleteTopicsOptions, ListTopicsOptions, OffsetSpec};
use sluice_bus::Result;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::registry::{InboxEntry, Key, Log};
use super::{Core, fault, group, names};
use crate::local::Pauses;

/// For how many calls a topic is on no record until it counts as one whose maker is gone; making one takes a few.
const CALLS_OF_MAKING: u32 = 6;

/// How often it is written again where a group stands, while the broker keeps it.
const RENEWALS: u32 = 4;

/// Topics that are on no record, and since when that is known.
type Unrecorded = HashMap<String, Instant>;

/// Removes what processes left behind that are gone, and what somebody began to remove; the owner's, until it is stopped.
pub(super) async fn run(core: Weak<Core>, stop: CancellationToken) {
    let mut pauses = Pauses::new();
    let mut unrecorded = Unrecorded::new();
    let mut renewed: Option<Instant> = None;
    loop {
        let Some((silence_max, kept)) =
            core.upgrade().map(|core| (core.options.silence_max, core.groups.kept()))
        else {
            return;
        };
        // Who was cut off as we were has said by then that it lives.
        let wait = silence_max / 2 + pauses.next();
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        let Some(core) = core.upgrade() else { return };
        if let Err(error) = look(&core, silence_max, &mut unrecorded).await {
            tracing::debug!(%error, "what others left behind could not be removed yet");
        }
        if let Some(kept) = kept
            && renewed.is_none_or(|renewed| renewed.elapsed() >= kept / RENEWALS)
        {
            match renew(&core).await {
                Ok(()) => renewed = Some(Instant::now()),
                Err(error) => tracing::debug!(%error, "where groups stand could not be written again yet"),
            }
        }
    }
}

/// Keeps the broker from forgetting where groups stand that nobody reads.
async fn renew(core: &Core) -> Result<()> {
    let mut failed = None;
    for (topic, entry) in core.book.registry.topics("") {
        let place = entry.place(&topic);
        for name in &entry.subscriptions {
            let group = core.groups.name(&place, name);
            let renewed = group::renew(&core.client, &group, &place, core.options.call_timeout).await;
            failed = failed.or(renewed.err());
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn look(core: &Core, silence_max: Duration, unrecorded: &mut Unrecorded) -> Result<()> {
    let within = core.options.call_timeout;
    let registry = &core.book.registry;
    core.book.sync(Log::Registry).await?;
    let inboxes = registry.inboxes();
    let listed = core.client.list_topics(ListTopicsOptions::default().timeout(within)).await;
    let listed = listed.map_err(|error| fault::of(&error, "listing topics"))?;
    // After that: whoever made one had said before that it lives.
    core.book.sync(Log::Leases).await?;
    let is_gone = |process: &str| registry.silence(process).is_none_or(|silence| silence > silence_max);
    for (inbox, _) in inboxes.iter().filter(|(_, process)| is_gone(process)) {
        core.book.write::<InboxEntry>(&Key::Inbox(inbox.clone()), None, within).await?;
    }
    let inboxes_left = |place: &&String| place.strip_prefix(names::INBOXES).is_some_and(is_gone);
    let mut left: Vec<String> = listed.iter().filter(inboxes_left).cloned().collect();
    left.extend(never_recorded(core, listed, unrecorded).await?);
    if !left.is_empty() {
        let removed = core.client.delete_topics(&left, DeleteTopicsOptions::default().timeout(within)).await;
        removed.map_err(|error| fault::of_change(&error, "removing what nobody uses"))?;
    }
    core.admin.finish_removals().await
}

/// Topics that have been on no record for a while and never had a message: nobody but their maker knew of them. Any other one stays,
/// as what is left where a registry was lost.
async fn never_recorded(
    core: &Core,
    listed: Vec<String>,
    unrecorded: &mut Unrecorded,
) -> Result<Vec<String>> {
    // What was put on record since it was listed is known by now.
    core.book.sync(Log::Registry).await?;
    let topics = core.book.registry.topics("");
    let recorded: HashSet<String> = topics.iter().map(|(topic, entry)| entry.place(topic)).collect();
    let missing = listed.into_iter().filter(|place| names::is_topic(place) && !recorded.contains(place));
    let now = Instant::now();
    let known = std::mem::take(unrecorded);
    unrecorded.extend(missing.map(|place| {
        let since = known.get(&place).copied().unwrap_or(now);
        (place, since)
    }));
    let mut found = Vec::new();
    for (place, since) in unrecorded.iter() {
        if now.duration_since(*since) >= core.options.call_timeout * CALLS_OF_MAKING
            && core.book.offset(place, OffsetSpec::Latest).await? == 0
        {
            found.push(place.clone());
        }
    }
    Ok(found)
}
