//! The hallway behind both doors: every call takes the same steps in the same order, and is refused by the same lines.
//!
//! Operation, caller, workspace, permission, translation, route, question. What comes back is an [`Answer`] that hands
//! out parts until the last; dropping it stops waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use sluice_bus::shares::{Share, Shares};
use sluice_bus::{Address, Error, ErrorKind, Message, Patience, RawCall, Replies, property};
use sluice_schema::api::{self, Caller, Service};
use sluice_schema::operation::{self, Access, Kind, Level, Operation, Parameters};
use sluice_schema::{WorkspaceId, message, system};
use sluice_sdk::Process;
use sluice_sdk::watch::ConfigWatch;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{Answer, CallShare, Source, Stream, Taker};
use crate::browser::Browsers;
use crate::identity::{self, Gatekeeper, Identity, Origin, Permission};
use crate::metrics::Metrics;
use crate::refusal::{BUS_UNAVAILABLE, PROCESS_TROUBLED, Refusal};
use crate::routes::{Flow, Route, Routes, Services, Snapshot};
use crate::{NoRoom, Options};

/// Pauses between looks at a queue that was announced a moment ago and is not there yet.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);
/// Bodies of calls without a credential, all together.
const PUBLIC_BODIES_BYTES_MAX: usize = 1 << 20;
/// What a call's body counts for from the start, if there is so much; most bodies need no more when they are read.
const SMALL_BODY_BYTES: usize = 16 << 10;
/// Large bodies that are read as JSON at once; each takes a thread.
const BODY_READERS_MAX: usize = 2;
/// Refused bodies of strangers that are read to their end, so that their senders see why.
const STRANGERS_LINGERING_MAX: usize = 64;

/// The interface that takes in texts, and how many times its bytes what becomes of one takes while it waits: some six were
/// seen.
const TEXT_LOAD: &str = "text-load";
const TEXT_GROWTH: &str = "6";

/// What both doors share.
pub(crate) struct Hall {
    pub(crate) options: Options,
    pub(crate) gate: Gatekeeper,
    pub(crate) browsers: Browsers,
    pub(crate) metrics: Metrics,
    pub(crate) process: Process,
    no_room: Option<NoRoom>,
    routes: Routes,
    config: ConfigWatch,
    iam: Arc<Route>,
    /// Calls that come in, by who makes them.
    calls: Arc<Shares>,
    /// Calls under way, by where: see [`holder`].
    under_way: Arc<Shares>,
    /// Bytes of bodies, by whose they are.
    bodies: Arc<Shares>,
    /// Bytes of answers, by where they are asked for and by whom.
    answers: Arc<Shares>,
    /// Calls without a credential, by address.
    public_calls: Arc<Shares>,
    public_bodies: Arc<Shares>,
    pub(crate) body_readers: Semaphore,
    pub(crate) strangers_lingering: Semaphore,
    /// Cancelled when nothing new is taken in.
    pub(crate) stop: CancellationToken,
    /// Cancelled when calls still under way are cut.
    pub(crate) cut: CancellationToken,
    /// Every open socket.
    pub(crate) sockets: TaskTracker,
}

/// Which door a call came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// One answer: its last message.
    Http,
    /// Every message of the answer.
    Socket,
}

/// One call, whichever door it came through.
pub(crate) struct Call<'a> {
    pub(crate) door: Door,
    /// `None` where nobody could be authenticated; only public operations go on.
    pub(crate) caller: Option<Arc<Identity>>,
    /// The workspace that the envelope names.
    pub(crate) workspace: Option<&'a str>,
    pub(crate) flow: Option<&'a str>,
    pub(crate) service: &'a str,
    pub(crate) body: Map<String, Value>,
    pub(crate) origin: &'a Origin,
}

/// Room for one call that comes in and its body, given back when dropped.
pub(crate) struct Room {
    call: Share,
    body: Share,
}

/// What a call under way counts for: its workspace, apart for flows, whose processors may take long, so that with whatever is under
/// way in one workspace there is room in others and for what undoes it. What happens in no workspace counts for its caller.
fn holder(caller: &Identity, workspace: &str, flow: Option<&str>) -> String {
    match (workspace, flow) {
        ("", _) => format!("\n{}", caller.handle),
        (workspace, None) => workspace.to_owned(),
        (workspace, Some(_)) => format!("{workspace}\nflows"),
    }
}

