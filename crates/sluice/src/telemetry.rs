//! Logs: to standard error, filtered by `SLUICE_LOG` (default: warnings, and for `up` and `run` what a person running it wants to know).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::{Args, Command, LogFormat};

pub(crate) fn start(args: &Args) {
    let default = match args.command {
        Command::Up(_) | Command::Run(_) => "info",
        // Its cases do on purpose what a broker warns of.
        Command::Conformance(_) => "error",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let left_out = sluice_brokers::LOG_FILTER.iter().filter_map(|left_out| left_out.parse().ok());
    let filter = left_out.fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
