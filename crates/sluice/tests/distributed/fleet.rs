//! A system whose services are processes of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use crate::common::cases::Shared;
use crate::common::{PATIENCE, Program, sluice, text, url_in};

/// A process and what it runs.
pub(crate) type Part = (&'static str, &'static [&'static str]);

/// Which process runs what. Those that keep data have a folder of their own.
pub(crate) const PROCESSES: &[Part] = &[
    ("gateway", &["gateway"]),
    ("flow", &["flow"]),
    ("library", &["library"]),
    ("stores", &["stores"]),
    ("intake", &["document-decoder", "chunker", "embeddings", "document-embeddings"]),
    (
        "answers",
        &[
            "document-rag",
            "reranker",
            "prompt",
            "prompt-rag",
            "text-completion",
            "text-completion-rag",
            "metering",
            "metering-rag",
        ],
    ),
    ("iam", &["iam"]),
    ("config", &["config"]),
];

/// The processes of one system.
pub(crate) struct Fleet {
    pub(crate) folder: tempfile::TempDir,
    broker: Vec<String>,
    running: BTreeMap<&'static str, Program>,
    listen: String,
    pub(crate) client: Client,
}

/// What a command needs to reach the system.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) url: String,
    pub(crate) data: PathBuf,
}

impl Client {
    pub(crate) fn run(&self, args: &[&str]) -> std::process::Output {
        sluice()
            .args(args)
            .args(["--timeout", "120", "--url", &self.url, "--data"])
            .arg(&self.data)
            .output()
            .unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let output = self.run(&all);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command again until it succeeds.
    pub(crate) fn in_the_end(&self, args: &[&str], fleet: &Fleet) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        loop {
            let output = self.run(&all);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).unwrap();
            }
            assert!(Instant::now() < until, "{args:?}: {}\n{}", text(&output), fleet.logs());
        }
    }
}

impl Fleet {
    /// All of them, each begun without waiting for the one before.
    pub(crate) fn start(shared: &Shared, vhost: &str, order: &[Part]) -> Self {
        Self::start_with(shared, vhost, order, &[])
    }

    pub(crate) fn start_with(shared: &Shared, vhost: &str, order: &[Part], more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let more = more.iter().copied().map(str::to_owned);
        let broker: Vec<String> = shared.broker_args(vhost).into_iter().chain(more).collect();
        let (keeper, _) = order.iter().find(|(_, services)| services.contains(&"iam")).unwrap();
        let client = Client { url: String::new(), data: folder.path().join(keeper) };
        let listen = "127.0.0.1:0".to_owned();
        let mut fleet = Self { folder, broker, running: BTreeMap::new(), listen, client };
        let commands = order.iter().map(|(name, services)| (*name, fleet.command(name, services))).collect();
        for (name, (program, line)) in begin(commands) {
            if name == "gateway" {
                fleet.client.url = url_in(&line);
                fleet.listen = fleet.client.url.trim_start_matches("http://").to_owned();
            }
            fleet.running.insert(name, program);
        }
        fleet
    }

    pub(crate) fn command(&self, name: &str, services: &[&str]) -> std::process::Command {
        let mut command = sluice();
        command.arg("run").args(services).args(&self.broker).args(["--listen", &self.listen]);
        command.arg("--data").arg(self.folder.path().join(name));
        command
    }

    pub(crate) fn kill(&mut self, name: &str) {
        self.running.remove(name).unwrap().kill();
    }

    pub(crate) fn start_again(&mut self, part: Part) {
        self.start_all_again(&[part]);
    }

    /// Begins several without waiting for the one before; they may need each other.
    pub(crate) fn start_all_again(&mut self, parts: &[Part]) {
        let commands = parts.iter().map(|(name, services)| (*name, self.command(name, services))).collect();
        self.running.extend(begin(commands).map(|(name, (program, _))| (name, program)));
    }

    pub(crate) fn logs(&self) -> String {
        let mut logs = String::new();
        for (name, program) in &self.running {
            let log = program.log();
            let lines: Vec<&str> = log.lines().collect();
            logs.push_str(&format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(12)..].join("\n")));
        }
        logs
    }

    /// Ends all of them in good order.
    pub(crate) fn stop(mut self) {
        for (name, program) in &mut self.running {
            assert_eq!(program.terminate(), 0, "{name}: {}", program.log());
        }
    }
}

/// Starts programs side by side; each with the line that says that it serves.
fn begin(
    commands: Vec<(&'static str, std::process::Command)>,
) -> impl Iterator<Item = (&'static str, (Program, String))> {
    let start = |command| std::thread::spawn(move || Program::start(command, " serving "));
    let begun: Vec<_> = commands.into_iter().map(|(name, command)| (name, start(command))).collect();
    begun.into_iter().map(|(name, begun)| (name, begun.join().unwrap()))
}