impl Room {
    /// Takes room for a body of at least so many bytes.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), Refusal> {
        let may = self.body.grow(bytes.saturating_sub(self.body.amount()));
        if may { Ok(()) } else { Err(Refusal::Overloaded(BODIES_FULL)) }
    }

    /// Takes room for what a body becomes when it is read.
    pub(crate) fn weigh(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes > self.body.most() {
            // It would never fit.
            return Err(Refusal::TooManyValues);
        }
        self.grow_to(bytes)
    }

    /// Gives back what the body took, and the call itself where it is counted as under way now.
    pub(crate) fn is_asked(&mut self, answer: &Answer) {
        self.body.clear();
        if answer.is_counted() {
            self.call.clear();
        }
    }
}

const CALLS_FULL: &str = "you have too many calls under way; wait for answers, then try again";
const WORKSPACE_FULL: &str = "this workspace has too many calls under way; wait for answers, then try again";
const BODIES_FULL: &str = "you have too many bytes under way; wait for answers, then try again";
const PUBLIC_FULL: &str = "too many calls without a credential are under way; try again in a moment";

impl Hall {
    pub(crate) fn new(
        process: Process,
        config: ConfigWatch,
        routes: Routes,
        metrics: Metrics,
        options: Options,
        no_room: Option<NoRoom>,
        stop: CancellationToken,
    ) -> Self {
        let replies = process.replies.clone();
        Self {
            gate: Gatekeeper::new(replies, options.iam_timeout, options.trust_timeout, metrics.clone()),
            browsers: Browsers::new(&options),
            metrics,
            process,
            no_room,
            routes,
            config,
            iam: Arc::new(Route::new(system::iam_request(), system::iam_response())),
            calls: Shares::new(options.calls_max),
            under_way: Shares::new(options.calls_max),
            bodies: Shares::new(options.bodies_bytes_max),
            answers: Shares::new(options.answers_bytes_max),
            public_calls: Shares::new(options.public_calls_max),
            public_bodies: Shares::new(PUBLIC_BODIES_BYTES_MAX),
            body_readers: Semaphore::new(BODY_READERS_MAX),
            strangers_lingering: Semaphore::new(STRANGERS_LINGERING_MAX),
            stop,
            cut: CancellationToken::new(),
            sockets: TaskTracker::new(),
            options,
        }
    }

    fn replies(&self) -> &Replies {
        &self.process.replies
    }

    /// Whether calls can be answered; if not, why.
    pub(crate) async fn look(&self) -> Result<(), Refusal> {
        if !self.routes.are_known() {
            return Err(Refusal::NotReady);
        }
        if let Some(reason) = self.process.trouble.reason() {
            return Err(Refusal::CannotAsk { kind: PROCESS_TROUBLED, reason: reason.to_string().into() });
        }
        if let Some(why) = self.no_room.as_ref().and_then(|no_room| no_room()) {
            return Err(Refusal::no_room(why));
        }
        self.gate.look().await
    }

    /// Room for one call of somebody who is known; refused only to those who have their share.
    pub(crate) fn room(&self, caller: &Identity) -> Result<Room, Refusal> {
        self.room_for(caller, None)
    }

    /// The same for a call of whose body so much is counted already.
    pub(crate) fn room_for(&self, caller: &Identity, body: Option<Share>) -> Result<Room, Refusal> {
        let call = self.calls.take(&caller.handle, 1).ok_or(Refusal::Overloaded(CALLS_FULL))?;
        let body = body.unwrap_or_else(|| self.bodies.share(&caller.handle, SMALL_BODY_BYTES));
        Ok(Room { call, body })
    }

    /// A share in the bytes of bodies, with nothing in it yet.
    pub(crate) fn body_share(&self, caller: &Identity) -> Share {
        self.bodies.share(&caller.handle, 0)
    }

    /// Room for one call without a credential, from a bound of its own.
    pub(crate) fn public_room(&self, origin: &Origin) -> Result<Room, Refusal> {
        let address = origin.address().map_or_else(String::new, |address| address.to_string());
        let call = self.public_calls.take(&address, 1).ok_or(Refusal::Overloaded(PUBLIC_FULL))?;
        Ok(Room { call, body: self.public_bodies.share(&address, 0) })
    }

