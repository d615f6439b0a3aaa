//! Processes of TrustGraph 2.11, each with a log that can be read while it runs.
#![allow(dead_code, reason = "not every test uses every part")]

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::clients;
use crate::common::until;

/// Ends the program as soon as its own input ends: when the guard is dropped, or the test process is killed. Tells first
/// which process it is.
const SUPERVISOR: &str = r#"
"$@" </dev/null 2>&1 &
echo $!
read -r _
kill -KILL $!
wait $!
"#;

/// A running processor.
pub(crate) struct Theirs {
    supervisor: Child,
    pid: String,
    log: Arc<Mutex<String>>,
}

impl Theirs {
    /// Starts a program of the package under an id, on a vhost of a broker on this machine.
    pub(crate) fn start(program: &str, id: &str, broker: &str, more: &[&str]) -> Self {
        let (port, vhost) = broker.rsplit_once(':').unwrap().1.split_once('/').unwrap();
        let at = ["--pubsub-backend", "rabbitmq", "--rabbitmq-host", "127.0.0.1", "--rabbitmq-port", port];
        Self::start_at(program, id, &[&at[..], &["--rabbitmq-vhost", vhost], more].concat())
    }

    /// The same, wherever its arguments say.
    pub(crate) fn start_at(program: &str, id: &str, at: &[&str]) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SUPERVISOR, "sh"]).arg(clients::python_processors().join(program));
        command.args(["--id", id, "--no-metrics", "--no-loki-enabled"]).args(at);
        for name in ["RABBITMQ_USERNAME", "RABBITMQ_PASSWORD", "PULSAR_API_KEY", "PYTHONPATH"] {
            command.env_remove(name);
        }
        command
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut supervisor = command.spawn().unwrap();
        let mut said = BufReader::new(supervisor.stdout.take().unwrap());
        let mut pid = String::new();
        said.read_line(&mut pid).unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        keep(said, log.clone());
        Self { supervisor, pid: pid.trim().to_owned(), log }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has said this.
    #[track_caller]
    pub(crate) fn until_said(&self, text: &str) {
        until(&format!("theirs to say '{text}'"), || self.log().contains(text), || self.log());
    }

    /// Waits until it has started: it has asked for its configuration and for the workspaces, each with a client of its own.
    #[track_caller]
    pub(crate) fn until_ready(&self) {
        let asked = || self.log().matches("RequestResponseClient closed").count() >= 2;
        until("theirs to be ready", asked, || self.log());
    }

    /// Lets it stand still, as a machine does that sleeps or a network that is cut.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    /// Ends it the hard way.
    pub(crate) fn kill(&self) {
        self.signal("-KILL");
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid]).status().unwrap().success());
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // It fails only if it has ended already.
        let _ = self.supervisor.wait();
        if std::thread::panicking() {
            println!("theirs said:\n{}", self.log());
        }
    }
}

fn keep(said: BufReader<ChildStdout>, log: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in said.lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
}
