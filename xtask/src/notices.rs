//! What the licences of the packages in the binary ask to be passed on with it: which they are, under which licence Sluice
//! uses each, and the texts. Written to `NOTICES.txt` from what `cargo metadata` and the packages themselves say.
//!
//! Where a package leaves the choice, it is used under Apache-2.0, as Sluice is; then its text is that of `LICENSE`, and only
//! a `NOTICE` file has to come along. Of any other licence the package's own texts are copied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tidy;

const FILE: &str = "NOTICES.txt";
/// The package whose binary is shipped, and what it is shipped for.
const SHIPPED: &str = "sluice";
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
/// Licences in the order in which they are chosen; any other of the list comes after.
const PREFERRED: [&str; 2] = ["Apache-2.0", "MIT"];
/// Texts of licences for packages that name one and carry none.
const TEXTS: [(&str, &str); 2] =
    [("MIT", include_str!("../data/MIT.txt")), ("BSD-3-Clause", include_str!("../data/BSD-3-Clause.txt"))];

/// A package in the binary.
struct Package {
    name: String,
    version: String,
    licences: Vec<String>,
    /// Texts of its own, by name of the file.
    texts: Vec<String>,
}

/// Writes the file, or only says whether it is as it would be written.
pub(crate) fn write(root: &Path, only_check: bool) -> Result<()> {
    let metadata = tidy::metadata(root, &["--filter-platform", PLATFORM])?;
    let packages = shipped(&metadata)?;
    let text = text(&packages);
    let file = root.join(FILE);
    let count = packages.len();
    if !only_check {
        fs::write(&file, text).with_context(|| format!("writing {FILE}"))?;
        println!("{FILE}: {count} packages");
        return Ok(());
    }
    if fs::read_to_string(&file).is_ok_and(|there| there == text) {
        println!("{FILE} is up to date: {count} packages");
        return Ok(());
    }
    bail!("{FILE} is not what the locked packages ask for; run `cargo xtask notices` and commit it")
}

/// Every package from elsewhere whose code is linked into the binary, in order.
fn shipped(metadata: &Value) -> Result<Vec<Package>> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (string(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (string(&node["id"]), node)).collect();
    let own = packages.iter().find(|(_, package)| package["name"] == SHIPPED);
    let mut waiting = vec![own.context("the binary's package is not there")?.0.clone()];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        for dependency in list(&nodes.get(&id).context("a package is not resolved")?["deps"]) {
            // What builds and tests need is not shipped.
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                waiting.push(string(&dependency["pkg"]));
            }
        }
    }
    let theirs = seen.iter().filter_map(|id| packages.get(id)).filter(|package| !package["source"].is_null());
    let mut found: Vec<Package> = theirs.map(package).collect::<Result<_>>()?;
    found.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(found)
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn package(metadata: &Value) -> Result<Package> {
    let (name, version) = (string(&metadata["name"]), string(&metadata["version"]));
    let expression = string(&metadata["license"]);
    let licences = choose(&expression)
        .with_context(|| format!("{name} has licence '{expression}', none of which is allowed"))?;
    let manifest = string(&metadata["manifest_path"]);
    let folder = Path::new(&manifest).parent().context("a package has no folder")?;
    let mut texts = texts(folder, &licences).with_context(|| format!("reading the licences of {name}"))?;
    let carries_none = texts.is_empty();
    for licence in licences.iter().filter(|licence| carries_none && *licence != PREFERRED[0]) {
        let Some((_, text)) = TEXTS.iter().find(|(known, _)| known == licence) else {
            bail!("{name} names {licence} and carries no text; add the text to xtask/data");
        };
        let authors = metadata["authors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let authors: Vec<&str> = authors.map(|author| author.split(" <").next().unwrap_or(author)).collect();
        let authors = if authors.is_empty() { format!("the authors of {name}") } else { authors.join(", ") };
        texts.push(format!("Copyright (c) {authors}\n\n{}", text.trim()));
    }
    Ok(Package { name, version, licences, texts })
}

/// What has to be copied out of a package's folder.
fn texts(folder: &Path, licences: &[String]) -> Result<Vec<String>> {
    let only_apache = licences == [PREFERRED[0]];
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let upper = name.to_uppercase();
        let is_notice = upper.starts_with("NOTICE");
        let is_licence = ["LICENSE", "LICENCE", "COPYING", "UNLICENSE", "COPYRIGHT"]
            .iter()
            .any(|begin| upper.starts_with(begin));
        let is_wanted = is_notice || (is_licence && !only_apache && !upper.contains("APACHE"));
        if is_wanted && entry.file_type()?.is_file() {
            names.push(name);
        }
    }
    names.sort();
    let read = |name: &String| {
        let bytes = fs::read(folder.join(name)).with_context(|| format!("reading {name}"))?;
        Ok(tidied(&String::from_utf8_lossy(&bytes)))
    };
    names.iter().map(read).collect()
}

