//! Running processors: every variant that config names for a processor of the roster, started, restarted and stopped as
//! config says. Definitions are compared, not names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_bus::ErrorKind;
use sluice_schema::record::{PROCESSOR_PREFIX, ProcessorEntry};
use tokio_util::sync::CancellationToken;

use crate::processor::{Resources, Roster, Variant};
use crate::tasks::Backoff;
use crate::{ConfigWatch, Process, View};

/// How processors of a host treat failing messages.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Attempts before a message is parked, the first included; default 5.
    pub attempts_max: u32,
    /// Pauses between attempts; default 0.5 s doubling to 30 s.
    pub retry: Backoff,
}

impl Default for HostOptions {
    fn default() -> Self {
        let retry = Backoff { min: Duration::from_millis(500), max: Duration::from_secs(30) };
        Self { attempts_max: 5, retry }
    }
}

/// Pauses between tries to attach while the flow is wanted.
const ATTACH: Backoff = Backoff { min: Duration::from_millis(20), max: Duration::from_secs(5) };

/// Runs the processors of a roster.
pub struct Host {
    process: Process,
    roster: Roster,
    watch: ConfigWatch,
    resources: Resources,
    options: HostOptions,
}

type Key = (Arc<str>, Arc<str>, Arc<str>);

struct Running {
    definition: Arc<str>,
    stop: CancellationToken,
}

impl Host {
    /// A host; nothing runs until [`Host::start`].
    #[must_use]
    pub fn new(
        process: Process,
        roster: Roster,
        watch: ConfigWatch,
        resources: Resources,
        options: HostOptions,
    ) -> Self {
        Self { process, roster, watch, resources, options }
    }

    /// Follows config from now on, until the process stops.
    pub fn start(self) {
        let types: Vec<String> = self.roster.ids().map(|id| format!("{PROCESSOR_PREFIX}{id}")).collect();
        let mut views = self.watch.interest(&types);
        let tasks = self.process.tasks.clone();
        tasks.spawn("processors", async move {
            let stop = self.process.stop.clone();
            let mut running = BTreeMap::new();
            // What was running when the process stops ends by itself: its tokens are children of the process's.
            self.follow(&views.borrow_and_update().clone(), &types, &mut running);
            while let Some(Ok(())) = stop.run_until_cancelled(views.changed()).await {
                let view = views.borrow_and_update().clone();
                self.follow(&view, &types, &mut running);
            }
        });
    }

    fn follow(&self, view: &View, types: &[String], running: &mut BTreeMap<Key, Running>) {
        let mut wanted: BTreeMap<Key, Arc<str>> = BTreeMap::new();
        for kind in types {
            let processor: Arc<str> = kind[PROCESSOR_PREFIX.len()..].into();
            for (workspace, variant, definition) in view.all(kind) {
                if !workspace.starts_with('_') {
                    let key = (processor.clone(), workspace.clone(), variant.clone());
                    wanted.insert(key, definition.clone());
                }
            }
        }
        running.retain(|key, now| {
            let stays = wanted.get(key) == Some(&now.definition);
            if !stays {
                now.stop.cancel();
            }
            stays
        });
        for (key, definition) in wanted {
            running.entry(key).or_insert_with_key(|key| {
                let stop = self.process.stop.child_token();
                self.begin(key.clone(), &definition, stop.clone());
                Running { definition, stop }
            });
        }
    }

    fn begin(&self, (processor, workspace, flow): Key, definition: &str, stop: CancellationToken) {
        let name = format!("{processor}/{workspace}/{flow}");
        let entry = match serde_json::from_str::<ProcessorEntry>(definition) {
            Ok(entry) => Arc::new(entry),
            Err(error) => {
                tracing::error!(variant = name, %error, "a processor entry cannot be read; it does not run");
                return;
            }
        };
        let variant = Variant {
            process: self.process.clone(),
            watch: self.watch.clone(),
            resources: self.resources.clone(),
            options: self.options.clone(),
            processor,
            workspace,
            flow,
            entry,
        };
        let roster = self.roster.clone();
        self.process.tasks.spawn(name.clone(), async move {
            let mut attempt = 0;
            while !stop.is_cancelled() {
                let Some(run) = roster.run(variant.clone(), stop.clone()) else { return };
                let error = match run.await {
                    Ok(()) => return,
                    Err(crate::processor::RunError::Bind(error)) => {
                        tracing::error!(variant = name, %error, "a processor cannot run; mend the blueprint and restart the flow");
                        return;
                    }
                    Err(crate::processor::RunError::Bus(error)) => error,
                };
                let pause = ATTACH.pause(attempt);
                attempt += 1;
                // That the broker is away, its connection says once for the whole process.
                let is_told = matches!(error, sluice_bus::Error::Unavailable { .. });
                if is_told || error.kind() == ErrorKind::Absent {
                    tracing::debug!(variant = name, %error, ?pause, "not attached; trying again while the flow is wanted");
                } else {
                    tracing::warn!(variant = name, %error, ?pause, "detached; attaching again");
                }
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
        });
    }
}
