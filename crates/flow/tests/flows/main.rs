//! The flow service on the embedded broker, with a real config service over the embedded store: its life through its own
//! queues, and what it does when any of its steps fails or is its last.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
mod crash;
mod doctor;
mod faulty;
#[allow(dead_code, reason = "the same steps are taken at a real broker too")]
mod ground;
mod life;
#[allow(dead_code, reason = "the same steps are taken at a real broker too")]
mod steps;
