//! A small harness for cases that share a real server: where it is missing, each case is listed as ignored; a case that
//! fails does not keep the others from running.
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use sluice_brokers::testing::RabbitServer;
use tokio::runtime::Runtime;

/// The server that all cases share, and what awaits it.
pub(crate) struct Shared {
    pub(crate) server: RabbitServer,
    pub(crate) runtime: Runtime,
}

pub(crate) type Case = (&'static str, fn(&mut Shared));

#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn(&mut $crate::common::cases::Shared))),*] };
}

impl Shared {
    /// Names of all exchanges and queues of a vhost that belong to a flow's run.
    pub(crate) fn left_of(&self, vhost: &str, run: &str) -> Vec<String> {
        let mark = format!(":{run}");
        let of_run = |name: &String| name.ends_with(&mark) || name.contains(&format!("{mark}."));
        self.names(vhost).into_iter().filter(of_run).collect()
    }

    pub(crate) fn names(&self, vhost: &str) -> Vec<String> {
        self.runtime.block_on(self.server.names(vhost)).unwrap()
    }

    pub(crate) fn vhost(&self) -> String {
        self.runtime.block_on(self.server.vhost()).unwrap()
    }
}

/// Runs the cases that the arguments name, all without any.
pub(crate) fn run(cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| name.contains(*arg));
    let cases: Vec<&Case> = cases.iter().filter(|(name, _)| is_wanted(name)).collect();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    if let Some(why) = RabbitServer::missing() {
        cases.iter().for_each(|(name, _)| println!("test {name} ... ignored, {why}"));
        println!("\ntest result: ok. 0 passed; 0 failed; {} ignored\n", cases.len());
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() {
        return ExitCode::SUCCESS;
    }
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(RabbitServer::start()).unwrap();
    let mut shared = Shared { server, runtime };
    let mut failed = 0;
    for (name, case) in &cases {
        // The panic itself has been printed by its hook.
        let passed = catch_unwind(AssertUnwindSafe(|| case(&mut shared))).is_ok();
        failed += usize::from(!passed);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {} passed; {failed} failed; 0 ignored\n", cases.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
