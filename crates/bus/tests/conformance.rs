//! The embedded broker passes every case, in memory and on disk, the latter also through restarts like a kill.
#![expect(clippy::unwrap_used, reason = "a test helper may panic")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sluice_bus::conformance::{self, Backend, Ends};
use sluice_bus::{BoxFuture, Config, Embedded, Result};

struct Broker {
    now: Mutex<Embedded>,
    dir: Option<PathBuf>,
}

impl Broker {
    fn open(dir: Option<PathBuf>) -> Result<Self> {
        let config = Config { dir: dir.clone(), disk_reserve_bytes: 4096, ..Config::default() };
        Ok(Self { now: Mutex::new(Embedded::open(config)?), dir })
    }
}

impl Backend for Broker {
    fn connect(&self) -> BoxFuture<'_, Result<Ends>> {
        let now = Arc::new(self.now.lock().unwrap().clone());
        Box::pin(async { Ok(Ends { broker: now.clone(), admin: now }) })
    }

    fn restart(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async {
            if self.dir.is_none() {
                return Ok(false);
            }
            let old = self.now.lock().unwrap().clone();
            old.crash().await;
            let new = Self::open(self.dir.clone())?;
            *self.now.lock().unwrap() = new.now.into_inner().unwrap();
            Ok(true)
        })
    }
}

async fn every_case(open: impl Fn() -> (Broker, Option<tempfile::TempDir>)) {
    let mut failed = Vec::new();
    for case in conformance::cases() {
        let (broker, _folder) = open();
        if let Err(why) = case.run(&broker).await {
            failed.push(format!("{}: {why}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_passes_in_memory() {
    every_case(|| (Broker::open(None).unwrap(), None)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_passes_on_disk() {
    every_case(|| {
        let folder = tempfile::tempdir().unwrap();
        (Broker::open(Some(folder.path().to_owned())).unwrap(), Some(folder))
    })
    .await;
}
