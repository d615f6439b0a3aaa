//! Bounds that callers share: whoever holds less than a fair share is let in although the others have filled the bound.
//!
//! # Guarantees
//! While there is room, anybody gets it. When there is none, a holder is refused only if it would then hold more than
//! the bound divided by the number of holders: one that is over its share never stands in the way of one that is not. All
//! together never hold more than twice the bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A bound on calls or bytes, shared by holders that are known by name.
pub(crate) struct Shares {
    capacity: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    holders: HashMap<Arc<str>, usize>,
}

impl Shares {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, counts: Mutex::default() })
    }

    /// So much of the bound for this holder, if it may have it.
    pub(crate) fn take(self: &Arc<Self>, holder: &Arc<str>, amount: usize) -> Option<Share> {
        let mut share = Share { shares: self.clone(), holder: holder.clone(), amount: 0 };
        share.grow(amount).then_some(share)
    }

    fn add(&self, holder: &Arc<str>, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let held = counts.holders.get(holder).copied();
        let holders = counts.holders.len() + usize::from(held.is_none());
        let (own, total) = (held.unwrap_or(0).saturating_add(more), counts.total.saturating_add(more));
        let is_fair = own <= self.capacity / holders && total <= self.capacity.saturating_mul(2);
        if total > self.capacity && !is_fair {
            return false;
        }
        counts.total = total;
        match counts.holders.get_mut(holder) {
            Some(held) => *held = own,
            None => {
                counts.holders.insert(holder.clone(), own);
            }
        }
        true
    }

    fn give_back(&self, holder: &str, amount: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= amount;
        let Some(held) = counts.holders.get_mut(holder) else { return };
        *held -= amount;
        if *held == 0 {
            counts.holders.remove(holder);
        }
    }
}

/// What one holder has of a bound; given back when dropped.
pub(crate) struct Share {
    shares: Arc<Shares>,
    holder: Arc<str>,
    amount: usize,
}

impl Share {
    /// Takes more; `false` and unchanged when the holder may not have it.
    #[must_use]
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let may = self.shares.add(&self.holder, more);
        if may {
            self.amount += more;
        }
        may
    }

    pub(crate) const fn amount(&self) -> usize {
        self.amount
    }

    /// The most that one holder can have.
    pub(crate) fn most(&self) -> usize {
        self.shares.capacity
    }

    /// Gives everything back; the holder may go on with it.
    pub(crate) fn clear(&mut self) {
        if self.amount > 0 {
            self.shares.give_back(&self.holder, self.amount);
            self.amount = 0;
        }
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
        let holder = holder.into();
        std::iter::from_fn(|| shares.take(&holder, 1)).collect()
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
        assert!(shares.take(&"a".into(), 1).is_none());
        drop(a);
        assert_eq!(fill(&shares, "d").len(), 4, "room is for anybody, then a share is a third");
    }

    #[test]
    fn all_together_never_hold_more_than_twice_the_bound() {
        let shares = Shares::new(10);
        let mut all = Vec::new();
        for n in 0..200 {
            all.extend(fill(&shares, &format!("caller {n}")));
        }
        assert!(all.len() <= 20, "{}", all.len());
        drop(all);
        assert_eq!(shares.counts.lock().unwrap().total, 0);
        assert!(shares.counts.lock().unwrap().holders.is_empty());
    }

    #[test]
    fn a_share_that_may_not_grow_stays_as_it_is() {
        let shares = Shares::new(100);
        let mut share = shares.take(&"a".into(), 60).unwrap();
        assert!(!share.grow(50));
        assert_eq!(share.amount(), 60);
        assert!(share.grow(40));
        share.clear();
        assert_eq!((share.amount(), shares.counts.lock().unwrap().total), (0, 0));
    }
}
