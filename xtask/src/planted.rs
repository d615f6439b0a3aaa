//! Whether the tests find bugs: known ones are planted in a copy of the sources, each behind a switch, and the copy is built
//! once. A seed of the simulation has to fail for each of them, or the one test that is there for such a moment; and none
//! while no switch is on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::bugs::BUGS;
use crate::{cargo_command, root};

mod bugs;

/// The variable that says which bug is on. Tests take what begins with `SLUICE_` from the programs that they start.
const VARIABLE: &str = "PLANTED_BUG";
/// Worlds that have to hold while nothing is planted.
const SEEDS_SOUND: &str = "40";
/// Worlds within which a bug has to be found.
const SEEDS_MAX: &str = "600";
/// Seconds that one test may take with a bug in it: one that does not end has found it.
const TEST_SECONDS_MAX: &str = "300";
/// What `timeout` ends with when that is over.
const TIMED_OUT: i32 = 124;
/// In a replacement: whether this bug's switch is on.
const SWITCH: &str = "PLANTED";

/// A bug: what it replaces, and who finds it. Where two parts of the sources guard the same, it takes both.
struct Bug {
    name: &'static str,
    edits: [Option<Edit>; 2],
    finder: Finder,
}

/// What is replaced, once, in which file.
#[derive(Clone, Copy)]
struct Edit {
    file: &'static str,
    find: &'static str,
    with: &'static str,
}

/// What has to find a bug.
#[derive(Clone, Copy)]
enum Finder {
    /// Some world of the simulation.
    Simulation,
    /// One test in a file of that name under some package's `tests`: for moments that are too rare for chance.
    Test { file: &'static str, test: &'static str },
    /// One test beside the code of some package.
    Unit { test: &'static str },
}

const fn bug(name: &'static str, file: &'static str, find: &'static str, with: &'static str) -> Bug {
    Bug { name, edits: [Some(Edit { file, find, with }), None], finder: Finder::Simulation }
}

impl Bug {
    const fn and(self, file: &'static str, find: &'static str, with: &'static str) -> Self {
        Self { edits: [self.edits[0], Some(Edit { file, find, with })], ..self }
    }

    const fn found_by(self, file: &'static str, test: &'static str) -> Self {
        Self { finder: Finder::Test { file, test }, ..self }
    }

