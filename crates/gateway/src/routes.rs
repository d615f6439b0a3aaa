//! Where calls go: a snapshot of workspaces and running flows, replaced whole whenever config changes.
//!
//! A call takes one snapshot at its start and keeps it. What a snapshot drops tells the calls under way on it: a flow
//! whose record vanished, or whose run or doors changed, and everything of a workspace that is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use sluice_bus::{Address, Following, Replies};
use sluice_schema::api::Service;
use sluice_schema::doors::{self, Home, Use};
use sluice_schema::{Topic, WorkspaceId, record};
use sluice_sdk::watch::{ConfigWatch, View};
use sluice_sdk::{Backoff, Process};
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Interface → role → topic.
type Named = BTreeMap<String, BTreeMap<String, Topic>>;

/// A service that answers: where to ask, and where its answers come.
pub(crate) struct Route {
    pub(crate) request: Topic,
    response: Topic,
    following: OnceCell<Following>,
}

impl Route {
    pub(crate) fn new(request: Topic, response: Topic) -> Self {
        Self { request, response, following: OnceCell::new() }
    }

    /// Makes sure that answers are heard; the first call pays, and the route is heard for as long as it lives.
    pub(crate) async fn listen(&self, replies: &Replies) -> sluice_bus::Result<()> {
        if self.following.initialized() {
            return Ok(());
        }
        Box::pin(self.following.get_or_try_init(|| replies.follow(&self.response))).await.map(|_| ())
    }
}

/// One door of a flow.
#[derive(Default)]
pub(crate) struct Interface {
    /// For services that answer.
    pub(crate) route: Option<Route>,
    /// For services that only take in: a topic, with a reader on record or without.
    pub(crate) inlet: Option<Address>,
}

/// The doors of one run of a flow.
pub(crate) struct Doors {
    run: Option<String>,
    named: Named,
    read: BTreeSet<String>,
    pub(crate) interfaces: HashMap<Box<str>, Interface>,
    /// Cancelled when this run is no longer on record.
    pub(crate) gone: CancellationToken,
}

/// A flow as its record tells it.
#[derive(Clone)]
pub(crate) enum Flow {
    /// Calls are let in.
    Open(Arc<Doors>),
    /// It is being stopped: calls under way go on, new ones are refused.
    Stopping(Arc<Doors>),
    /// Its record cannot be routed, for this reason.
    Unrouted(Arc<str>),
}

impl Flow {
    fn doors(&self) -> Option<&Arc<Doors>> {
        match self {
            Self::Open(doors) | Self::Stopping(doors) => Some(doors),
            Self::Unrouted(_) => None,
        }
    }
}

/// A workspace with its services and flows.
pub(crate) struct Workspace {
    pub(crate) services: Arc<Services>,
    flows: HashMap<Box<str>, (Arc<str>, Flow)>,
}

impl Workspace {
    pub(crate) fn flow(&self, id: &str) -> Option<&Flow> {
        self.flows.get(id).map(|(_, flow)| flow)
    }
}

/// The system's services of one workspace, for as long as it exists.
pub(crate) struct Services {
    id: WorkspaceId,
    routes: Mutex<HashMap<&'static str, Arc<Route>>>,
    pub(crate) gone: CancellationToken,
}

impl Services {
    fn new(id: &str) -> Self {
        Self { id: WorkspaceId::existing(id), routes: Mutex::default(), gone: CancellationToken::new() }
    }

    /// The route to a service; `None` if it is not one of a workspace.
    pub(crate) fn route(&self, service: &'static Service) -> Option<Arc<Route>> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(route) = routes.get(service.name) {
            return Some(route.clone());
        }
        let (request, response) = service.topics(&self.id)?;
        Some(routes.entry(service.name).or_insert_with(|| Arc::new(Route::new(request, response))).clone())
    }
}

/// Everything that can be called, at one moment.
#[derive(Default)]
pub(crate) struct Snapshot {
    workspaces: HashMap<Box<str>, Workspace>,
}

impl Snapshot {
    pub(crate) fn workspace(&self, id: &str) -> Option<&Workspace> {
        self.workspaces.get(id)
    }

    /// The snapshot after a look at config. Keeps what did not change, and tells what is gone.
    fn after(&self, view: &View, metrics: &Metrics) -> Self {
        let ids = view.entries(record::WORKSPACE, record::WORKSPACES).map(|(id, _)| id);
        let mut next = Self::default();
        for id in ids.filter(|id| !id.starts_with('_')) {
            let known = self.workspaces.get(&**id);
            let services =
                known.map_or_else(|| Arc::new(Services::new(id)), |workspace| workspace.services.clone());
            let flows = view
                .entries(record::FLOW, id)
                .map(|(key, text)| (Box::from(&**key), (text.clone(), self.flow_after(id, key, text))))
                .collect();
            next.workspaces.insert(Box::from(&**id), Workspace { services, flows });
        }
        self.tell_what_is_gone(&next);
        let flows = || next.workspaces.values().flat_map(|workspace| workspace.flows.values());
        let count = |wanted: fn(&Flow) -> bool| flows().filter(|(_, flow)| wanted(flow)).count() as i64;
        metrics.active_flows.set(count(|flow| matches!(flow, Flow::Open(_))));
        metrics.unrouted_flows.set(count(|flow| matches!(flow, Flow::Unrouted(_))));
        metrics.known_workspaces.set(next.workspaces.len() as i64);
        next
    }

