//! Content in a real S3-compatible server: every promise of blobs, and what a network adds. Where the server cannot be had,
//! each case is listed as ignored.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where; the harness tells what it ran"
)]

mod server;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use server::Server;
use sluice_databases::{Secret, Settings, connect};
use sluice_store::{BoxFuture, Embedded, Error, Stores, conformance};

type Run = Box<dyn Fn(Arc<World>) -> BoxFuture<'static, ()>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), Box::new(|world: Arc<World>| -> BoxFuture<'static, ()> { Box::pin(async move { $name(&world).await }) }) as Run)),*]
    };
}

/// A bucket of its own, and a store whose tables remember what is in it.
struct World {
    server: Arc<Server>,
    bucket: String,
    store: Embedded,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(server: &Arc<Server>, bucket: String) -> Self {
        server.make_bucket(&bucket);
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        Self { server: server.clone(), bucket, store, _folder: folder }
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: Some(self.server.endpoint()),
            access_key: Some("test".to_owned()),
            secret_key: Some(Secret::new("hush")),
            ..Settings::default()
        }
    }

    async fn stores(&self) -> Stores {
        let url = format!("s3://{}/content", self.bucket);
        let blobs = connect(&url, &self.settings(), self.store.tables()).await.unwrap();
        Stores { blobs, ..self.store.stores() }
    }

    async fn refused(&self, url: &str, settings: &Settings) -> Error {
        connect(url, settings, self.store.tables()).await.err().unwrap()
    }
}

async fn what_is_removed_or_replaced_leaves_nothing_in_the_bucket(world: &World) {
    let stores = world.stores().await;
    for size in [10, 20_000_000] {
        stores.blobs.put("a", vec![7; size].into()).await.unwrap();
    }
    stores.blobs.put("b", Bytes::from_static(b"b")).await.unwrap();
    let keys = world.server.keys(&world.bucket);
    assert!(keys.len() == 2 && keys.iter().all(|key| key.starts_with("content/")), "{keys:?}");
    stores.blobs.remove("a").await.unwrap();
    stores.blobs.remove("b").await.unwrap();
    assert_eq!(world.server.keys(&world.bucket), Vec::<String>::new());
}

async fn a_bucket_that_is_not_the_one_of_the_folder_is_refused(world: &World) {
    let url = format!("s3://{}/content", world.bucket);
    let owned = |owner: &str| Settings { owner: Some(owner.to_owned()), ..world.settings() };
    // Content from before there were marks: the bucket that holds it is marked.
    world.stores().await.blobs.put("a", Bytes::from_static(b"a")).await.unwrap();
    connect(&url, &owned("f1"), world.store.tables()).await.unwrap();
    connect(&url, &owned("f1"), world.store.tables()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let other = Embedded::open(folder.path()).unwrap();
    let error = connect(&url, &owned("f2"), other.tables()).await.err().unwrap().to_string();
    assert!(error.contains("belongs to the data folder f1"), "{error}");
    // The same address, but nothing in it any more.
    world.server.clear(&world.bucket);
    let error = world.refused(&url, &owned("f1")).await.to_string();
    assert!(error.contains("no mark of this data folder"), "{error}");
    assert_eq!(world.server.keys(&world.bucket), Vec::<String>::new());
    let accepting = Settings { accept_loss: true, ..owned("f1") };
    let blobs = connect(&url, &accepting, world.store.tables()).await.unwrap();
    assert!(blobs.get("a").await.is_err(), "its content is lost, and said to be");
    connect(&url, &owned("f1"), world.store.tables()).await.unwrap();
}

async fn an_upload_that_is_not_finished_is_given_up(world: &World) {
    let stores = world.stores().await;
    let mut writer = stores.blobs.writer("a").await.unwrap();
    writer.write(vec![7; 20_000_000].into()).await.unwrap();
    assert_eq!(world.server.uploads(&world.bucket), 1);
    drop(writer);
    let begun = Instant::now();
    while world.server.uploads(&world.bucket) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the upload is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stores.blobs.get("a").await.unwrap(), None);
}

async fn what_a_crash_left_goes_when_the_store_is_opened_again(world: &World) {
    let stores = world.stores().await;
    stores.blobs.put("kept", Bytes::from_static(b"kept")).await.unwrap();
    // As a crash between the object and the commit that names it leaves it.
    let mut batch = sluice_store::Batch::new();
    let orphan = world.server.keys(&world.bucket)[0].replace("content/", "");
    batch.delete("objects", "kept").put("objects.loose", &orphan, Vec::new());
    stores.tables.commit(batch).await.unwrap();
    world.stores().await;
    let stores = world.stores().await;
    assert_eq!(world.server.keys(&world.bucket).len(), 1, "it stays for a day from when it was seen first");
    let seen = stores.tables.read(vec![sluice_store::Read::get("objects.loose", &orphan)]).await.unwrap();
    let seen = u64::from_le_bytes(seen[0].value().unwrap()[..].try_into().unwrap());
    let mut batch = sluice_store::Batch::new();
    batch.put("objects.loose", &orphan, (seen - 24 * 3_600).to_le_bytes().to_vec());
    stores.tables.commit(batch).await.unwrap();
    let stores = world.stores().await;
    assert_eq!(world.server.keys(&world.bucket), Vec::<String>::new());
    stores.blobs.put("kept", Bytes::from_static(b"again")).await.unwrap();
    let stores = world.stores().await;
    assert_eq!(stores.blobs.get("kept").await.unwrap(), Some(Bytes::from_static(b"again")));
}

