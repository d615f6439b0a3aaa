//! Tables that fail when told to: how tests of services meet a store in trouble.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Batch, BoxFuture, Error, Found, Read, Result, Tables};

/// At which moment a commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happened: [`crate::ErrorKind::Unavailable`].
    Before,
    /// The batch is durable, the caller does not hear of it: [`crate::ErrorKind::OutcomeUnknown`].
    After,
}

/// Tables over other tables, with faults.
#[derive(Clone)]
pub struct FaultyTables {
    inner: Arc<dyn Tables>,
    plan: Arc<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    commits: AtomicU64,
    played: AtomicU64,
    next: Mutex<Option<(u64, Fault)>>,
}

impl FaultyTables {
    /// Wraps tables; without a fault planned it changes nothing.
    pub fn new(inner: Arc<dyn Tables>) -> Self {
        Self { inner, plan: Arc::default() }
    }

    /// Plans that of the commits from now on, the one after `passing` others fails.
    pub fn fail_commit_after(&self, passing: u64, fault: Fault) {
        let at = self.commits() + passing;
        *self.plan.next.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, fault));
    }

    /// Commits begun so far: a test of every moment counts them first, then fails each in turn.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.plan.commits.load(Ordering::SeqCst)
    }

    /// Faults played so far: a test of faults checks that they happened.
    #[must_use]
    pub fn played(&self) -> u64 {
        self.plan.played.load(Ordering::SeqCst)
    }

    fn due(&self) -> Option<Fault> {
        let now = self.plan.commits.fetch_add(1, Ordering::SeqCst);
        let mut next = self.plan.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, fault) = next.take_if(|(at, _)| now >= *at)?;
        self.plan.played.fetch_add(1, Ordering::SeqCst);
        Some(fault)
    }
}

impl Tables for FaultyTables {
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, Result<Vec<Found>>> {
        self.inner.read(reads)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self.due() {
                None => self.inner.commit(batch).await,
                Some(Fault::Before) => Err(Error::unavailable("a fault was played before the commit")),
                Some(Fault::After) => {
                    self.inner.commit(batch).await?;
                    let reason = "a fault was played after the commit".to_owned();
                    Err(Error::OutcomeUnknown { what: "a write", reason })
                }
            }
        })
    }
}
