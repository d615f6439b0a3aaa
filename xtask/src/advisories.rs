//! Whether a locked version is affected by an advisory that is known here. The list stands in `xtask/data/advisories.tsv`,
//! is refreshed by a person, and says how old it is: what was published since is not known here, and neither is what is
//! said about crates that were not looked up.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

const LIST: &str = "xtask/data/advisories.tsv";
/// Age from which the list is said to be old, in days.
const OLD_DAYS: i64 = 90;

/// One advisory.
#[derive(Debug, PartialEq, Eq)]
struct Advisory {
    id: String,
    package: String,
    affected: Vec<Range>,
    about: String,
}

/// Versions from one on, up to but without another.
#[derive(Debug, Default, PartialEq, Eq)]
struct Range {
    from: Option<Version>,
    below: Option<Version>,
}

type Version = [u64; 3];

#[derive(Debug, Default)]
struct List {
    looked: String,
    through: String,
    packages: BTreeSet<String>,
    advisories: Vec<Advisory>,
    accepted: Vec<(String, String)>,
}

/// Compares the list with the lock file; names what it does not cover, if that is wanted.
pub(crate) fn check(root: &Path, names_uncovered: bool) -> Result<()> {
    let text = fs::read_to_string(root.join(LIST)).with_context(|| format!("reading {LIST}"))?;
    let list = read(&text)?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("reading Cargo.lock")?;
    let locked = locked(&lock);
    let names: BTreeSet<&str> = locked.iter().map(|(name, _)| name.as_str()).collect();
    let (looked_up, uncovered): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| list.packages.contains(**name));
    let age_days = today() - days(&list.looked).context("the day of the last refresh cannot be read")?;
    println!(
        "{} advisories, refreshed on {} ({age_days} days ago) from what was known on {}; {} of {} locked crates were looked up, \
         nothing is known here about the other {}",
        list.advisories.len(),
        list.looked,
        list.through,
        looked_up.len(),
        names.len(),
        uncovered.len()
    );
    if names_uncovered {
        println!("not looked up: {}", uncovered.join(" "));
    }
    if age_days > OLD_DAYS {
        println!("that is old: refresh {LIST} as CONTRIBUTING.md says");
    }
    let mut faults = Vec::new();
    for (advisory, version) in hits(&list, &locked) {
        let Advisory { id, package, about, .. } = advisory;
        match list.accepted.iter().find(|(accepted, _)| accepted == id) {
            Some((_, reason)) => println!("accepted: {id} ({package} {version}, {about}): {reason}"),
            None => faults.push(format!("{package} {version} is affected by {id}: {about}")),
        }
    }
    for (accepted, _) in &list.accepted {
        if !hits(&list, &locked).iter().any(|(advisory, _)| advisory.id == *accepted) {
            faults.push(format!("{accepted} is accepted and affects nothing; remove its line"));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("update what is affected, or accept it with a reason in {LIST}:\n  {}", faults.join("\n  "))
}

/// Every advisory with each locked version that it affects.
fn hits<'a>(list: &'a List, locked: &'a [(String, String)]) -> Vec<(&'a Advisory, &'a str)> {
    let of = |advisory: &'a Advisory| {
        let is_hit =
            move |(name, version): &&(String, String)| *name == advisory.package && advisory.affects(version);
        locked.iter().filter(is_hit).map(move |(_, version)| (advisory, version.as_str()))
    };
    list.advisories.iter().flat_map(of).collect()
}

impl Advisory {
    /// Whether a version is affected; one that cannot be read is.
    fn affects(&self, version: &str) -> bool {
        let Some(version) = parse(version) else { return true };
        self.affected.iter().any(|range| {
            let begun = range.from.is_none_or(|from| version.cmp(&from) != Ordering::Less);
            begun && range.below.is_none_or(|below| version.cmp(&below) == Ordering::Less)
        })
    }
}

fn read(text: &str) -> Result<List> {
    let mut list = List::default();
    for (number, line) in
        text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
    {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            ["looked", day] => day.clone_into(&mut list.looked),
            ["through", day] => day.clone_into(&mut list.through),
            ["crate", names] => list.packages.extend(names.split_whitespace().map(str::to_owned)),
            ["hit", id, package, affected, about] => list.advisories.push(Advisory {
                id: id.to_owned(),
                package: package.to_owned(),
                affected: affected
                    .split('|')
                    .map(range)
                    .collect::<Option<_>>()
                    .with_context(|| format!("{LIST}:{}: '{affected}' is no range", number + 1))?,
                about: about.to_owned(),
            }),
            ["accept", id, reason] => list.accepted.push((id.to_owned(), reason.to_owned())),
            _ => bail!("{LIST}:{}: this line cannot be read: {line}", number + 1),
        }
    }
    for advisory in &list.advisories {
        if !list.packages.contains(&advisory.package) {
            bail!("{LIST}: {} is about {}, which has no `crate` line", advisory.id, advisory.package);
        }
    }
    Ok(list)
}

