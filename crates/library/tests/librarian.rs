//! The librarian's and the collections' calls, asked over the bus as any client would.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{DEADLINE, WS, World, about, add, add_child, base64, bytes, call, captured, metadata, topic};
use sluice_bus::{BoxFuture, BrokerAdmin, Counting, Patience};
use sluice_library::Limits;
use sluice_schema::message::{
    CollectionManagementRequest, ConfigKey, Criteria, DocumentMetadata, LibrarianRequest, LibrarianResponse,
};
use sluice_sdk::config::value;
use sluice_store::{Batch, Found, Read, Stores, Tables};

fn ids(documents: &[DocumentMetadata]) -> Vec<&str> {
    documents.iter().map(|document| document.id.as_str()).collect()
}

#[tokio::test]
async fn recorded_questions_get_the_recorded_answers() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let messages = captured("librarian.jsonl");
    let mut asked = 0;
    for (_, id, question) in
        messages.iter().filter(|(exchange, ..)| exchange == "tg.request.librarian:default")
    {
        let question: LibrarianRequest = serde_json::from_value(question.clone()).unwrap();
        let answer = messages
            .iter()
            .find(|(exchange, other, _)| exchange == "tg.response.librarian:default" && other == id);
        let recorded: LibrarianResponse = serde_json::from_value(answer.unwrap().2.clone()).unwrap();
        assert_eq!(world.ask(question.clone()).await, recorded, "{question:?}");
        asked += 1;
    }
    assert_eq!(asked, 4);
    world.stop().await;
}

#[tokio::test]
async fn a_document_is_added_changed_read_and_removed_with_its_whole_tree() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.ok(add("urn:doc:1", "first")).await;
    world.ok(add("urn:doc:2", "second")).await;
    assert_eq!(world.ok(add_child("urn:doc:1", "urn:page:1", "page")).await.document_id, "urn:page:1");
    world.ok(add_child("urn:page:1", "urn:chunk:1", "chunk")).await;
    world.ok(add_child("urn:chunk:1", "urn:chunk:2", "")).await;

    let listed = world.ok(call("list-documents")).await.document_metadatas;
    assert_eq!(ids(&listed), ["urn:doc:1", "urn:doc:2"]);
    let all = world.ok(LibrarianRequest { include_children: true, ..call("list-documents") }).await;
    assert_eq!(all.document_metadatas.len(), 5);
    let children = world.ok(about("list-children", "urn:doc:1")).await.document_metadatas;
    assert_eq!(ids(&children), ["urn:page:1"]);
    assert_eq!(children[0].document_type, "chunk");

    let changed = DocumentMetadata {
        title: "New".into(),
        tags: vec!["x".into()],
        kind: "ignored".into(),
        ..metadata("urn:doc:1")
    };
    world.ok(LibrarianRequest { document_metadata: Some(changed), ..call("update-document") }).await;
    for operation in ["get-document-metadata", "get-document"] {
        let found = world.ok(about(operation, "urn:doc:1")).await.document_metadata.unwrap();
        assert_eq!((found.title.as_str(), found.kind.as_str(), found.tags.len()), ("New", "text/plain", 1));
    }
    assert_eq!(bytes(&world.ok(about("get-document-content", "urn:chunk:1")).await.content), b"chunk");

    world.ok(about("remove-document", "urn:doc:1")).await;
    assert_eq!(world.ok(about("get-document-metadata", "urn:doc:1")).await, LibrarianResponse::default());
    let left = world.ok(LibrarianRequest { include_children: true, ..call("list-documents") }).await;
    assert_eq!(ids(&left.document_metadatas), ["urn:doc:2"]);
    let blobs = world.store.as_ref().unwrap().stores().blobs.list("doc/", None, 100).await.unwrap();
    assert_eq!(blobs.len(), 1, "contents went with their documents");
    world.ok(add("urn:doc:1", "again")).await;
    world.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_document_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.ok(add("taken", "content")).await;
    let with = |change: fn(&mut DocumentMetadata)| {
        let mut request = add("new", "content");
        change(request.document_metadata.as_mut().unwrap());
        request
    };
    let unsupported = vec![Criteria { key: "colour".into(), value: "red".into(), operator: String::new() }];
    let odd = vec![Criteria { key: "kind".into(), value: "x".into(), operator: "like".into() }];
    let cases = [
        (add("taken", "other"), "unexpected-error", "Document already exists"),
        (add("new", ""), "request-error", "'new' is empty"),
        (
            LibrarianRequest { content: "not/base64!".into(), ..add("new", "") },
            "request-error",
            "not valid base64",
        ),
        (
            LibrarianRequest { document_metadata: None, ..add("new", "x") },
            "request-error",
            "no document-metadata",
        ),
        (with(|m| m.id.clear()), "request-error", "names no document"),
        (with(|m| m.id = "a\nb".into()), "request-error", "control characters"),
        (with(|m| m.id = "x".repeat(1025)), "request-error", "1025 bytes"),
        (with(|m| m.kind.clear()), "request-error", "has no kind"),
        (add_child("nobody", "c", "x"), "request-error", "parent document 'nobody' is not in the library"),
        (add_child("", "c", "x"), "request-error", "names no parent document"),
        (add_child("taken", "taken", "x"), "unexpected-error", "already exists"),
        (about("get-document-metadata", ""), "request-error", "names no document"),
        (about("get-document-content", "nobody"), "not-found", "not in the library"),
        (about("stream-document", "nobody"), "not-found", "not in the library"),
        (about("remove-document", "nobody"), "not-found", "not in the library"),
        (about("list-children", "nobody"), "not-found", "not in the library"),
        (
            LibrarianRequest { operation: "update-document".into(), ..add("new", "") },
            "not-found",
            "not in the library",
        ),
        (LibrarianRequest { criteria: unsupported, ..call("list-documents") }, "request-error", "'colour'"),
        (LibrarianRequest { criteria: odd, ..call("list-documents") }, "request-error", "no operator 'like'"),
        (call("fly"), "request-error", "Invalid operation: fly"),
        (call(""), "request-error", "Null operation"),
    ];
    for (request, kind, text) in cases {
        let what = format!("{} expecting {text}", request.operation);
        let said = world.refused(request).await;
        assert_eq!(said.r#type, kind, "{what}: {said:?}");
        assert!(said.message.contains(text), "{what}: {said:?}");
    }
    let listed = world.ok(LibrarianRequest { include_children: true, ..call("list-documents") }).await;
    assert_eq!(ids(&listed.document_metadatas), ["taken"], "nothing refused has left a trace");
    world.stop().await;
}

