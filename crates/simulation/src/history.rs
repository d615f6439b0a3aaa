//! People who write and read the same few values of config at the same time, and whether what they were told can be true of
//! one value store that does one thing after the other.
//!
//! Every write leaves its version on what it wrote, so the order of what happened is that of the versions; it remains to be
//! looked at whether that order agrees with what each was told, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_schema::message::{ConfigKey, ConfigRequest, ConfigValue, Error, Expectation, ScopedKey};
use sluice_sdk::{Apply, ConfigClient, ConfigError};

use crate::chance::Chance;
use crate::world::{Broken, WORKSPACE};

const KIND: &str = "history";
const KEYS: [&str; 3] = ["x", "y", "z"];
const WRITERS: usize = 3;
/// The longest pause of a writer.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// What one of them did, and was told.
#[derive(Debug, Clone)]
struct Did {
    begun: u64,
    ended: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// Keys and the one value that all of them got, `None` for a deletion; the version, unless nobody told.
    Wrote { keys: Vec<&'static str>, value: Option<String>, expected: Option<i64>, version: Option<i64> },
    /// A conflict, or a refusal: nothing happened.
    Nothing,
    /// Some keys at one moment, with the values that were there, and their versions where the answer tells them.
    Read { keys: Vec<&'static str>, rows: BTreeMap<String, (String, Option<i64>)> },
}

#[derive(Clone)]
pub(crate) struct History {
    config: Arc<ConfigClient>,
    chance: Arc<Chance>,
    clock: Arc<AtomicU64>,
    did: Arc<Mutex<Vec<Did>>>,
}

impl History {
    /// Writers begin, and go on until there is peace.
    pub(crate) fn start(config: &Arc<ConfigClient>, chance: &Arc<Chance>) -> Self {
        let history = Self {
            config: config.clone(),
            chance: chance.clone(),
            clock: Arc::default(),
            did: Arc::default(),
        };
        for writer in 0..WRITERS {
            tokio::spawn(history.clone().go_on(writer));
        }
        history
    }

    async fn go_on(self, writer: usize) {
        let mut number = 0;
        while !self.chance.is_peace() {
            tokio::time::sleep(self.chance.duration(PAUSE_MAX)).await;
            number += 1;
            self.once(format!("{writer}.{number}")).await;
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    async fn once(&self, mark: String) {
        let begun = self.tick();
        let what = self.act(mark).await;
        let Some(what) = what else { return };
        let did = Did { begun, ended: self.tick(), what };
        self.did.lock().unwrap_or_else(PoisonError::into_inner).push(did);
    }

    /// `None` for a read that failed.
    async fn act(&self, mark: String) -> Option<What> {
        let key = *self.chance.pick(&KEYS);
        let value = |key: &str| sluice_sdk::config::value(WORKSPACE, KIND, key, &mark);
        let wrote = |keys: Vec<&'static str>, value, expected, told: Result<i64, ConfigError>| match told {
            Ok(version) => What::Wrote { keys, value, expected, version: Some(version) },
            Err(ConfigError::Conflict(_)) => What::Nothing,
            Err(ConfigError::Refused { kind, .. }) if kind == Error::CONFIG_UNAVAILABLE => What::Nothing,
            Err(ConfigError::Refused { .. } | ConfigError::Bus(_)) => {
                What::Wrote { keys, value, expected, version: None }
            }
        };
        match self.chance.below(10) {
            0..3 => {
                let told = self.config.put(WORKSPACE, vec![value(key)]).await;
                Some(wrote(vec![key], Some(mark.clone()), None, told))
            }
            3 => {
                let told = self.config.put(WORKSPACE, vec![value("x"), value("y")]).await;
                Some(wrote(vec!["x", "y"], Some(mark.clone()), None, told))
            }
            4 => {
                let gone = ConfigKey { r#type: KIND.to_owned(), key: key.to_owned() };
                let told = self.config.delete(WORKSPACE, vec![gone]).await;
                Some(wrote(vec![key], None, None, told))
            }
            5..7 => {
                let now = self.config.get(WORKSPACE, KIND, key).await.ok()?;
                let version = now.map_or(0, |now| now.version);
                let at = ScopedKey {
                    workspace: WORKSPACE.to_owned(),
                    r#type: KIND.to_owned(),
                    key: key.to_owned(),
                };
                let expect = Expectation { workspace: at.workspace, r#type: at.r#type, key: at.key, version };
                let write = Apply { expect: vec![expect], puts: vec![value(key)], ..Apply::default() };
                let told = self.config.apply(write).await;
                Some(wrote(vec![key], Some(mark.clone()), Some(version), told))
            }
            7 => {
                let found = self.config.get(WORKSPACE, KIND, key).await.ok()?;
                Some(What::Read { keys: vec![key], rows: found.into_iter().filter_map(row).collect() })
            }
            8 => self.dump().await,
            _ => self.read().await,
        }
    }

    async fn read(&self) -> Option<What> {
        let answer = self.config.getvalues_many(&[KIND.to_owned()], 0).await.ok()?;
        Some(What::Read { keys: KEYS.to_vec(), rows: answer.values.into_iter().filter_map(row).collect() })
    }

    /// Everything in the workspace, which tells no versions of single values.
    async fn dump(&self) -> Option<What> {
        let request = ConfigRequest {
            operation: "config".to_owned(),
            workspace: WORKSPACE.to_owned(),
            ..Default::default()
        };
        let mut config = self.config.call(&request).await.ok()?.config;
        let rows = config.remove(KIND).unwrap_or_default().into_iter();
        Some(What::Read {
            keys: KEYS.to_vec(),
            rows: rows.map(|(key, value)| (key, (value, None))).collect(),
        })
    }

    /// Whether one order of everything agrees with all that was told; reads once more first.
    pub(crate) async fn judge(&self) -> Result<(), Broken> {
        let begun = self.tick();
        let what = self.read().await.ok_or("config does not answer")?;
        let did = self.did.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = did.clone();
        drop(did);
        all.push(Did { begun, ended: self.tick(), what });
        for _ in &all {
            self.chance.count("history");
        }
        agrees(&all)
    }
}

fn row(value: ConfigValue) -> Option<(String, (String, Option<i64>))> {
    Some((value.key, (value.value?, Some(value.version))))
}

/// A write with its place in the order.
#[derive(Debug)]
struct Placed<'a> {
    did: &'a Did,
    keys: &'a [&'static str],
    is_deletion: bool,
    expected: Option<i64>,
}

fn agrees(all: &[Did]) -> Result<(), Broken> {
    // Where nobody was told the version of a write, whoever read what it wrote knows.
    let mut seen: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    for did in all {
        let What::Read { rows, .. } = &did.what else { continue };
        for (value, version) in rows.values() {
            seen.entry(value).or_default().extend(version);
        }
    }
    let mut order: BTreeMap<i64, Placed<'_>> = BTreeMap::new();
    let mut version_of: BTreeMap<&str, i64> = BTreeMap::new();
    let mut lost_deletions: Vec<(&Did, &str)> = Vec::new();
    for did in all {
        let What::Wrote { keys, value, expected, version } = &did.what else { continue };
        let mut versions = value.as_deref().and_then(|value| seen.get(value).cloned()).unwrap_or_default();
        versions.extend(version);
        if versions.len() > 1 {
            return Err(format!("one write happened {} times: {did:?} at {versions:?}", versions.len()));
        }
        let Some(version) = versions.first() else {
            lost_deletions.extend(keys.iter().filter(|_| value.is_none()).map(|key| (did, *key)));
            continue;
        };
        version_of.extend(value.as_deref().map(|value| (value, *version)));
        let placed = Placed { did, keys, is_deletion: value.is_none(), expected: *expected };
        if let Some(other) = order.insert(*version, placed) {
            return Err(format!("two writes have the version {version}: {:?} and {did:?}", other.did));
        }
    }
    in_time(&order)?;
    let tried: BTreeSet<&str> = all
        .iter()
        .filter_map(|did| match &did.what {
            What::Wrote { value, .. } => value.as_deref(),
            What::Nothing | What::Read { .. } => None,
        })
        .collect();
    for did in all {
        let What::Read { keys, rows } = &did.what else { continue };
        for key in keys {
            let found = match rows.get(*key) {
                None => None,
                Some((_, Some(version))) => Some(*version),
                Some((value, None)) => match version_of.get(value.as_str()) {
                    Some(version) => Some(*version),
                    // Nobody was ever told when it was written.
                    None if tried.contains(value.as_str()) => continue,
                    None => return Err(format!("{key} was read as '{value}', which nobody wrote")),
                },
            };
            read_agrees(did, key, found, &order, &lost_deletions)?;
        }
    }
    for (version, placed) in &order {
        let Some(expected) = placed.expected else { continue };
        let between =
            order.range(expected + 1..*version).find(|(_, other)| other.keys.contains(&placed.keys[0]));
        if let Some((between, other)) = between
            && !(expected == 0 && other.is_deletion)
        {
            // For an expected absence only what was written after the last deletion counts.
            let deleted_after = order
                .range(between + 1..*version)
                .any(|(_, later)| later.is_deletion && later.keys.contains(&placed.keys[0]));
            if !(expected == 0 && (deleted_after || !lost_deletions.is_empty())) {
                return Err(format!("{placed:?} expected {expected}, and {between} came between"));
            }
        }
    }
    Ok(())
}

/// What ended before something else began has the lower version.
fn in_time(order: &BTreeMap<i64, Placed<'_>>) -> Result<(), Broken> {
    let mut latest_begin = 0;
    let mut latest: Option<(i64, &Did)> = None;
    for (version, placed) in order {
        // A write whose answer was lost has no end that means anything.
        let has_answer = matches!(placed.did.what, What::Wrote { version: Some(_), .. });
        if has_answer && placed.did.ended < latest_begin {
            return Err(format!(
                "{:?} is at {version}, after {latest:?}, which began later than it ended",
                placed.did
            ));
        }
        if placed.did.begun > latest_begin {
            (latest_begin, latest) = (placed.did.begun, Some((*version, placed.did)));
        }
    }
    Ok(())
}

/// What a read found is not older than what was there when it began, and not newer than when it ended.
fn read_agrees(
    read: &Did,
    key: &str,
    found: Option<i64>,
    order: &BTreeMap<i64, Placed<'_>>,
    lost_deletions: &[(&Did, &str)],
) -> Result<(), Broken> {
    let of_key = || order.iter().filter(|(_, placed)| placed.keys.contains(&key));
    let was_told = |placed: &Placed<'_>| matches!(placed.did.what, What::Wrote { version: Some(_), .. });
    let floor = of_key().rfind(|(_, placed)| was_told(placed) && placed.did.ended < read.begun);
    match found {
        Some(version) => {
            let Some(placed) = order.get(&version) else {
                return Err(format!("{key} was read at {version}, which nobody wrote"));
            };
            if placed.did.begun > read.ended {
                return Err(format!("{key} was read at {version} before it was written"));
            }
            if let Some((floor, later)) = floor.filter(|(floor, _)| **floor > version) {
                return Err(format!("{key} was read at {version} after {floor} was written: {later:?}"));
            }
        }
        None => {
            let Some((floor, placed)) = floor else { return Ok(()) };
            let may_be_gone = placed.is_deletion
                || of_key().any(|(version, other)| {
                    version > floor && other.is_deletion && other.did.begun < read.ended
                })
                || lost_deletions.iter().any(|(did, of)| *of == key && did.begun < read.ended);
            if !may_be_gone {
                return Err(format!("{key} was not found after it was written at {floor}"));
            }
        }
    }
    Ok(())
}
