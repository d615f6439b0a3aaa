//! Runs every test: builds once, then lets several programs of tests run at a time, since most of them wait for servers and clocks for
//! most of theirs.
//!
//! What a program prints is shown when it ends, in one piece. One that fails ends nothing: all failures are listed in the end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{cargo_command, run};

/// Programs at a time. Each runs its own cases side by side too.
const AT_ONCE: usize = 2;

/// Those that take longest begin first, so that none is left running alone in the end.
const LONG: [&str; 12] = [
    "sluice brokers",
    "sluice shared_broker",
    "sluice-simulation seeds",
    "sluice-flow steps",
    "sluice undone",
    "sluice distributed",
    "sluice-brokers rabbitmq",
    "sluice-brokers pulsar",
    "sluice-brokers nats",
    "sluice-brokers nats_cluster",
    "sluice beside",
    "sluice-flow scale",
];
/// Those that measure what the rest of the machine would change run alone, after the others.
const ALONE: [&str; 1] = ["sluice strangers"];

/// A program with tests in it.
#[derive(Debug, PartialEq, Eq)]
struct Suite {
    /// As people name it: `sluice-gateway doors`.
    name: String,
    program: PathBuf,
    /// The folder of its package, in which tests expect to run.
    folder: PathBuf,
}

/// Builds and runs all tests of these packages and features, then the examples in the documentation.
pub(crate) fn run_all(whole: &[&str]) -> Result<()> {
    let suites = build(whole)?;
    let (alone, beside): (Vec<_>, Vec<_>) = suites.into_iter().partition(|suite| is_one_of(suite, &ALONE));
    let (long, short): (Vec<_>, Vec<_>) = beside.into_iter().partition(|suite| is_one_of(suite, &LONG));
    let mut failed = run_suites(long.into_iter().chain(short).collect(), AT_ONCE)?;
    failed.extend(run_suites(alone.into(), 1)?);
    let mut doc = cargo_command("test");
    doc.args(whole).args(["--locked", "--doc"]);
    if let Err(error) = run(doc) {
        failed.push(format!("examples in the documentation ({error:#})"));
    }
    if !failed.is_empty() {
        bail!("{} programs of tests failed: {}", failed.len(), failed.join("; "));
    }
    Ok(())
}

fn is_one_of(suite: &Suite, names: &[&str]) -> bool {
    names.contains(&suite.name.as_str())
}

fn build(whole: &[&str]) -> Result<Vec<Suite>> {
    let mut command = cargo_command("test");
    command.args(whole).args(["--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("cargo builds the tests")?;
    if !output.status.success() {
        bail!("the tests cannot be built: {}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|said: Value| suite(&said))
        .collect())
}

/// The suite that cargo says it built, if it was one.
fn suite(said: &Value) -> Option<Suite> {
    let program = said.get("executable")?.as_str()?;
    if !said.get("profile")?.get("test")?.as_bool()? {
        return None;
    }
    let folder = Path::new(said.get("manifest_path")?.as_str()?).parent()?;
    let package = said.get("package_id")?.as_str()?;
    let target = said.get("target")?;
    // The id ends in `…/FOLDER#NAME@VERSION`, or in `…/NAME#VERSION`.
    let (path, rest) = package.rsplit_once('#')?;
    let package = rest.split_once('@').map_or_else(|| path.rsplit('/').next(), |(name, _)| Some(name))?;
    let kind = target.get("kind")?.get(0)?.as_str()?;
    let name = if kind == "test" { target.get("name")?.as_str()? } else { kind };
    Some(Suite { name: format!("{package} {name}"), program: program.into(), folder: folder.to_owned() })
}

/// Runs suites, so many at a time; the names of those that failed.
fn run_suites(suites: VecDeque<Suite>, at_once: usize) -> Result<Vec<String>> {
    let (waiting, failed) = (Mutex::new(suites), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        loop {
            let next = lock(&waiting).pop_front();
            let Some(suite) = next else { return Ok(()) };
            lock(&failed).extend(run_suite(&suite)?);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(worked) => worked,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let failed = std::mem::take(&mut *lock(&failed));
    Ok(failed)
}

/// Runs a suite; its name with the cases that failed, if any did.
fn run_suite(suite: &Suite) -> Result<Option<String>> {
    let began = Instant::now();
    // A file, since a pipe would stay open as long as any server that a test leaves running.
    let said = suite.program.with_extension("log");
    let both = File::create(&said).with_context(|| format!("writing {}", said.display()))?;
    let mut command = Command::new(&suite.program);
    command.current_dir(&suite.folder).env("CARGO_MANIFEST_DIR", &suite.folder);
    command.stdin(Stdio::null()).stdout(both.try_clone()?).stderr(both);
    let status = command.status().with_context(|| format!("{} could not start", suite.program.display()))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "── {} ({} s)", suite.name, began.elapsed().as_secs())?;
    let said = std::fs::read(&said)?;
    out.write_all(&said)?;
    if status.success() {
        return Ok(None);
    }
    writeln!(out, "── {} FAILED: {status}", suite.name)?;
    let cases = failed_cases(&String::from_utf8_lossy(&said)).join(", ");
    Ok(Some(if cases.is_empty() { suite.name.clone() } else { format!("{} ({cases})", suite.name) }))
}

/// The cases that failed, by what a program of tests said.
fn failed_cases(said: &str) -> Vec<&str> {
    said.lines()
        .filter_map(|line| line.strip_prefix("test ")?.split_once(" ... FAILED"))
        .map(|(case, _)| case)
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn programs_of_tests_are_told_from_what_else_is_built() {
        let said = |kind: &str, test: bool, program: Value| {
            json!({"reason": "compiler-artifact", "package_id": "path+file:///p/crates/gateway#sluice-gateway@0.1.0",
                "manifest_path": "/p/crates/gateway/Cargo.toml", "target": {"kind": [kind], "name": "doors"},
                "profile": {"test": test}, "executable": program})
        };
        let found = suite(&said("test", true, json!("/t/doors-1"))).unwrap();
        assert_eq!(
            (found.name.as_str(), found.folder.as_path()),
            ("sluice-gateway doors", Path::new("/p/crates/gateway"))
        );
        assert_eq!(suite(&said("lib", true, json!("/t/x"))).unwrap().name, "sluice-gateway lib");
        assert_eq!(suite(&said("bin", false, json!("/t/x"))), None);
        assert_eq!(suite(&said("lib", true, Value::Null)), None);
        let mut short = said("bin", true, json!("/t/x"));
        short["package_id"] = json!("path+file:///p/xtask#0.1.0");
        assert_eq!(suite(&short).unwrap().name, "xtask bin");
    }

    #[test]
    fn cases_that_failed_are_found_in_what_a_program_said() {
        let said = "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... FAILED (1.5 s)\n    why";
        assert_eq!(failed_cases(said), ["c", "d"]);
    }

    #[test]
    fn a_suite_that_fails_is_named_and_the_others_run() {
        let folder = std::env::temp_dir().join(format!("sluice-suites-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let suite = |(n, ends): (usize, &str)| {
            let program = folder.join(format!("{ends}-{n}"));
            std::os::unix::fs::symlink(format!("/bin/{ends}"), &program).unwrap();
            Suite { name: format!("{ends} {n}"), program, folder: "/".into() }
        };
        let all = ["true", "false", "true", "false"].into_iter().enumerate().map(suite).collect();
        let mut failed = run_suites(all, 2).unwrap();
        failed.sort();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(failed, ["false 1", "false 3"]);
    }
}