#[tokio::test]
async fn base64_with_line_breaks_and_a_part_added_twice_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let broken_up: String =
        base64("a longer text").as_bytes().chunks(5).map(|c| String::from_utf8_lossy(c) + "\r\n").collect();
    world.ok(LibrarianRequest { content: broken_up, ..add("d", "") }).await;
    assert_eq!(bytes(&world.ok(about("get-document-content", "d")).await.content), b"a longer text");
    world.ok(add_child("d", "c", "part")).await;
    world.ok(add_child("d", "c", "part")).await;
    world.refused(add_child("d", "c", "another")).await;
    world.stop().await;
}

#[tokio::test]
async fn a_list_is_filtered_by_criteria() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    for (id, kind, tag) in [("a", "text/plain", "x"), ("b", "text/markdown", "x"), ("c", "text/plain", "y")] {
        let mut request = add(id, "content");
        let metadata = request.document_metadata.as_mut().unwrap();
        metadata.kind = kind.into();
        metadata.tags = vec![tag.into()];
        world.ok(request).await;
    }
    let mut answer = add("answer", "content");
    answer.document_metadata.as_mut().unwrap().document_type = "answer".into();
    world.ok(answer).await;
    let check = async |criteria: &[(&str, &str, &str)], expected: &[&str]| {
        let criteria = criteria.iter().map(|(key, operator, value)| Criteria {
            key: (*key).into(),
            value: (*value).into(),
            operator: (*operator).into(),
        });
        let request = LibrarianRequest { criteria: criteria.collect(), ..call("list-documents") };
        assert_eq!(ids(&world.ok(request).await.document_metadatas), expected);
    };
    check(&[], &["a", "b", "c"]).await;
    check(&[("kind", "=", "text/plain")], &["a", "c"]).await;
    check(&[("kind", "", "text/plain"), ("tags", "eq", "x")], &["a"]).await;
    check(&[("tags", "!=", "x")], &["c"]).await;
    check(&[("kind", "starts-with", "text/m")], &["b"]).await;
    check(&[("title", "contains", "of c")], &["c"]).await;
    world.stop().await;
}

