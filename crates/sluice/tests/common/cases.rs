//! A small harness for cases that share a real server: where it is missing, each case is listed as ignored; a case that
//! fails does not keep the others from running.
#![allow(clippy::print_stdout, reason = "the harness tells what it ran")]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use sluice_brokers::testing::RabbitServer;
use tokio::runtime::Runtime;

use super::PATIENCE;

/// What a note begins with that work on a message has begun.
const BEGUN: &str = "sluice.begun.";

/// The server that all cases share, and what awaits it.
pub(crate) struct Shared {
    pub(crate) server: RabbitServer,
    pub(crate) runtime: Runtime,
    /// What the systems of this case know of the server.
    pub(crate) shape: Shape,
}

/// What a system on a real server knows of it. What stops, kills or drains has to hold in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    WithManagement,
    /// As people begin: it sees only what it asks for by name.
    WithoutManagement,
}

impl Shape {
    const fn suffix(self) -> &'static str {
        match self {
            Self::WithManagement => "",
            Self::WithoutManagement => ", without the management API",
        }
    }
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Shared),
    pub(crate) shapes: &'static [Shape],
    /// Says which program is missing that only this case needs, if one is.
    pub(crate) missing: fn() -> Option<&'static str>,
}

/// Functions as cases, in the shapes that stand behind: `both`, or `plain` where it makes no difference. After `needs`
/// stands what tells that something else than the server is missing.
#[macro_export]
macro_rules! cases {
    (missing) => { || None };
    (missing $needs:path) => { $needs };
    (shapes both) => {
        &[$crate::common::cases::Shape::WithManagement, $crate::common::cases::Shape::WithoutManagement]
    };
    (shapes plain) => { &[$crate::common::cases::Shape::WithManagement] };
    ($($name:ident: $shapes:ident $(needs $needs:path)?),* $(,)?) => {
        &[$($crate::common::cases::Case {
            name: stringify!($name),
            run: $name,
            shapes: $crate::cases!(shapes $shapes),
            missing: $crate::cases!(missing $($needs)?),
        }),*]
    };
}

#[allow(dead_code, reason = "not every test uses every part")]
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

    /// The same apart from inboxes, which come and go with their readers, and from notes that work has begun, which go by
    /// themselves where somebody removed the message.
    pub(crate) fn lasting(&self, vhost: &str) -> BTreeSet<String> {
        let passing = ["amq", "sluice.inbox.", BEGUN];
        let passes = |name: &String| passing.iter().any(|prefix| name.starts_with(prefix));
        self.names(vhost).into_iter().filter(|name| !passes(name)).collect()
    }

    /// What belongs to processes that have ended, and stays. The broker takes it away a moment after they are gone.
    pub(crate) fn of_processes(&self, vhost: &str) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let mut left = self.names(vhost);
            left.retain(|name| name.starts_with("sluice.") && !name.starts_with(BEGUN));
            if left.is_empty() || begun.elapsed() > PATIENCE {
                return left;
            }
        }
    }

    /// How often something dies unless the environment says: half as often in the second shape.
    pub(crate) fn times(&self, default: u64) -> u64 {
        match self.shape {
            Shape::WithManagement => default,
            Shape::WithoutManagement => default.div_ceil(2),
        }
    }

    /// How a system is told of its broker.
    pub(crate) fn broker_args(&self, vhost: &str) -> Vec<String> {
        let mut args = vec!["--broker".to_owned(), self.server.url(vhost)];
        if self.shape == Shape::WithManagement {
            let management = self.server.options().management.unwrap();
            args.extend(["--broker-management".to_owned(), management.reveal().to_owned()]);
        }
        args
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
    let cases: Vec<&Case> = cases.iter().filter(|case| is_wanted(case.name)).collect();
    let runs = |cases: &[&Case]| cases.iter().map(|case| case.shapes.len()).sum::<usize>();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", runs(&cases));
    let missing = |case: &Case| RabbitServer::missing().or_else(case.missing);
    let (ignored, cases): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| missing(case).is_some());
    for case in &ignored {
        println!("test {} ... ignored, {}", case.name, missing(case).unwrap_or_default());
    }
    let failed = if cases.is_empty() { 0 } else { run_all(&cases) };
    let result = if failed == 0 { "ok" } else { "FAILED" };
    let (passed, ignored) = (runs(&cases) - failed, runs(&ignored));
    println!("\ntest result: {result}. {passed} passed; {failed} failed; {ignored} ignored\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs cases one after the other on one server; how many failed.
fn run_all(cases: &[&Case]) -> usize {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(RabbitServer::start()).unwrap();
    let mut shared = Shared { server, runtime, shape: Shape::WithManagement };
    let mut failed = 0;
    let runs = cases.iter().flat_map(|case| case.shapes.iter().map(move |shape| (case, *shape)));
    for (case, shape) in runs {
        shared.shape = shape;
        let begun = Instant::now();
        // The panic itself has been printed by its hook.
        let passed = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut shared))).is_ok();
        failed += usize::from(!passed);
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("test {}{} ... {verdict} ({} s)", case.name, shape.suffix(), begun.elapsed().as_secs());
    }
    failed
}
