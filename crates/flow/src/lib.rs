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

pub mod blueprint;
pub mod memory;
pub mod plan;
