//! Random requests beside a simple model: what the service holds is what a map would hold.

use std::collections::BTreeMap;

use crate::common::*;
use proptest::prelude::*;
use sluice_bus::Embedded;
use sluice_schema::message::ConfigRequest;
use sluice_sdk::{Apply, ConfigError};

type Place = (usize, usize, usize);

#[derive(Debug, Clone)]
enum Step {
    Put { workspace: usize, values: Vec<(usize, usize)>, quiet: bool },
    Delete { workspace: usize, keys: Vec<(usize, usize)>, quiet: bool },
    Apply { puts: Vec<Place>, deletes: Vec<Place>, stale: bool, quiet: bool },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pair = || (0..3_usize, 0..3_usize);
    let place = || (0..2_usize, 0..3_usize, 0..3_usize);
    let few = prop::collection::vec(pair(), 0..4);
    let step = prop_oneof![
        4 => (0..2_usize, few.clone(), any::<bool>())
            .prop_map(|(workspace, values, quiet)| Step::Put { workspace, values, quiet }),
        2 => (0..2_usize, few, any::<bool>())
            .prop_map(|(workspace, keys, quiet)| Step::Delete { workspace, keys, quiet }),
        4 => (prop::collection::vec(place(), 0..4), prop::collection::vec(place(), 0..3), any::<bool>(), any::<bool>())
            .prop_map(|(puts, deletes, stale, quiet)| Step::Apply { puts, deletes, stale, quiet }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..25)
}

const WORKSPACES: [&str; 2] = ["a", "__b__"];
const TYPES: [&str; 3] = ["t", "t1", "tool"];
const KEYS: [&str; 3] = ["k", "k:1", "é"];

fn names((workspace, config_type, key): Place) -> (&'static str, &'static str, &'static str) {
    (WORKSPACES[workspace], TYPES[config_type], KEYS[key])
}

/// What a map would hold: values with the versions of their keys, and the public version.
#[derive(Default)]
struct Model {
    values: BTreeMap<Place, (String, i64)>,
    version: i64,
    written: u64,
}

impl Model {
    fn text(&mut self) -> String {
        self.written += 1;
        format!("value {}", self.written)
    }

