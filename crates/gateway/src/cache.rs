//! A bounded map whose entries expire.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Holds at most `entries_max` values, each for its own time.
pub(crate) struct Cache<K, V> {
    entries: Mutex<HashMap<K, (V, Instant)>>,
    entries_max: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self { entries: Mutex::default(), entries_max }
    }

    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, until) = entries.get(key)?;
        (Instant::now() < *until).then(|| value.clone())
    }

    pub(crate) fn put(&self, key: K, value: V, ttl: Duration) {
        let now = Instant::now();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.entries_max {
            entries.retain(|_, (_, until)| now < *until);
        }
        if entries.len() >= self.entries_max {
            // Nothing has expired: make room for many at once, so that a flood does not pay for a sweep per entry.
            let surplus: Vec<K> = entries.keys().take(self.entries_max / 4 + 1).cloned().collect();
            for key in surplus {
                entries.remove(&key);
            }
        }
        entries.insert(key, (value, now + ttl));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_entry_ends_with_its_time() {
        let cache = Cache::new(4);
        cache.put("a".to_owned(), 1, Duration::from_secs(60));
        assert_eq!(cache.get("a"), Some(1));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(cache.get("a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_entries_never_exceeds_the_bound() {
        let cache = Cache::new(8);
        for n in 0..1_000 {
            cache.put(n, n, Duration::from_secs(60));
            assert!(cache.entries.lock().unwrap().len() <= 8);
            assert_eq!(cache.get(&n), Some(n));
        }
    }
}
