//! A small harness for cases that share a real server: where it is missing, each case is listed as ignored, and so is one that
//! the broker does not promise; a case that fails does not keep the others from running. And what cases of every broker do.

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sluice_bus::conformance::Conclusion;
use sluice_bus::{Address, BoxFuture, Broker, Delivery, Error, Inbox, Message, Subscription};
use sluice_schema::{Class, Topic};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long a case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(900);

/// The server of all cases; those that stop it have it for themselves.
pub(crate) type Shared<S> = Arc<Mutex<S>>;

pub(crate) struct Case<S> {
    pub(crate) name: String,
    pub(crate) run: Run<S>,
}

pub(crate) type Run<S> = Box<dyn FnOnce(Shared<S>) -> BoxFuture<'static, Result<Conclusion, String>>>;

pub(crate) const KEPT: Conclusion = Conclusion::Kept { without: Vec::new() };

/// Runs the cases that the command line names, all if it names none. `quiet` is left out of the log.
pub(crate) fn main<S>(
    mut cases: Vec<Case<S>>,
    missing: Option<&'static str>,
    start: impl AsyncFnOnce() -> Result<S, String>,
    quiet: &str,
) -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let lists = args.iter().any(|arg| arg == "--list");
    args.retain(|arg| !arg.starts_with("--"));
    cases.retain(|case| args.is_empty() || args.iter().any(|arg| case.name.contains(arg.as_str())));
    if lists {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    if let Some(why) = missing {
        cases.iter().for_each(|case| println!("test {} ... ignored, {why}", case.name));
        println!("\ntest result: ok. 0 passed; 0 failed; {} ignored\n", cases.len());
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::new(
        std::env::var("SLUICE_LOG").unwrap_or_else(|_| format!("error,{quiet}=off")),
    );
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let failed = runtime.block_on(run(cases, start));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

async fn run<S>(cases: Vec<Case<S>>, start: impl AsyncFnOnce() -> Result<S, String>) -> usize {
    if cases.is_empty() {
        return 0;
    }
    let server = match start().await {
        Ok(server) => Arc::new(Mutex::new(server)),
        Err(why) => {
            println!("the server did not start: {why}");
            return cases.len();
        }
    };
    let (total, mut ignored) = (cases.len(), 0);
    let mut failed = Vec::new();
    for Case { name, run } in cases {
        let started = Instant::now();
        let guarded = AssertUnwindSafe(run(server.clone())).catch_unwind();
        let outcome = match tokio::time::timeout(CASE_TIMEOUT, guarded).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err("it panicked, see above".to_owned()),
            Err(_) => Err(format!("did not end within {} s", CASE_TIMEOUT.as_secs())),
        };
        let took = started.elapsed().as_secs_f32();
        match outcome {
            Ok(kept @ Conclusion::Kept { .. }) if kept == KEPT => {
                println!("test {name} ... ok ({took:.1} s)");
            }
            Ok(kept @ Conclusion::Kept { .. }) => println!("test {name} ... ok ({took:.1} s), {kept}"),
            Ok(other) => {
                println!("test {name} ... ignored, {other}");
                ignored += 1;
            }
            Err(why) => {
                println!("test {name} ... FAILED ({took:.1} s)\n    {why}");
                failed.push(name);
            }
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; {ignored} ignored\n",
        total - failed.len() - ignored,
        failed.len()
    );
    failed.len()
}

/// Lists cases: their functions' names are the sentences.
macro_rules! cases {
    ($group:literal: $($name:ident),* $(,)?) => {
        pub(crate) fn cases() -> Vec<crate::Case> {
            vec![$(crate::Case {
                name: concat!($group, "::", stringify!($name)).to_owned(),
                run: Box::new(|server| Box::pin(async move { $name(server).await.map(|()| crate::harness::KEPT) })),
            }),*]
        }
    };
}
pub(crate) use cases;

pub(crate) type Outcome = Result<(), String>;

/// How long a value may take to come.
pub(crate) const VALUE_TIMEOUT: Duration = Duration::from_secs(180);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) fn topic(class: Class, name: &str) -> Topic {
    Topic::tg(class, name).unwrap()
}

pub(crate) async fn send(
    broker: &impl Broker,
    topic: &Topic,
    body: impl Into<bytes::Bytes>,
) -> Result<(), Error> {
    broker.publish(&Address::Topic(topic.clone()), Message::new(body)).await
}

pub(crate) async fn read(
    broker: &impl Broker,
    topic: &Topic,
    prefetch: u32,
) -> Result<Box<dyn Inbox>, Error> {
    broker
        .subscribe(&Subscription::Shared { topic: topic.clone(), name: "reader".to_owned(), prefetch })
        .await
}

pub(crate) async fn next(inbox: &dyn Inbox) -> Result<Delivery, String> {
    timeout(VALUE_TIMEOUT, inbox.next()).await.map_err(|_| "nothing came")?.map_err(text)
}

pub(crate) fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.body).into_owned()
}

/// Looks again until it is so.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return Ok(seen);
        }
        if started.elapsed() > VALUE_TIMEOUT {
            return Err(format!("never saw {what}"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) fn check(holds: bool, why: impl std::fmt::Debug) -> Outcome {
    if holds { Ok(()) } else { Err(format!("{why:?}")) }
}

/// An authority of its own, and a certificate of it for this machine.
pub(crate) fn certify(folder: &std::path::Path) -> Outcome {
    let script = r#"
        set -e
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=test authority" -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout key.pem -out cert.csr
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost\n' > names
        openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem
    "#;
    let made =
        std::process::Command::new("sh").args(["-c", script]).current_dir(folder).output().map_err(text)?;
    check(made.status.success(), String::from_utf8_lossy(&made.stderr))
}
