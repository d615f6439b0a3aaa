//! Which collections are in memory, what of them is out of date, and which goes first when memory is short.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::matrix::{Best, Matrix};
use crate::keys::ScopeKey;
use crate::{Found, Result};

/// Collections remembered at most.
const COLLECTIONS_MAX: usize = 4096;
/// Ids and prefixes noted as touched at most; beyond that the collection is loaded again.
const TOUCHED_MAX: usize = 65_536;

/// What a write may have changed.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) all: bool,
    pub(super) ids: HashSet<String>,
    pub(super) prefixes: HashSet<String>,
}

impl Touched {
    pub(super) fn ids(ids: impl IntoIterator<Item = String>) -> Self {
        Self { ids: ids.into_iter().collect(), ..Self::default() }
    }

    pub(super) fn prefix(prefix: &str) -> Self {
        Self { prefixes: HashSet::from([prefix.to_owned()]), ..Self::default() }
    }

    pub(super) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.all |= other.all;
        self.ids.extend(other.ids);
        self.prefixes.extend(other.prefixes);
        if self.all || self.ids.len() + self.prefixes.len() > TOUCHED_MAX {
            *self = Self::all();
        }
    }
}

/// The vectors of a collection, as far as they are in memory.
#[derive(Debug)]
pub(super) enum State {
    Unknown,
    Matrix(Matrix),
    TooLarge,
}

/// A collection in memory.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Held while the collection is brought up to date. It is held across reads of the tables, which never wait for it.
    pub(super) turn: tokio::sync::Mutex<()>,
    touched: Mutex<Touched>,
    state: RwLock<State>,
}

impl Loaded {
    fn new() -> Self {
        Self {
            turn: tokio::sync::Mutex::new(()),
            touched: Mutex::default(),
            state: RwLock::new(State::Unknown),
        }
    }

    pub(super) fn touch(&self, touched: Touched) {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).add(touched);
    }

    pub(super) fn take_touched(&self) -> Touched {
        std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What of the touched must be read again; `None` means everything.
    pub(super) fn to_reread(&self, touched: Touched, dimension: usize) -> Option<Vec<String>> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            _ if touched.all => None,
            State::Unknown => None,
            State::Matrix(matrix) if matrix.dimension() != dimension => None,
            // With many gone it may fit again.
            State::TooLarge if !touched.prefixes.is_empty() => None,
            State::TooLarge => Some(Vec::new()),
            State::Matrix(matrix) => {
                let mut ids = touched.ids;
                for prefix in &touched.prefixes {
                    ids.extend(matrix.ids_with_prefix(prefix));
                }
                Some(ids.into_iter().collect())
            }
        }
    }

    pub(super) fn set(&self, state: State) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Sets or removes entries as they were found; answers the memory used then.
    pub(super) fn apply(&self, ids: &[String], found: Vec<Found>) -> Result<usize> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State::Matrix(matrix) = &mut *state else { return Ok(0) };
        for (id, found) in ids.iter().zip(found) {
            match found.into_value() {
                Some(value) => matrix.set(id, &value)?,
                None => matrix.remove(id),
            }
        }
        Ok(matrix.bytes())
    }

    /// Searches in memory; `false` if the collection is not there.
    pub(super) fn search(&self, vector: &[f32], best: &mut Best) -> Result<bool> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Matrix(matrix) if matrix.dimension() == vector.len() => {
                matrix.search(vector, best)?;
                Ok(true)
            }
            State::Matrix(_) | State::Unknown | State::TooLarge => Ok(false),
        }
    }
}

/// The collections in memory.
#[derive(Debug)]
pub(super) struct Cache {
    bytes_max: usize,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_key: HashMap<ScopeKey, Slot>,
    now: u64,
}

#[derive(Debug)]
struct Slot {
    loaded: Arc<Loaded>,
    bytes: usize,
    used: u64,
}

impl Slots {
    fn bytes(&self) -> usize {
        self.by_key.values().map(|slot| slot.bytes).sum()
    }

    /// Forgets the collection that was used longest ago, but not `kept`; answers whether there was one.
    fn evict(&mut self, kept: &ScopeKey) -> bool {
        let others = self.by_key.iter().filter(|(key, _)| *key != kept);
        let Some(oldest) = others.min_by_key(|(_, slot)| slot.used).map(|(key, _)| *key) else {
            return false;
        };
        self.by_key.remove(&oldest).is_some()
    }
}

impl Cache {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, slots: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The collection, known to be in use now.
    pub(super) fn entry(&self, key: &ScopeKey) -> Arc<Loaded> {
        let mut slots = self.slots();
        slots.now += 1;
        let now = slots.now;
        let new = || Slot { loaded: Arc::new(Loaded::new()), bytes: 0, used: now };
        let slot = slots.by_key.entry(*key).or_insert_with(new);
        slot.used = now;
        let loaded = Arc::clone(&slot.loaded);
        while slots.by_key.len() > COLLECTIONS_MAX && slots.evict(key) {}
        loaded
    }

    /// Notes what a write may have changed, if the collection is in memory.
    pub(super) fn touch(&self, key: &ScopeKey, touched: Touched) {
        let loaded = self.slots().by_key.get(key).map(|slot| Arc::clone(&slot.loaded));
        if let Some(loaded) = loaded {
            loaded.touch(touched);
        }
    }

    pub(super) fn forget(&self, key: &ScopeKey) {
        self.slots().by_key.remove(key);
    }

    /// Gives a collection this much memory, taking it from others; `false` if it can never have it.
    pub(super) fn make_room(&self, key: &ScopeKey, bytes: usize) -> bool {
        let fits = bytes <= self.bytes_max;
        let mut slots = self.slots();
        if let Some(slot) = slots.by_key.get_mut(key) {
            slot.bytes = if fits { bytes } else { 0 };
        }
        while slots.bytes() > self.bytes_max && slots.evict(key) {}
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collection_used_longest_ago_goes_first() {
        let cache = Cache::new(100);
        let key = |n: u8| [n; size_of::<ScopeKey>()];
        let first = cache.entry(&key(1));
        assert!(cache.make_room(&key(1), 40));
        let second = cache.entry(&key(2));
        assert!(cache.make_room(&key(2), 40));
        cache.entry(&key(1));
        cache.entry(&key(3));
        assert!(cache.make_room(&key(3), 40));
        assert!(Arc::ptr_eq(&first, &cache.entry(&key(1))));
        assert!(!Arc::ptr_eq(&second, &cache.entry(&key(2))));
        assert!(!cache.make_room(&key(3), 101));
        assert!(Arc::ptr_eq(&first, &cache.entry(&key(1))));
    }
}