async fn an_object_that_is_not_what_was_written_is_never_taken_for_it(world: &World) {
    let stores = world.stores().await;
    let content: Bytes = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let wanted = |from: usize, bytes: usize| Some(content.slice(from..from + bytes));
    stores.blobs.put("a", content.clone()).await.unwrap();
    for (from, bytes) in [(0, 1_000_000), (262_100, 100), (262_144, 262_144), (999_990, 10)] {
        let read = stores.blobs.get_range("a", from as u64, bytes as u64).await.unwrap();
        assert_eq!(read, wanted(from, bytes), "{bytes} from {from}");
    }
    // Somebody changes a byte in the bucket.
    let key = world.server.keys(&world.bucket).remove(0);
    let object = key.replace("content/", "");
    let bucket =
        sluice_databases::Bucket::open(&format!("s3://{}/content", world.bucket), &world.settings()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut harmed = content.to_vec();
    harmed[300_000] ^= 1;
    std::fs::write(folder.path().join("harmed"), harmed).unwrap();
    bucket.put(&object, &folder.path().join("harmed")).await.unwrap();
    for (from, bytes) in [(0, 1_000_000), (300_000, 1), (262_144, 10)] {
        let error = stores.blobs.get_range("a", from, bytes).await.unwrap_err();
        let is_named = error.to_string().contains("does not match its digests");
        assert!(matches!(error, Error::DamagedContent { .. }) && is_named, "{error}");
    }
    assert_eq!(
        stores.blobs.get_range("a", 0, 262_144).await.unwrap(),
        wanted(0, 262_144),
        "the rest is whole"
    );
    // Content of a version that kept no digests is still read.
    let mut batch = sluice_store::Batch::new();
    let place = [&1_000_000_u64.to_le_bytes()[..], object.as_bytes()].concat();
    batch.put("objects", "a", place).delete_prefix("objects.parts", "");
    stores.tables.commit(batch).await.unwrap();
    assert_eq!(stores.blobs.get_range("a", 0, 10).await.unwrap(), wanted(0, 10));
}

async fn a_bucket_that_is_not_there_is_told_without_the_keys(world: &World) {
    let error = world.refused("s3://nowhere-at-all/x", &world.settings()).await;
    let told = error.to_string();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(told.contains("s3://nowhere-at-all/x") && told.contains("no such bucket"), "{told}");
    assert!(!told.contains("hush"), "{told}");
}

async fn a_server_that_is_not_there_is_told(world: &World) {
    let settings = Settings { endpoint: Some("http://127.0.0.1:9".to_owned()), ..world.settings() };
    let error = world.refused("s3://b/x", &settings).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

async fn an_address_that_cannot_be_one_is_refused(world: &World) {
    for url in ["", "ftp://b/x", "s3://", "s3://user:hush@b/x", "b"] {
        let error = world.refused(url, &world.settings()).await;
        assert!(matches!(error, Error::Refused { .. }), "{url}: {error:?}");
        let told = error.to_string();
        assert!(told.contains("s3://bucket/folder") || url.contains("//"), "{told}");
        assert!(!told.contains("hush"), "{told}");
    }
}

fn main() -> ExitCode {
    let own = cases![
        a_bucket_that_is_not_the_one_of_the_folder_is_refused,
        what_is_removed_or_replaced_leaves_nothing_in_the_bucket,
        an_upload_that_is_not_finished_is_given_up,
        what_a_crash_left_goes_when_the_store_is_opened_again,
        an_object_that_is_not_what_was_written_is_never_taken_for_it,
        a_bucket_that_is_not_there_is_told_without_the_keys,
        a_server_that_is_not_there_is_told,
        an_address_that_cannot_be_one_is_refused,
    ];
    let promised = conformance::blob_cases().into_iter().map(|case| {
        let run = move |world: Arc<World>| -> BoxFuture<'static, ()> {
            Box::pin(async move { (case.run)(world.stores().await).await })
        };
        (case.name, Box::new(run) as Run)
    });
    let cases: Vec<(&str, Run)> = promised.chain(own).collect();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let cases =
        cases.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|arg| name.contains(*arg)));
    let cases: Vec<_> = cases.collect();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let server = match Server::start() {
        Ok(server) => Arc::new(server),
        Err(why) => {
            cases.iter().for_each(|(name, _)| println!("test {name} ... ignored, {why}"));
            println!("\ntest result: ok. 0 passed; 0 failed; {} ignored\n", cases.len());
            return ExitCode::SUCCESS;
        }
    };
    // As the program does at its start.
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let mut failed = 0;
    for (number, (name, run)) in cases.iter().enumerate() {
        let world = Arc::new(World::new(&server, format!("bucket-{number}")));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        // The panic itself has been printed by its hook.
        let case = std::panic::AssertUnwindSafe(|| runtime.block_on(run(world)));
        let passed = std::panic::catch_unwind(case).is_ok();
        failed += usize::from(!passed);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed; 0 ignored\n", cases.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