    fn flow_after(&self, workspace: &str, id: &str, text: &Arc<str>) -> Flow {
        let old = self.workspaces.get(workspace).and_then(|workspace| workspace.flows.get(id));
        match old {
            Some((old_text, flow)) if old_text == text => return flow.clone(),
            _ => {}
        }
        match read(workspace, id, text) {
            Ok(record) => {
                let stopping = record.stopping;
                let doors = open_doors(record, old.map(|(_, flow)| flow));
                if stopping { Flow::Stopping(doors) } else { Flow::Open(doors) }
            }
            Err(reason) => {
                tracing::warn!(workspace, flow = id, reason, "a flow record is not routed");
                Flow::Unrouted(reason.into())
            }
        }
    }

    fn tell_what_is_gone(&self, next: &Self) {
        for (id, workspace) in &self.workspaces {
            let now = next.workspaces.get(id);
            if now.is_none() {
                workspace.services.gone.cancel();
            }
            for (key, (_, flow)) in &workspace.flows {
                let Some(doors) = flow.doors() else { continue };
                let kept = now.and_then(|workspace| workspace.flow(key)).and_then(Flow::doors);
                if kept.is_none_or(|kept| !Arc::ptr_eq(kept, doors)) {
                    doors.gone.cancel();
                }
            }
        }
    }
}

/// What the gateway needs to know of a flow's record.
struct Record {
    run: Option<String>,
    stopping: bool,
    named: Named,
    /// Topics with a reader on record.
    read: BTreeSet<String>,
}

/// Reads a record, if every topic it exposes is this workspace's and no system service's. Reads no more of it than
/// routing needs: whoever wrote it may have more to say.
fn read(workspace: &str, id: &str, text: &str) -> Result<Record, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("its record is not JSON: {e}"))?;
    let Value::Object(record) = value else { return Err("its record is not an object".to_owned()) };
    let workspace = WorkspaceId::existing(workspace);
    let mut named = Named::new();
    let empty = Map::new();
    let interfaces = match record.get("interfaces") {
        None | Some(Value::Null) => &empty,
        Some(Value::Object(interfaces)) => interfaces,
        Some(_) => return Err("its interfaces are not an object".to_owned()),
    };
    for (name, roles) in interfaces {
        let Value::Object(roles) = roles else { return Err(format!("interface '{name}' is not an object")) };
        for (role, topic) in roles {
            let place = || format!("interface '{name}', {role}");
            let topic = topic.as_str().ok_or_else(|| format!("{}: the topic is not a text", place()))?;
            let topic = Topic::parse(topic).map_err(|e| format!("{}: {e}", place()))?;
            // Whose run or blueprint it is does not matter to the wall; whose workspace does.
            let own = topic.name().rsplit(':').next().unwrap_or(id).to_owned();
            let home = Home { workspace: &workspace, names: &[&own] };
            doors::check(&topic, Use::Expose, home).map_err(|e| format!("{}: {e}", place()))?;
            named.entry(name.clone()).or_default().insert(role.clone(), topic);
        }
    }
    let run = record.get("run").and_then(Value::as_str).map(ToOwned::to_owned);
    let stopping = record.get("status").is_some_and(|status| !status.is_null());
    let read = record.get("read").and_then(Value::as_array).into_iter().flatten();
    let read = read.filter_map(Value::as_str).map(ToOwned::to_owned).collect();
    Ok(Record { run, stopping, named, read })
}

/// The doors of a record: the old ones while the run and its interfaces are the same, so that calls under way go on.
fn open_doors(record: Record, old: Option<&Flow>) -> Arc<Doors> {
    if let Some(old) = old.and_then(Flow::doors)
        && old.run == record.run
        && old.named == record.named
        && old.read == record.read
    {
        return old.clone();
    }
    let interface = |roles: &BTreeMap<String, Topic>| {
        let route = match (roles.get("request"), roles.get("response")) {
            (Some(request), Some(response)) => Some(Route::new(request.clone(), response.clone())),
            _ => None,
        };
        let inlet = roles.get("flow").cloned().map(|topic| {
            let is_read = record.read.contains(topic.as_str());
            if is_read { Address::Subscribed(topic) } else { Address::Topic(topic) }
        });
        Interface { route, inlet }
    };
    let interfaces =
        record.named.iter().map(|(name, roles)| (name.as_str().into(), interface(roles))).collect();
    let Record { run, named, read, .. } = record;
    Arc::new(Doors { run, named, read, interfaces, gone: CancellationToken::new() })
}