#[tokio::test]
async fn a_document_is_streamed_in_parts_and_an_empty_one_in_one() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.ok(add("d", "0123456789")).await;
    world.ok(add_child("d", "empty", "")).await;
    let parts = async |id: &str, chunk_size: i64| {
        let request = LibrarianRequest { chunk_size, ..about("stream-document", id) };
        let mut stream = world.librarian.stream(&request, Patience::total(common::DEADLINE)).await.unwrap();
        let mut parts = Vec::new();
        while let Some(part) = stream.next().await.unwrap() {
            assert_eq!(part.error, None);
            let content = String::from_utf8(bytes(&part.content)).unwrap();
            parts.push((content, part.chunk_index, part.total_chunks, part.bytes_received, part.is_final));
            assert_eq!(part.total_bytes, if id == "d" { 10 } else { 0 });
        }
        parts
    };
    let part = |content: &str, index, of, bytes, last| (content.to_owned(), index, of, bytes, last);
    assert_eq!(
        parts("d", 4).await,
        [part("0123", 0, 3, 4, false), part("4567", 1, 3, 8, false), part("89", 2, 3, 10, true)]
    );
    assert_eq!(parts("d", 5).await, [part("01234", 0, 2, 5, false), part("56789", 1, 2, 10, true)]);
    assert_eq!(parts("d", 0).await, [part("0123456789", 0, 1, 10, true)]);
    assert_eq!(parts("empty", 0).await, [part("", 0, 0, 0, true)]);
    world.stop().await;
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart_with_its_parts_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let begin = LibrarianRequest {
        document_metadata: Some(metadata("urn:big")),
        total_size: 11,
        chunk_size: 4,
        ..call("begin-upload")
    };
    let begun = world.ok(begin.clone()).await;
    assert_eq!((begun.chunk_size, begun.total_chunks), (4, 3));
    let with = |operation: &str| LibrarianRequest { upload_id: begun.upload_id.clone(), ..call(operation) };
    let part = |index: i64, content: &str| LibrarianRequest {
        chunk_index: index,
        content: base64(content),
        ..with("upload-chunk")
    };
    let first = world.ok(part(2, "89a")).await;
    assert_eq!((first.chunk_index, first.chunks_received, first.total_chunks), (2, 1, 3));
    assert_eq!((first.bytes_received, first.total_bytes), (3, 11));
    world.stop().await;

    let world = World::start(folder.path()).await;
    let status = world.ok(with("get-upload-status")).await;
    assert_eq!(status.upload_state, "in-progress");
    assert_eq!((status.received_chunks, status.missing_chunks), (vec![2], vec![0, 1]));
    let open = world.ok(call("list-uploads")).await.upload_sessions;
    assert_eq!((open.len(), open[0].chunks_received, open[0].document_id.as_str()), (1, 1, "urn:big"));
    assert!(world.refused(with("complete-upload")).await.message.contains("2 of 3 parts are missing"));
    assert!(world.refused(part(3, "x")).await.message.contains("parts 0 to 2"));
    assert!(world.refused(part(0, "012")).await.message.contains("must have 4"));
    world.ok(part(0, "xxxx")).await;
    assert_eq!(world.ok(part(0, "0123")).await.chunks_received, 2, "a part sent again counts once");
    world.ok(part(1, "4567")).await;
    let done = world.ok(with("complete-upload")).await;
    assert_eq!(done.document_id, "urn:big");
    assert!(!done.object_id.is_empty());
    assert_eq!(world.ok(with("complete-upload")).await, done, "completing twice is the same");
    assert_eq!(
        bytes(&world.ok(about("get-document-content", "urn:big")).await.content),
        b"0123456789a"[..11]
    );
    assert_eq!(world.ok(with("get-upload-status")).await.upload_state, "expired");
    assert!(world.ok(call("list-uploads")).await.upload_sessions.is_empty());
    assert!(world.refused(begin).await.message.contains("already exists"));
    let parts = world.store.as_ref().unwrap().stores().blobs.list("upload/", None, 10).await.unwrap();
    assert!(parts.is_empty(), "the parts went: {parts:?}");
    world.stop().await;
}

