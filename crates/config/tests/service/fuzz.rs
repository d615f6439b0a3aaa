//! Whatever a request for config holds, its cursor and position too: it is answered within its walls, or refused in words.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::*;
use sluice_bus::Embedded;
use sluice_schema::message::{ConfigRequest, ConfigResponse};
use sluice_schema::wire;

/// What workspace `b` holds.
async fn neighbours(house: &Instance) -> Vec<(String, String, Option<String>)> {
    let dump = ConfigRequest { workspace: "b".to_owned(), ..request("config") };
    let answer = house.system.call(&dump).await.unwrap();
    let of_type = |(kind, values): (String, std::collections::BTreeMap<String, String>)| {
        values.into_iter().map(move |(key, value)| (kind.clone(), key, Some(value)))
    };
    answer.config.into_iter().flat_map(of_type).collect()
}

/// Requests with cursors as the service gives them, at every step of reading.
async fn with_cursors(
    house: &Instance,
    user: &sluice_bus::Client<sluice_schema::exchange::Config>,
) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for since in [0, 2] {
        let mut asked = ConfigRequest {
            types: vec!["t".to_owned(), "u".to_owned()],
            since,
            bytes_max: 1,
            ..request("getvalues-many")
        };
        for _ in 0..5 {
            all.push(wire::encode(&asked).to_vec());
            let answer = house.system.call(&asked).await.unwrap();
            asked.history = answer.history;
            asked.cursor = answer.cursor;
            if asked.cursor.is_empty() {
                break;
            }
        }
    }
    let mut own = ConfigRequest { r#type: "t".to_owned(), bytes_max: 1, ..request("getvalues") };
    for _ in 0..3 {
        all.push(wire::encode(&own).to_vec());
        own.cursor = ask(user, own.clone()).await.cursor;
    }
    all
}

fn is_fine(answer: &ConfigResponse, bytes: usize) {
    let said = answer.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
    assert!(!said.contains("service failed"), "a handler panicked: {said}");
    assert!(said.len() < bytes + 4_096, "{} bytes of error", said.len());
}

#[test]
fn any_request_is_answered_within_its_workspace_or_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (broker, store) = (Embedded::in_memory(), Store::new());
    let large = "x".repeat(20_000);
    let (house, user, known, before) = runtime.block_on(async {
        let house = Instance::start(&broker, &store).await;
        for workspace in ["a", "b"] {
            house.register(workspace).await;
            let values = (0..8).map(|n| value("t", &format!("k{n}"), &large)).collect();
            house.system.put(workspace, values).await.unwrap();
            house.system.put(workspace, vec![value("u", "n", "1")]).await.unwrap();
        }
        house.system.delete("b", vec![key("t", "k3")]).await.unwrap();
        let user = house.user("a").await;
        let known = with_cursors(&house, &user).await;
        let before = neighbours(&house).await;
        (house, user, known, before)
    });
    assert!(known.len() > 6 && before.len() > 7);
    let known: Vec<&[u8]> = known.iter().map(Vec::as_slice).collect();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/requests");
    sluice_fuzz::run("requests", &corpus, 1_500, &known, &|input| {
        let Ok(asked) = wire::decode::<ConfigRequest>(input) else { return };
        runtime.block_on(async {
            // Reading for the system itself: only what was asked for.
            if asked.operation == "getvalues-many" {
                let answer = house.system.call(&asked).await;
                if let Ok(answer) = &answer {
                    let types: BTreeSet<&str> = asked.types.iter().map(String::as_str).collect();
                    let is_asked = |kind: &str| {
                        let start =
                            |t: &&str| t.strip_suffix('*').is_some_and(|start| kind.starts_with(start));
                        types.contains(kind) || types.iter().any(start)
                    };
                    assert!(answer.values.iter().all(|value| is_asked(&value.r#type)));
                    assert!(answer.deleted.iter().all(|gone| is_asked(&gone.r#type)));
                    is_fine(answer, input.len());
                } else if let Err(error) = answer {
                    assert!(!error.to_string().contains("service failed"), "a handler panicked: {error}");
                }
            }
            // Whatever a user asks, writing included, is about the own workspace.
            let answer = ask(&user, asked.clone()).await;
            is_fine(&answer, input.len());
            let is_own = |workspace: &str| ["", "a"].contains(&workspace);
            assert!(answer.values.iter().all(|value| is_own(&value.workspace)), "{:?}", answer.values);
            assert!(answer.deleted.iter().all(|gone| is_own(&gone.workspace)), "{:?}", answer.deleted);
        });
    });
    assert!(runtime.block_on(neighbours(&house)) == before, "a neighbour's values were changed");
}
