//! The published TrustGraph 2.11 clients, unchanged, against the real binary: the command-line tools, the Python API and
//! the JavaScript client.
//!
//! They are installed once, into the folder of builds. Run one case by a part of its name:
//! `cargo test -p sluice --test drop_in -- the_main_job`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test harness reports on standard output")]

use std::path::Path;
use std::process::ExitCode;

use harness::{Asked, Case, Group, Run};
use world::World;

#[path = "drop_in/clients.rs"]
mod clients;
#[path = "drop_in/command_line.rs"]
mod command_line;
mod common;
#[path = "drop_in/harness.rs"]
mod harness;
#[path = "drop_in/model.rs"]
mod model;
#[path = "drop_in/program.rs"]
mod program;
#[path = "drop_in/world.rs"]
mod world;

fn main() -> ExitCode {
    let with_model = [
        command_line::with_model(),
        python("model::python", PYTHON_MODEL),
        javascript("model::javascript", JAVASCRIPT_MODEL),
    ];
    let open = [
        command_line::open(),
        python("open::python", PYTHON_OPEN),
        javascript("open::javascript", JAVASCRIPT_OPEN),
    ];
    // The longest first: they run side by side.
    let groups = vec![
        Group { start: World::plain, cases: command_line::plain() },
        Group { start: World::plain, cases: python("python", PYTHON_API) },
        Group { start: World::with_model, cases: with_model.into_iter().flatten().collect() },
        Group { start: World::plain, cases: javascript("javascript", JAVASCRIPT_API) },
        Group { start: World::open, cases: open.into_iter().flatten().collect() },
    ];
    harness::run(&Asked::read(std::env::args().skip(1)), groups)
}

/// A script and its text, in which its cases are found.
type Script = (&'static str, &'static str);

const PYTHON_API: Script = ("python_api.py", include_str!("drop_in/python_api.py"));
const PYTHON_MODEL: Script = ("python_model.py", include_str!("drop_in/python_model.py"));
const PYTHON_OPEN: Script = ("python_open.py", include_str!("drop_in/python_open.py"));
const JAVASCRIPT_API: Script = ("javascript_api.mjs", include_str!("drop_in/javascript_api.mjs"));
const JAVASCRIPT_MODEL: Script = ("javascript_model.mjs", include_str!("drop_in/javascript_model.mjs"));
const JAVASCRIPT_OPEN: Script = ("javascript_open.mjs", include_str!("drop_in/javascript_open.mjs"));

/// The cases of a Python script: its functions without arguments.
fn python(prefix: &str, (script, text): Script) -> Vec<Case<World>> {
    let name = |line: &'static str| {
        line.trim_start_matches("async ").strip_prefix("def ").and_then(|rest| rest.strip_suffix("():"))
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drop_in").join(script);
    let case = |name: &'static str| {
        let path = path.clone();
        let run: Run<World> = Box::new(move |world| world.python(&path, name));
        Case { name: format!("{prefix}::{name}"), missing: clients::python_missing, run }
    };
    text.lines().filter_map(name).map(case).collect()
}

/// The cases of a JavaScript script: the functions in its list of cases.
fn javascript(prefix: &str, (script, text): Script) -> Vec<Case<World>> {
    let name = |line: &'static str| line.strip_prefix("  async ").and_then(|rest| rest.strip_suffix("() {"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drop_in").join(script);
    let case = |name: &'static str| {
        let path = path.clone();
        let run: Run<World> = Box::new(move |world| world.javascript(&path, name));
        Case { name: format!("{prefix}::{name}"), missing: clients::node_missing, run }
    };
    text.lines().filter_map(name).map(case).collect()
}
