//! Doing what the library says must be forgotten, wherever stores are: for each live workspace and kind of store a reader of
//! the workspace's removals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{Broker, Delivery, Error, ErrorKind, Subscription};
use sluice_schema::message::Removal;
use sluice_schema::{Topic, WorkspaceId, record, system, wire};
use sluice_sdk::{
    Backoff, ConfigWatch, Process, Processor as _, Resources, Roster, Suspects, View, suspects,
};
use sluice_store::{Batch, BoxFuture, Result, Scope, Stores};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chunk_index::{KeywordIndex, VectorWriter};
use crate::derived::{Derived, Forget, Note};
use crate::retention;
use crate::triples::{ForgetTriples, TriplesWriter};

/// Pauses between tries of a removal, and of attaching.
const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
/// Removals in one reader's hands.
const PREFETCH: u32 = 16;
/// How often a removal is handed out at once that ends the process each time. After that each end doubles how long a process
/// has to have lived before it tries: what has to be forgotten may only have been under way while it ended for another reason.
const ATTEMPTS_MAX: u32 = 5;
const LIVED_MIN: Duration = Duration::from_secs(60);
/// At most, since brokers take back what is in hand for longer than half an hour, and count it.
const LIVED_MAX: Duration = Duration::from_secs(15 * 60);
/// And how often until it is given up.
const HOPELESS: u32 = 12;

/// Follows the removals of every workspace until the process stops, for the stores that a processor of `roster` writes here.
/// The resources are those that the processors run with.
pub fn start(process: &Process, watch: &ConfigWatch, roster: &Roster, resources: &Resources) {
    let Some(derived) = resources.get::<Derived>() else { return };
    let writers = [VectorWriter::NAME, KeywordIndex::NAME, TriplesWriter::NAME];
    let is_here = |writer: &str| roster.ids().any(|id| **id == *writer);
    let here: Vec<&'static str> = system::STORE_KINDS
        .into_iter()
        .zip(writers)
        .filter(|(_, writer)| is_here(writer))
        .map(|(kind, _)| kind)
        .collect();
    if here.is_empty() {
        return;
    }
    if is_here(TriplesWriter::NAME) {
        let (part, derived, watch) = (process.clone(), derived.clone(), watch.clone());
        process.tasks.spawn("removals/traces", async move {
            let stop = part.stop.clone();
            stop.run_until_cancelled(retention::follow(part, derived, watch)).await;
        });
    }
    let mut views = watch.interest(&[record::WORKSPACE]);
    let part = process.clone();
    let began = Instant::now();
    process.tasks.spawn("removals", async move {
        let mut followed = BTreeMap::new();
        let view = views.borrow_and_update().clone();
        follow(&part, &derived, &here, began, &view, &mut followed);
        while let Some(Ok(())) = part.stop.run_until_cancelled(views.changed()).await {
            let view = views.borrow_and_update().clone();
            follow(&part, &derived, &here, began, &view, &mut followed);
        }
    });
}