    const fn found_beside(self, test: &'static str) -> Self {
        Self { finder: Finder::Unit { test }, ..self }
    }
}

/// Plants, builds and looks for every bug with these words in its name.
pub(crate) fn check(words: &str) -> Result<()> {
    let bugs: Vec<&Bug> = BUGS.iter().filter(|bug| bug.name.contains(words)).collect();
    if bugs.is_empty() {
        bail!("no bug has '{words}' in its name");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let copy = target.join("planted");
    // A build folder of its own: packages of the copy have the names and hashes of ours.
    let built = copy.join("target");
    write_copy(&copy)?;
    let cargo = |command: &str| {
        let mut cargo = cargo_command(command);
        cargo.current_dir(&copy).arg("--locked").env("CARGO_TARGET_DIR", &built);
        cargo
    };
    let mut build = cargo("build");
    build.args(["--workspace", "--bin", "sluice-simulation"]);
    // What is planted is not pretty: its warnings are of no interest.
    let output = build.output().context("cargo builds the copy")?;
    if !output.status.success() {
        bail!("the copy cannot be built:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let program = built.join("debug/sluice-simulation");
    let look = |finder: Finder, switch: &str, seeds_max: &str| match finder {
        Finder::Simulation => seeds(&program, switch, seeds_max),
        // In the whole workspace, so that dependencies are not built once more with fewer features.
        Finder::Test { file, test } => {
            one_test(cargo("test"), &["--workspace", "--test", file], test, switch)
        }
        Finder::Unit { test } => one_test(cargo("test"), &["--workspace", "--lib", "--bins"], test, switch),
    };
    let mut finders = vec![Finder::Simulation];
    finders.extend(bugs.iter().map(|bug| bug.finder).filter(|finder| !matches!(finder, Finder::Simulation)));
    for finder in finders {
        if let Some(broken) = look(finder, "", SEEDS_SOUND)? {
            bail!("something is broken although nothing is planted: {broken}");
        }
    }
    let mut found = 0;
    for bug in &bugs {
        let begun = Instant::now();
        match look(bug.finder, bug.name, SEEDS_MAX)? {
            Some(broken) => {
                found += 1;
                println!("found: {} ({} s)\n       {broken}", bug.name, begun.elapsed().as_secs());
            }
            None => println!("NOT FOUND: {}", bug.name),
        }
    }
    println!("found {found} of {}", bugs.len());
    if found < bugs.len() {
        bail!("{} planted bugs were not found", bugs.len() - found);
    }
    Ok(())
}

/// Runs worlds with one switch on, or none; the first broken law.
fn seeds(program: &Path, switch: &str, count: &str) -> Result<Option<String>> {
    let mut command = Command::new(program);
    let output = command.args(["--seeds", count, "--fail-fast"]).env(VARIABLE, switch).output()?;
    if output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Some(text.lines().next().unwrap_or("it ended without a word").chars().take(160).collect()))
}

/// Runs one test with one switch on, or none; that it failed.
fn one_test(mut cargo: Command, place: &[&str], test: &str, switch: &str) -> Result<Option<String>> {
    let built = cargo.args(place).arg("--no-run").output().context("cargo builds a test of the copy")?;
    if !built.status.success() {
        bail!("{place:?} of the copy cannot be built:\n{}", String::from_utf8_lossy(&built.stderr));
    }
    let mut command = Command::new("timeout");
    command.arg(TEST_SECONDS_MAX).arg(cargo.get_program());
    command.args(cargo.get_args().filter(|arg| *arg != "--no-run")).args(["--", test]);
    for (name, value) in cargo.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(folder) = cargo.get_current_dir() {
        command.current_dir(folder);
    }
    let output = command.env(VARIABLE, switch).output().context("'timeout' runs a test of the copy")?;
    if output.status.code() == Some(TIMED_OUT) {
        return Ok(Some(format!("{}: {test} does not end", place.join(" "))));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ended = |how: &str| {
        text.lines().any(|line| line.starts_with("test ") && line.contains(test) && line.contains(how))
    };
    // A case that runs in several shapes may fail in one of them only.
    match (ended("... ok"), ended("... FAILED")) {
        (true, false) => Ok(None),
        (_, true) => Ok(Some(format!("{}: {test}", place.join(" ")))),
        _ => bail!("'{test}' in {place:?} did not run:\n{text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Copies the sources, with every bug planted. What is as it was keeps its time, so that little is built again.
fn write_copy(copy: &Path) -> Result<()> {
    let mut command = Command::new("git");
    command.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = command.output().context("git lists the sources")?;
    let mut planted: BTreeMap<&str, Vec<(&str, Edit)>> = BTreeMap::new();
    for bug in BUGS {
        for edit in bug.edits.into_iter().flatten() {
            planted.entry(edit.file).or_default().push((bug.name, edit));
        }
    }
    for name in String::from_utf8(listed.stdout)?.split('\0').filter(|name| !name.is_empty()) {
        let from = root().join(name);
        let Ok(mut content) = fs::read(&from) else { continue };
        for (bug, edit) in planted.get(name).into_iter().flatten() {
            content = plant(&String::from_utf8(content)?, bug, *edit)?.into_bytes();
        }
        let to = copy.join(name);
        if fs::read(&to).is_ok_and(|there| there == content) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(copy))?;
        fs::write(&to, content).with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(())
}

fn plant(text: &str, name: &str, Edit { file, find, with }: Edit) -> Result<String> {
    if text.matches(find).count() != 1 {
        bail!("'{name}' cannot be planted: {file} must have this once: {find}");
    }
    let switch = format!("(std::env::var(\"{VARIABLE}\").as_deref() == Ok(\"{name}\"))");
    Ok(text.replacen(find, &with.replace(SWITCH, &switch), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_can_be_planted() {
        for bug in BUGS {
            for edit in bug.edits.into_iter().flatten() {
                let text = fs::read_to_string(root().join(edit.file)).unwrap_or_default();
                let planted = plant(&text, bug.name, edit);
                assert!(planted.is_ok_and(|planted| planted != text), "{}", bug.name);
            }
        }
    }
}
