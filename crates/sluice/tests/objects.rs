//! The main job with the content of documents in a real object store, through the binary. Where the server cannot be had, the
//! case is listed as ignored.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; the harness tells what it ran"
)]

mod common;
#[path = "../../databases/tests/objects/server.rs"]
mod server;

use std::path::Path;
use std::time::Instant;

use common::{PATIENCE, Up, ends, sluice};
use server::Server;

const NAME: &str = "content_rests_in_the_bucket_until_its_document_is_removed";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        return println!("{NAME}: test");
    }
    let mut wanted = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|arg| NAME.contains(arg.as_str())) {
        return;
    }
    match Server::start() {
        Ok(server) => {
            content_rests_in_the_bucket_until_its_document_is_removed(server);
            println!("test {NAME} ... ok");
        }
        Err(why) => println!("test {NAME} ... ignored, {why}"),
    }
}

fn content_rests_in_the_bucket_until_its_document_is_removed(server: Server) {
    let folder = tempfile::tempdir().unwrap();
    let (data, secret) = (folder.path().join("data"), folder.path().join("secret"));
    std::fs::write(&secret, "hush\n").unwrap();
    let endpoint = server.endpoint();
    let key = ["--objects-key", "test", "--objects-secret-file", secret.to_str().unwrap()];
    let store = [&["--objects", "s3://documents/sluice", "--objects-endpoint", &endpoint], &key[..]].concat();

    let refused = up(&data, &store);
    ends(&refused, 1, "no such bucket");
    assert!(!common::text(&refused).contains("hush"));
    ends(&up(&data, &store[..6]), 64, "AWS_SECRET_ACCESS_KEY");
    server.make_bucket("documents");

    let mut running = Up::start_with(&data, &store);
    let found = running.json(&["doctor"]);
    assert!(found.as_array().unwrap().iter().any(|one| one["code"] == "store-writes"), "{found}");
    running.json(&["flow", "start", "f1", "document-rag"]);
    let notes = folder.path().join("pump.md");
    std::fs::write(&notes, "# Pump\n\nThe spare key of the pump house hangs behind the blue door.\n")
        .unwrap();
    let added = running.json(&["doc", "add", notes.to_str().unwrap(), "--flow", "f1"]);
    assert_eq!(added["progress"][0]["complete"], true, "{added}");
    let keys = server.keys("documents");
    assert!(!keys.is_empty() && keys.iter().all(|key| key.starts_with("sluice/")), "{keys:?}");

    // A backup holds the content too, and is restored into a bucket of its own.
    let (backup, new) = (folder.path().join("backup"), folder.path().join("new"));
    ends(&running.run(&["backup", backup.to_str().unwrap()]), 0, "Backed up");
    ends(&sluice().arg("verify").arg(&backup).output().unwrap(), 0, "is whole");
    // An object that is damaged in the bucket is named; the whole copy of it that a backup has is kept.
    let object = std::fs::read_dir(backup.join("objects")).unwrap().next().unwrap().unwrap();
    let name = object.file_name().into_string().unwrap();
    let mut harmed = std::fs::read(object.path()).unwrap();
    harmed[0] ^= 1;
    let (file, second) = (folder.path().join("harmed"), folder.path().join("second"));
    std::fs::write(&file, harmed).unwrap();
    put(&endpoint, &name, &file);
    let output = running.run(&["backup", second.to_str().unwrap()]);
    ends(&output, 2, "Backed up");
    assert!(common::text(&output).contains(&format!("objects/{name}")), "{}", common::text(&output));
    ends(&running.run(&["backup", backup.to_str().unwrap()]), 0, "Backed up");
    ends(&sluice().arg("verify").arg(&backup).output().unwrap(), 0, "is whole");
    put(&endpoint, &name, &object.path());
    ends(&running.run(&["backup", second.to_str().unwrap()]), 0, "Backed up");
    server.make_bucket("elsewhere");
    let elsewhere = [&["--objects", "s3://elsewhere/x", "--objects-endpoint", &endpoint], &key[..]].concat();
    let restore = |more: &[&str]| {
        sluice().arg("restore").arg(&backup).arg("--data").arg(&new).args(more).output().unwrap()
    };
    ends(&restore(&[]), 64, "--objects");
    ends(&restore(&store), 1, "another data folder");
    assert!(!new.exists(), "nothing is left of it");
    ends(&restore(&elsewhere), 0, "Restored");
    let restored = Up::start_with(&new, &elsewhere);
    common::until(
        "an answer of the restored system",
        || {
            common::text(&restored.run(&["ask", "where is the spare key?", "--flow", "f1"]))
                .contains("blue door")
        },
        || restored.log(),
    );
    drop(restored);
    assert_eq!(running.terminate(), 0);

    // Its documents would be without content.
    ends(&up(&data, &[]), 64, "s3://documents/sluice");
    let running = Up::start_with(&data, &store);
    // Its processors attach a moment after the start.
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        let output = running.run(&["ask", "where is the spare key?", "--flow", "f1"]);
        if output.status.success() {
            break common::text(&output);
        }
        assert!(Instant::now() < until, "{}", common::text(&output));
    };
    assert!(answer.contains("blue door"), "{answer}");
    for document in running.json(&["doc", "ls"]).as_array().unwrap() {
        running.json(&["doc", "rm", document["id"].as_str().unwrap()]);
    }
    // What was made of it goes a little later; the answer to the question is a document of its own and stays, and so does the
    // mark that says whose bucket it is.
    let until = Instant::now() + PATIENCE;
    while server.keys("documents").len() > 2 {
        assert!(Instant::now() < until, "{:?} stay", server.keys("documents"));
        std::thread::yield_now();
    }
    drop(running);

    // And the other way round: content that rests in the folder is not in the bucket.
    let other = folder.path().join("other");
    let running = Up::start(&other);
    running.json(&["doc", "add", notes.to_str().unwrap(), "--store-only"]);
    drop(running);
    ends(&up(&other, &store), 64, "data folder");

    // A bucket that is out of reach is told by the doctor, with the reason.
    let running = Up::start_with(&data, &store);
    drop(server);
    let found = running.run(&["doctor"]);
    ends(&found, 2, "[store-refuses]");
    assert!(common::text(&found).contains("--objects"), "{}", common::text(&found));
}

/// Puts an object into the bucket past the system.
fn put(endpoint: &str, name: &str, file: &Path) {
    let settings = sluice_databases::Settings {
        endpoint: Some(endpoint.to_owned()),
        access_key: Some("test".to_owned()),
        secret_key: Some(sluice_databases::Secret::new("hush")),
        ..Default::default()
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bucket = sluice_databases::Bucket::open("s3://documents/sluice", &settings).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(bucket.put(name, file)).unwrap();
}

fn up(data: &Path, more: &[&str]) -> std::process::Output {
    sluice().args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(more).output().unwrap()
}
