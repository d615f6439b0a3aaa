//! The service on the embedded broker and store, through its queues.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;
mod fuzz;
mod model;
mod notices;
mod operations;
mod pages;
mod workspaces;
