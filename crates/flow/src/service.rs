//! The wire: reads a request, writes the wish, waits for the report.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};
use sluice_bus::{BrokerAdmin, PoisonBound, TopicSpec};
use sluice_schema::ceilings::json_bytes;
use sluice_schema::listing::{self, Page};
use sluice_schema::message::{self, ConfigKey, FlowRequest, FlowResponse, FlowRow};
use sluice_schema::{Topic, WorkspaceId, exchange, ids, record, system, wire};
use sluice_sdk::workspaces::WorkspaceService;
use sluice_sdk::{ConfigClient, ConfigError, Point, Process, Responder, service};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::blueprint::{Blueprint, Ports};
use crate::board::{Board, Phase, Report};
use crate::decide::{self, Asked, Decision, Refusal, Start};
use crate::doctor;
use crate::lead::Leader;
use crate::memory::{Drain, FlowKey, Records, Wish};
use crate::mirror::Mirror;
use crate::texts::Text;
use crate::view;

/// Times a decision is made anew because somebody else decided meanwhile.
const TRIES_MAX: u32 = 16;
/// How often a service that does not act itself asks how far the one that acts has got.
const STANDBY_POLL: Duration = Duration::from_millis(250);
/// Texts read at once for one decision.
const READS_MAX: usize = 16;
/// How long each look of a doctor may take.
const DOCTOR_TIMEOUT: Duration = Duration::from_secs(15);

/// What request handlers share.
pub(crate) struct Desk {
    pub(crate) config: Arc<ConfigClient>,
    pub(crate) admin: Arc<dyn BrokerAdmin>,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) board: Arc<Board>,
    pub(crate) poke: Arc<Notify>,
    pub(crate) ports: Ports,
    pub(crate) drain_timeout: Duration,
    pub(crate) answer_within: Duration,
    /// The broker's largest message, in bytes.
    pub(crate) message_bytes_max: usize,
    /// One decision at a time: the next sees the one before.
    pub(crate) deciding: Mutex<()>,
    /// And one of each workspace that waits for that, so that many of one keep no other waiting.
    pub(crate) turns: Turns,
}

/// Whose turn it is in each workspace.
#[derive(Default)]
pub(crate) struct Turns(std::sync::Mutex<HashMap<Box<str>, Weak<Mutex<()>>>>);