/// The latest snapshot, for everybody. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Routes {
    latest: watch::Sender<Option<Arc<Snapshot>>>,
    /// The version of config that the snapshot is at least as new as.
    version: watch::Sender<i64>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self { latest: watch::Sender::new(None), version: watch::Sender::new(0) }
    }

    /// Routes that follow config from now on, in a task of the process.
    pub(crate) fn start(process: &Process, config: &ConfigWatch, metrics: &Metrics) -> Self {
        let routes = Self::new();
        let (keeper, config, metrics) = (routes.clone(), config.clone(), metrics.clone());
        process.tasks.supervise("gateway/routes", Backoff::default(), move || {
            let (keeper, config, metrics) = (keeper.clone(), config.clone(), metrics.clone());
            async move { keeper.keep(&config, &metrics).await }
        });
        routes
    }

    /// Keeps the routes as config says, until the config watch ends.
    async fn keep(&self, config: &ConfigWatch, metrics: &Metrics) -> Result<(), Infallible> {
        let types = [record::FLOW, record::WORKSPACE];
        let mut views = config.interest(&types);
        config.ready(&types).await;
        let mut looked: Option<Arc<View>> = None;
        loop {
            let view = views.borrow_and_update().clone();
            let same = looked.as_ref().is_some_and(|old| types.iter().all(|kind| old.same_type(&view, kind)));
            if !same {
                let current = self.latest.borrow().clone().unwrap_or_default();
                self.latest.send_replace(Some(Arc::new(current.after(&view, metrics))));
                looked = Some(view.clone());
            }
            self.version.send_replace(view.version);
            if views.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// Whether config has been read.
    pub(crate) fn are_known(&self) -> bool {
        self.latest.borrow().is_some()
    }

    /// The snapshot now, waiting for the first one.
    pub(crate) async fn snapshot(&self, within: Duration) -> Option<Arc<Snapshot>> {
        if let Some(now) = self.latest.borrow().clone() {
            return Some(now);
        }
        self.wait_until(within, |_| true).await
    }

    /// The snapshot once it is as new as a version of config.
    pub(crate) async fn as_new_as(&self, version: i64) -> Option<Arc<Snapshot>> {
        let mut versions = self.version.subscribe();
        // The sender lives in `self`.
        let _ = versions.wait_for(|now| *now >= version).await;
        self.latest.borrow().clone()
    }

    /// A snapshot that satisfies `wanted`, if there is one in time.
    pub(crate) async fn wait_until(
        &self,
        within: Duration,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> Option<Arc<Snapshot>> {
        let mut snapshots = self.latest.subscribe();
        let seen = snapshots.wait_for(|snapshot| snapshot.as_ref().is_some_and(|snapshot| wanted(snapshot)));
        tokio::time::timeout(within, seen).await.ok()?.ok()?.clone()
    }
}

/// Where a gateway would lead calls to flows, without its doors: for who watches how routes follow config.
#[derive(Clone)]
pub struct RouteWatch {
    routes: Routes,
}

/// A flow that calls are led to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoutedFlow {
    /// Its workspace.
    pub workspace: String,
    /// Its id.
    pub flow: String,
    /// The run that its topics belong to, where its record names one.
    pub run: Option<String>,
    /// Whether new calls are let in; not while it is being stopped.
    pub is_open: bool,
}

impl RouteWatch {
    /// Follows config from now on, in tasks of the process.
    #[must_use]
    pub fn start(process: &Process, config: &ConfigWatch) -> Self {
        Self { routes: Routes::start(process, config, &Metrics::register(&process.metrics)) }
    }

    /// The version of config that the routes are at least as new as; 0 before the first look.
    #[must_use]
    pub fn version(&self) -> i64 {
        *self.routes.version.borrow()
    }

    /// The flows routed now, in order of their names.
    #[must_use]
    pub fn flows(&self) -> Vec<RoutedFlow> {
        let Some(snapshot) = self.routes.latest.borrow().clone() else { return Vec::new() };
        let mut flows = Vec::new();
        for (workspace, inside) in &snapshot.workspaces {
            for (flow, (_, state)) in &inside.flows {
                let Some(doors) = state.doors() else { continue };
                flows.push(RoutedFlow {
                    workspace: workspace.to_string(),
                    flow: flow.to_string(),
                    run: doors.run.clone(),
                    is_open: matches!(state, Flow::Open(_)),
                });
            }
        }
        flows.sort();
        flows
    }
}
