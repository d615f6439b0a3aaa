//! Channels, each for one call at a time: a failed call closes its channel, and must not take others with it.

use std::sync::Mutex;
use std::time::Duration;

use sluice_bus::{Error, Result};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::link::{Closing, Link};
use super::lock;

pub(super) struct Pool {
    pub(super) link: Link,
    channels_max: usize,
    permits: Semaphore,
    idle: Mutex<Vec<(u64, Closing)>>,
}

/// A channel for one call. Dropped before the call has ended, it is closed rather than used again.
pub(super) struct Lane<'a> {
    pub(super) channel: Closing,
    generation: u64,
    pool: &'a Pool,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub(super) fn new(link: Link, channels_max: usize) -> Self {
        let channels_max = channels_max.max(1);
        Self { link, channels_max, permits: Semaphore::new(channels_max), idle: Mutex::default() }
    }

    pub(super) async fn take(&self, within: Duration) -> Result<Lane<'_>> {
        let waited = tokio::time::timeout(within, self.permits.acquire());
        let Ok(Ok(permit)) = waited.await else {
            let reason = format!("all {} channels were busy for {} s", self.channels_max, within.as_secs());
            return Err(Error::Unavailable { reason });
        };
        let up = self.link.up(within).await?;
        lock(&self.idle).retain(|(generation, _)| *generation == up.generation);
        while let Some((generation, channel)) = lock(&self.idle).pop() {
            if generation == up.generation && channel.status().connected() {
                return Ok(Lane { channel, generation, pool: self, _permit: permit });
            }
        }
        let (generation, channel) = self.link.channel(within, |channel| async { Ok(channel) }).await?;
        Ok(Lane { channel: Closing::new(channel), generation, pool: self, _permit: permit })
    }
}

impl Lane<'_> {
    /// The call has ended: the channel may serve another.
    pub(super) fn give_back(self) {
        if self.channel.status().connected() {
            lock(&self.pool.idle).push((self.generation, self.channel));
        }
    }

    /// The call has failed, and its channel with it.
    pub(super) fn give_up(self) {
        self.pool.link.spent(self.generation);
    }
}