#[tokio::test]
async fn an_upload_is_aborted_and_a_wrong_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let begin = |total_size| LibrarianRequest {
        document_metadata: Some(metadata("d")),
        total_size,
        ..call("begin-upload")
    };
    assert!(world.refused(begin(0)).await.message.contains("total-size is 0"));
    assert!(world.refused(begin(i64::MAX)).await.message.contains("larger than the limit"));
    let upload_id = world.ok(begin(5)).await.upload_id;
    let with = |operation: &str| LibrarianRequest { upload_id: upload_id.clone(), ..call(operation) };
    world.ok(LibrarianRequest { content: base64("12345"), ..with("upload-chunk") }).await;
    world.ok(with("abort-upload")).await;
    for operation in ["abort-upload", "complete-upload", "upload-chunk"] {
        let said = world.refused(with(operation)).await;
        assert!(said.message.contains("is not open"), "{operation}: {said:?}");
    }
    assert!(world.refused(call("get-upload-status")).await.message.contains("names no upload"));
    assert!(world.ok(call("list-documents")).await.document_metadatas.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_documents_contents_and_records() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.ok(add("urn:doc:1", "content")).await;
    world.ok(add_child("urn:doc:1", "urn:page:1", "page")).await;
    world.stop().await;
    let world = World::start(folder.path()).await;
    assert_eq!(ids(&world.ok(call("list-documents")).await.document_metadatas), ["urn:doc:1"]);
    assert_eq!(bytes(&world.ok(about("get-document-content", "urn:page:1")).await.content), b"page");
    world.stop().await;
}

#[tokio::test]
async fn collections_are_listed_changed_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    let ask = |operation: &str, collection: &str| CollectionManagementRequest {
        operation: operation.into(),
        collection: collection.into(),
        ..Default::default()
    };
    let update = CollectionManagementRequest {
        name: "My docs".into(),
        description: "about".into(),
        tags: vec!["t".into()],
        ..ask("update-collection", "docs")
    };
    let answer = world.collection(update).await;
    assert_eq!((answer.error, answer.collections.len(), answer.timestamp.len()), (None, 1, 26));
    assert_eq!(answer.collections[0].name, "My docs");
    let reset = world.collection(ask("update-collection", "docs")).await.collections;
    assert_eq!((reset[0].name.as_str(), reset[0].tags.len()), ("docs", 0), "what is left out is reset");
    world.collection(ask("update-collection", "docs-2024")).await;

    let refused = async |request: CollectionManagementRequest, text: &str| {
        let error = world.collection(request).await.error.unwrap();
        assert_eq!(error.r#type, "request-error");
        assert!(error.message.contains(text), "{}", error.message);
    };
    refused(ask("update-collection", "docs_2024"), "could not tell it from collection 'docs-2024'").await;
    refused(ask("update-collection", "a:b"), "Failed to update collection").await;
    refused(ask("delete-collection", "docs"), "while collection 'docs-2024' exists").await;
    refused(ask("delete-collection", ""), "name the collection").await;
    refused(ask("explode", "x"), "Invalid collection operation: explode").await;
    refused(ask("", "x"), "Null operation").await;

    let tagged = CollectionManagementRequest { tags: vec!["t".into()], ..ask("update-collection", "tagged") };
    world.collection(tagged).await;
    let filter = CollectionManagementRequest { tag_filter: vec!["t".into()], ..ask("list-collections", "") };
    assert_eq!(world.collection(filter).await.collections[0].collection, "tagged");
    let two = CollectionManagementRequest { limit: 2, ..ask("list-collections", "") };
    assert_eq!(world.collection(two).await.collections.len(), 2);
    for id in ["docs-2024", "docs", "never-there"] {
        assert_eq!(world.collection(ask("delete-collection", id)).await.error, None, "{id}");
    }
    assert_eq!(world.collection(ask("list-collections", "")).await.collections.len(), 1);
    world.stop().await;
}

