//! Documents on their way out: raw bytes, with a status that waits for the first of them.

use serde_json::{Value, json};
use sluice_schema::message as m;

use crate::world::World;

const PATH: &str = "/api/v1/document-stream";

async fn get(world: &World, query: &str, token: Option<&str>) -> reqwest::Response {
    let request = reqwest::Client::new().get(world.url(&format!("{PATH}{query}")));
    let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
    request.send().await.unwrap()
}

/// A library with a document of three parts, one that breaks off, and none besides.
async fn with_library() -> World {
    let world = World::new().await;
    world
        .serve_system("default", "librarian", |question, responder| async move {
            let part = |content: &str, index: i64, last: bool| {
                json!({"content": content, "chunk_index": index, "chunk_size": question["chunk_size"],
                    "total_chunks": 3, "bytes_received": index + 1, "total_bytes": 3, "is_final": last})
            };
            assert_eq!(question["operation"], "stream-document");
            match question["document_id"].as_str() {
                Some("d") => {
                    responder.part(&part("SGVs", 0, false)).await.unwrap();
                    responder.part(&part("bG8=", 1, false)).await.unwrap();
                    Ok(part("/wA=", 2, true))
                }
                Some("breaks") => {
                    responder.part(&part("SGVs", 0, false)).await.unwrap();
                    Err(m::Error::new("librarian-error", "the disk is gone"))
                }
                Some("refused") => Err(m::Error::new("librarian-error", "no")),
                _ => Err(m::Error::new("not-found", "document is not in the library")),
            }
        })
        .await;
    world
}

#[tokio::test]
async fn a_document_comes_as_its_bytes() {
    let world = with_library().await;
    for query in ["?document-id=d", "?document-id=d&workspace=default&chunk-size=3"] {
        let answer = get(&world, query, Some("tg_admin")).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &"application/octet-stream".parse().unwrap())
        );
        assert_eq!(answer.bytes().await.unwrap(), &b"Hello\xff\x00"[..]);
    }
}

#[tokio::test]
async fn a_document_that_is_not_there_is_told_by_its_status() {
    let world = with_library().await;
    let check = async |query: &str, token: Option<&str>, status: u16, told: &str| {
        let answer = get(&world, query, token).await;
        assert_eq!(answer.status().as_u16(), status, "{query}");
        let said: Value = answer.json().await.unwrap();
        assert!(said["error"].as_str().is_some_and(|text| text.contains(told)), "{query}: {said}");
    };
    check("?document-id=gone", Some("tg_admin"), 404, "not in the library").await;
    check("?document-id=refused", Some("tg_admin"), 502, "no").await;
    check("", Some("tg_admin"), 400, "Missing required parameter: document-id").await;
    check("?document-id=d", None, 401, "auth failure").await;
    check("?document-id=d&workspace=nowhere", Some("tg_admin"), 404, "workspace not found").await;
}

#[tokio::test]
async fn half_a_document_is_never_taken_for_a_whole_one() {
    let world = with_library().await;
    let request = reqwest::Client::new().get(world.url(&format!("{PATH}?document-id=breaks")));
    let whole = async { request.bearer_auth("tg_admin").send().await?.bytes().await };
    let got = whole.await;
    assert!(got.is_err(), "the connection breaks off: {got:?}");
}