fn range(text: &str) -> Option<Range> {
    let mut range = Range::default();
    if text.trim() == "*" {
        return Some(range);
    }
    for bound in text.split(',').map(str::trim) {
        if let Some(from) = bound.strip_prefix(">=") {
            range.from = Some(parse(from)?);
        } else {
            range.below = Some(parse(bound.strip_prefix('<')?)?);
        }
    }
    Some(range)
}

/// The numbers of a version; what stands behind them does not matter here.
fn parse(version: &str) -> Option<Version> {
    let numbers = version.split(['-', '+']).next()?;
    let mut parts = numbers.trim().split('.').map(|part| part.parse().ok());
    let mut next = || parts.next().unwrap_or(Some(0));
    Some([next()?, next()?, next()?])
}

/// Names and versions of everything from a registry.
fn locked(lock: &str) -> Vec<(String, String)> {
    let value = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""));
        line.and_then(|rest| rest.strip_suffix('"')).map(str::to_owned)
    };
    let packages = lock.split("[[package]]").skip(1);
    packages
        .filter(|package| package.contains("\nsource = \"registry+"))
        .filter_map(|package| Some((value(package, "name")?, value(package, "version")?)))
        .collect()
}

/// Days since 1970 of `2026-11-28`.
fn days(day: &str) -> Option<i64> {
    let mut parts = day.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    // Counted in years that begin with March, so that the odd day is the last one.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

fn today() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs() / 86_400).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "\n[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"theirs\"\nversion = \"1.2.3\"\nsource = \"registry+x\"\n";

    #[test]
    fn affected_versions_are_found_and_others_are_not() {
        let check = |affected: &str, version: &str, expected: bool| {
            let list = read(&format!("crate\tx\nhit\tR-1\tx\t{affected}\tbad\n")).unwrap();
            assert_eq!(list.advisories[0].affects(version), expected, "{affected} {version}");
        };
        check("*", "0.0.1", true);
        check("<1.2.0", "1.1.9", true);
        check("<1.2.0", "1.2.0", false);
        check(">=1.0.0,<1.2.0", "0.9.9", false);
        check("<0.3.26 | >=0.4.0,<0.4.4", "0.4.3", true);
        check("<0.3.26 | >=0.4.0,<0.4.4", "0.3.27", false);
        check("<0.38.1", "0.38.0+unofficial", true);
        check("<2", "10.0.0", false);
    }

    #[test]
    fn a_hit_is_a_fault_unless_it_is_accepted() {
        let run = |list: &str| {
            let folder = std::env::temp_dir().join(format!("sluice-advisories-{}", std::process::id()));
            fs::create_dir_all(folder.join("xtask/data")).unwrap();
            fs::write(folder.join("Cargo.lock"), LOCK).unwrap();
            fs::write(folder.join(LIST), format!("looked\t2026-01-01\nthrough\t2026-01-01\n{list}")).unwrap();
            let checked = check(&folder, false);
            fs::remove_dir_all(&folder).unwrap();
            checked.map_err(|error| error.to_string())
        };
        let hit = "crate\ttheirs\nhit\tR-1\ttheirs\t<2.0.0\tbad\n";
        assert!(run(hit).unwrap_err().contains("theirs 1.2.3 is affected by R-1"));
        assert_eq!(run(&format!("{hit}accept\tR-1\tnever reached\n")), Ok(()));
        assert_eq!(run("crate\ttheirs\nhit\tR-1\ttheirs\t<1.0.0\tbad\n"), Ok(()));
        assert!(run("accept\tR-1\tnever reached\n").unwrap_err().contains("affects nothing"));
        assert!(run("hit\tR-1\ttheirs\t<2.0.0\tbad\n").unwrap_err().contains("no `crate` line"));
        assert!(run("nonsense\n").is_err());
    }

    #[test]
    fn days_are_counted() {
        assert_eq!(
            (days("1970-01-01"), days("2000-03-01"), days("2026-11-28")),
            (Some(0), Some(11_017), Some(20_785))
        );
        assert_eq!(days("soon"), None);
    }
}
