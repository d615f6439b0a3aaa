//! The gateway driven through its doors, with services behind it on the embedded broker.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod browsers;
mod denials;
mod downloads;
mod neighbours;
mod refusals;
mod routing;
mod sockets;
mod strangers;
mod tls;
mod unasked;
mod walls;
mod world;
