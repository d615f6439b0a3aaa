//! Logs: to standard error, filtered by `SLUICE_LOG` (default: warnings, and for `up` and `run` what a person running it wants to know).

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::{Args, Command, LogFormat};

pub(crate) fn start(args: &Args) {
    let default = match args.command {
        Command::Up(_) | Command::Run(_) => "info",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_env("SLUICE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let filter = match sluice_brokers::LOG_FILTER.parse() {
        Ok(left_out) => filter.add_directive(left_out),
        Err(_) => filter,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
