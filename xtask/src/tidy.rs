//! The house rules that no compiler knows; each failure names the file and says what to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Who may lean on whom: `[dependencies]` arrows of our crates. Tests may look sideways.
const ARROWS: &[(&str, &[&str])] = &[
    ("sluice-schema", &[]),
    ("sluice-bus", &["sluice-schema"]),
    ("sluice-store", &["sluice-schema"]),
    ("sluice-documents", &[]),
    ("sluice-databases", &["sluice-store"]),
    ("sluice-brokers", &["sluice-bus", "sluice-schema"]),
    ("sluice-sdk", &["sluice-bus", "sluice-schema"]),
    ("sluice-config", &["sluice-sdk", "sluice-bus", "sluice-store", "sluice-schema"]),
    ("sluice-iam", &["sluice-sdk", "sluice-bus", "sluice-store", "sluice-schema"]),
    ("sluice-library", &["sluice-sdk", "sluice-bus", "sluice-store", "sluice-schema"]),
    ("sluice-flow", &["sluice-sdk", "sluice-bus", "sluice-schema"]),
    ("sluice-processors", &["sluice-sdk", "sluice-documents", "sluice-bus", "sluice-store", "sluice-schema"]),
    ("sluice-gateway", &["sluice-sdk", "sluice-bus", "sluice-schema"]),
    (
        "sluice",
        &[
            "sluice-schema",
            "sluice-bus",
            "sluice-store",
            "sluice-documents",
            "sluice-sdk",
            "sluice-config",
            "sluice-flow",
            "sluice-iam",
            "sluice-library",
            "sluice-processors",
            "sluice-gateway",
            "sluice-brokers",
            "sluice-databases",
        ],
    ),
    (
        "sluice-simulation",
        &[
            "sluice-schema",
            "sluice-bus",
            "sluice-store",
            "sluice-sdk",
            "sluice-config",
            "sluice-flow",
            "sluice-gateway",
        ],
    ),
    ("sluice-fuzz", &[]),
    ("xtask", &[]),
];

/// Names of products that only the edge crates may know.
const PRODUCTS: &[&str] = &[
    "rabbitmq",
    "lapin",
    "pulsar",
    "kafka",
    "async-nats",
    "postgres",
    "qdrant",
    "cassandra",
    "scylla",
    "neo4j",
];
/// Where product names are fine: the edge, and tables of names that are part of the dialect.
const PRODUCTS_ALLOWED: &[&str] = &["crates/brokers/", "crates/databases/", "crates/schema/data/", "xtask/"];

/// Licences that dependencies may have.
pub(crate) const LICENCES: &[&str] = &[
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unicode-3.0",
    "CC0-1.0",
    "Unlicense",
    "BSL-1.0",
    "MIT-0",
    "CDLA-Permissive-2.0",
    "Apache-2.0 WITH LLVM-exception",
];

/// Lines of a source file at most.
const FILE_LINES_MAX: usize = 800;

pub(crate) fn check(root: &Path) -> Result<()> {
    let mut faults = Vec::new();
    let metadata = metadata(root, &[])?;
    arrows(&metadata, &mut faults);
    licences(&metadata, &mut faults);
    for file in sources(root)? {
        let text =
            fs::read_to_string(root.join(&file)).with_context(|| format!("reading {}", file.display()))?;
        source(&file.to_string_lossy(), &text, &mut faults);
    }
    readme(root, &mut faults)?;
    pages(root, &mut faults)?;
    proofs(root, &mut faults)?;
    invariants(root, &mut faults)?;
    if faults.is_empty() {
        return Ok(());
    }
    bail!("the house is not tidy:\n  {}", faults.join("\n  "))
}

/// What cargo knows of all packages.
pub(crate) fn metadata(root: &Path, more: &[&str]) -> Result<Value> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version", "1", "--locked"]).args(more).current_dir(root);
    let output = command.output().context("cargo metadata could not start")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn arrows(metadata: &Value, faults: &mut Vec<String>) {
    for package in packages(metadata).filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            faults
                .push(format!("crate {name} has no row in the table of arrows; add it to xtask/src/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let ours = ARROWS.iter().any(|(known, _)| *known == target);
            if ours && dependency["kind"].is_null() && !allowed.contains(&target) {
                faults.push(format!("{name} may not lean on {target}: arrows go down, never up or sideways"));
            }
        }
    }
}

fn licences(metadata: &Value, faults: &mut Vec<String>) {
    for package in packages(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or_default();
        if !licence_is_allowed(licence) {
            faults.push(format!("{name} has licence '{licence}', which is not on the list"));
        }
    }
}

/// Whether a licence expression can be met from the list: one side of each OR, all sides of each AND.
fn licence_is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let mut ands = expression.split(" AND ");
    ands.all(|part| part.split(" OR ").any(|licence| LICENCES.contains(&licence.trim())))
}

fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    listed(root, "*.rs")
}

fn listed(root: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", pattern])
        .current_dir(root)
        .output()
        .context("git could not start")?;
    let listed = String::from_utf8(output.stdout).context("file names are not text")?;
    Ok(listed.lines().map(PathBuf::from).filter(|file| root.join(file).exists()).collect())
}

