//! The library on the bus: which topics it owns in a workspace, and who answers or counts on each.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use prometheus_client::metrics::gauge::Gauge;
use sluice_bus::{BrokerAdmin, Delivery, Inbox, Subscription, TopicSpec, property};
use sluice_schema::message::StageReport;
use sluice_schema::system::{self, LIBRARIAN, STORE_KINDS};
use sluice_schema::{Class, Topic, TopicError, WorkspaceId, exchange, wire};
use sluice_sdk::workspaces::{WorkspaceService, serve_workspaces};
use sluice_sdk::{Backoff, ConfigClient, ConfigWatch, Point, Process, Suspects, service, suspects};
use sluice_store::Stores;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::collections::Collections;
use crate::dead::{self, DeadLetters, Held, Limits};
use crate::documents::Documents;
use crate::librarian::Librarian;
use crate::passes::Passes;
use crate::processing::Processings;
use crate::progress::Progress;
use crate::removals::Removals;
use crate::rows::Rows;
use crate::uploads::Uploads;

/// Deliveries put into one write.
const BATCH_MESSAGES_MAX: usize = 256;
/// Bytes of deliveries put into one write.
const BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How often a progress report is handed out; one that has ended the process as often is dropped.
const REPORT_ATTEMPTS_MAX: u32 = 5;
/// How often a letter is handed out: one that has ended the process as often is kept without being read, and one that ends it
/// even so is dropped after as many times more.
const LETTER_ATTEMPTS_MAX: u32 = 5;
/// How long a workspace's start waits for its consumers.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// What the library is made of.
pub struct Parts {
    /// The process it runs in.
    pub process: Process,
    /// For the topics it owns.
    pub admin: Arc<dyn BrokerAdmin>,
    /// Where everything rests.
    pub stores: Stores,
    /// For flows and collections.
    pub config: ConfigClient,
    /// For workspaces that come and go.
    pub watch: ConfigWatch,
    /// How many dead letters a workspace keeps.
    pub dead_letters: Limits,
}

impl Parts {
    /// Parts with default limits.
    #[must_use]
    pub fn new(
        process: Process,
        admin: Arc<dyn BrokerAdmin>,
        stores: Stores,
        config: ConfigClient,
        watch: ConfigWatch,
    ) -> Self {
        Self { process, admin, stores, config, watch, dead_letters: Limits::default() }
    }
}

/// Serves the library in every workspace until the process stops. Returns once the workspaces known now are served.
///
/// # Errors
/// None today: what is not there yet is waited for, with warnings.
pub async fn start(parts: Parts) -> Result<(), Error> {
    let Parts { process, admin, stores, config, watch, dead_letters } = parts;
    let config = Arc::new(config);
    let rows = Rows::new(stores.tables);
    let documents = Documents::new(rows.clone(), stores.blobs);
    let progress = Progress::new(rows.clone());
    let removals = Removals {
        rows: rows.clone(),
        documents: documents.clone(),
        progress: progress.clone(),
        passes: Passes::new(rows.clone()),
        config: config.clone(),
        broker: process.broker.clone(),
        poke: tokio::sync::watch::Sender::new(()),
    };
    let collections =
        Collections::new(config.clone(), removals.clone(), process.broker.limits().message_bytes_max);
    let full = Gauge::default();
    process.metrics.register(
        "sluice_dead_letters_full",
        "Workspaces whose dead letters are full: more wait on their topic; export, replay or remove some",
        full.clone(),
    );
    let processings = Processings {
        documents: documents.clone(),
        progress: progress.clone(),
        collections: collections.clone(),
        removals: removals.clone(),
        config: config.clone(),
        broker: process.broker.clone(),
        under_way: Arc::default(),
    };
    let librarian = Librarian {
        uploads: Uploads::new(documents.clone(), removals.clone()),
        documents,
        processings,
        progress: progress.clone(),
        removals: removals.clone(),
        message_bytes_max: process.broker.limits().message_bytes_max,
    };
    let letters = DeadLetters {
        rows,
        broker: process.broker.clone(),
        admin: admin.clone(),
        limits: dead_letters,
        config: config.clone(),
        full,
    };
    let library = Library { process: process.clone(), librarian, collections, progress, removals, letters };
    serve_workspaces(&process, admin.clone(), &watch, library).await;
    // Only now is there somebody to whom it can be handed.
    crate::poison::start(&process, admin, config).await;
    Ok(())
}

struct Library {
    process: Process,
    librarian: Librarian,
    collections: Collections,
    progress: Progress,
    removals: Removals,
    letters: DeadLetters,
}