impl Turns {
    async fn take(&self, workspace: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = turns.get(workspace).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                turns.retain(|_, turn| turn.strong_count() > 0);
                let turn = Arc::default();
                turns.insert(workspace.into(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// Serves one request topic per workspace.
pub(crate) struct Doors {
    pub(crate) process: Process,
    pub(crate) desk: Arc<Desk>,
}

impl WorkspaceService for Doors {
    fn topics(&self, workspace: &str) -> Vec<TopicSpec> {
        let workspace = WorkspaceId::existing(workspace);
        vec![
            TopicSpec::with(system::flow_request(&workspace), system::FLOW_SVC),
            TopicSpec::bare(system::flow_response(&workspace)),
        ]
    }

    async fn start(&self, workspace: &str, stop: CancellationToken) {
        let id = WorkspaceId::existing(workspace);
        let point = Point::new(system::flow_request(&id), system::flow_response(&id), system::FLOW_SVC);
        let desk = self.desk.clone();
        let handler = move |request: FlowRequest, responder: Responder<exchange::Flow>| {
            let (desk, workspace) = (desk.clone(), id.clone());
            async move {
                let asked = Asked { id: responder.id(), is_repeated: responder.is_repeated() };
                desk.answer(&workspace, request, asked, &responder).await.map_err(|error| error.told())
            }
        };
        let attached = service::serve::<exchange::Flow, _, _>(&self.process, point, stop.clone(), handler);
        stop.run_until_cancelled(attached.cancelled()).await;
    }
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("Bad operation")]
    Operation,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Name(#[from] ids::IdError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{}", .0.message)]
    List(message::Error),
    #[error("others keep deciding about flows; nothing was changed, try again")]
    Contended,
    #[error("{0}")]
    Ended(String),
    #[error("{0}")]
    NotYet(String),
}

impl Error {
    fn told(self) -> message::Error {
        let kind = match &self {
            Self::Operation => "bad-operation",
            Self::NotYet(_) => "timeout",
            Self::Refused(Refusal::Repeated) => message::Error::OUTCOME_UNKNOWN,
            Self::Config(error) if error.outcome_is_unknown() => message::Error::OUTCOME_UNKNOWN,
            Self::List(error) => &error.r#type,
            Self::Refused(Refusal::TooLarge(_)) => message::Error::TOO_LARGE,
            Self::Config(ConfigError::Refused { kind, .. }) if kind == message::Error::TOO_LARGE => {
                message::Error::TOO_LARGE
            }
            // Nothing is wrong with the request: it may succeed later.
            Self::Config(error) => error.for_later().unwrap_or("flow-error"),
            _ => "flow-error",
        };
        let text = match &self {
            Self::Config(error @ ConfigError::Refused { message: text, .. })
                if error.for_later().is_some() =>
            {
                text.clone()
            }
            Self::Config(ConfigError::Refused { kind, message }) => format!("{kind}: {message}"),
            Self::Config(ConfigError::Conflict(_)) => Self::Contended.to_string(),
            Self::Config(ConfigError::Bus(error)) => {
                tracing::warn!(%error, "config did not answer");
                "Config service did not respond".to_owned()
            }
            Self::Operation
            | Self::Refused(_)
            | Self::Name(_)
            | Self::List(_)
            | Self::Contended
            | Self::Ended(_)
            | Self::NotYet(_) => self.to_string(),
        };
        message::Error::new(kind, text)
    }
}

impl From<crate::blueprint::Error> for Error {
    fn from(error: crate::blueprint::Error) -> Self {
        Self::Refused(error.into())
    }
}

impl Desk {
    async fn answer(
        &self,
        ws: &WorkspaceId,
        ask: FlowRequest,
        asked: Asked<'_>,
        answer: &Responder<exchange::Flow>,
    ) -> Result<FlowResponse, Error> {
        match ask.operation.as_str() {
            "list-blueprints" => self.list_blueprints(ws, &ask, answer).await,
            "get-blueprint" => self.get_blueprint(ws, &ask, answer).await,
            "put-blueprint" => self.put_blueprint(ws, &ask).await,
            "delete-blueprint" => self.delete_blueprint(ws, &ask).await,
            "list-flows" => self.list_flows(ws, &ask, answer).await,
            "get-flow" | "status" => self.get_flow(ws, &ask).await,
            "doctor" => self.doctor(ws).await,
            "start-flow" => self.start_flow(ws, &ask, asked).await,
            "stop-flow" => self.stop_flow(ws, &ask, asked).await,
            _ => Err(Error::Operation),
        }
    }

    async fn list_blueprints(
        &self,
        ws: &WorkspaceId,
        ask: &FlowRequest,
        answer: &Responder<exchange::Flow>,
    ) -> Result<FlowResponse, Error> {
        let records = self.mirror.refresh().await?;
        let list = |page: Page<String>| {
            let keys = records.blueprints.iter().map(|(key, _)| key);
            let names = keys.filter(|key| *key.workspace == *ws.as_str());
            let items = names.map(|key| (&*key.id, key.id.to_string()));
            std::future::ready(page.fill(&ask.cursor, items, |name| json_bytes(name)))
        };
        let page = answer.list(ask.bytes_max, list).await.map_err(Error::List)?;
        Ok(FlowResponse { blueprint_names: page.items, cursor: page.cursor, ..Default::default() })
    }

    async fn get_blueprint(
        &self,
        ws: &WorkspaceId,
        ask: &FlowRequest,
        answer: &Responder<exchange::Flow>,
    ) -> Result<FlowResponse, Error> {
        let name = blueprint_name(ask)?;
        let found = self.config.get(ws.as_str(), record::BLUEPRINT, name).await?;
        let blueprint_definition = found.and_then(|value| value.value).ok_or(Refusal::NoBlueprint)?;
        answer.room_for(blueprint_definition.len()).await.map_err(Error::List)?;
        Ok(FlowResponse { blueprint_definition, ..Default::default() })
    }

    async fn put_blueprint(&self, ws: &WorkspaceId, ask: &FlowRequest) -> Result<FlowResponse, Error> {
        let name = ids::Name::parse(blueprint_name(ask)?)?;
        let blueprint = Blueprint::read(&ask.blueprint_definition)?;
        blueprint.check_doors(ws)?;
        let text = ask.blueprint_definition.as_str();
        let value = sluice_sdk::config::value(ws.as_str(), record::BLUEPRINT, name.as_str(), text);
        self.config.put(ws.as_str(), vec![value]).await?;
        Ok(FlowResponse { warnings: blueprint.undeclared(), ..Default::default() })
    }

    async fn delete_blueprint(&self, ws: &WorkspaceId, ask: &FlowRequest) -> Result<FlowResponse, Error> {
        let key = ConfigKey { r#type: record::BLUEPRINT.to_owned(), key: blueprint_name(ask)?.to_owned() };
        self.config.delete(ws.as_str(), vec![key]).await?;
        Ok(FlowResponse::default())
    }

    async fn list_flows(
        &self,
        ws: &WorkspaceId,
        ask: &FlowRequest,
        answer: &Responder<exchange::Flow>,
    ) -> Result<FlowResponse, Error> {
        let records = self.mirror.refresh().await?;
        let keys = view::ids(ws, &records);
        let list = |page: Page<FlowRow>| {
            let items = keys.iter().map(|key| (&*key.id, view::row(key, &records, &self.board)));
            let bytes = |row: &FlowRow| wire::encode(row).len() + json_bytes(&row.id);
            std::future::ready(page.fill(&ask.cursor, items, bytes))
        };
        let page = answer.list(ask.bytes_max, list).await.map_err(Error::List)?;
        Ok(FlowResponse {
            flow_ids: page.items.iter().map(|row| row.id.clone()).collect(),
            flows: page.items,
            cursor: page.cursor,
            ..Default::default()
        })
    }

    /// Looks at everything that findings may come from, at once and each for a bounded time; changes nothing.
    async fn doctor(&self, ws: &WorkspaceId) -> Result<FlowResponse, Error> {
        let records = self.mirror.refresh().await?;
        let keys = view::ids(ws, &records);
        let wishes = keys.iter().filter_map(|key| view::wish(key, &records));
        let mut topics: BTreeMap<&Topic, BTreeSet<&String>> = BTreeMap::new();
        for topic in wishes.flat_map(|wish| &wish.topology.topics) {
            topics.entry(&topic.topic).or_default().extend(&topic.subscriptions);
        }
        let spec = |(topic, names): (&Topic, BTreeSet<&String>)| TopicSpec {
            topic: topic.clone(),
            subscriptions: names.into_iter().cloned().collect(),
        };
        let specs: Vec<_> = topics.into_iter().map(spec).collect();
        let (seen, listed, broker, poison, leader) = tokio::join!(
            within(DOCTOR_TIMEOUT, self.admin.observe(&specs)),
            within(DOCTOR_TIMEOUT, self.admin.list("")),
            within(DOCTOR_TIMEOUT, self.admin.examine()),
            within(DOCTOR_TIMEOUT, self.poison()),
            Leader::read(&self.config),
        );
        let looked = doctor::Looked {
            workspace: ws,
            records: &records,
            board: &self.board,
            leader: leader?,
            seen: seen.map(|seen| seen.into_iter().map(|seen| (seen.topic.clone(), seen)).collect()),
            listed,
            broker,
            poison: poison.ok().flatten(),
        };
        let findings = doctor::within(doctor::findings(&looked), listing::room(self.message_bytes_max));
        Ok(FlowResponse { findings, ..Default::default() })
    }

    /// Whether the broker ends loops of foreign readers. Asked only where its reader is there: then the library has told
    /// the broker the same before, and telling it again changes nothing.
    async fn poison(&self) -> sluice_bus::Result<Option<PoisonBound>> {
        let spec = TopicSpec::with(system::poison(), system::LIBRARIAN);
        let seen = self.admin.observe(std::slice::from_ref(&spec)).await?;
        if !seen.iter().any(|seen| seen.exists && seen.subscriptions.iter().any(|s| s.exists)) {
            return Ok(None);
        }
        self.admin.bound_poison(&spec.topic).await.map(Some)
    }

    async fn get_flow(&self, ws: &WorkspaceId, ask: &FlowRequest) -> Result<FlowResponse, Error> {
        let key = FlowKey::new(ws.as_str(), &ask.flow_id);
        let records = self.mirror.refresh().await?;
        let wish = records.wishes.get(&key).and_then(|r| r.value.as_deref().ok());
        let flow = match (records.flows.get(&key).map(|r| &r.value), wish) {
            (Some(Ok(flow)), _) => (**flow).clone(),
            (_, Some(wish)) => wish.public(),
            (Some(Err(reason)), None) => {
                let what = format!("the record of flow '{key}'");
                return Err(Refusal::Unreadable { what, reason: reason.clone() }.into());
            }
            (None, None) if ask.flow_id.is_empty() => return Err(Refusal::NoFlowId.into()),
            (None, None) => return Err(Refusal::Unknown(ask.flow_id.clone()).into()),
        };
        let parameters = flow.parameters.iter().map(|(name, value)| {
            (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        });
        Ok(FlowResponse {
            parameters: parameters.collect(),
            description: flow.description.clone(),
            status: self.status(&key, &records).await.to_string(),
            warnings: wish.map(|wish| wish.warnings.clone()).unwrap_or_default(),
            flow: serde_json::to_string(&flow).unwrap_or_default(),
            ..Default::default()
        })
    }

    /// Phase, run, last report and every queue as it is now.
    async fn status(&self, key: &FlowKey, records: &Records) -> Value {
        let mut status = view::status(key, records, &self.board);
        let Some(wish) = view::wish(key, records) else { return status };
        status["blueprint"] = json!(wish.blueprint);
        status["description"] = json!(wish.description);
        let specs: Vec<_> = wish.topology.topics.iter().map(crate::blueprint::OwnedTopic::spec).collect();
        let seen = tokio::time::timeout(Duration::from_secs(2), self.admin.observe(&specs)).await;
        if let Ok(Ok(seen)) = seen {
            let queues = seen.iter().flat_map(|seen| {
                seen.subscriptions.iter().filter(|s| s.exists).map(|s| {
                    json!({"topic": seen.topic, "subscription": s.name, "ready": s.ready,
                           "unsettled": s.unsettled, "consumers": s.consumers})
                })
            });
            status["queues"] = queues.collect();
        }
        status
    }

    async fn start_flow(
        &self,
        ws: &WorkspaceId,
        ask: &FlowRequest,
        asked: Asked<'_>,
    ) -> Result<FlowResponse, Error> {
        let deadline = Instant::now() + self.answer_within;
        let start = Start {
            workspace: ws,
            id: &ask.flow_id,
            blueprint: &ask.blueprint_name,
            description: &ask.description,
            given: &ask.parameters,
            asked,
            drain: Drain::Discard,
        };
        let wish = self.decide(ws.as_str(), |records| decide::start(records, &self.ports, start)).await?;
        let key = FlowKey::new(ws.as_str(), &ask.flow_id);
        let report = self.started(&key, &wish, deadline).await?;
        Ok(answer(&report))
    }

    async fn stop_flow(
        &self,
        ws: &WorkspaceId,
        ask: &FlowRequest,
        asked: Asked<'_>,
    ) -> Result<FlowResponse, Error> {
        let deadline = Instant::now() + self.answer_within;
        let key = FlowKey::new(ws.as_str(), &ask.flow_id);
        if let Some(report) = self.board.ended_by(&key, asked.id) {
            return Ok(answer(&report));
        }
        let drain = decide::drain(ask.drain.as_deref(), self.drain_timeout)?;
        if asked.is_repeated && self.was_ended_by(&key, asked.id).await? {
            return Ok(FlowResponse {
                status: json!({"phase": Phase::Gone}).to_string(),
                ..Default::default()
            });
        }
        let wish = self
            .decide(ws.as_str(), |records| decide::stop(records, &self.ports, &key, drain, asked))
            .await?;
        let report = self.stopped(&key, &wish, deadline).await?;
        Ok(answer(&report))
    }

    /// Whether the last run of a flow was ended by this very request, whichever service it was handed to then.
    async fn was_ended_by(&self, key: &FlowKey, request: &str) -> Result<bool, Error> {
        let records = self.mirror.refresh().await?;
        let row = records.runs.get(key).and_then(|recorded| recorded.value.as_deref().ok());
        Ok(row.is_some_and(|row| row.ended_by == request))
    }

    /// Decides on fresh records and writes the decision; anew when somebody else was faster.
    async fn decide(
        &self,
        workspace: &str,
        decide: impl Fn(&Records) -> Result<Decision, Refusal>,
    ) -> Result<Box<Wish>, Error> {
        let _turn = self.turns.take(workspace).await;
        let _one_at_a_time = self.deciding.lock().await;
        let mut doubt = None;
        for _ in 0..TRIES_MAX {
            let mut records = self.mirror.refresh().await?;
            let decided = loop {
                match decide(&records) {
                    Err(Refusal::Elsewhere { workspace, kind, names }) => {
                        let workspace = workspace.as_str();
                        let read = stream::iter(names).map(async |name| {
                            let found = self.config.get(workspace, kind, &name).await?;
                            let text =
                                found.and_then(|value| value.value).map(|text| Text::Kept(text.into()));
                            Ok::<_, ConfigError>((FlowKey::new(workspace, &name), text))
                        });
                        let read: Vec<_> = read.buffer_unordered(READS_MAX).try_collect().await?;
                        if let Some(texts) = Arc::make_mut(&mut records).texts(kind) {
                            read.into_iter().for_each(|(key, text)| texts.put(key, text));
                        }
                    }
                    decided => break decided?,
                }
            };
            let (wish, mut write) = match decided {
                Decision::Join(wish) => {
                    // The loop may have looked before the wish was there.
                    self.poke.notify_one();
                    return Ok(wish);
                }
                Decision::Write(wish, write) => (wish, write),
            };
            // Where another service acts, it has to hear of it.
            write.quiet &= self.board.leads();
            match self.config.apply(write).await {
                Ok(_) => {
                    self.poke.notify_one();
                    return Ok(wish);
                }
                Err(ConfigError::Conflict(_)) => doubt = None,
                // Looking again tells: the wish carries the request that made it.
                Err(error) if error.outcome_is_unknown() => {
                    tracing::debug!(%error, "a decision may or may not be written; deciding again");
                    doubt = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(doubt.map_or(Error::Contended, Error::Config))
    }

    async fn started(&self, key: &FlowKey, wish: &Wish, deadline: Instant) -> Result<Report, Error> {
        let id = &key.id;
        let mut last = None;
        let mut changes = self.board.changes();
        loop {
            if let Some(report) = self.board.current(key).filter(|r| r.generation >= wish.generation) {
                match report.phase {
                    _ if report.generation > wish.generation => {
                        return Err(Error::Ended(format!("flow '{id}' was stopped before it was started")));
                    }
                    Phase::Running | Phase::Degraded => return Ok(report),
                    Phase::Failed if report.is_final => {
                        return Err(Error::Ended(not_started(id, Some(&report))));
                    }
                    Phase::Failed
                    | Phase::Starting
                    | Phase::Draining
                    | Phase::Stopping
                    | Phase::Unmanaged
                    | Phase::Gone => {}
                }
                last = Some(report);
            } else if self.board.ended(key, wish).is_some() {
                return Err(Error::Ended(format!("flow '{id}' was stopped before it was started")));
            }
            if !self.wait(&mut changes, deadline).await {
                return Err(Error::NotYet(not_started(id, last.as_ref())));
            }
            if last.is_none() && self.is_open(key, wish).await {
                return Ok(Report::new(Phase::Running, wish));
            }
        }
    }

    async fn stopped(&self, key: &FlowKey, wish: &Wish, deadline: Instant) -> Result<Report, Error> {
        let mut changes = self.board.changes();
        loop {
            if let Some(report) = self.board.ended(key, wish) {
                return Ok(report);
            }
            let last = self.board.current(key);
            if !self.wait(&mut changes, deadline).await {
                return Err(Error::NotYet(not_stopped(&key.id, last.as_ref())));
            }
            if last.is_none() && self.is_gone(key, wish).await {
                let ended = self.board.ended(key, wish);
                return Ok(ended.unwrap_or_else(|| Report::new(Phase::Gone, wish)));
            }
        }
    }

    /// Waits for news, or for the time to ask who acts; false at the deadline.
    async fn wait(&self, changes: &mut tokio::sync::watch::Receiver<u64>, deadline: Instant) -> bool {
        let poll = (Instant::now() + STANDBY_POLL).min(deadline);
        let _ = timeout_at(poll, changes.changed()).await;
        Instant::now() < deadline
    }

    /// What a service that does not act itself can see of a start: the record appears when the topics are there.
    async fn is_open(&self, key: &FlowKey, wish: &Wish) -> bool {
        let Ok(records) = self.mirror.refresh().await else { return false };
        let flow = records.flows.get(key).and_then(|r| r.value.as_deref().ok());
        flow.is_some_and(|flow| *flow == wish.public())
    }

    async fn is_gone(&self, key: &FlowKey, wish: &Wish) -> bool {
        let Ok(records) = self.mirror.refresh().await else { return false };
        let now = records.wishes.get(key).and_then(|r| r.value.as_deref().ok());
        !records.wishes.contains_key(key) || now.is_some_and(|now| now.run != wish.run)
    }
}

/// An answer in time, or why there is none, as text.
async fn within<T>(limit: Duration, call: impl Future<Output = sluice_bus::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

fn blueprint_name(ask: &FlowRequest) -> Result<&str, Refusal> {
    if ask.blueprint_name.is_empty() { Err(Refusal::NoBlueprintName) } else { Ok(&ask.blueprint_name) }
}

fn answer(report: &Report) -> FlowResponse {
    let status = serde_json::to_string(report).unwrap_or_default();
    FlowResponse { status, warnings: report.warnings.clone(), ..Default::default() }
}

fn not_started(id: &str, report: Option<&Report>) -> String {
    let reason = report.and_then(|r| r.last_error.as_deref()).unwrap_or("nobody has got to it yet");
    format!(
        "flow '{id}' could not be started yet: {reason}. It is tried again; get-flow shows how far it is, stop-flow ends it"
    )
}

fn not_stopped(id: &str, report: Option<&Report>) -> String {
    let reason = match report {
        None => "nobody has got to it yet".to_owned(),
        Some(report) => {
            let queues = report
                .draining
                .iter()
                .map(|q| format!("{} ({} waiting, {} in hand)", q.queue, q.ready, q.unsettled.unwrap_or(0)));
            let queues: Vec<_> = queues.collect();
            let parking =
                report.parking.iter().map(|q| format!("parking {} messages of {}", q.ready, q.queue));
            let parking = parking.collect::<Vec<_>>().join(", ");
            match &report.last_error {
                Some(error) if parking.is_empty() => error.clone(),
                Some(error) => format!("{parking}; the last try failed: {error}"),
                None if !report.held_by.is_empty() => format!("still held by {}", report.held_by.join(", ")),
                None if !queues.is_empty() => format!("still draining {}", queues.join(", ")),
                None if !parking.is_empty() => parking,
                None => "it is under way".to_owned(),
            }
        }
    };
    format!("flow '{id}' is not stopped yet: {reason}. The stop goes on; another stop-flow waits for it")
}
