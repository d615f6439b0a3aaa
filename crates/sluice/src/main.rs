//! The `sluice` command: serves the system, and talks to a running one through its gateway.

#![expect(clippy::print_stdout, reason = "a command line prints")]

mod address;
mod apart;
mod api;
mod backup;
mod bus;
mod cli;
mod commands;
mod control;
mod exit;
mod folder;
mod key;
mod output;
mod services;
mod standard;
mod system;
mod telemetry;
mod trust;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args = match cli::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            // Clap prints help and version as errors of their own kind; those are what was asked for.
            let _ = error.print();
            return if error.use_stderr() { exit::Code::Usage.into() } else { exit::Code::Ok.into() };
        }
    };
    // Before anything else starts: all of it would count against the limits of these processes.
    let alone = match args.command {
        cli::Command::Decode { check, bare } => Some(commands::decode(check, bare)),
        cli::Command::Render { check, bare } => Some(commands::render(check, bare)),
        _ => None,
    };
    if let Some(ended) = alone {
        return ended.map_or_else(|error| exit::report(&error), |()| exit::Code::Ok.into());
    }
    telemetry::start(&args);
    if !args.typed_secrets.is_empty() {
        let instead = args.typed_secrets.join(", ");
        tracing::warn!(instead, "a secret on the command line can be read by every user of this machine");
    }
    // Fails only when a provider is installed already, which then serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the async runtime could not start: {error}");
            return exit::Code::Failed.into();
        }
    };
    let outcome = runtime.block_on(async {
        outlive_file_limits();
        commands::run(args).await
    });
    // Blocking reads that nobody waits for must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match outcome {
        Ok(code) => code.into(),
        Err(error) => exit::report(&error),
    }
}

/// Has a write beyond the size that a file may have (`ulimit -f`, `LimitFSIZE=`) fail as on a full disk. By default the
/// signal that comes first ends the process.
fn outlive_file_limits() {
    use tokio::signal::unix::{SignalKind, signal};
    // From the first one on it is caught for as long as the process lives; nobody waits for it.
    if let Err(error) = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())) {
        tracing::warn!(%error, "a limit on the size of files would end this process without a word");
    }
}