/// The topics of one workspace.
struct Topics {
    librarian: Point,
    collection: Point,
    letters: Point,
    progress: Topic,
    parked: Topic,
    removals: Topic,
}

impl Topics {
    fn of(workspace: &str) -> Result<Self, TopicError> {
        // A name longer than topics carry shows here; after that the table can name all of them.
        Topic::tg(Class::Response, format_args!("dead-letters:{workspace}"))?;
        let workspace = &WorkspaceId::existing(workspace);
        Ok(Self {
            librarian: point(system::librarian_request(workspace), system::librarian_response(workspace)),
            collection: point(system::collection_request(workspace), system::collection_response(workspace)),
            letters: point(system::dead_letters_request(workspace), system::dead_letters_response(workspace)),
            progress: system::progress(workspace),
            parked: system::dead_letters(workspace),
            removals: system::removals(workspace),
        })
    }
}

fn point(request: Topic, response: Topic) -> Point {
    Point::new(request, response, LIBRARIAN)
}

impl WorkspaceService for Library {
    fn topics(&self, workspace: &str) -> Vec<TopicSpec> {
        let Ok(topics) = Topics::of(workspace) else { return Vec::new() };
        let mut specs =
            vec![TopicSpec::with(topics.progress, LIBRARIAN), TopicSpec::with(topics.parked, LIBRARIAN)];
        let stores = STORE_KINDS.map(str::to_owned).into();
        specs.push(TopicSpec { topic: topics.removals, subscriptions: stores });
        for point in [topics.librarian, topics.collection, topics.letters] {
            specs.push(TopicSpec::with(point.request, point.subscription));
            specs.push(TopicSpec::bare(point.response));
        }
        specs
    }

    async fn start(&self, workspace: &str, stop: CancellationToken) {
        let topics = match Topics::of(workspace) {
            Ok(topics) => topics,
            Err(error) => {
                tracing::error!(workspace, %error, "the workspace has no library: its name does not fit a topic");
                return;
            }
        };
        let attached = [
            self.serve_librarian(workspace, topics.librarian, &stop),
            self.serve_collections(workspace, topics.collection, &stop),
            self.serve_letters(workspace, topics.letters, topics.parked, &stop),
            self.count_reports(workspace, topics.progress, &stop),
        ];
        self.resume(workspace, &stop);
        self.finish_removals(workspace, &stop);
        let all = async {
            for token in &attached {
                token.cancelled().await;
            }
        };
        match tokio::time::timeout(ATTACH_TIMEOUT, stop.run_until_cancelled(all)).await {
            Ok(_) => tracing::debug!(workspace, "the library serves the workspace"),
            Err(_) => tracing::warn!(workspace, "the library is not attached yet and keeps trying"),
        }
    }
}

impl Library {
    fn serve_librarian(&self, workspace: &str, point: Point, stop: &CancellationToken) -> CancellationToken {
        let (librarian, workspace) = (self.librarian.clone(), Arc::<str>::from(workspace));
        service::serve::<exchange::Librarian, _, _>(
            &self.process,
            point,
            stop.clone(),
            move |request, responder| {
                let (librarian, workspace) = (librarian.clone(), workspace.clone());
                async move { librarian.answer(&workspace, request, responder).await }
            },
        )
    }

    fn serve_collections(
        &self,
        workspace: &str,
        point: Point,
        stop: &CancellationToken,
    ) -> CancellationToken {
        let (collections, workspace) = (self.collections.clone(), Arc::<str>::from(workspace));
        service::serve::<exchange::Collections, _, _>(
            &self.process,
            point,
            stop.clone(),
            move |request, responder| {
                let (collections, workspace) = (collections.clone(), workspace.clone());
                async move {
                    let operation = request.operation.clone();
                    let outcome = collections.answer(&workspace, request, &responder).await;
                    outcome.map_err(|error| error.told(&operation, responder.trace()))
                }
            },
        )
    }

