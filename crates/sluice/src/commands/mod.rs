//! What each command does. Everything but `up`, `run`, `demo` and what looks at folders and brokers itself goes through the
//! gateway, as any other client would.

mod ask;
mod backup;
mod blueprint;
mod config;
mod conformance;
mod dead;
mod decode;
mod demo;
mod doc;
mod doctor;
mod document;
mod files;
mod flow;
mod lost;
mod render;
mod up;
mod watch;

use crate::api::Api;
use crate::cli::{self, Args, Command};
use crate::exit::Code;

pub(crate) use decode::run as decode;
pub(crate) use render::run as render;

const LICENSE: &str = include_str!("../../../../LICENSE");
const NOTICES: &str = include_str!("../../../../NOTICES.txt");

pub(crate) async fn run(args: Args) -> anyhow::Result<Code> {
    let target = args.target;
    let output = target.output;
    match args.command {
        Command::Up(up) => up::run(&target, up).await?,
        Command::Run(run) => up::run_some(&target, run).await?,
        Command::Demo(demo) => demo::run(&target, demo).await?,
        Command::Config(config) => config::run(&Api::new(&target)?, output, config).await?,
        Command::Blueprint(blueprint) => blueprint::run(&Api::new(&target)?, output, blueprint).await?,
        Command::Flow(flow) => return flow::run(&Api::new(&target)?, output, flow).await,
        Command::Doc(doc) => return doc::run(&Api::new(&target)?, output, doc).await,
        Command::Ask(ask) => ask::run(&Api::new(&target)?, output, &ask).await?,
        Command::Dead(dead) => dead::run(&Api::new(&target)?, output, dead).await?,
        Command::Doctor(doctor) => return doctor::run(&target, doctor).await,
        Command::Conformance(one) => return conformance::run(&target, one).await,
        Command::Backup(one) => return backup::make(&target, one).await,
        Command::Restore(one) => return backup::restore(&target, one).await,
        Command::Salvage(one) => return backup::salvage(&target, one).await,
        Command::Verify(one) => return backup::verify(&target, one).await,
        Command::Decode { check, bare } => decode::run(check, bare)?,
        Command::Notices => print(&format!("{LICENSE}\n{NOTICES}")),
        Command::Render { check, bare } => render::run(check, bare)?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut cli::command(), "sluice", &mut std::io::stdout());
        }
    }
    Ok(Code::Ok)
}

/// Prints a long text; who reads only its beginning has what was wanted.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Reads `@FILE`, `-` (standard input) or the text itself.
fn text_argument(argument: &str) -> anyhow::Result<String> {
    use anyhow::Context;
    use std::io::Read;
    if argument == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input could not be read as text")?;
        return Ok(text);
    }
    match argument.strip_prefix('@') {
        Some(file) => {
            std::fs::read_to_string(file).with_context(|| format!("'{file}' could not be read as text"))
        }
        None => Ok(argument.to_owned()),
    }
}
