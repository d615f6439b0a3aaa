//! Writers of one process to one collection take turns instead of refusing each other; what waits for its turn is made
//! together.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::keys::{ScopeKey, to_the_end};
use crate::{Error, Result};

const STRIPES: usize = 64;

/// How much is made together: a number of things and of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) things: usize,
    pub(crate) bytes: usize,
}

/// A change that waits for its turn.
pub(crate) struct Waiting<C> {
    pub(crate) change: C,
    load: Load,
    pub(crate) done: oneshot::Sender<Result<()>>,
}

/// Who waits, by collection.
pub(crate) struct Turns<C> {
    /// A turn is held across reads and commits, which never wait for it.
    turns: Vec<tokio::sync::Mutex<()>>,
    waiting: Mutex<HashMap<ScopeKey, Vec<Waiting<C>>>>,
    together_max: Load,
}

impl<C: Send + 'static> Turns<C> {
    pub(crate) fn new(together_max: Load) -> Arc<Self> {
        let turns = (0..STRIPES).map(|_| tokio::sync::Mutex::new(())).collect();
        Arc::new(Self { turns, waiting: Mutex::default(), together_max })
    }

    /// Has a change made when its turn comes, by `make`, which is handed whatever waits then and answers each.
    pub(crate) async fn make<F>(
        self: &Arc<Self>,
        key: ScopeKey,
        change: C,
        load: Load,
        make: impl FnOnce(Vec<Waiting<C>>) -> F + Send + 'static,
    ) -> Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (done, answer) = oneshot::channel();
        self.waiting().entry(key).or_default().push(Waiting { change, load, done });
        let this = Arc::clone(self);
        to_the_end(async move {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            let stripe = usize::try_from(hasher.finish() % STRIPES as u64).unwrap_or(0);
            let _turn = this.turns[stripe].lock().await;
            // Somebody else may have made it already. Each that waits comes here once, so nothing is left behind.
            let next = this.take(&key);
            make(next).await;
            Ok(())
        })
        .await?;
        answer.await.unwrap_or_else(|_| Err(Error::unavailable("the write was dropped; try again")))
    }

    /// How many changes wait for their turn.
    #[cfg(test)]
    pub(crate) fn waiting_count(&self, key: &ScopeKey) -> usize {
        self.waiting().get(key).map_or(0, Vec::len)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<ScopeKey, Vec<Waiting<C>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first of what waits, as much as goes together.
    fn take(&self, key: &ScopeKey) -> Vec<Waiting<C>> {
        let mut all = self.waiting();
        let mut first = all.remove(key).unwrap_or_default();
        let (mut things, mut bytes, mut count) = (0, 0, 0);
        for waiting in &first {
            if count > 0 && (things > self.together_max.things || bytes > self.together_max.bytes) {
                break;
            }
            count += 1;
            bytes += waiting.load.bytes;
            things += waiting.load.things;
        }
        let rest = first.split_off(count);
        if !rest.is_empty() {
            all.insert(*key, rest);
        }
        first
    }
}
