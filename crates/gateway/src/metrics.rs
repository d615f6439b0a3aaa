//! What the gateway counts, under the names that dashboards for TrustGraph 2.11 read, and a few of our own.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use sluice_sdk::metrics::{Histograms, session_histogram};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Service {
    service: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceStatus {
    service: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

/// Counters of one gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Counters>);

impl Deref for Metrics {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.0
    }
}

/// The counters themselves; calls count in them by reference.
pub(crate) struct Counters {
    pub(crate) active_flows: Gauge,
    pub(crate) known_workspaces: Gauge,
    /// Flow records that are not routed: unreadable, or with a door into somebody else's topics.
    pub(crate) unrouted_flows: Gauge,
    pub(crate) open_sockets: Gauge,
    pub(crate) stalled_sockets: Counter,
    pub(crate) unreadable_answers: Counter,
    /// Requests of foreign hosts and pages.
    pub(crate) foreign_requests: Counter,
    /// Connections that were closed in favour of others.
    pub(crate) connections_evicted: Counter,
    /// Connections for which there was no place.
    pub(crate) connections_refused: Counter,
    connections: Family<Stage, Gauge>,
    auth_failures: Family<Reason, Counter>,
    decisions: Family<Outcome, Counter>,
    requests: Family<ServiceStatus, Counter>,
    durations: Histograms<Service>,
}

impl Metrics {
    pub(crate) fn register(with: &sluice_sdk::Metrics) -> Self {
        let counters = Counters {
            active_flows: Gauge::default(),
            known_workspaces: Gauge::default(),
            unrouted_flows: Gauge::default(),
            open_sockets: Gauge::default(),
            stalled_sockets: Counter::default(),
            unreadable_answers: Counter::default(),
            foreign_requests: Counter::default(),
            connections_evicted: Counter::default(),
            connections_refused: Counter::default(),
            connections: Family::default(),
            auth_failures: Family::default(),
            decisions: Family::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(session_histogram as fn() -> Histogram),
        };
        let m = &counters;
        with.register(
            "tg_gateway_active_flow_count",
            "Flows that calls are routed to",
            m.active_flows.clone(),
        );
        with.register("tg_gateway_known_workspaces", "Workspaces that exist", m.known_workspaces.clone());
        with.register("tg_gateway_auth_failure", "Failed authentications", m.auth_failures.clone());
        with.register("tg_gateway_authz_decision", "Decisions on permission", m.decisions.clone());
        with.register("tg_gateway_request", "Calls by outcome", m.requests.clone());
        with.register("tg_gateway_request_duration_seconds", "Time a call took", m.durations.clone());
        with.register(
            "sluice_gateway_unrouted_flows",
            "Flow records that cannot be routed",
            m.unrouted_flows.clone(),
        );
        with.register("sluice_gateway_open_sockets", "Open sockets", m.open_sockets.clone());
        with.register(
            "sluice_gateway_stalled_sockets",
            "Sockets closed on readers",
            m.stalled_sockets.clone(),
        );
        with.register(
            "sluice_gateway_unreadable_answers",
            "Answers not understood",
            m.unreadable_answers.clone(),
        );
        with.register(
            "sluice_gateway_foreign_requests",
            "Requests refused for their host or page",
            m.foreign_requests.clone(),
        );
        with.register(
            "sluice_gateway_connections",
            "Open connections by how far their peer has shown a credential",
            m.connections.clone(),
        );
        with.register(
            "sluice_gateway_connections_evicted",
            "Connections closed in favour of others",
            m.connections_evicted.clone(),
        );
        with.register(
            "sluice_gateway_connections_refused",
            "Connections that found no place",
            m.connections_refused.clone(),
        );
        Self(Arc::new(counters))
    }

    /// Connections of one stage.
    pub(crate) fn connections(&self, stage: &'static str) -> Gauge {
        self.connections.get_or_create(&Stage { stage }).clone()
    }

    pub(crate) fn auth_failed(&self, reason: &'static str) {
        self.auth_failures.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn decided(&self, outcome: &'static str) {
        self.decisions.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn called(&self, service: &'static str, ok: bool, took: Duration) {
        let status = if ok { "ok" } else { "error" };
        self.requests.get_or_create(&ServiceStatus { service, status }).inc();
        self.durations.get_or_create(&Service { service }).observe(took.as_secs_f64());
    }
}
