//! What nobody sees to any more: inboxes of processes that were killed, and removals that were begun and not ended. An owner looks
//! for it each minute.

use std::sync::Weak;
use std::time::Duration;

use krafka::admin::{DeleteTopicsOptions, ListTopicsOptions};
use sluice_bus::Result;
use tokio_util::sync::CancellationToken;

use super::registry::{InboxEntry, Key, Log};
use super::{Core, fault, names};
use crate::local::Pauses;

/// Removes what processes left behind that are gone, and what somebody began to remove; the owner's, until it is stopped.
pub(super) async fn run(core: Weak<Core>, stop: CancellationToken) {
    let mut pauses = Pauses::new();
    loop {
        let Some(silence_max) = core.upgrade().map(|core| core.options.silence_max) else { return };
        // Who was cut off as we were has said by then that it lives.
        let wait = silence_max / 2 + pauses.next();
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        let Some(core) = core.upgrade() else { return };
        if let Err(error) = look(&core, silence_max).await {
            tracing::debug!(%error, "what others left behind could not be removed yet");
        }
    }
}

async fn look(core: &Core, silence_max: Duration) -> Result<()> {
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
    let left = listed.into_iter().filter(|place| place.strip_prefix(names::INBOXES).is_some_and(is_gone));
    let left: Vec<String> = left.collect();
    if !left.is_empty() {
        let removed = core.client.delete_topics(&left, DeleteTopicsOptions::default().timeout(within)).await;
        removed.map_err(|error| fault::of_change(&error, "removing inboxes that nobody reads"))?;
    }
    core.admin.finish_removals().await
}