    fn settle(&mut self, answered: i64, quiet: bool) {
        if quiet {
            assert!(answered > self.version, "a quiet write has a version that nothing else has");
        } else {
            self.version += 1;
            assert_eq!(answered, self.version);
        }
    }
}

/// A reader that only asks what changed.
#[derive(Default)]
struct Follower {
    values: BTreeMap<(String, String, String), String>,
    since: i64,
}

impl Follower {
    async fn catch_up(&mut self, house: &Instance) {
        let types = TYPES.map(str::to_owned);
        let answer = house.system.getvalues_many(&types, self.since).await.unwrap();
        if answer.since == 0 {
            self.values.clear();
        }
        for gone in answer.deleted {
            self.values.remove(&(gone.workspace, gone.r#type, gone.key));
        }
        for value in answer.values {
            self.values.insert((value.workspace, value.r#type, value.key), value.value.unwrap());
        }
        self.since = answer.version;
    }
}

async fn check(house: &Instance, model: &Model, follower: &mut Follower) {
    for (index, workspace) in WORKSPACES.into_iter().enumerate() {
        let dump = ConfigRequest { workspace: workspace.into(), ..request("config") };
        let answer = house.system.call(&dump).await.unwrap();
        let mut expected: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (place, (text, _)) in model.values.iter().filter(|(place, _)| place.0 == index) {
            let (_, config_type, key) = names(*place);
            expected.entry(config_type.into()).or_default().insert(key.into(), text.clone());
        }
        assert_eq!((answer.version, answer.config), (model.version, expected));
    }
    for (index, config_type) in TYPES.into_iter().enumerate() {
        let mut found = house.system.getvalues_all(config_type).await.unwrap().values;
        found.sort_by(|a, b| (&a.workspace, &a.key).cmp(&(&b.workspace, &b.key)));
        let found: Vec<_> =
            found.into_iter().map(|v| (v.workspace, v.key, v.value.unwrap(), v.version)).collect();
        let mut expected = Vec::new();
        for (place, (text, version)) in model.values.iter().filter(|(place, _)| place.1 == index) {
            let (workspace, _, key) = names(*place);
            expected.push((workspace.to_owned(), key.to_owned(), text.clone(), *version));
        }
        expected.sort();
        assert_eq!(found, expected);
    }
    follower.catch_up(house).await;
    let expected: BTreeMap<_, _> = model
        .values
        .iter()
        .map(|(place, (text, _))| {
            let (workspace, config_type, key) = names(*place);
            ((workspace.to_owned(), config_type.to_owned(), key.to_owned()), text.clone())
        })
        .collect();
    assert_eq!(follower.values, expected, "who follows changes sees the same");
}

async fn run(steps: Vec<Step>) {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let mut house = Instance::start(&broker, &store).await;
    let (mut model, mut follower) = (Model::default(), Follower::default());
    for step in steps {
        match step {
            Step::Put { workspace, values, quiet } => {
                let texts: Vec<_> =
                    values.into_iter().map(|(t, k)| ((workspace, t, k), model.text())).collect();
                let values = texts.iter().map(|(p, text)| value(TYPES[p.1], KEYS[p.2], text)).collect();
                let put = ConfigRequest {
                    workspace: WORKSPACES[workspace].into(),
                    values,
                    quiet,
                    ..request("put")
                };
                let answered = house.system.call(&put).await.unwrap().version;
                model.settle(answered, quiet);
                model.values.extend(texts.into_iter().map(|(place, text)| (place, (text, answered))));
            }
            Step::Delete { workspace, keys, quiet } => {
                let named = keys.iter().map(|(t, k)| key(TYPES[*t], KEYS[*k])).collect();
                let delete = ConfigRequest {
                    workspace: WORKSPACES[workspace].into(),
                    keys: named,
                    quiet,
                    ..request("delete")
                };
                let answered = house.system.call(&delete).await.unwrap().version;
                model.settle(answered, quiet);
                keys.iter().for_each(|(t, k)| drop(model.values.remove(&(workspace, *t, *k))));
            }
            Step::Apply { puts, deletes, stale, quiet } => {
                let deletes: Vec<_> = deletes.into_iter().filter(|place| !puts.contains(place)).collect();
                let touched = puts.iter().chain(&deletes);
                let mut expected: Vec<_> = touched
                    .map(|place| {
                        let (workspace, config_type, key) = names(*place);
                        expect(
                            workspace,
                            config_type,
                            key,
                            model.values.get(place).map_or(0, |found| found.1),
                        )
                    })
                    .collect();
                let broken = stale && !expected.is_empty();
                if broken {
                    expected[0].version += 1_000_000;
                }
                let texts: Vec<_> = puts.into_iter().map(|place| (place, model.text())).collect();
                let write = Apply {
                    expect: expected,
                    puts: texts
                        .iter()
                        .map(|(p, text)| value_in(names(*p).0, names(*p).1, names(*p).2, text))
                        .collect(),
                    deletes: deletes.iter().map(|p| key_in(names(*p).0, names(*p).1, names(*p).2)).collect(),
                    quiet,
                    ..Apply::default()
                };
                let is_empty = texts.is_empty() && deletes.is_empty();
                match house.system.apply(write).await {
                    Err(ConfigError::Conflict(_)) => assert!(broken),
                    Err(error) => panic!("{error}"),
                    Ok(answered) => {
                        assert!(!broken);
                        if !is_empty {
                            model.settle(answered, quiet);
                        }
                        model.values.extend(texts.into_iter().map(|(place, text)| (place, (text, answered))));
                        deletes.iter().for_each(|place| drop(model.values.remove(place)));
                    }
                }
            }
            Step::Restart => {
                house.stop().await;
                house = Instance::start(&broker, &store).await;
                // The start is told with a version of its own, once there is something to tell of.
                model.version += i64::from(model.version > 0);
            }
        }
        check(&house, &model, &mut follower).await;
    }
    house.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_service_holds_what_a_map_would_hold(steps in steps()) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run(steps));
    }
}