    fn serve_letters(
        &self,
        workspace: &str,
        point: Point,
        parked: Topic,
        stop: &CancellationToken,
    ) -> CancellationToken {
        let (letters, workspace) = (self.letters.clone(), Arc::<str>::from(workspace));
        let held = Arc::new(Held::default());
        let kept = (letters.clone(), workspace.clone(), held.clone());
        let answers = service::serve::<exchange::DeadLetters, _, _>(
            &self.process,
            point,
            stop.clone(),
            move |request, responder| {
                let (letters, workspace, held) = (letters.clone(), workspace.clone(), held.clone());
                async move { letters.answer(&workspace, &held, request, &responder).await }
            },
        );
        let waits = kept.clone();
        let ready = move |attached: CancellationToken| {
            let (letters, workspace, held) = waits.clone();
            async move { letters.room(&workspace, &held, || attached.cancel()).await }.boxed()
        };
        let suspects = self.process.suspects.clone();
        let keeps = self.consume(parked, LIBRARIAN, stop, ready, move |topic, batch| {
            let (letters, workspace, held) = kept.clone();
            // One that may have ended a process comes alone.
            if let [only] = batch
                && suspects.is_spent(only, 2 * LETTER_ATTEMPTS_MAX)
            {
                let (bytes, reason) = (only.message.body.len(), suspects::reason(only));
                tracing::error!(%topic, bytes, reason, "a letter was dropped: it cannot be kept even without being read");
                return std::future::ready(Ok(1)).boxed();
            }
            let read = |delivery: &Delivery| {
                if suspects.is_spent(delivery, LETTER_ATTEMPTS_MAX) {
                    let reason = suspects::reason(delivery);
                    tracing::error!(%topic, reason, "a letter is kept without being read; see `sluice dead ls`");
                    return dead::unread(&workspace, &delivery.message, &topic, reason);
                }
                dead::read(&workspace, &delivery.message, &topic)
            };
            let read = batch.iter().map(read).collect();
            async move { letters.keep(&workspace, &held, read).await }.boxed()
        });
        let both = CancellationToken::new();
        let told = both.clone();
        let stop = stop.clone();
        self.process.tasks.spawn("library/attached", async move {
            let all = async { tokio::join!(answers.cancelled(), keeps.cancelled()) };
            stop.run_until_cancelled(all).await;
            told.cancel();
        });
        both
    }

    fn count_reports(&self, workspace: &str, topic: Topic, stop: &CancellationToken) -> CancellationToken {
        let (progress, removals) = (self.progress.clone(), self.removals.clone());
        let workspace = Arc::<str>::from(workspace);
        let ready = |_| std::future::ready(Ok(BATCH_MESSAGES_MAX)).boxed();
        let suspects = self.process.suspects.clone();
        self.consume(topic, LIBRARIAN, stop, ready, move |topic, batch| {
            let count = batch.len();
            let (progress, removals, workspace) = (progress.clone(), removals.clone(), workspace.clone());
            let read = |delivery: &Delivery| {
                if suspects.is_spent(delivery, REPORT_ATTEMPTS_MAX) {
                    tracing::error!(%topic, reason = suspects::reason(delivery), "a progress report was dropped");
                    return None;
                }
                match wire::decode::<StageReport>(&delivery.message.body) {
                    Ok(report) => {
                        let pass = delivery.message.get(property::PASS);
                        Some((pass.and_then(|pass| pass.parse().ok()), report))
                    }
                    Err(error) => {
                        tracing::warn!(%topic, %error, "a progress report that cannot be read was dropped");
                        None
                    }
                }
            };
            let reports: Vec<(Option<i64>, StageReport)> = batch.iter().filter_map(read).collect();
            async move {
                let reports = removals.live(&workspace, reports).await?;
                progress.count(&workspace, &reports).await.map(|()| count)
            }
            .boxed()
        })
    }