/// Each is compared with all others in all workspaces; only what was written since the last time is read for that.
#[tokio::test]
async fn what_a_collection_costs_does_not_grow_with_those_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let broker = sluice_bus::embedded::Embedded::in_memory();
    let counted = Counting::new(broker.clone());
    let world = World::start_with(folder.path(), &broker, Arc::new(counted.clone()), Limits::default()).await;
    let ask = |operation: &str, id: &str| CollectionManagementRequest {
        operation: operation.into(),
        collection: id.into(),
        ..Default::default()
    };
    let cost = async |id: &str| {
        let before = counted.total().delivered_bytes;
        for operation in ["update-collection", "delete-collection"] {
            assert_eq!(world.collection(ask(operation, id)).await.error, None, "{operation}");
        }
        counted.total().delivered_bytes - before
    };
    cost("first").await;
    let among_few = cost("second").await;
    let values: Vec<_> = (0..2_000).map(|n| value(WS, "collection", &format!("many-{n}"), "{}")).collect();
    world.config.put(WS, values).await.unwrap();
    // Those are read once.
    cost("third").await;
    let among_many = cost("fourth").await;
    assert!(among_many < among_few + 32 * 1024, "{among_few} bytes among few, {among_many} among many");

    // What others wrote and deleted meanwhile counts too.
    world.config.put(WS, vec![value(WS, "collection", "docs-2024", "{}")]).await.unwrap();
    let refused = world.collection(ask("update-collection", "docs_2024")).await.error.unwrap();
    assert!(refused.message.contains("collection 'docs-2024'"), "{}", refused.message);
    let gone = ConfigKey { r#type: "collection".into(), key: "docs-2024".into() };
    world.config.delete(WS, vec![gone]).await.unwrap();
    assert_eq!(world.collection(ask("update-collection", "docs_2024")).await.error, None);
    world.stop().await;
}

/// Tables that count the rows which are read of the sessions of uploads.
struct Counted {
    tables: Arc<dyn Tables>,
    rows: Arc<AtomicUsize>,
}

impl Tables for Counted {
    fn read(&self, reads: Vec<Read>) -> BoxFuture<'_, sluice_store::Result<Vec<Found>>> {
        Box::pin(async move {
            let is_of_uploads = |read: &Read| match read {
                Read::Get { table, .. } | Read::Range { table, .. } => **table == *"library-uploads",
            };
            let of_uploads: Vec<bool> = reads.iter().map(is_of_uploads).collect();
            let found = self.tables.read(reads).await?;
            for (found, _) in found.iter().zip(of_uploads).filter(|(_, of_uploads)| *of_uploads) {
                let count = match found {
                    Found::Value(value) => usize::from(value.is_some()),
                    Found::Rows(page) => page.rows.len(),
                };
                self.rows.fetch_add(count, Ordering::SeqCst);
            }
            Ok(found)
        })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, sluice_store::Result<()>> {
        self.tables.commit(batch)
    }
}

