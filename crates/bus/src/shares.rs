//! Bounds that callers share: whoever holds less than a fair share is let in although the others have filled the bound.
//!
//! # Guarantees
//! While there is room, anybody gets it. When there is none, a holder is refused only if it would then hold more than
//! the bound divided by the number of holders: one that is over its share never stands in the way of one that is not,
//! whatever the others hold.
//!
//! Of `n` holders the last to take had at most an `n`th of the bound, the one before at most an `n - 1`th, and so on: all together
//! hold at most the bound times `1 + ln n`, which is 2.1 times for three holders, 3.3 for ten and 5.6 for a hundred.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Holders that may be known without holding anything, at least.
const IDLE_MAX: usize = 64;

/// A bound on calls or bytes, shared by holders that are known by name.
pub struct Shares {
    capacity: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    /// How many hold something.
    holding: usize,
    /// Also some that hold nothing: those who ask often are found without being made anew.
    holders: HashMap<Box<str>, Arc<Holder>>,
    /// How many may be known before those are forgotten that hold nothing.
    known_max: usize,
}

/// What somebody has in all shares together. It changes under the lock of the counts only.
#[derive(Default)]
struct Holder(AtomicUsize);

impl Counts {
    fn holder(&mut self, name: &str) -> Arc<Holder> {
        if let Some(known) = self.holders.get(name) {
            return known.clone();
        }
        if self.holders.len() >= self.known_max {
            // One that has a share, even an empty one, is counted through it. Clones are made under this lock.
            self.holders.retain(|_, holder| Arc::strong_count(holder) > 1);
            self.known_max = IDLE_MAX.max(2 * self.holders.len());
        }
        self.holders.entry(name.into()).or_default().clone()
    }
}

impl Shares {
    /// A bound that nobody holds anything of.
    #[must_use]
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, counts: Mutex::default() })
    }

    /// So much of the bound for this holder, if it may have it.
    pub fn take(self: &Arc<Self>, holder: &str, amount: usize) -> Option<Share> {
        let share = self.share(holder, amount);
        (share.amount == amount).then_some(share)
    }

    /// So much of the bound for this holder, or nothing yet if it may not have that.
    pub fn share(self: &Arc<Self>, holder: &str, amount: usize) -> Share {
        let mut counts = self.lock();
        let holder = counts.holder(holder);
        let amount = if self.add(&mut counts, &holder, amount) { amount } else { 0 };
        drop(counts);
        Share { shares: self.clone(), holder, amount }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.lock().total
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, counts: &mut Counts, Holder(held): &Holder, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        let before = held.load(Ordering::Relaxed);
        let holders = counts.holding + usize::from(before == 0);
        let (own, total) = (before.saturating_add(more), counts.total.saturating_add(more));
        if total > self.capacity && own > self.capacity / holders {
            return false;
        }
        (counts.total, counts.holding) = (total, holders);
        held.store(own, Ordering::Relaxed);
        true
    }

    fn give_back(&self, Holder(held): &Holder, amount: usize) {
        let mut counts = self.lock();
        counts.total -= amount;
        let left = held.load(Ordering::Relaxed) - amount;
        held.store(left, Ordering::Relaxed);
        counts.holding -= usize::from(left == 0);
    }
}

/// What one holder has of a bound; given back when dropped.
pub struct Share {
    shares: Arc<Shares>,
    holder: Arc<Holder>,
    amount: usize,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share").field("amount", &self.amount).finish_non_exhaustive()
    }
}

