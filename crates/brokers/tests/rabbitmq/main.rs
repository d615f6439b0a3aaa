//! RabbitMQ, the real server: every conformance case of the bus by name, then what only a real broker can do to us.
//! Where the program is missing, each case is listed as ignored.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

mod common;
mod conformance;
mod faults;
mod holds;
mod strangers;
mod tls;
mod together;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sluice_brokers::testing::RabbitServer;
use sluice_bus::BoxFuture;
use tokio::sync::Mutex;

/// How long a case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(180);

/// The server of all cases; those that stop it have it for themselves.
pub(crate) type Server = Arc<Mutex<RabbitServer>>;

pub(crate) struct Case {
    name: String,
    run: Box<dyn FnOnce(Server) -> BoxFuture<'static, Result<(), String>>>,
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let lists = args.iter().any(|arg| arg == "--list");
    args.retain(|arg| !arg.starts_with("--"));
    let mut cases = [
        conformance::cases(),
        faults::cases(),
        together::cases(),
        holds::cases(),
        strangers::cases(),
        tls::cases(),
    ]
    .concat_cases();
    cases.retain(|case| args.is_empty() || args.iter().any(|arg| case.name.contains(arg.as_str())));
    if lists {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    if let Some(why) = RabbitServer::missing() {
        cases.iter().for_each(|case| println!("test {} ... ignored, {why}", case.name));
        println!("\ntest result: ok. 0 passed; 0 failed; {} ignored\n", cases.len());
        return ExitCode::SUCCESS;
    }
    let filter = tracing_subscriber::EnvFilter::new(
        std::env::var("SLUICE_LOG").unwrap_or_else(|_| "error,lapin=off".to_owned()),
    );
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let failed = runtime.block_on(run(cases));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

async fn run(cases: Vec<Case>) -> usize {
    if cases.is_empty() {
        return 0;
    }
    let server = match RabbitServer::start().await {
        Ok(server) => Arc::new(Mutex::new(server)),
        Err(why) => {
            println!("the server did not start: {why}");
            return cases.len();
        }
    };
    let total = cases.len();
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
            Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
            Err(why) => {
                println!("test {name} ... FAILED ({took:.1} s)\n    {why}");
                failed.push(name);
            }
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored\n",
        total - failed.len(),
        failed.len()
    );
    failed.len()
}

trait ConcatCases {
    fn concat_cases(self) -> Vec<Case>;
}

impl<const N: usize> ConcatCases for [Vec<Case>; N] {
    fn concat_cases(self) -> Vec<Case> {
        self.into_iter().flatten().collect()
    }
}