/// Sessions are counted against their ceiling; those that are there are read for that once, whatever became of them.
#[tokio::test]
async fn what_an_upload_costs_does_not_grow_with_those_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let rows = Arc::new(AtomicUsize::new(0));
    let start = async || {
        let broker = sluice_bus::embedded::Embedded::in_memory();
        let wrap = |stores: Stores| Stores {
            tables: Arc::new(Counted { tables: stores.tables.clone(), rows: rows.clone() }),
            ..stores
        };
        World::start_on(folder.path(), &broker, Arc::new(broker.clone()), Limits::default(), wrap).await
    };
    let begin = |n: usize| LibrarianRequest {
        document_metadata: Some(metadata(&format!("urn:{n}"))),
        total_size: 1,
        ..call("begin-upload")
    };
    let with = |operation: &str, id: &str| LibrarianRequest { upload_id: id.to_owned(), ..call(operation) };
    let world = start().await;
    let (mut open, mut made) = (Vec::new(), 0);
    // Some are completed, some aborted; neither counts.
    while open.len() < 1_000 {
        let id = world.ok(begin(made)).await.upload_id;
        made += 1;
        match made {
            5 => _ = world.ok(with("abort-upload", &id)).await,
            6 => {
                world.ok(LibrarianRequest { content: base64("1"), ..with("upload-chunk", &id) }).await;
                world.ok(with("complete-upload", &id)).await;
            }
            _ => open.push(id),
        }
    }
    let read = rows.swap(0, Ordering::SeqCst);
    assert!(read < 100, "{read} rows were read for {made} uploads");
    assert!(world.refused(begin(made)).await.message.starts_with("1000 uploads are open"));
    world.stop().await;
    // As the next start finds them.
    let world = start().await;
    assert!(world.refused(begin(made)).await.message.starts_with("1000 uploads are open"));
    world.ok(with("abort-upload", &open[0])).await;
    world.ok(begin(made)).await;
    assert!(world.refused(begin(made + 1)).await.message.starts_with("1000 uploads are open"));
    world.stop().await;
}