/// The same text, whatever its line ends and margins.
fn tidied(text: &str) -> String {
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

fn text(packages: &[Package]) -> String {
    let mut out = String::from(
        "Software of others in the sluice binary\n\
         =======================================\n\n\
         Written by `cargo xtask notices`; not to be edited.\n\n\
         The binary holds code of the packages below. Each is named with the licence under which Sluice uses it. The text of\n\
         Apache-2.0 is in the file LICENSE; the texts of all others, and the notices that go with them, follow.\n\n",
    );
    for Package { name, version, licences, .. } in packages {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {name} {version}: {}", licences.join(" AND "));
    }
    // Texts that differ in their spaces only are one.
    let mut texts: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for package in packages {
        for text in &package.texts {
            let words: Vec<&str> = text.split_whitespace().collect();
            let (_, of) = texts.entry(words.join(" ")).or_insert_with(|| (text.clone(), Vec::new()));
            of.push(format!("{} {}", package.name, package.version));
        }
    }
    let mut texts: Vec<_> = texts.into_values().collect();
    texts.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    for (text, mut of) in texts {
        of.dedup();
        let _ = write!(out, "\n{}\n{}\n\n{text}\n", "-".repeat(80), of.join(", "));
    }
    out
}

/// The licences under which an expression lets a package be used: one side of each OR, all sides of each AND. `None` where
/// that takes one that is not allowed.
fn choose(expression: &str) -> Option<Vec<String>> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    let chosen = any(&mut words)?;
    words.is_empty().then_some(chosen).filter(|chosen| rank(chosen).is_some())
}

/// The rank of the worst of several licences; `None` where one is not allowed.
fn rank(licences: &[String]) -> Option<usize> {
    let place = |licence: &String| {
        let preferred = PREFERRED.iter().position(|known| known == licence);
        let listed = tidy::LICENCES.contains(&licence.as_str()).then_some(PREFERRED.len());
        preferred.or(listed)
    };
    licences.iter().map(place).try_fold(0, |worst, place| Some(worst.max(place?)))
}

fn any(words: &mut Vec<&str>) -> Option<Vec<String>> {
    let mut best = all(words)?;
    while words.last() == Some(&"OR") {
        words.pop();
        let other = all(words)?;
        let better = match (rank(&best), rank(&other)) {
            (Some(best), Some(other)) => other < best,
            (None, other) => other.is_some(),
            (Some(_), None) => false,
        };
        if better {
            best = other;
        }
    }
    Some(best)
}

fn all(words: &mut Vec<&str>) -> Option<Vec<String>> {
    let mut chosen = one(words)?;
    while words.last() == Some(&"AND") {
        words.pop();
        chosen.extend(one(words)?);
    }
    chosen.sort();
    chosen.dedup();
    Some(chosen)
}

fn one(words: &mut Vec<&str>) -> Option<Vec<String>> {
    match words.pop()? {
        "(" => {
            let inner = any(words)?;
            (words.pop()? == ")").then_some(inner)
        }
        licence if words.last() == Some(&"WITH") => {
            words.pop();
            Some(vec![format!("{licence} WITH {}", words.pop()?)])
        }
        licence => Some(vec![licence.to_owned()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_choice_the_projects_own_licence_is_taken() {
        let check = |expression: &str, expected: Option<&str>| {
            let chosen = choose(expression).map(|chosen| chosen.join(" AND "));
            assert_eq!(chosen.as_deref(), expected, "{expression}");
        };
        check("MIT", Some("MIT"));
        check("MIT OR Apache-2.0", Some("Apache-2.0"));
        check("MIT/Apache-2.0", Some("Apache-2.0"));
        check("Unlicense OR MIT", Some("MIT"));
        check("GPL-3.0 OR Zlib", Some("Zlib"));
        check("(MIT OR Apache-2.0) AND Unicode-3.0", Some("Apache-2.0 AND Unicode-3.0"));
        check("Apache-2.0 AND ISC", Some("Apache-2.0 AND ISC"));
        check("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", Some("Apache-2.0"));
        check("MIT AND (MIT OR Apache-2.0)", Some("Apache-2.0 AND MIT"));
        for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT OR", "MIT MIT", "SSPL-1.0 OR AGPL-3.0"]
        {
            check(refused, None);
        }
    }

    #[test]
    fn texts_that_differ_in_their_spaces_are_named_once_with_all_their_packages() {
        let package = |name: &str, text: &str| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licences: vec!["MIT".to_owned()],
            texts: vec![tidied(text)],
        };
        let written = text(&[
            package("a", "Free \r\n for all\r\n"),
            package("b", "Free for all"),
            package("c", "Not so"),
        ]);
        assert_eq!(written.matches("for all").count(), 1, "{written}");
        assert!(
            written.contains("a 1.0.0, b 1.0.0\n") && written.contains("c 1.0.0\n\nNot so\n"),
            "{written}"
        );
    }
}