    /// Takes a call through every step up to the question being asked.
    pub(crate) async fn enter(&self, call: Call<'_>) -> Result<Answer, Refusal> {
        let started = Instant::now();
        let operation = find(&call);
        let label = operation.as_ref().map_or("unknown", |operation| label(operation));
        let entered = match operation {
            Ok(operation) => self.walk(call, operation).await,
            Err(refusal) => Err(refusal),
        };
        match entered {
            Ok((source, share)) => {
                let taker = Taker { share, answers: self.answers.clone() };
                Ok(Answer::new(source, label, started, self.metrics.clone(), taker))
            }
            Err(refusal) => {
                self.metrics.called(label, false, started.elapsed());
                Err(refusal)
            }
        }
    }

    async fn walk(
        &self,
        call: Call<'_>,
        operation: &'static Operation,
    ) -> Result<(Source, Option<CallShare>), Refusal> {
        let service = api::find(call.service).ok_or(Refusal::UnknownKind)?;
        match (&call.caller, operation.level) {
            (None, _) if operation.access != Access::Public => Err(Refusal::Unauthenticated),
            (caller, Level::System) => {
                let share = caller.as_ref().map(|caller| self.take_call(caller, "", None)).transpose()?;
                let asked = Box::pin(self.ask_iam(call, operation, service));
                asked.await.map(|source| (source, share))
            }
            (None, Level::Workspace | Level::Flow) => Err(Refusal::Unauthenticated),
            (Some(caller), Level::Workspace | Level::Flow) => {
                let caller = caller.clone();
                let (source, share) = self.ask_in_workspace(call, &caller, operation, service).await?;
                Ok((source, Some(share)))
            }
        }
    }

    async fn ask_in_workspace(
        &self,
        mut call: Call<'_>,
        caller: &Identity,
        operation: &'static Operation,
        service: &'static Service,
    ) -> Result<(Source, CallShare), Refusal> {
        let workspace = workspace_of(&call, caller)?;
        self.permit(caller, operation, Some(&workspace), call.flow, None, call.origin).await?;
        let share = self.take_call(caller, &workspace, call.flow)?;
        let snapshot = self.snapshot_with(&workspace).await?;
        let services =
            snapshot.workspace(&workspace).map(|found| found.services.clone()).ok_or(Refusal::NoWorkspace)?;

        operation.check(&call.body).map_err(|reason| Refusal::failed("too-large", reason))?;
        call.body.insert("workspace".to_owned(), Value::String(workspace.clone()));
        // Policy attributes are the identity service's to give, never the caller's to claim.
        call.body.remove("user-context");
        let asked = encode(service, &mut call, caller)?;
        let question = Message::new(asked.body.clone()).with(property::TRACE, &call.origin.request_id);
        if is_ingress(operation) {
            self.check_pressure(&workspace)?;
        }
        let source = match call.flow {
            None => Box::pin(self.ask_service(asked, &services, question, call.door)).await?,
            Some(flow) => {
                let interface = api::interface(call.service);
                self.ask_flow(asked, (&workspace, flow, interface), snapshot, question, call.door).await?
            }
        };
        Ok((source, share))
    }

    fn take_call(
        &self,
        caller: &Identity,
        workspace: &str,
        flow: Option<&str>,
    ) -> Result<CallShare, Refusal> {
        let holder = holder(caller, workspace, flow);
        let full = if workspace.is_empty() { CALLS_FULL } else { WORKSPACE_FULL };
        let taken = self.under_way.take(&holder, 1).ok_or(Refusal::Overloaded(full))?;
        Ok(CallShare { holder: format!("{holder}\n{}", caller.handle), _taken: taken })
    }

    async fn permit(
        &self,
        caller: &Identity,
        operation: &Operation,
        workspace: Option<&str>,
        flow: Option<&str>,
        about: Option<&str>,
        origin: &Origin,
    ) -> Result<(), Refusal> {
        let Access::Capability(capability) = operation.access else { return Ok(()) };
        let permission = Permission { capability, workspace, flow, about };
        self.gate.authorise(caller, &permission, origin).await
    }

