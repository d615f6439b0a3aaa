//! Failed authentications and denials: how many tries an address has left, and a log that they cannot flood.
//!
//! A try costs its address a token, and tokens come back with time. Whoever has none left is told to come later without its
//! credential being looked at; only one that has been accepted before is, so that those who share an address with somebody
//! who guesses can go on.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::identity::{Origin, Permission};
use crate::refusal::Refusal;

/// Failures that an address may have at once.
const FAILURES_MAX: u32 = 60;
/// After so long, one more.
const FAILURE_INTERVAL: Duration = Duration::from_secs(1);
/// Characters of a name in a line.
const NAME_CHARS_MAX: usize = 80;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 10_000;
/// Lines of one kind for an address come at most this often.
const LINE_INTERVAL: Duration = Duration::from_secs(60);
/// Lines for all addresses within [`LINE_INTERVAL`].
const LINES_MAX: u32 = 60;

/// What is known of those who failed.
#[derive(Default)]
pub(crate) struct Tries {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    addresses: HashMap<IpAddr, Address>,
    lines: Option<Lines>,
}

struct Address {
    tokens: u32,
    /// When tokens were last counted.
    counted: Instant,
    failures: Line,
    denials: Line,
    refusals: Line,
}

/// One kind of line of one address.
#[derive(Default)]
struct Line {
    last: Option<Instant>,
    /// Those since then that were not logged.
    unlogged: u64,
}

/// What may be logged for all addresses together.
struct Lines {
    since: Instant,
    written: u32,
}

impl Address {
    fn new(now: Instant) -> Self {
        let [failures, denials, refusals] = Default::default();
        Self { tokens: FAILURES_MAX, counted: now, failures, denials, refusals }
    }

    fn count(&mut self, now: Instant) {
        let intervals = now.duration_since(self.counted).as_nanos() / FAILURE_INTERVAL.as_nanos();
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(intervals).min(FAILURES_MAX);
        self.counted = match self.tokens {
            FAILURES_MAX => now,
            _ => self.counted + FAILURE_INTERVAL * intervals,
        };
    }

    fn is_forgettable(&mut self, now: Instant) -> bool {
        self.count(now);
        let quiet = |line: &Line| line.last.is_none_or(|last| now.duration_since(last) >= LINE_INTERVAL);
        let is_quiet = [&self.failures, &self.denials, &self.refusals].into_iter().all(quiet);
        self.tokens == FAILURES_MAX && is_quiet
    }
}

impl Line {
    /// Whether to write it now, and how many came before it unseen.
    fn write(&mut self, now: Instant, lines: &mut Option<Lines>) -> Option<u64> {
        let lines = match lines {
            Some(lines) if now.duration_since(lines.since) < LINE_INTERVAL => lines,
            lines => lines.insert(Lines { since: now, written: 0 }),
        };
        let is_due = self.last.is_none_or(|last| now.duration_since(last) >= LINE_INTERVAL);
        if !is_due || lines.written >= LINES_MAX {
            self.unlogged += 1;
            return None;
        }
        lines.written += 1;
        self.last = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

impl Tries {
    /// Whether somebody at this address may try a credential that has never been accepted.
    pub(crate) fn check(&self, origin: &Origin) -> Result<(), Refusal> {
        let Some(address) = origin.address() else { return Ok(()) };
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = table.addresses.get_mut(&address) else { return Ok(()) };
        known.count(Instant::now());
        if known.tokens == 0 { Err(Refusal::TooManyTries) } else { Ok(()) }
    }

    /// A credential was not accepted.
    pub(crate) fn failed(&self, origin: &Origin, reason: &'static str) {
        let Some(address) = origin.address() else { return };
        let line = self.of(address, |known, now, lines| {
            known.count(now);
            known.tokens = known.tokens.saturating_sub(1);
            known.failures.write(now, lines)
        });
        if let Some(unlogged) = line {
            tracing::warn!(%address, reason, unlogged, "an authentication failed");
        }
    }

    /// Somebody was not allowed to do something.
    pub(crate) fn denied(&self, origin: &Origin, handle: &str, permission: &Permission<'_>) {
        let Some(address) = origin.address() else { return };
        let Some(unlogged) = self.of(address, |known, now, lines| known.denials.write(now, lines)) else {
            return;
        };
        let Permission { capability, workspace, flow, .. } = permission;
        // Callers write these, as long as they like.
        let (workspace, flow) = (workspace.map(shown), flow.map(shown));
        tracing::warn!(%address, handle, capability, ?workspace, ?flow, unlogged, "access was denied");
    }

    /// Somebody was turned away whatever it asked for: it was too much, or nothing that could be read.
    pub(crate) fn refused(&self, origin: &Origin, reason: &str) {
        let Some(address) = origin.address() else { return };
        let line = self.of(address, |known, now, lines| known.refusals.write(now, lines));
        if let Some(unlogged) = line {
            tracing::warn!(%address, reason, unlogged, "somebody was turned away");
        }
    }

    fn of<T>(
        &self,
        address: IpAddr,
        change: impl FnOnce(&mut Address, Instant, &mut Option<Lines>) -> T,
    ) -> T {
        let now = Instant::now();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Table { addresses, lines } = &mut *table;
        if addresses.len() >= ADDRESSES_MAX && !addresses.contains_key(&address) {
            addresses.retain(|_, known| !known.is_forgettable(now));
            if addresses.len() >= ADDRESSES_MAX {
                // Many at once, so that a flood does not pay for a sweep each time.
                let surplus: Vec<IpAddr> = addresses.keys().take(ADDRESSES_MAX / 4).copied().collect();
                for one in surplus {
                    addresses.remove(&one);
                }
            }
        }
        change(addresses.entry(address).or_insert_with(|| Address::new(now)), now, lines)
    }
}

fn shown(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tries: &Tries, host: u32, now: Instant) -> Option<u64> {
        tries.of(IpAddr::from(host.to_be_bytes()), |known, _, lines| known.failures.write(now, lines))
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_logged_once_a_minute_with_what_was_left_out() {
        let tries = Tries::default();
        assert_eq!(at(&tries, 1, Instant::now()), Some(0));
        for _ in 0..50 {
            assert_eq!(at(&tries, 1, Instant::now()), None);
        }
        tokio::time::advance(LINE_INTERVAL).await;
        assert_eq!(at(&tries, 1, Instant::now()), Some(50));
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_do_not_flood_the_log_or_the_memory() {
        let tries = Tries::default();
        let written = (0..50_000).filter(|host| at(&tries, *host, Instant::now()).is_some()).count();
        assert_eq!(written, LINES_MAX as usize);
        assert!(tries.table.lock().unwrap().addresses.len() <= ADDRESSES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_back_with_time() {
        let mut address = Address::new(Instant::now());
        address.tokens = 0;
        tokio::time::advance(FAILURE_INTERVAL * 3 / 2).await;
        address.count(Instant::now());
        assert_eq!(address.tokens, 1);
        tokio::time::advance(FAILURE_INTERVAL / 2).await;
        address.count(Instant::now());
        assert_eq!(address.tokens, 2, "no part of an interval is lost");
        tokio::time::advance(FAILURE_INTERVAL * 1_000).await;
        address.count(Instant::now());
        assert_eq!(address.tokens, FAILURES_MAX);
    }
}
