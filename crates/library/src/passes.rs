//! Numbers for passes of documents through flows, and for their removals: each is larger than every number given before in
//! its workspace, also before a restart and whatever the clock does.
//!
//! A number is the time in milliseconds where that is larger. Numbers up to some way ahead are reserved in the store, so
//! that giving one writes nothing most of the time.

use std::collections::HashMap;
use std::sync::Arc;

use sluice_store::Batch;
use tokio::sync::Mutex;

use crate::rows::{self, Row, Rows, key};
use crate::{Error, clock};

const PASSES: &str = "library-passes";

/// How many numbers are reserved at once.
const RESERVED: i64 = 60_000;

/// Passes of all workspaces. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Passes {
    rows: Rows,
    given: Arc<Mutex<HashMap<String, Given>>>,
}

struct Given {
    last: i64,
    reserved: i64,
}

impl Passes {
    pub(crate) fn new(rows: Rows) -> Self {
        Self { rows, given: Arc::default() }
    }

    /// The next number of a workspace.
    pub(crate) async fn next(&self, workspace: &str) -> Result<i64, Error> {
        // Held across reads and writes of the store, which never wait for it.
        let mut all = self.given.lock().await;
        let row_key = key(&[workspace]);
        let known = match all.get(workspace) {
            Some(given) => Given { last: given.last, reserved: given.reserved },
            None => {
                let stored: Option<Row<i64>> = self.rows.get(PASSES, &row_key).await?;
                let reserved = stored.map_or(0, |row| row.is);
                Given { last: reserved, reserved }
            }
        };
        let next = clock::milliseconds().max(known.last + 1);
        let mut reserved = known.reserved;
        if next > reserved {
            reserved = next + RESERVED;
            let mut batch = Batch::new();
            batch.put(PASSES, &row_key, rows::encode(&reserved)).essential();
            self.rows.commit(batch).await?;
        }
        all.insert(workspace.to_owned(), Given { last: next, reserved });
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_store::Embedded;

    #[tokio::test]
    async fn numbers_only_grow_also_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let mut last = 0;
        for _ in 0..3 {
            let store = Embedded::open(folder.path()).unwrap();
            let passes = Passes::new(Rows::new(store.tables()));
            for _ in 0..5 {
                let next = passes.next("w").await.unwrap();
                assert!(next > last);
                last = next;
            }
            store.close().await;
        }
    }
}