    /// Whether a caller may do something to the system itself.
    pub(crate) async fn permit_stream(
        &self,
        caller: &Identity,
        name: &str,
        origin: &Origin,
    ) -> Result<(), Refusal> {
        let operation = operation::find(Kind::Stream, name).ok_or(Refusal::UnknownOperation)?;
        self.permit(caller, operation, None, None, None, origin).await
    }

    /// The snapshot for this call: one that knows the workspace, which may have been made a moment ago.
    async fn snapshot_with(&self, workspace: &str) -> Result<Arc<Snapshot>, Refusal> {
        let now = self.routes.snapshot(self.options.ready_timeout).await.ok_or(Refusal::NotReady)?;
        if now.workspace(workspace).is_some() || workspace.starts_with('_') {
            return Ok(now);
        }
        let newer =
            Box::pin(self.look_again()).await.filter(|snapshot| snapshot.workspace(workspace).is_some());
        newer.ok_or(Refusal::NoWorkspace)
    }

    /// The snapshot after config was read again: what it does not hold was not there when the call came. `None` when config
    /// does not answer in time.
    async fn look_again(&self) -> Option<Arc<Snapshot>> {
        let looked = async {
            let view = self.config.look().await;
            self.routes.as_new_as(view.version).await
        };
        tokio::time::timeout(self.options.settle_timeout, looked).await.ok().flatten()
    }

    async fn ask_iam(
        &self,
        mut call: Call<'_>,
        operation: &'static Operation,
        service: &'static Service,
    ) -> Result<Source, Refusal> {
        let nobody = Identity { handle: "".into(), workspace: WorkspaceId::existing("default") };
        let caller = call.caller.clone();
        let caller = caller.as_deref().unwrap_or(&nobody);
        let about = match operation.parameters {
            Parameters::None => None,
            Parameters::Workspace => Some(about(&call.body, caller.workspace.as_str()).to_owned()),
        };
        self.permit(caller, operation, None, None, about.as_deref(), call.origin).await?;
        let asked = encode(service, &mut call, caller)?;
        let question = Message::new(asked.body.clone()).with(property::TRACE, &call.origin.request_id);
        let patience = Patience::total(self.options.iam_timeout);
        let is_try = operation.access == Access::Public;
        if is_try {
            self.gate.tries.check(call.origin)?;
        }
        let raw = self.settle_and_ask(&self.iam, question, patience).await;
        let raw = raw.map_err(|error| {
            tracing::warn!(%error, "the identity service could not be asked");
            identity::cannot_ask(&error, &*self.process.broker)
        })?;
        Ok(self.stream(raw, asked, None))
    }

    async fn ask_service(
        &self,
        asked: api::Call,
        services: &Services,
        question: Message,
        door: Door,
    ) -> Result<Source, Refusal> {
        let service = asked.service();
        let route = services.route(service).ok_or(Refusal::UnknownOperation)?;
        let raw = self.settle_and_ask(&route, question, self.patience(door));
        let raw = services.gone.run_until_cancelled(raw).await.ok_or(Refusal::NoWorkspace)?;
        let raw = raw.map_err(|error| match self.told(&error, "gateway-error", service.name) {
            // Nothing happened. Its topic is there, so it is part of the system, and its queue is made again.
            Refusal::Failed(told)
                if matches!(error, Error::Unroutable { .. } | Error::NoSubscription { .. }) =>
            {
                Refusal::Later(told)
            }
            refusal => refusal,
        })?;
        Ok(self.stream(raw, asked, Some((services.gone.clone(), Refusal::NoWorkspace))))
    }

