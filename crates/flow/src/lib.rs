//! The flow service: blueprints become running flows.
//!
//! It owns every topic and queue of every flow: it makes them when a flow starts and removes them when it stops; nobody
//! else does. It refuses to know any database (its memory is the config service) and any processor (what it must know of
//! their slots is handed in).
//!
//! Read in this order: [`blueprint`] turns a template and parameters into a topology; [`plan`] turns records and what was
//! seen into the next safe steps; `reconcile` is the loop that looks, plans, acts and reports; `service` is the wire.
//!
//! **Invariant: no removal on incomplete knowledge.** While a record cannot be read, nothing it might claim is removed.
//!
//! **Invariant: what was recorded is what is removed.** A run carries its topology; blueprints are read only at start.

mod act;
pub mod blueprint;
mod board;
mod decide;
mod lease;
pub mod memory;
mod mirror;
pub mod plan;
mod reconcile;
mod service;

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::BrokerAdmin;
use sluice_schema::slots::SlotKind;
use sluice_sdk::processor::SlotUse;
use sluice_sdk::{Catalogue, ConfigClient, ConfigWatch, Process};
use tokio::sync::{Mutex, Notify};

pub use board::{Phase, QueueVerdict, Report};
pub use lease::LeaseOptions;

/// What the service is made of.
pub struct Parts {
    /// The process it runs in.
    pub process: Process,
    /// Makes and removes queues.
    pub admin: Arc<dyn BrokerAdmin>,
    /// Tells which workspaces there are.
    pub watch: ConfigWatch,
    /// Its memory.
    pub config: ConfigClient,
    /// Slots of the processors that this system runs.
    pub catalogue: Catalogue,
    /// How it behaves.
    pub options: Options,
}

/// How the service behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Nobody but this system can run processors (embedded broker): standard processors that it does not run get no
    /// subscriptions, and the lease is taken as by a sole service. Default false.
    pub only_own_processors: bool,
    /// How long a stop lets processors work on what is queued, unless the request says. Default 20 s; longer parks less
    /// and stops later.
    pub drain_timeout: Duration,
    /// After this long a start or stop that is still under way is answered with how far it is. Default 25 s.
    pub answer_within: Duration,
    /// How often everything is looked at although nothing was asked. Default 30 s.
    pub audit_interval: Duration,
    /// Who acts when there are several.
    pub lease: LeaseOptions,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only_own_processors: false,
            drain_timeout: Duration::from_secs(20),
            answer_within: Duration::from_secs(25),
            audit_interval: Duration::from_secs(30),
            lease: LeaseOptions::default(),
        }
    }
}

/// Starts the service. On return the queues of every live workspace are served; flows that were under way go on.
pub async fn start(parts: Parts) {
    let Parts { process, admin, watch, config, catalogue, options } = parts;
    let config = Arc::new(config);
    let mirror = Arc::new(mirror::Mirror::new(config.clone()));
    let board = Arc::new(board::Board::new());
    let poke = Arc::new(Notify::new());
    let hands = act::Hands { broker: process.broker.clone(), admin: admin.clone(), config: config.clone() };
    // A broker of this process's own has no room for a second flow service.
    let is_sole = options.lease.is_sole || options.only_own_processors;
    let lease = lease::Lease::new(config.clone(), LeaseOptions { is_sole, ..options.lease });
    let reconciler = reconcile::Reconciler::new(
        hands,
        mirror.clone(),
        board.clone(),
        poke.clone(),
        lease,
        options.audit_interval,
    );
    process.tasks.spawn("flow/loop", reconciler.run(process.stop.clone()));
    let desk = service::Desk {
        config,
        admin: admin.clone(),
        mirror,
        board,
        poke,
        ports: ports(&catalogue, options.only_own_processors),
        drain_timeout: options.drain_timeout,
        answer_within: options.answer_within,
        deciding: Mutex::new(()),
    };
    let doors = service::Doors { process: process.clone(), desk: Arc::new(desk) };
    sluice_sdk::workspaces::serve_workspaces(&process, admin, &watch, doors).await;
}

fn ports(catalogue: &Catalogue, only_own: bool) -> blueprint::Ports {
    let mut ports = blueprint::Ports::new(only_own);
    for (processor, slots) in &catalogue.0 {
        for slot in slots {
            let kind = match slot.used {
                SlotUse::Consume => SlotKind::Consume,
                SlotUse::Produce => SlotKind::Produce,
                SlotUse::ClientRequest => SlotKind::ClientRequest,
                SlotUse::ClientResponse => SlotKind::ClientResponse,
            };
            ports.add(processor, &slot.name, kind);
        }
    }
    ports
}