fn follow(
    process: &Process,
    derived: &Derived,
    kinds: &[&'static str],
    began: Instant,
    view: &View,
    followed: &mut BTreeMap<Arc<str>, CancellationToken>,
) {
    let live: BTreeSet<Arc<str>> =
        view.entries(record::WORKSPACE, record::WORKSPACES).map(|(workspace, _)| workspace.clone()).collect();
    followed.retain(|workspace, stop| {
        let stays = live.contains(workspace);
        if !stays {
            stop.cancel();
        }
        stays
    });
    for workspace in live {
        followed.entry(workspace).or_insert_with_key(|workspace| {
            let stop = process.stop.child_token();
            for kind in kinds {
                let reader = Reader {
                    broker: process.broker.clone(),
                    suspects: process.suspects.clone(),
                    derived: derived.clone(),
                    workspace: workspace.clone(),
                    kind,
                    stop: stop.clone(),
                    began,
                };
                let stop = stop.clone();
                process.tasks.spawn(format!("removals/{kind}/{workspace}"), async move {
                    stop.run_until_cancelled(Arc::new(reader).run()).await;
                });
            }
            stop
        });
    }
}

/// Reads the removals of one workspace for one kind of store.
struct Reader {
    broker: Arc<dyn Broker>,
    suspects: Arc<Suspects>,
    derived: Derived,
    workspace: Arc<str>,
    kind: &'static str,
    stop: CancellationToken,
    /// When its process began.
    began: Instant,
}

impl Reader {
    async fn run(self: Arc<Self>) {
        let topic = system::removals(&WorkspaceId::existing(&self.workspace));
        if let Err(error) = self.derived.sweep(self.kind, &self.workspace).await {
            tracing::warn!(workspace = &*self.workspace, kind = self.kind, %error, "old removals stay on record");
        }
        let mut attempt = 0;
        loop {
            let error = self.read(&topic, &mut attempt).await;
            let pause = RETRY.pause(attempt);
            attempt += 1;
            // The library makes the topic; it may come later than this process. That the broker is away, its connection says.
            if error.kind() == ErrorKind::Absent || matches!(error, Error::Unavailable { .. }) {
                tracing::debug!(%topic, %error, ?pause, "no removals to follow yet");
            } else {
                tracing::warn!(%topic, %error, ?pause, "removals are not followed at the moment");
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn read(self: &Arc<Self>, topic: &Topic, attempt: &mut u32) -> Error {
        let name = self.kind.to_owned();
        let to = Subscription::Shared { topic: topic.clone(), name, prefetch: PREFETCH };
        let inbox = match self.broker.subscribe(&to).await {
            Ok(inbox) => inbox,
            Err(error) => return error,
        };
        *attempt = 0;
        let mut failures = 0;
        // Those that wait, kept in hand: given back, they would be counted again.
        let mut waiting = JoinSet::new();
        loop {
            while waiting.try_join_next().is_some() {}
            let next = match inbox.next().await {
                Ok(delivery) if self.suspects.is_suspect(&delivery) => inbox.begin(delivery).await,
                next => next,
            };
            match next {
                Ok(delivery) => {
                    let delivery = delivery.cut_by(&self.stop);
                    match self.wait(&delivery) {
                        None => self.take(delivery, &mut failures).await,
                        Some(left) => {
                            let reader = self.clone();
                            waiting.spawn(async move {
                                tokio::time::sleep(left).await;
                                reader.take(delivery, &mut 0).await;
                            });
                        }
                    }
                }
                Err(error) => return error,
            }
        }
    }

    /// How long a removal has to wait that may end this process as it did others.
    fn wait(&self, delivery: &Delivery) -> Option<Duration> {
        let ends = (ATTEMPTS_MAX..HOPELESS).rev().find(|ends| self.suspects.is_spent(delivery, *ends))?;
        if self.suspects.is_spent(delivery, HOPELESS) {
            return None;
        }
        let wanted = (LIVED_MIN * 2_u32.pow(ends - ATTEMPTS_MAX)).min(LIVED_MAX);
        let left = wanted.checked_sub(self.began.elapsed()).filter(|left| !left.is_zero())?;
        let (workspace, kind, reason) = (&*self.workspace, self.kind, suspects::reason(delivery));
        tracing::warn!(
            workspace,
            kind,
            reason,
            ?left,
            "a removal waits until this process has lived for longer"
        );
        Some(left)
    }

    async fn take(&self, delivery: Delivery, failures: &mut u32) {
        let (kind, workspace) = (self.kind, &*self.workspace);
        if self.suspects.is_spent(&delivery, HOPELESS) {
            let (removal, reason) =
                (wire::decode::<Removal>(&delivery.message.body), suspects::reason(&delivery));
            tracing::error!(
                workspace,
                kind,
                ?removal,
                reason,
                "a removal was given up, and what it names may stay in this store; remove its collection"
            );
            return delivery.ack();
        }
        let removal = match wire::decode::<Removal>(&delivery.message.body) {
            Ok(removal) if !(removal.document_id.is_empty() && removal.collection.is_empty()) => removal,
            Ok(_) => {
                tracing::error!(workspace, kind, "a removal that names nothing was dropped");
                return delivery.ack();
            }
            Err(error) => {
                tracing::error!(workspace, kind, %error, "a removal that cannot be read was dropped");
                return delivery.ack();
            }
        };
        match self.derived.remove(kind, workspace, &removal, &*forgetting(kind, &self.derived.stores)).await {
            Ok(()) => {
                *failures = 0;
                tracing::debug!(workspace, kind, ?removal, "forgotten");
                delivery.ack();
            }
            Err(error) if error.kind() == sluice_store::ErrorKind::Refused => {
                tracing::error!(workspace, kind, ?removal, %error, "a removal that no store can do was dropped");
                delivery.ack();
            }
            // It has to be done, however long it takes: only what ends the process counts.
            Err(error) => {
                let pause = RETRY.pause(*failures);
                *failures = failures.saturating_add(1);
                tracing::warn!(workspace, kind, ?removal, %error, ?pause, "a removal comes again");
                delivery.untried(pause);
            }
        }
    }
}

pub(crate) fn forgetting(kind: &str, stores: &Stores) -> Box<dyn Forget> {
    match kind {
        "vectors" => Box::new(ForgetVectors(stores.clone())),
        "keywords" => Box::new(ForgetKeywords(stores.clone())),
        _ => Box::new(ForgetTriples(stores.clone())),
    }
}

struct ForgetVectors(Stores);

impl Forget for ForgetVectors {
    fn forget<'a>(
        &'a self,
        scope: Scope<'a>,
        notes: &'a [Note],
        _: &'a mut Batch,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.0.vectors.remove(scope, &ids(notes)).await })
    }

    fn forget_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>> {
        self.0.vectors.remove_collection(scope)
    }
}

struct ForgetKeywords(Stores);

impl Forget for ForgetKeywords {
    fn forget<'a>(
        &'a self,
        scope: Scope<'a>,
        notes: &'a [Note],
        _: &'a mut Batch,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.0.keywords.remove(scope, &ids(notes)).await })
    }

    fn forget_collection<'a>(&'a self, scope: Scope<'a>) -> BoxFuture<'a, Result<()>> {
        self.0.keywords.remove_collection(scope)
    }
}

fn ids(notes: &[Note]) -> Vec<String> {
    notes.iter().map(|note| note.id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use sluice_bus::{Address, BrokerAdmin, Embedded, Message, TopicSpec, property, trace};

    use super::*;
    use crate::derived::{Entry, Origin};

    const WS: &str = "w";

    /// What becomes of a removal that was handed out so often before, each time to a process that ended, in one that has lived for
    /// so long: whether it is carried out, and whether it is off the queue.
    async fn becomes(times: usize, lived: Duration) -> (bool, bool) {
        let folder = tempfile::tempdir().unwrap();
        let store = sluice_store::Embedded::open(folder.path()).unwrap();
        let derived = Derived::new(store.stores());
        let broker = Embedded::in_memory();
        let topic = system::removals(&WorkspaceId::existing(WS));
        let spec = TopicSpec::with(topic.clone(), "vectors");
        broker.ensure(&spec).await.unwrap();
        let removal =
            Removal { document_id: "d".to_owned(), collection: "c".to_owned(), pass: 2, restored: false };
        broker.publish(&Address::Topic(topic.clone()), Message::new(wire::encode(&removal))).await.unwrap();
        for _ in 0..times {
            let to = Subscription::Shared { topic: topic.clone(), name: "vectors".to_owned(), prefetch: 1 };
            drop(broker.subscribe(&to).await.unwrap().next().await.unwrap());
        }
        let reader = Reader {
            broker: Arc::new(broker.clone()),
            suspects: Arc::default(),
            derived: derived.clone(),
            workspace: WS.into(),
            kind: "vectors",
            stop: CancellationToken::new(),
            began: Instant::now().checked_sub(lived).unwrap(),
        };
        let settled = async {
            while !broker.observe(std::slice::from_ref(&spec)).await.unwrap()[0].subscriptions[0].is_drained()
            {
                tokio::task::yield_now().await;
            }
        };
        let is_settled = tokio::select! {
            () = Arc::new(reader).run() => false,
            () = settled => true,
            // It waits for a minute or more.
            () = tokio::time::sleep(Duration::from_secs(2)) => false,
        };
        // What belongs to an earlier pass is kept out once the removal was carried out.
        let origin = Origin { workspace: WS, collection: "c", root: "d" };
        let early = Message::default().with(property::PASS, "1");
        let write = derived.write("vectors", origin, vec![Entry::bare("e".to_owned())], Batch::new(), || {
            Box::pin(async { Ok(()) })
        });
        let is_kept = trace::carry(&early, 1, write).await.unwrap();
        store.close().await;
        (!is_kept, is_settled)
    }

    #[tokio::test]
    async fn a_removal_under_way_when_processes_ended_is_done_by_one_that_lives_and_given_up_late() {
        let (young, old) = (Duration::ZERO, 2 * LIVED_MIN);
        assert_eq!((becomes(0, young).await, becomes(4, young).await), ((true, true), (true, true)));
        assert_eq!(becomes(5, young).await, (false, false), "it would end the process again and again");
        assert_eq!((becomes(5, old).await, becomes(6, old).await), ((true, true), (true, true)));
        assert_eq!(becomes(7, old).await, (false, false), "each end doubles the wait");
        assert_eq!(becomes(11, LIVED_MAX).await, (true, true), "no longer than brokers leave it in hand");
        assert_eq!(becomes(12, old).await, (false, true), "it ends the process for ever");
    }
}