impl Share {
    /// Takes more; `false` and unchanged when the holder may not have it.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        let may = more == 0 || self.shares.add(&mut self.shares.lock(), &self.holder, more);
        if may {
            self.amount += more;
        }
        may
    }

    /// How much is in it.
    #[must_use]
    pub const fn amount(&self) -> usize {
        self.amount
    }

    /// The most that one holder can have.
    #[must_use]
    pub fn most(&self) -> usize {
        self.shares.capacity
    }

    /// So much for the same holder in a share of its own, if it may have that.
    #[must_use]
    pub fn another(&self, amount: usize) -> Option<Self> {
        let mut other = Self { shares: self.shares.clone(), holder: self.holder.clone(), amount: 0 };
        other.grow(amount).then_some(other)
    }

    /// Gives a part of it back.
    pub fn shrink(&mut self, less: usize) {
        let less = less.min(self.amount);
        if less > 0 {
            self.shares.give_back(&self.holder, less);
            self.amount -= less;
        }
    }

    /// Takes out what is in it; the same holder goes on with an empty one.
    pub fn split_off(&mut self) -> Self {
        let amount = std::mem::take(&mut self.amount);
        Self { shares: self.shares.clone(), holder: self.holder.clone(), amount }
    }

    /// Gives everything back; the holder may go on with it.
    pub fn clear(&mut self) {
        self.shrink(self.amount);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(shares: &Arc<Shares>, holder: &str) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(holder, 1)).collect()
    }

    #[test]
    fn one_caller_may_have_all_that_nobody_else_needs() {
        let shares = Shares::new(8);
        let all = fill(&shares, "a");
        assert_eq!(all.len(), 8);
        drop(all);
        assert_eq!(fill(&shares, "b").len(), 8, "what was given back is there again");
    }

    #[test]
    fn who_is_under_its_share_is_let_in_and_who_is_over_is_not() {
        let shares = Shares::new(12);
        let a = fill(&shares, "a");
        let b = fill(&shares, "b");
        assert_eq!((a.len(), b.len()), (12, 6));
        let c = fill(&shares, "c");
        assert_eq!(c.len(), 4);
        assert!(shares.take("a", 1).is_none());
        drop(a);
        assert_eq!(fill(&shares, "d").len(), 4, "room is for anybody, then a share is a third");
    }

    #[test]
    fn however_many_take_what_they_can_the_next_finds_its_part_and_all_together_are_bounded() {
        let shares = Shares::new(1_000);
        let mut all = Vec::new();
        for n in 1..=200 {
            let took = fill(&shares, &format!("caller {n}"));
            assert!(took.len() == 1_000 / n, "caller {n} found {}", took.len());
            all.extend(took);
        }
        // 1 + ln 200
        assert!(all.len() <= 6_300, "{}", all.len());
        assert!(shares.take("caller 1", 1).is_none());
        drop(all);
        let counts = shares.lock();
        assert_eq!((counts.total, counts.holding), (0, 0));
    }

    #[test]
    fn those_that_hold_nothing_are_forgotten_and_those_that_do_are_not() {
        let shares = Shares::new(1_000);
        let mut empty = shares.share("empty", 0);
        let held = shares.take("held", 600).unwrap();
        for n in 0..100_000 {
            assert!(shares.take(&format!("caller {n}"), 1).is_some());
            assert!(shares.lock().holders.len() <= IDLE_MAX + 2);
        }
        // Known by the same count still.
        assert!(shares.take("held", 401).is_none());
        assert!(empty.grow(400) && shares.take("empty", 1_001).is_none());
        drop((held, empty));
        assert_eq!(shares.held(), 0);
    }

    #[test]
    fn a_share_that_may_not_grow_stays_as_it_is() {
        let shares = Shares::new(100);
        let mut share = shares.take("a", 60).unwrap();
        assert!(!share.grow(50));
        assert_eq!(share.amount(), 60);
        assert!(share.grow(40));
        share.clear();
        assert_eq!((share.amount(), shares.held()), (0, 0));
    }

    #[test]
    fn what_is_split_off_counts_once() {
        let shares = Shares::new(100);
        let mut share = shares.take("a", 60).unwrap();
        let off = share.split_off();
        assert_eq!((share.amount(), off.amount(), shares.held()), (0, 60, 60));
        assert!(share.grow(40) && !share.grow(1));
        drop(off);
        assert_eq!(shares.held(), 40);
    }

    #[test]
    fn parts_of_one_holder_count_together() {
        let shares = Shares::new(100);
        let empty = shares.share("a", 0);
        let mut part = empty.another(70).unwrap();
        assert!(empty.another(31).is_none());
        part.shrink(60);
        assert_eq!((part.amount(), empty.another(90).map(|part| part.amount())), (10, Some(90)));
        part.shrink(100);
        assert_eq!((part.amount(), shares.held()), (0, 0));
    }
}
