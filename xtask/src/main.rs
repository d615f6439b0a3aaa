//! Chores: `cargo xtask ci` is what continuous integration runs, `cargo xtask test` runs every test and does its own
//! set-up, `cargo xtask tidy` checks the house rules that no compiler knows.

#![expect(clippy::print_stdout, reason = "chores talk to a person")]

mod advisories;
mod notices;
mod planted;
mod servers;
mod suites;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

const HELP: &str = "Usage: cargo xtask COMMAND

  ci      format, tidy, notices, advisories, lints, docs, tests, doc-tests
  test    every test, set-up included
  tidy    the house rules: arrows between crates, module docs, product names, licences
  notices [--check]
          write NOTICES.txt, what the licences of packages in the binary ask for, or see that it is up to date
  advisories [--uncovered]
          whether locked versions are affected by the advisories that are known here, and how old that knowledge is
  bench   every benchmark, in release
  planted [WORDS]
          whether the tests find the bugs that are planted in a copy of the sources: all, or those with WORDS in their name";

/// Everything, with what is built only where it is asked for.
const WHOLE: [&str; 3] = ["--workspace", "--features", "sluice/nats,sluice/pulsar"];

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let outcome = match command.as_str() {
        "ci" => ci(),
        "test" => test(),
        "tidy" => tidy::check(&root()),
        "notices" => notices::write(&root(), std::env::args().nth(2).as_deref() == Some("--check")),
        "advisories" => advisories::check(&root(), std::env::args().nth(2).as_deref() == Some("--uncovered")),
        "bench" => cargo("bench", &["--workspace"]),
        "planted" => planted::check(&std::env::args().skip(2).collect::<Vec<_>>().join(" ")),
        _ => {
            println!("{HELP}");
            return ExitCode::from(64);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The top folder of the project.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

fn ci() -> Result<()> {
    step("format", || cargo("fmt", &["--all", "--check"]))?;
    step("tidy", || tidy::check(&root()))?;
    step("notices", || notices::write(&root(), true))?;
    step("advisories", || advisories::check(&root(), false))?;
    step("lints", || {
        let strict = ["--all-targets", "--locked", "--", "-D", "warnings"];
        cargo("clippy", &[&["--workspace"], &strict[..]].concat())?;
        cargo("clippy", &[&WHOLE[..], &strict[..]].concat())
    })?;
    step("docs", || {
        let mut doc = cargo_command("doc");
        doc.args(["--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings");
        run(doc)
    })?;
    // The longest last, after all that can fail sooner.
    step("tests", test)
}

fn test() -> Result<()> {
    servers::prepare();
    suites::run_all(&WHOLE)
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("── {name}");
    let started = Instant::now();
    work().with_context(|| format!("{name} failed"))?;
    println!("── {name}: {} s", started.elapsed().as_secs());
    Ok(())
}

fn cargo_command(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).current_dir(root());
    // What cargo told this program of itself: build scripts that look at it would be run again, with all that rests on them.
    let is_own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_own)) {
        command.env_remove(name);
    }
    command
}

fn cargo(subcommand: &str, args: &[&str]) -> Result<()> {
    let mut command = cargo_command(subcommand);
    command.args(args);
    run(command)
}

fn run(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?} could not start"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
