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
mod audit;
pub mod blueprint;
mod board;
pub mod claims;
mod decide;
mod doctor;
mod lead;
pub mod memory;
mod mirror;
pub mod plan;
mod reconcile;
mod service;
mod tended;
pub mod texts;
mod view;

use std::sync::Arc;
use std::time::Duration;

use sluice_bus::{BrokerAdmin, Losses, TopicSpec};
use sluice_schema::slots::SlotKind;
use sluice_schema::{record, system};
use sluice_sdk::processor::SlotUse;
use sluice_sdk::{Catalogue, ConfigClient, ConfigWatch, Process, owned};
use tokio::sync::{Mutex, Notify};

pub use board::{Phase, QueueVerdict, Report};

/// Checks a drain as requests give it, for whoever asks people for one.
///
/// # Errors
/// What a drain can be.
pub fn check_drain(text: &str) -> Result<(), String> {
    decide::drain(Some(text), Duration::ZERO).map(drop).map_err(|_| format!("use {}", decide::DRAINS))
}

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
    /// subscriptions. Default false.
    pub only_own_processors: bool,
    /// How long a stop lets processors work on what is queued, unless the request says. Default 20 s; longer parks less
    /// and stops later.
    pub drain_timeout: Duration,
    /// After this long a start or stop that is still under way is answered with how far it is. Default 25 s.
    pub answer_within: Duration,
    /// How often everything is looked at although nothing was asked. Default 30 s.
    pub audit_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only_own_processors: false,
            drain_timeout: Duration::from_secs(20),
            answer_within: Duration::from_secs(25),
            audit_interval: Duration::from_secs(30),
        }
    }
}

/// Starts the service. On return the queues of every live workspace are served; flows that were under way go on.
pub async fn start(parts: Parts) {
    let Parts { process, admin, watch, config, catalogue, options } = parts;
    let config = Arc::new(config);
    let board = Arc::new(board::Board::new());
    let mirror = Arc::new(mirror::Mirror::new(config.clone(), board.clone(), process.broker.naming()));
    let poke = Arc::new(Notify::new());
    let doubts = Arc::new(tended::Doubts::default());
    let reconciler = reconcile::Reconciler {
        lead: lead::Lead::new(admin.clone(), config.clone()),
        broker: process.broker.clone(),
        config: config.clone(),
        shared: reconcile::Shared {
            mirror: mirror.clone(),
            board: board.clone(),
            tasks: process.tasks.clone(),
            audit_interval: options.audit_interval,
            doubts: doubts.clone(),
        },
        poke: poke.clone(),
        rounds: None,
    };
    process.tasks.spawn("flow/loop", reconciler.run(process.stop.clone()));
    follow(&process, &watch, poke.clone());
    listen(&process, doubts, poke.clone());
    let notices = vec![TopicSpec::bare(system::lost_topics())];
    owned::own_soon(&process, &admin, "flow", notices).await;
    let desk = service::Desk {
        config,
        admin: admin.clone(),
        mirror,
        board,
        poke,
        ports: ports(&catalogue, options.only_own_processors),
        drain_timeout: options.drain_timeout,
        answer_within: options.answer_within,
        message_bytes_max: process.broker.limits().message_bytes_max,
        deciding: Mutex::new(()),
        turns: service::Turns::default(),
    };
    let doors = service::Doors { process: process.clone(), desk: Arc::new(desk) };
    sluice_sdk::workspaces::serve_workspaces(&process, admin, &watch, doors).await;
}

/// Lets the loop look when a decision was made elsewhere, or a workspace came or went.
fn follow(process: &Process, watch: &ConfigWatch, poke: Arc<Notify>) {
    // Notices leave out the workspace of the ledger: a start's names no type at all, a stop's that of the public record.
    let mut views = watch.interest(&[record::WORKSPACE, memory::LEDGER, record::FLOW]);
    let stop = process.stop.clone();
    process.tasks.spawn("flow/news", async move {
        let mut known = views.borrow_and_update().clone();
        while let Some(Ok(())) = stop.run_until_cancelled(views.changed()).await {
            let view = views.borrow_and_update().clone();
            if [record::WORKSPACE, memory::LEDGER].iter().any(|kind| !view.same_type(&known, kind)) {
                poke.notify_one();
            }
            known = view;
        }
    });
}

/// Lets the loop look at topics that somebody found something of missing.
fn listen(process: &Process, doubts: Arc<tended::Doubts>, poke: Arc<Notify>) {
    let Some(mut news) = process.broker.losses().map(Losses::news) else { return };
    let stop = process.stop.clone();
    process.tasks.spawn("flow/losses", async move {
        while let Some((topic, _)) = stop.run_until_cancelled(news.next()).await {
            doubts.add(topic);
            poke.notify_one();
        }
    });
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