    /// Takes whatever has arrived, hands it over as one batch, settles as many of the first as it says are done; a batch that
    /// fails comes back, uncounted: only what ended the process counts. A message that may have is a batch of its own. What is not done goes back too, and nothing is taken until `ready` says how many may come; if
    /// that takes time, it tells so by the token.
    fn consume<R, F>(
        &self,
        topic: Topic,
        name: &str,
        stop: &CancellationToken,
        ready: R,
        work: F,
    ) -> CancellationToken
    where
        R: Fn(CancellationToken) -> BoxFuture<'static, Result<usize, Error>> + Clone + Send + Sync + 'static,
        F: Fn(Topic, &[Delivery]) -> BoxFuture<'static, Result<usize, Error>> + Clone + Send + Sync + 'static,
    {
        let attached = CancellationToken::new();
        let name = name.to_owned();
        let (broker, told, stop) = (self.process.broker.clone(), attached.clone(), stop.clone());
        let suspects = self.process.suspects.clone();
        let missing = self.process.missing.clone();
        self.process.tasks.supervise(format!("library/{topic}"), Backoff::default(), move || {
            let (broker, name, topic) = (broker.clone(), name.clone(), topic.clone());
            let missing = missing.clone();
            let (told, stop, ready, work) = (told.clone(), stop.clone(), ready.clone(), work.clone());
            let suspects = suspects.clone();
            async move {
                let consuming = async {
                    loop {
                        let wanted = ready(told.clone()).await?.min(BATCH_MESSAGES_MAX);
                        let prefetch = u32::try_from(wanted).unwrap_or(u32::MAX);
                        let (topic, name) = (topic.clone(), name.clone());
                        let to = Subscription::Shared { topic: topic.clone(), name, prefetch };
                        let inbox = broker.subscribe(&to).await?;
                        told.cancel();
                        loop {
                            let mut batch = batch(&*inbox, &suspects, &stop).await?;
                            let done = work(topic.clone(), &batch).await;
                            batch.drain(..done.as_ref().map_or(0, |done| *done)).for_each(Delivery::ack);
                            let is_done = batch.is_empty();
                            batch.into_iter().for_each(|delivery| delivery.untried(Duration::ZERO));
                            done?;
                            // With little room it is asked again after each batch: there may be more by now.
                            if !is_done || wanted < BATCH_MESSAGES_MAX {
                                break;
                            }
                        }
                    }
                };
                // A batch cut by the stop comes back; having it twice changes nothing.
                let ended: Result<(), Error> = stop.run_until_cancelled(consuming).await.unwrap_or(Ok(()));
                if let Err(Error::Bus(error)) = &ended {
                    missing.report(error);
                }
                ended.map_err(|error| crate::error::cause(&error))
            }
        });
        attached
    }

    /// Makes so what a crash or a failure left wished, now and whenever a removal could not be done at once.
    fn finish_removals(&self, workspace: &str, stop: &CancellationToken) {
        let (removals, workspace, stop) = (self.removals.clone(), workspace.to_owned(), stop.clone());
        self.process.tasks.supervise(
            format!("library/removals/{workspace}"),
            Backoff::default(),
            move || {
                let (removals, workspace, stop) = (removals.clone(), workspace.clone(), stop.clone());
                let mut poked = removals.poke.subscribe();
                async move {
                    let finishing = async {
                        loop {
                            removals.resume(&workspace).await?;
                            if poked.changed().await.is_err() {
                                return Ok(());
                            }
                        }
                    };
                    stop.run_until_cancelled(finishing).await.unwrap_or(Ok(()))
                }
                .map(|ended: Result<(), Error>| ended.map_err(|error| crate::error::cause(&error)))
            },
        );
    }

    /// Does what a crash left undone, trying until it is.
    fn resume(&self, workspace: &str, stop: &CancellationToken) {
        let (librarian, workspace, stop) = (self.librarian.clone(), workspace.to_owned(), stop.clone());
        self.process.tasks.supervise(format!("library/resume/{workspace}"), Backoff::default(), move || {
            let (librarian, workspace, stop) = (librarian.clone(), workspace.clone(), stop.clone());
            async move {
                let resuming = async {
                    if let Err(error) = librarian.uploads.sweep(&workspace).await {
                        tracing::warn!(workspace, %error, "old uploads could not be removed");
                    }
                    librarian.processings.resume(&workspace).await
                };
                stop.run_until_cancelled(resuming).await.unwrap_or(Ok(()))
            }
            .map(|ended: Result<(), Error>| ended.map_err(|error| crate::error::cause(&error)))
        });
    }
}

/// The next delivery and those right behind it; one that may have ended a process alone.
async fn batch(
    inbox: &dyn Inbox,
    suspects: &Suspects,
    stop: &CancellationToken,
) -> Result<Vec<Delivery>, Error> {
    let first = inbox.next().await?.cut_by(stop);
    if suspects.is_suspect(&first) {
        return Ok(vec![inbox.begin(first).await?]);
    }
    let mut batch = vec![first];
    let mut bytes = batch[0].message.body.len();
    while batch.len() < BATCH_MESSAGES_MAX && bytes < BATCH_BYTES_MAX {
        match inbox.next().now_or_never() {
            Some(Ok(delivery)) if suspects.is_suspect(&delivery) => {
                delivery.untried(Duration::ZERO);
                break;
            }
            Some(Ok(delivery)) => {
                bytes += delivery.message.body.len();
                batch.push(delivery.cut_by(stop));
            }
            // What is wrong with the inbox is told again when the next batch is asked for.
            Some(Err(_)) | None => break,
        }
    }
    Ok(batch)
}