    async fn ask_flow(
        &self,
        asked: api::Call,
        (workspace, id, interface): (&str, &str, &str),
        snapshot: Arc<Snapshot>,
        question: Message,
        door: Door,
    ) -> Result<Source, Refusal> {
        let find =
            |snapshot: &Snapshot| snapshot.workspace(workspace).and_then(|found| found.flow(id).cloned());
        let flow = match find(&snapshot) {
            // It may have been started a moment ago.
            None => Box::pin(self.look_again()).await.and_then(|newer| find(&newer)),
            found => found,
        };
        let flow_error = |text: String| Refusal::failed("flow-error", text);
        let doors = match flow {
            Some(Flow::Open(doors)) => doors,
            Some(Flow::Stopping(_)) => return Err(flow_error(format!("flow {workspace}/{id} is stopping"))),
            Some(Flow::Unrouted(reason)) => {
                return Err(flow_error(format!("flow {workspace}/{id} cannot be called: {reason}")));
            }
            None => return Err(flow_error(format!("Invalid flow {workspace}/{id}"))),
        };
        let unsupported = || flow_error("This kind not supported by flow".to_owned());
        let found = doors.interfaces.get(interface).ok_or_else(unsupported)?;
        let stopped = flow_error("flow stopped".to_owned());
        if asked.service().door == api::Door::Send {
            let inlet = found.inlet.clone().ok_or_else(unsupported)?;
            let question = match interface {
                TEXT_LOAD => question.with(property::GROWTH, TEXT_GROWTH),
                _ => question,
            };
            let sent = doors.gone.run_until_cancelled(self.hand_in(inlet, question));
            return Box::pin(sent).await.ok_or(stopped)?.map(|()| Source::Accepted);
        }
        let route = found.route.as_ref().ok_or_else(unsupported)?;
        let raw = async {
            route.listen(self.replies()).await?;
            self.replies().ask(&route.request, question, self.patience(door)).await
        };
        let raw = tokio::select! {
            biased;
            () = doors.gone.cancelled() => return Err(stopped),
            raw = raw => raw.map_err(|error| self.told(&error, "flow-error", interface))?,
        };
        Ok(self.stream(raw, asked, Some((doors.gone.clone(), stopped))))
    }

    fn stream(&self, raw: RawCall, asked: api::Call, gone: Option<(CancellationToken, Refusal)>) -> Source {
        Source::Service(Box::new(Stream { raw, asked, gone, cut: self.cut.clone() }))
    }