/// Questions and what is only counted or kept: each has a reader that misses it.
#[tokio::test]
async fn a_library_queue_that_somebody_removes_is_made_again_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    for queue in
        ["request:tg:librarian:default", "request:tg:collection:default", "flow:tg:dead-letters:default"]
    {
        let spec = sluice_bus::TopicSpec::with(topic(queue), "librarian");
        world.broker.remove(&sluice_bus::TopicSpec::bare(topic(queue))).await.unwrap();
        let is_read = async {
            loop {
                let seen = world.broker.observe(std::slice::from_ref(&spec)).await.unwrap();
                if seen[0].subscriptions.iter().any(|s| s.exists && s.consumers == Some(1)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE / 2, is_read)
            .await
            .unwrap_or_else(|_| panic!("{queue} is not read again"));
    }
    let request = LibrarianRequest { operation: "list-documents".into(), ..Default::default() };
    world.ok(request).await;
    world.stop().await;
}

/// What an answer lists.
type Names = fn(&LibrarianResponse) -> Vec<String>;

/// Asks page by page; what all pages told, in order.
async fn told_in_pages(world: &World, first: LibrarianRequest, names: Names) -> Vec<String> {
    let (mut told, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let answer = world.ok(LibrarianRequest { bytes_max: 100_000, cursor, ..first.clone() }).await;
        told.extend(names(&answer));
        pages += 1;
        cursor = answer.cursor;
        if cursor.is_empty() {
            assert!(pages > 3, "{}: {pages}", first.operation);
            return told;
        }
    }
}

#[tokio::test]
async fn lists_come_in_pages_and_what_fits_no_message_is_refused_in_words() {
    const COUNT: usize = 30;
    let folder = tempfile::tempdir().unwrap();
    let limits = sluice_bus::embedded::Config { message_bytes_max: 400_000, ..Default::default() };
    let broker = sluice_bus::embedded::Embedded::open(limits).unwrap();
    let path = Arc::new(broker.clone());
    let world = World::start_with(folder.path(), &broker, path, Limits::default()).await;
    world.flow("f1", &common::text_flow("f1")).await;
    let long = "c".repeat(20_000);
    let named = |what: &str| (0..COUNT).map(|n| format!("{what}{n:02}")).collect::<Vec<_>>();
    for (document, child) in named("d").iter().zip(named("c")) {
        let mut request = add(document, "x");
        request.document_metadata.as_mut().unwrap().comments.clone_from(&long);
        world.ok(request).await;
        let mut request = add_child("d00", &child, "x");
        request.document_metadata.as_mut().unwrap().comments.clone_from(&long);
        world.ok(request).await;
        let mut request = common::add_processing(&format!("p{}", &document[1..]), document, "f1");
        request.processing_metadata.as_mut().unwrap().tags = vec![long.clone()];
        world.ok(request).await;
        let mut request = add(&format!("u{document}"), "");
        request.document_metadata.as_mut().unwrap().comments.clone_from(&long);
        world.ok(LibrarianRequest { operation: "begin-upload".into(), total_size: 9, ..request }).await;
    }
    let documents = |answer: &LibrarianResponse| {
        answer.document_metadatas.iter().map(|one| one.id.clone()).collect::<Vec<_>>()
    };
    let records = |answer: &LibrarianResponse| {
        answer.processing_metadatas.iter().map(|one| one.id.clone()).collect::<Vec<_>>()
    };
    let uploads = |answer: &LibrarianResponse| {
        answer.upload_sessions.iter().map(|one| one.document_id.clone()).collect::<Vec<_>>()
    };
    let some = vec![Criteria { key: "id".into(), value: "0".into(), operator: "contains".into() }];
    let cases: [(LibrarianRequest, Names, Vec<String>); 5] = [
        (call("list-documents"), documents, named("d")),
        (
            LibrarianRequest { include_children: true, ..call("list-documents") },
            documents,
            [named("c"), named("d")].concat(),
        ),
        (about("list-children", "d00"), documents, named("c")),
        (call("list-processing"), records, named("p")),
        (call("list-uploads"), uploads, named("ud")),
    ];
    for (request, names, expected) in cases {
        let error = world.refused(request.clone()).await;
        assert!(error.r#type == "too-large" && error.message.contains("bytes_max"), "{error:?}");
        let mut told = told_in_pages(&world, request.clone(), names).await;
        if request.operation == "list-uploads" {
            told.sort();
        }
        assert_eq!(told, expected, "{}", request.operation);
    }
    let request = LibrarianRequest { criteria: some, ..call("list-documents") };
    let fits = world.ok(request).await.document_metadatas;
    assert_eq!(fits.len(), 12, "what is left of a list may fit");

    // What comes and goes between two pages hides nothing else and tells nothing twice.
    let page = LibrarianRequest { bytes_max: 100_000, ..call("list-documents") };
    let first = world.ok(page.clone()).await;
    let known = documents(&first);
    world.ok(about("remove-document", &known[known.len() - 1])).await;
    world.ok(about("remove-document", "d29")).await;
    world.ok(add("a", "x")).await;
    world.ok(add("z", "x")).await;
    let mut rest = Vec::new();
    let mut cursor = first.cursor;
    while !cursor.is_empty() {
        let answer = world.ok(LibrarianRequest { cursor, ..page.clone() }).await;
        rest.extend(documents(&answer));
        cursor = answer.cursor;
    }
    let mut expected = named("d")[known.len()..COUNT - 1].to_vec();
    expected.push("z".to_owned());
    assert_eq!(rest, expected);

    for n in 0..COUNT {
        let update = CollectionManagementRequest {
            operation: "update-collection".into(),
            collection: format!("k{n:02}"),
            description: long.clone(),
            ..Default::default()
        };
        assert_eq!(world.collection(update).await.error, None);
    }
    let list = CollectionManagementRequest { operation: "list-collections".into(), ..Default::default() };
    let error = world.collection(list.clone()).await.error.unwrap();
    assert!(error.r#type == "too-large" && error.message.contains("bytes_max"), "{error:?}");
    let (mut told, mut cursor) = (Vec::new(), String::new());
    loop {
        let asked = CollectionManagementRequest { bytes_max: 100_000, cursor, ..list.clone() };
        let answer = world.collection(asked).await;
        assert_eq!(answer.error, None);
        told.extend(answer.collections.into_iter().map(|one| one.collection));
        cursor = answer.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(told, [vec!["default".to_owned()], named("k")].concat());
    world.stop().await;
}

#[tokio::test]
async fn what_could_not_be_listed_later_is_refused_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    world.flow("f1", &common::text_flow("f1")).await;
    let with = |request: LibrarianRequest, bytes: usize| {
        let mut request = request;
        let metadata = request.document_metadata.as_mut().unwrap();
        // Within it everything counts, tags and statements as well as comments.
        metadata.tags = vec!["t".repeat(bytes / 2)];
        metadata.comments = "c".repeat(bytes - bytes / 2);
        request
    };
    let most = sluice_schema::ceilings::DOCUMENT_METADATA_BYTES_MAX;
    world.ok(with(add("large", "x"), most - 1_000)).await;
    world.ok(add("small", "x")).await;
    let begin = |id: &str| LibrarianRequest {
        operation: "begin-upload".into(),
        content: String::new(),
        total_size: 9,
        ..add(id, "")
    };
    let update =
        LibrarianRequest { operation: "update-document".into(), content: String::new(), ..add("small", "") };
    for request in [add("new", "x"), add_child("small", "new", "x"), begin("new"), update] {
        let error = world.refused(with(request.clone(), most)).await;
        assert!(error.r#type == "too-large", "{}: {error:?}", request.operation);
        assert!(error.message.contains("the limit is 1048576"), "{error:?}");
    }
    let mut processing = common::add_processing("p", "small", "f1");
    processing.processing_metadata.as_mut().unwrap().tags = vec!["t".repeat(64 << 10)];
    assert_eq!(world.refused(processing).await.r#type, "too-large");
    for (name, description, tags) in [
        ("n".repeat(64 << 10), String::new(), Vec::new()),
        (String::new(), "d".repeat(15 << 20), Vec::new()),
        (String::new(), String::new(), vec!["t".repeat(64 << 10)]),
    ] {
        let update = CollectionManagementRequest {
            operation: "update-collection".into(),
            collection: "c".into(),
            name,
            description,
            tags,
            ..Default::default()
        };
        let error = world.collection(update).await.error.unwrap();
        assert!(error.r#type == "too-large" && error.message.contains("collection 'c'"), "{error:?}");
    }
    let listed = world.ok(LibrarianRequest { include_children: true, ..call("list-documents") }).await;
    assert_eq!(ids(&listed.document_metadatas), ["large", "small"]);
    assert!(world.ok(call("list-uploads")).await.upload_sessions.is_empty());
    let list = CollectionManagementRequest { operation: "list-collections".into(), ..Default::default() };
    assert!(world.collection(list).await.collections.is_empty());
    world.ok(about("remove-document", "large")).await;
    world.stop().await;
}

#[tokio::test]
async fn what_is_large_in_the_library_takes_room_before_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start(folder.path()).await;
    for id in ["1", "2", "3"] {
        let metadata = DocumentMetadata { comments: "x".repeat(200_000), ..metadata(id) };
        world.ok(LibrarianRequest { document_metadata: Some(metadata), ..add(id, "text") }).await;
        let described = format!(r#"{{"collection": "c{id}", "description": "{}"}}"#, "x".repeat(200_000));
        world.config.put(WS, vec![value(WS, "collection", &format!("c{id}"), described)]).await.unwrap();
    }
    let letter = sluice_schema::message::DeadLetter {
        id: "l".to_owned(),
        workspace: WS.to_owned(),
        topic: "flow:tg:chunks:default:f1".to_owned(),
        body: base64("x".repeat(600_000)),
        ..Default::default()
    };
    world.publish("flow:tg:dead-letters:default", letter).await;
    world.letters(1).await;

    let list = CollectionManagementRequest { operation: "list-collections".to_owned(), ..Default::default() };
    let export =
        sluice_schema::message::DeadLettersRequest { operation: "export".to_owned(), ..Default::default() };
    let ask_all = async || {
        let (documents, collections, letters) = tokio::join!(
            world.ask(call("list-documents")),
            world.collection(list.clone()),
            world.dead(export.clone()),
        );
        let errors = [documents.error, collections.error, letters.error];
        errors.map(|error| error.map(|error| error.r#type).unwrap_or_default())
    };
    let taken = world.process.take_all_room();
    assert_eq!(ask_all().await, ["overloaded"; 3]);
    world.ok(about("get-document-metadata", "1")).await;
    world.ok(LibrarianRequest { bytes_max: 1, ..call("list-documents") }).await;
    drop(taken);
    assert_eq!(ask_all().await, [""; 3]);
    world.stop().await;
}