fn source(file: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//!") {
        faults.push(format!("{file} does not open with a `//!` paragraph that says what it is"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{file} has {lines} lines, more than {FILE_LINES_MAX}; split it"));
    }
    let is_test = file.contains("/tests/") || file.contains("/benches/");
    if !is_test && !PRODUCTS_ALLOWED.iter().any(|allowed| file.starts_with(allowed)) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default().to_lowercase();
            if let Some(product) = PRODUCTS.iter().find(|product| code.contains(**product)) {
                faults.push(format!("{file}:{} names the product {product}; only the edge may", number + 1));
            }
        }
    }
}

/// The first two code blocks of the README are the two commands.
fn readme(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(root.join("README.md")).context("reading README.md")?;
    let blocks: Vec<&str> = text.split("```").skip(1).step_by(2).collect();
    for (place, wanted) in [(0, "demo"), (1, "cargo xtask test")] {
        if !blocks.get(place).is_some_and(|block| block.contains(wanted)) {
            faults.push(format!("code block {} of README.md does not run `{wanted}`", place + 1));
        }
    }
    Ok(())
}

/// Links between pages lead somewhere, and nothing is left to be filled in.
fn pages(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    for page in listed(root, "*.md")? {
        let text =
            fs::read_to_string(root.join(&page)).with_context(|| format!("reading {}", page.display()))?;
        let name = page.display();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let is_file = !file.is_empty() && !target.contains("://");
            let folder = root.join(&page).parent().map(Path::to_owned).unwrap_or_default();
            if is_file && !folder.join(file).exists() {
                faults.push(format!("{name} links to {target}, which is not there"));
            }
        }
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if ["_SENTENCE", "_PLACEHOLDER", "FIXME"].iter().any(|mark| word.ends_with(mark)) {
                faults.push(format!("{name} has '{word}' left to be filled in"));
            }
        }
    }
    Ok(())
}

/// Pages that name tests as proofs name tests that are there.
fn proofs(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    const PAGES: [&str; 3] = ["docs/brokers.md", "docs/failures.md", "docs/promises.md"];
    const FAILURES_MIN: usize = 40;
    let mut known = BTreeSet::new();
    for file in sources(root)? {
        let text = fs::read_to_string(root.join(&file))?;
        let after = text.split("fn ").skip(1);
        known.extend(after.filter_map(|rest| rest.split(['(', '<']).next()).map(str::to_owned));
        // Cases of a harness may have their names in a table: `("a_name", function)`.
        let listed = text.split("(\"").skip(1).filter_map(|rest| rest.split_once("\", "));
        known.extend(listed.map(|(name, _)| name.to_owned()));
    }
    for page in PAGES {
        let text = fs::read_to_string(root.join(page)).with_context(|| format!("reading {page}"))?;
        let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains('`')).count();
        if page.ends_with("failures.md") && rows < FAILURES_MIN {
            faults.push(format!("{page} has {rows} rows with a test; it must have {FAILURES_MIN}"));
        }
        // Names of tests are sentences.
        let quoted = text.split('`').skip(1).step_by(2);
        for name in quoted.filter(|name| name.matches('_').count() >= 2 && !name.contains(' ')) {
            if !known.contains(name) {
                faults.push(format!("{page} names the test {name}, which is not there"));
            }
        }
    }
    Ok(())
}

/// Invariants that ARCHITECTURE.md states about what is absent, checked where they can be.
fn invariants(root: &Path, faults: &mut Vec<String>) -> Result<()> {
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).context("reading ARCHITECTURE.md")?;
    let rooms: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| name.trim_start_matches("sluice-")).collect();
    for room in rooms {
        if !architecture.contains(&format!("`{room}`")) {
            faults.push(format!("ARCHITECTURE.md does not mention the crate `{room}`"));
        }
    }
    // The owner's calls: nobody but owners holds the admin side of the broker.
    let owners = ["bus", "sdk", "config", "flow", "iam", "library", "sluice", "brokers", "simulation"];
    for file in sources(root)? {
        let name = file.to_string_lossy().into_owned();
        let Some(room) = name.strip_prefix("crates/").and_then(|rest| rest.split('/').next()) else {
            continue;
        };
        let is_test = name.contains("/tests/") || name.contains("/benches/");
        let text = fs::read_to_string(root.join(&file))?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        if !is_test && !owners.contains(&room) && code.contains("BrokerAdmin") {
            faults.push(format!("{name} holds a BrokerAdmin; only owners of topics may make or remove them"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_found() {
        let mut faults = Vec::new();
        source("crates/flow/src/x.rs", "//! Fine.\nuse lapin::Channel;\n", &mut faults);
        source("crates/flow/src/y.rs", "fn no_docs() {}\n", &mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn licence_expressions_are_read() {
        assert!(licence_is_allowed("MIT OR GPL-3.0"));
        assert!(licence_is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!licence_is_allowed("GPL-3.0"));
        assert!(!licence_is_allowed("MIT AND GPL-3.0"));
    }
}