    async fn hand_in(&self, inlet: Address, message: Message) -> Result<(), Refusal> {
        let sent = self.settle_and_send(&inlet, message);
        match tokio::time::timeout(self.options.call_timeout, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.told(&error, "flow-error", "this flow")),
            Err(_) => Err(Refusal::failed("gateway-error", "Timeout")),
        }
    }

    /// Sends into a flow. A queue that somebody removed is made again within moments, as the flow service is told of it.
    async fn settle_and_send(&self, inlet: &Address, message: Message) -> sluice_bus::Result<()> {
        let until = Instant::now() + self.options.settle_timeout;
        loop {
            match self.process.broker.publish(inlet, message.clone()).await {
                // Nothing was kept, so sending again sends once.
                Err(Error::NoReader { .. } | Error::NoTopic { .. }) if Instant::now() < until => {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                sent => return sent,
            }
        }
    }

    /// Asks a system service, whose queues may be a moment behind the news of their workspace.
    async fn settle_and_ask(
        &self,
        route: &Route,
        question: Message,
        patience: Patience,
    ) -> sluice_bus::Result<RawCall> {
        let until = Instant::now() + self.options.settle_timeout;
        loop {
            let asked = async {
                route.listen(self.replies()).await?;
                self.replies().ask(&route.request, question.clone(), patience).await
            };
            match asked.await {
                // Nothing was published, so asking again asks once.
                Err(error) if error.kind() == ErrorKind::Absent && Instant::now() < until => {
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                asked => return asked,
            }
        }
    }

    fn patience(&self, door: Door) -> Patience {
        match door {
            Door::Http => Patience::total(self.options.call_timeout),
            Door::Socket => Patience { idle: self.options.call_timeout, total: self.options.stream_timeout },
        }
    }

    /// Whether a workspace may bring in new work.
    fn check_pressure(&self, workspace: &str) -> Result<(), Refusal> {
        let broker = &*self.process.broker;
        if broker.pressure().is_some_and(|pressure| pressure.disk_full) {
            return Err(Refusal::bus_unavailable(broker));
        }
        match broker.excess(workspace) {
            Some(excess) => Err(Refusal::backlogged(workspace, &excess)),
            None => Ok(()),
        }
    }

    /// A failure of the bus, in words for strangers; the cause goes to the log.
    fn told(&self, error: &Error, kind: &str, service: &str) -> Refusal {
        tracing::warn!(%error, service, "a call could not be asked");
        match error {
            Error::TimedOut { .. } => Refusal::failed("gateway-error", "Timeout"),
            Error::Full { .. } => {
                Refusal::Overloaded("the service has too many calls waiting; try again in a moment")
            }
            Error::TooLarge { max, .. } => Refusal::TooLarge { bytes_max: *max },
            Error::NoTopic { .. }
            | Error::NoSubscription { .. }
            | Error::Unroutable { .. }
            | Error::NoInbox { .. } => {
                let text = format!("nobody serves {service} at the moment");
                match kind {
                    // A flow's service that is on record may only just start.
                    "flow-error" => Refusal::Later(message::Error::new(kind, text)),
                    _ => Refusal::failed(kind, text),
                }
            }
            Error::NoReader { .. } => Refusal::Later(message::Error::new(
                kind,
                format!(
                    "the queue of a reader of {service} is missing, and nothing was kept; it is made again within moments: send it again"
                ),
            )),
            Error::Unavailable { .. }
            | Error::Disk { .. }
            | Error::Log { .. }
            | Error::LogUnopened { .. }
            | Error::InUse { .. }
            | Error::Held { .. }
            | Error::HoldLost { .. } => Refusal::bus_unavailable(&*self.process.broker),
            Error::QuestionLost { .. } => Refusal::question_lost(service),
            // An alarm of the broker ends as this where it lasts.
            Error::OutcomeUnknown { .. } if self.process.broker.trouble().is_some() => {
                Refusal::outcome_unknown(&*self.process.broker)
            }
            Error::OutcomeUnknown { .. } => Refusal::failed(
                BUS_UNAVAILABLE,
                "the connection to the message bus was lost; the call may have been made",
            ),
            Error::Refused { .. } => Refusal::bus_refuses(),
            Error::Mismatch { .. } | Error::Decode(_) => {
                Refusal::failed("gateway-error", format!("{service} cannot be asked this way"))
            }
        }
    }
}

/// The row of the table for a call.
pub(crate) fn find(call: &Call<'_>) -> Result<&'static Operation, Refusal> {
    if call.flow.is_some() {
        return operation::find(Kind::FlowService, call.service).ok_or(Refusal::UnknownKind);
    }
    let name = text(call.body.get("operation")).ok_or(Refusal::MissingOperation)?;
    operation::of_service(call.service, name).ok_or(Refusal::UnknownOperation)
}

fn label(operation: &Operation) -> &'static str {
    match operation.kind {
        Kind::FlowService => operation.name,
        kind => kind.as_str(),
    }
}

/// The one workspace that a call happens in.
pub(crate) fn workspace_of(call: &Call<'_>, caller: &Identity) -> Result<String, Refusal> {
    let named = match call.door {
        Door::Socket => call.workspace.filter(|workspace| !workspace.is_empty()),
        Door::Http => match call.body.get("workspace") {
            None | Some(Value::Null) => None,
            Some(Value::String(workspace)) => {
                Some(workspace.as_str()).filter(|workspace| !workspace.is_empty())
            }
            Some(_) => return Err(Refusal::BadRequest),
        },
    };
    Ok(named.unwrap_or(caller.workspace.as_str()).to_owned())
}

/// The workspace that a user or key operation is about.
fn about<'a>(body: &'a Map<String, Value>, own: &'a str) -> &'a str {
    let nested = |member: &str, name: &str| body.get(member).and_then(|value| text(value.get(name)));
    nested("user", "workspace")
        .or_else(|| nested("workspace_record", "id"))
        .or_else(|| text(body.get("workspace")))
        .unwrap_or(own)
}

fn text(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The caller's body as a question for the bus; a body that does not fit is the caller's error.
pub(crate) fn encode(
    service: &'static Service,
    call: &mut Call<'_>,
    caller: &Identity,
) -> Result<api::Call, Refusal> {
    let parts = call.door == Door::Socket;
    let who = Caller { handle: &caller.handle, default_workspace: &caller.workspace, parts };
    let body = Value::Object(std::mem::take(&mut call.body));
    service.encode(body, &who).map_err(|error| Refusal::Failed(error.to_error()))
}

/// Whether an operation brings new work into flows, or new documents.
fn is_ingress(operation: &Operation) -> bool {
    matches!(
        (operation.kind, operation.name),
        (Kind::FlowService, TEXT_LOAD | "document-load")
            | (
                Kind::Service("librarian"),
                "add-document" | "add-child-document" | "add-processing" | "upload-chunk"
            )
            | (Kind::Service("dead-letters"), "replay")
    )
}
