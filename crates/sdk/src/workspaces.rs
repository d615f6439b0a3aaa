//! Services with a request topic per workspace: their topics are made and served when a workspace appears, made again
//! where they are missing, and go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{BrokerAdmin, TopicSpec};
use sluice_schema::{Class, record};
use tokio_util::sync::CancellationToken;

use crate::tasks::Backoff;
use crate::{ConfigWatch, Process, View, owned};

const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(5) };

/// What a service does for each workspace.
pub trait WorkspaceService: Send + Sync + 'static {
    /// The topics that the service owns in a workspace, with their subscriptions.
    fn topics(&self, workspace: &str) -> Vec<TopicSpec>;

    /// Starts serving a workspace whose topics are there; ends when `stop` is cancelled. Returns once it is attached.
    fn start(&self, workspace: &str, stop: CancellationToken) -> impl Future<Output = ()> + Send;
}

/// Serves every live workspace, now and as they come and go. Returns once those known now are served.
pub async fn serve_workspaces(
    process: &Process,
    admin: Arc<dyn BrokerAdmin>,
    watch: &ConfigWatch,
    service: impl WorkspaceService,
) {
    let mut views = watch.interest(&[record::WORKSPACE]);
    let mut served = Served { process: process.clone(), admin, service, running: BTreeMap::new() };
    let first = watch.ready(&[record::WORKSPACE]).await;
    served.follow(&first).await;
    process.tasks.spawn("workspaces", async move {
        let stop = served.process.stop.clone();
        let mut looks = served.process.missing.looks();
        loop {
            let is_news = tokio::select! {
                () = stop.cancelled() => return,
                changed = views.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                () = looks.next() => false,
            };
            if is_news {
                let view = views.borrow_and_update().clone();
                served.follow(&view).await;
            } else {
                if stop.run_until_cancelled(served.make_again()).await == Some(false) {
                    looks.failed();
                }
            }
        }
    });
}

struct Served<S> {
    process: Process,
    admin: Arc<dyn BrokerAdmin>,
    service: S,
    running: BTreeMap<String, CancellationToken>,
}

impl<S: WorkspaceService> Served<S> {
    async fn follow(&mut self, view: &View) {
        let wanted: BTreeSet<String> =
            view.entries(record::WORKSPACE, record::WORKSPACES).map(|(key, _)| key.to_string()).collect();
        let gone: Vec<String> =
            self.running.keys().filter(|workspace| !wanted.contains(*workspace)).cloned().collect();
        for workspace in gone {
            if let Some(stop) = self.running.remove(&workspace) {
                stop.cancel();
                self.remove(&workspace).await;
            }
        }
        for workspace in wanted {
            if self.running.contains_key(&workspace) {
                continue;
            }
            let stop = self.process.stop.child_token();
            if self.ensure(&workspace, &stop).await {
                self.service.start(&workspace, stop.clone()).await;
                self.running.insert(workspace, stop);
            }
        }
    }

    /// Makes what is missing of the workspaces that are served; whether all could be. One whose topics cannot be made holds
    /// up no other.
    async fn make_again(&self) -> bool {
        let mut is_well = true;
        for workspace in self.running.keys() {
            if let Err(error) = owned::ensure(&*self.admin, &self.service.topics(workspace)).await {
                tracing::warn!(workspace, %error, "a workspace's topics may be missing and could not be made; trying again");
                is_well = false;
            }
        }
        is_well
    }

    /// Removes the queues of a workspace that is gone. Durable topics stay: what is in them is not ours to drop.
    async fn remove(&self, workspace: &str) {
        for topic in self.service.topics(workspace) {
            if topic.topic.class() == Class::Flow {
                continue;
            }
            if let Err(error) = self.admin.remove(&topic).await {
                tracing::warn!(workspace, topic = %topic.topic, %error, "a queue of a workspace that is gone stays");
            }
        }
    }

    /// Makes the topics, trying again until the process stops.
    async fn ensure(&self, workspace: &str, stop: &CancellationToken) -> bool {
        let topics = self.service.topics(workspace);
        let mut attempt = 0;
        while let Err(error) = owned::ensure(&*self.admin, &topics).await {
            if stop.is_cancelled() {
                return false;
            }
            let pause = RETRY.pause(attempt);
            tracing::warn!(workspace, %error, ?pause, "a workspace's topics could not be made yet");
            attempt += 1;
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
        true
    }
}
