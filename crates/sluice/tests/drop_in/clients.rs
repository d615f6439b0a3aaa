//! The published clients and processors, installed once into the folder of builds and kept as long as what is wanted stays
//! the same.
#![allow(dead_code, reason = "not every test uses every client")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use crate::program;

/// The Python API, with whatever it asks for.
const PYTHON_API: &str = "trustgraph-base==2.11.1";
/// The command-line tools, and apart from them what the tools import: the newest, as a user would get today.
const PYTHON_TOOLS: &str = "trustgraph-cli==2.11.1";
const PYTHON_IMPORTS: &[&str] = &["aiohttp", "msgpack", "rdflib", "requests", "tabulate", "websockets"];
/// The processors, with the base that they share with the Python API, and what the two that are run here import.
const PYTHON_PROCESSORS: &[&str] = &["trustgraph-base==2.11.1", "trustgraph-flow==2.11.1"];
const PYTHON_PROCESSORS_IMPORTS: &[&str] = &[
    "aio-pika",
    "aiohttp",
    "aiokafka",
    "ibis",
    "jsonschema",
    "prometheus_client",
    "pulsar-client",
    "pyyaml",
    "requests",
];
/// The JavaScript client, and sockets for versions of Node that have none of their own.
const JAVASCRIPT: &[&str] = &["@trustgraph/client@1.7.2", "ws@8.23.0"];

const INSTALL_LIMIT: Duration = Duration::from_secs(600);
const LOOK_LIMIT: Duration = Duration::from_secs(60);
const ATTEMPTS_MAX: usize = 2;

/// Names what is missing for Python clients, if anything is.
pub(crate) fn python_missing() -> Option<&'static str> {
    static MISSING: LazyLock<bool> = LazyLock::new(|| !runs("python3", &["-c", "import venv, ensurepip"]));
    MISSING.then_some("python3 with venv")
}

/// Names what is missing for JavaScript clients, if anything is.
pub(crate) fn node_missing() -> Option<&'static str> {
    static MISSING: LazyLock<bool> =
        LazyLock::new(|| !runs("node", &["--version"]) || !runs("npm", &["--version"]));
    MISSING.then_some("node with npm")
}

fn runs(name: &str, arguments: &[&str]) -> bool {
    program::run(Command::new(name).args(arguments), LOOK_LIMIT).is_ok_and(|said| said.code == Some(0))
}

/// The folder of the Python programs, the tools among them. Panics with the reason if they could not be installed.
pub(crate) fn python_programs() -> PathBuf {
    static FOLDER: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let wanted = format!("{PYTHON_API} {PYTHON_TOOLS} {}", PYTHON_IMPORTS.join(" "));
        let folder = kept("venv", &wanted, |folder| {
            venv(folder)?;
            step(pip(folder).arg(PYTHON_API).args(PYTHON_IMPORTS))?;
            step(pip(folder).args(["--no-deps", PYTHON_TOOLS]))
        })?;
        Ok(folder.join("bin"))
    });
    FOLDER.clone().unwrap_or_else(|why| panic!("{why}"))
}

/// The folder of the processors' programs. Panics with the reason if they could not be installed.
pub(crate) fn python_processors() -> PathBuf {
    static FOLDER: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let wanted = [PYTHON_PROCESSORS, PYTHON_PROCESSORS_IMPORTS].concat().join(" ");
        let folder = kept("venv-processors", &wanted, |folder| {
            venv(folder)?;
            step(pip(folder).args(PYTHON_PROCESSORS_IMPORTS))?;
            // With all that they ask for it would be gigabytes.
            step(pip(folder).arg("--no-deps").args(PYTHON_PROCESSORS))
        })?;
        Ok(folder.join("bin"))
    });
    FOLDER.clone().unwrap_or_else(|why| panic!("{why}"))
}

fn venv(folder: &Path) -> Result<(), String> {
    step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))
}

fn pip(folder: &Path) -> Command {
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip
}

/// The folder that holds the JavaScript packages. Panics with the reason if they could not be installed.
pub(crate) fn javascript_packages() -> PathBuf {
    static FOLDER: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        kept("node", &JAVASCRIPT.join(" "), |folder| {
            std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"]).arg(folder);
            step(npm.args(JAVASCRIPT))
        })
    });
    FOLDER.clone().unwrap_or_else(|why| panic!("{why}"))
}

/// A folder with what is wanted in it, filled only if it holds something else; one test run at a time.
fn kept(name: &str, wanted: &str, fill: impl Fn(&Path) -> Result<(), String>) -> Result<PathBuf, String> {
    let told = |error: std::io::Error| format!("the folder of the clients: {error}");
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("drop-in");
    std::fs::create_dir_all(&parent).map_err(told)?;
    let lock = File::create(parent.join(format!("{name}.lock"))).map_err(told)?;
    lock.lock().map_err(told)?;
    let (folder, mark) = (parent.join(name), parent.join(format!("{name}.holds")));
    if std::fs::read_to_string(&mark).is_ok_and(|holds| holds == wanted) {
        return Ok(folder);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(told)?;
    }
    fill(&folder)?;
    std::fs::write(&mark, wanted).map_err(told)?;
    Ok(folder)
}

/// One step of an installation, tried again once.
fn step(command: &mut Command) -> Result<(), String> {
    let mut why = String::new();
    for _ in 0..ATTEMPTS_MAX {
        match program::run(command, INSTALL_LIMIT) {
            Ok(said) if said.code == Some(0) => return Ok(()),
            Ok(said) => why = format!("{command:?} failed:\n{}", said.tail()),
            Err(error) => why = format!("{command:?}: {error}"),
        }
    }
    Err(why)
}
