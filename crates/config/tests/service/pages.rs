//! Answers in pages: whole at one moment in the end, whatever is written meanwhile, and however much all tenants hold together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::*;
use sluice_bus::Embedded;
use sluice_schema::message::{ConfigKey, ConfigRequest, ConfigResponse};
use sluice_sdk::{ConfigError, ConfigWatch, Position};
use sluice_store::{Batch, BoxFuture, Found, Read, Tables};

type Known = BTreeMap<(String, String, String), String>;

/// Deletions first, then values, over what was known.
fn take(known: &mut Known, answer: &ConfigResponse) {
    for gone in &answer.deleted {
        known.remove(&(gone.r#type.clone(), gone.workspace.clone(), gone.key.clone()));
    }
    for value in &answer.values {
        let at = (value.r#type.clone(), value.workspace.clone(), value.key.clone());
        known.insert(at, value.value.clone().unwrap());
    }
}

fn page(types: &[String], after: &Position, cursor: &str) -> ConfigRequest {
    ConfigRequest {
        types: types.to_vec(),
        since: after.version,
        history: after.history.clone(),
        bytes_max: 1,
        cursor: cursor.to_owned(),
        ..request("getvalues-many")
    }
}

/// Between any two pages something is written, changed and deleted, in front of what was told and behind it.
#[tokio::test]
async fn pages_are_whole_at_one_version_whatever_is_written_meanwhile() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    let large = "x".repeat(20_000);
    for workspace in ["a", "b", "c"] {
        let values = (0..8).map(|n| value("t", &format!("k{n}"), &large)).collect();
        house.system.put(workspace, values).await.unwrap();
    }
    // So many that what is deleted of them takes several pages.
    let small = |round: usize| (0..200).map(move |n| format!("s{round}-{n}"));
    for round in 0..3 {
        let values = small(round).map(|name| value("u", &name, "x")).collect();
        house.system.put("b", values).await.unwrap();
    }
    let types = ["t".to_owned(), "u".to_owned()];
    let (mut known, mut position) = (Known::new(), Position::default());
    for round in 0..3 {
        let mut cursor = String::new();
        let (mut pages, mut is_late) = (0, false);
        loop {
            let answer = house.system.call(&page(&types, &position, &cursor)).await.unwrap();
            if pages == 0 {
                assert_eq!(answer.since > 0, round > 0, "relative from the second time on");
                known.retain(|_, _| answer.since > 0);
            }
            take(&mut known, &answer);
            pages += 1;
            if answer.cursor.is_empty() {
                position = position.after(&answer);
                break;
            }
            cursor = answer.cursor;
            // Once at least when all values have been told, and deletions are.
            let is_at_deletions = !answer.deleted.is_empty();
            if pages > 12 && (is_late || !is_at_deletions) {
                continue;
            }
            is_late |= is_at_deletions;
            let text = format!("{round} {pages}");
            house.system.put("a", vec![value("t", "k0", &text), value("u", &text, &large)]).await.unwrap();
            house.system.put("c", vec![value("t", "k7", &text)]).await.unwrap();
            house.system.delete("b", vec![key("t", &format!("k{}", pages % 8))]).await.unwrap();
            house.system.put("b", vec![value("t", &format!("k{}", (pages + 3) % 8), &large)]).await.unwrap();
        }
        assert!(pages > 2 && (is_late || round == 0), "{pages}");
        let whole = house.system.getvalues_many(&types, 0).await.unwrap();
        let mut expected = Known::new();
        take(&mut expected, &whole);
        assert_eq!((position.version, &known), (whole.version, &expected));
        for n in 0..8 {
            house.system.put("c", vec![value("t", &format!("k{n}"), &large)]).await.unwrap();
        }
        house.system.delete("b", small(round).map(|name| key("u", &name)).collect()).await.unwrap();
    }
    let garbled = house.system.call(&page(&types, &position, "{}")).await.unwrap_err();
    assert!(matches!(&garbled, ConfigError::Refused { kind, .. } if kind == "page-expired"), "{garbled}");
    house.stop().await;
}

/// A dump and a type are paged for users too; without pages what is too large is refused in words.
#[tokio::test]
async fn what_does_not_fit_one_message_comes_in_pages_or_is_refused_in_words() {
    let limits = sluice_bus::embedded::Config { message_bytes_max: 300_000, ..Default::default() };
    let (broker, store) = (Embedded::open(limits).unwrap(), Store::new());
    let house = Instance::start(&broker, &store).await;
    house.register("acme").await;
    let user = house.user("acme").await;
    for n in 0..20 {
        let put = ConfigRequest {
            values: vec![value("t", &format!("k{n}"), &"\"".repeat(10_000))],
            ..request("put")
        };
        assert_eq!(ask(&user, put).await.error, None);
    }
    for operation in ["config", "getvalues"] {
        let whole = ConfigRequest { r#type: "t".into(), ..request(operation) };
        let error = ask(&user, whole.clone()).await.error.unwrap();
        assert!(error.r#type == "too-large" && error.message.contains("bytes_max"), "{operation}: {error:?}");
        let (mut found, mut cursor) = (0, String::new());
        loop {
            let next = ConfigRequest { bytes_max: 100_000, cursor, ..whole.clone() };
            let answer = ask(&user, next).await;
            assert_eq!(answer.error, None);
            found += answer.values.len() + answer.config.get("t").map_or(0, BTreeMap::len);
            cursor = answer.cursor;
            if cursor.is_empty() {
                break;
            }
        }
        assert_eq!(found, 20, "{operation}");
    }
    let names = ask(&user, ConfigRequest { r#type: "t".into(), ..request("list") }).await;
    assert_eq!(names.directory.len(), 20, "names fit");
    let long = |n: usize| format!("{n:04}{}", "k".repeat(1_000));
    for hundred in 0..3 {
        let hundred = 100 * hundred..100 * (hundred + 1);
        let values = hundred.map(|n| value("long", &long(n), "1")).collect();
        assert_eq!(ask(&user, ConfigRequest { values, ..request("put") }).await.error, None);
    }
    let list = ConfigRequest { r#type: "long".into(), ..request("list") };
    let error = ask(&user, list.clone()).await.error.unwrap();
    assert!(error.r#type == "too-large" && error.message.contains("bytes_max"), "{error:?}");
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = ask(&user, ConfigRequest { bytes_max: 100_000, cursor, ..list.clone() }).await;
        assert_eq!(answer.error, None);
        found.extend(answer.directory);
        cursor = answer.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(found, (0..300).map(long).collect::<Vec<_>>());
    let keys = (0..20).map(|n| key("t", &format!("k{n}"))).collect();
    let error = ask(&user, ConfigRequest { keys, ..request("get") }).await.error.unwrap();
    assert_eq!(error.r#type, "too-large");
    house.stop().await;
}

/// More than one message holds, of several workspaces; nobody's part is too large.
#[tokio::test]
async fn what_all_workspaces_hold_together_is_read_however_much_it_is() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    let large = "x".repeat(1_000_000);
    for workspace in 0..5 {
        let values = (0..15).map(|n| value("tool", &format!("k{n}"), &large)).collect();
        house.system.put(&format!("w{workspace}"), values).await.unwrap();
    }
    house.system.put("w0", vec![value("flow", "f", "{}")]).await.unwrap();
    house.stop().await;
    let house = Instance::start(&broker, &store).await;
    let types = ["flow".to_owned(), "tool".to_owned()];
    let refused = house.system.getvalues_many(&types, 0).await.unwrap_err();
    assert!(matches!(&refused, ConfigError::Refused { kind, .. } if kind == "too-large"), "{refused}");
    let watch = ConfigWatch::start(&house.process, Duration::from_secs(30));
    watch.interest(&types);
    let flows = tokio::time::timeout(DEADLINE, watch.ready(&["flow"])).await.expect("flows are read");
    assert_eq!(flows.all("flow").count(), 1);
    let all = tokio::time::timeout(DEADLINE, watch.ready(&types)).await.expect("everything is read");
    assert_eq!((all.all("flow").count(), all.all("tool").count()), (1, 75));
    house.system.put("w1", vec![value("tool", "k1", "small"), value("flow", "g", "{}")]).await.unwrap();
    let seen = tokio::time::timeout(DEADLINE, watch.look()).await.unwrap();
    assert_eq!(seen.get("tool", "w1", "k1").map(|text| &**text), Some("small"));
    assert_eq!(seen.all("flow").count(), 2);
    house.stop().await;
}

/// Up to the ceilings and no further, over a restart; then everything is undone, and others never notice.
#[tokio::test]
async fn what_could_not_be_read_later_is_refused_and_what_was_accepted_can_be_undone() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let house = Instance::start(&broker, &store).await;
    for workspace in ["acme", "other"] {
        house.register(workspace).await;
    }
    let put = |kind: &str, name: &str, text: &str| ConfigRequest {
        values: vec![value(kind, name, text)],
        ..request("put")
    };
    let user = house.user("acme").await;
    let refused = async |asked: ConfigRequest, what: &str| {
        let error = ask(&user, asked).await.error.expect(what);
        assert!(error.r#type == "too-large" && error.message.contains(what), "{what}: {error:?}");
    };
    // The largest value of a type, also where JSON writes it larger than it is.
    refused(put("tool", "k", &"x".repeat((1 << 20) + 1)), "'tool/k' in workspace 'acme'").await;
    refused(put("tool", "k", &"\u{1}".repeat(200_000)), "takes 1200000 bytes; the limit is 1048576").await;
    // A prompt record that is used is no longer than this, whatever is quoted in it.
    refused(put("prompt", "k", &"x".repeat((64 << 10) + 1)), "the limit is 65536").await;
    assert_eq!(ask(&user, put("prompt", "k", &"\"".repeat(64 << 10))).await.error, None);
    assert_eq!(
        ask(&user, ConfigRequest { keys: vec![key("prompt", "k")], ..request("delete") }).await.error,
        None
    );
    assert_eq!(
        ask(&user, put("ontology", "o", &"x".repeat(4 << 20))).await.error,
        None,
        "ontologies are large"
    );
    // Keys of a type.
    let keys = (0..10_001).map(|n| value("small", &format!("k{n}"), "1")).collect();
    refused(ConfigRequest { values: keys, ..request("put") }, "would hold 10001 keys").await;
    // All of a type, then all of the workspace.
    let large = "x".repeat(1 << 20);
    let mut written = vec![key("ontology", "o")];
    let mut last = String::new();
    'full: for kind in ["a", "b", "c", "d"] {
        for n in 0.. {
            let name = format!("k{n}");
            match ask(&user, put(kind, &name, &large)).await.error {
                None => {
                    assert!(n < 15, "type '{kind}' is never full");
                    written.push(key(kind, &name));
                }
                Some(error) => {
                    assert_eq!(error.r#type, "too-large");
                    last = error.message;
                    if last.contains("the config of workspace 'acme'") {
                        break 'full;
                    }
                    assert!(n == 15 && last.contains(&format!("config of type '{kind}'")), "{n}: {last}");
                    break;
                }
            }
        }
    }
    assert!(last.contains("the config of workspace 'acme'"), "{last}");
    house.stop().await;
    let house = Instance::start(&broker, &store).await;
    let (user, other) = (house.user("acme").await, house.user("other").await);
    let whole = ask(&user, request("config")).await;
    assert_eq!((whole.error, whole.config.len()), (None, 4), "a full workspace fits one message");
    assert_eq!(ask(&other, put("tool", "k", &large)).await.error, None, "another one has its own room");
    assert!(
        ask(&user, put("e", "k", &large)).await.error.is_some(),
        "what was counted is known after a restart"
    );
    assert_eq!(ask(&user, put("a", "k0", "less")).await.error, None, "what gets smaller is never refused");
    assert_eq!(ask(&user, ConfigRequest { keys: written, ..request("delete") }).await.error, None);
    assert_eq!(ask(&user, request("config")).await.config.len(), 0);
    assert_eq!(ask(&user, put("e", "k", &large)).await.error, None, "the room is there again");
    house.stop().await;
}

/// Tables of which one row of values is damaged.
struct Scratched {
    inner: Arc<dyn Tables>,
    key: Mutex<Vec<u8>>,
}

impl Scratched {
    fn hits(&self, read: &Read) -> bool {
        let key = self.key.lock().unwrap();
        let is_within = |range: &sluice_store::KeyRange| {
            range.from[..] <= key[..] && range.to.as_ref().is_none_or(|to| key[..] < to[..])
        };
        !key.is_empty()
            && match read {
                Read::Get { table, key: asked } => table == "config.value" && asked[..] == key[..],
                Read::Range { table, range, .. } => table == "config.value" && is_within(range),
            }
    }
}

impl Tables for Scratched {
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, sluice_store::Result<Vec<Found>>> {
        if reads.iter().any(|read| self.hits(read)) {
            let (what, reason) = ("a row".to_owned(), "told to be".to_owned());
            return Box::pin(async { Err(sluice_store::Error::Damaged { what, reason }) });
        }
        self.inner.read(reads)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, sluice_store::Result<()>> {
        self.inner.commit(batch)
    }
}

/// It is named to readers of everything, an error to who asks for it, and nothing to all others.
#[tokio::test]
async fn a_damaged_value_harms_only_itself() {
    let (broker, mut store) = (Embedded::in_memory(), Store::new());
    let scratched = Arc::new(Scratched { inner: store.tables.clone(), key: Mutex::default() });
    store.tables = scratched.clone();
    let house = Instance::start(&broker, &store).await;
    for workspace in ["acme", "other"] {
        house.register(workspace).await;
        let values = ["a", "b", "c"].map(|key| value("t", key, key)).to_vec();
        house.system.put(workspace, values).await.unwrap();
    }
    let types = ["t".to_owned(), "u".to_owned()];
    let before = house.system.changes(&types, &Position::default()).await.unwrap();
    house.system.put("acme", vec![value("t", "b", "new"), value("t", "c", "new")]).await.unwrap();
    *scratched.key.lock().unwrap() = b"t\0acme\0b".to_vec();

    let bad = vec![key_in("acme", "t", "b")];
    let values = |answer: &ConfigResponse| {
        let one = |value: &sluice_schema::message::ConfigValue| (value.workspace.clone(), value.key.clone());
        answer.values.iter().map(one).collect::<Vec<_>>()
    };
    let names = |all: &[(&str, &str)]| -> Vec<(String, String)> {
        all.iter().map(|(workspace, key)| ((*workspace).to_owned(), (*key).to_owned())).collect()
    };
    let whole = house.system.changes(&types, &Position::default()).await.unwrap();
    let expected = names(&[("acme", "a"), ("acme", "c"), ("other", "a"), ("other", "b"), ("other", "c")]);
    assert_eq!((values(&whole), &whole.damaged), (expected.clone(), &bad));
    let later = house.system.changes(&types, &Position::default().after(&before)).await.unwrap();
    assert_eq!((values(&later), &later.damaged), (names(&[("acme", "c")]), &bad));
    // Page by page it is no other.
    let (mut known, mut damaged, mut cursor) = (Vec::new(), Vec::new(), String::new());
    loop {
        let answer = house.system.call(&page(&types, &Position::default(), &cursor)).await.unwrap();
        known.extend(values(&answer));
        damaged.extend(answer.damaged);
        cursor = answer.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!((known, damaged), (expected, bad));

    let (user, other) = (house.user("acme").await, house.user("other").await);
    for asked in [
        ConfigRequest { r#type: "t".into(), ..request("getvalues") },
        request("config"),
        ConfigRequest { keys: vec![key("t", "b")], ..request("get") },
    ] {
        assert!(ask(&user, asked.clone()).await.error.is_some(), "{}", asked.operation);
        assert_eq!(ask(&other, asked).await.error, None);
    }
    let listed = ask(&user, ConfigRequest { r#type: "t".into(), ..request("list") }).await;
    assert_eq!(listed.directory, ["a", "b", "c"]);
    // A write of it is refused, and takes no other one with it.
    let write = |key: &str| ConfigRequest { values: vec![value("t", key, "newer")], ..request("put") };
    let (one, two, three) =
        tokio::join!(ask(&user, write("a")), ask(&user, write("b")), ask(&other, write("b")));
    assert_eq!((one.error, three.error), (None, None));
    assert!(two.error.unwrap().message.contains("a row"));
    scratched.key.lock().unwrap().clear();
    assert!(house.system.changes(&types, &Position::default()).await.unwrap().damaged.is_empty());
    house.stop().await;
}

#[tokio::test]
async fn whatever_is_large_takes_room_before_it_is_read_and_what_is_small_needs_none() {
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let instance = Instance::start(&broker, &store).await;
    instance.register("acme").await;
    let user = instance.user("acme").await;
    let text = "x".repeat(2 << 20);
    let ontology = ["a", "b"].map(|key| value("ontology", key, &text));
    instance.system.put("acme", ontology.into()).await.unwrap();
    let named = (0..500).map(|n| value("named", &format!("{n:01000}"), "v")).collect();
    instance.system.put("acme", named).await.unwrap();

    let of = |kind: &str, operation: &str| ConfigRequest { r#type: kind.to_owned(), ..request(operation) };
    let get = |kind: &str, key: &str| ConfigRequest {
        keys: vec![ConfigKey { r#type: kind.to_owned(), key: key.to_owned() }],
        ..request("get")
    };
    let many = |kind: &str| ConfigRequest { types: vec![kind.to_owned()], ..request("getvalues-many") };
    // However small the pages are that are asked for: single values come whole.
    let small = |asked: ConfigRequest| ConfigRequest { bytes_max: 1, ..asked };
    let large = [
        get("ontology", "a"),
        small(get("ontology", "a")),
        small(of("ontology", "getvalues")),
        small(request("config")),
        of("named", "list"),
    ];
    let large_of_ours =
        [many("ontology"), many("named"), of("named", "getvalues-all-ws"), of("named", "getkeys-all-ws")];
    let first = format!("{:01000}", 0);
    let little = [get("named", &first), get("none", "none"), of("ontology", "list"), of("none", "getvalues")];
    let ask_all = async || {
        let users = large.iter().map(|asked| ask(&user, asked.clone()));
        let ours = large_of_ours.iter().map(|asked| instance.system.call(asked));
        let (users, ours) =
            tokio::join!(futures_util::future::join_all(users), futures_util::future::join_all(ours));
        let users = users.into_iter().map(|answer| answer.error.map_or("", |_| "overloaded"));
        let ours = ours.into_iter().map(|answer| match answer {
            Err(ConfigError::Refused { kind, .. }) if kind == "overloaded" => "overloaded",
            other => other.map(|_| "").unwrap(),
        });
        users.chain(ours).collect::<Vec<_>>()
    };
    let taken = instance.process.take_all_room();
    assert_eq!(ask_all().await, ["overloaded"; 9]);
    for asked in little {
        assert_eq!(ask(&user, asked).await.error, None);
    }
    assert!(instance.system.call(&many("workspace")).await.is_ok());
    drop(taken);
    assert_eq!(ask_all().await, [""; 9]);
    instance.stop().await;
}
