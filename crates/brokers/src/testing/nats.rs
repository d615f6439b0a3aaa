//! A NATS server for tests. It is fetched once with the Go tools, into `servers` beside the build's own folders; another
//! one is used when `SLUICE_TEST_NATS_SERVER` names its program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sluice_bus::Error;
use tokio::time::Instant;

use super::free_ports;
use crate::nats::{Nats, Options};

const PROGRAM: &str = "nats-server";
const MODULE: &str = "github.com/nats-io/nats-server/v2@v2.15.2";
const START_TIMEOUT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Ends the server as soon as its input ends: when the guard is dropped, or the test process is killed.
const SUPERVISOR: &str = r#"
"$PROGRAM" -c "$CONFIG" </dev/null >>"$OUTPUT" 2>&1 &
broker=$!
read -r how
if [ "$how" = stop ]; then kill -TERM $broker; else kill -KILL $broker; fi
wait $broker
"#;

/// A NATS server that is ours, with its data in a folder of its own.
pub struct NatsServer {
    folder: tempfile::TempDir,
    program: PathBuf,
    port: u16,
    supervisor: Option<Child>,
}

impl NatsServer {
    /// Why there can be no server here; `None` when there can.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        let can_be_had = program().is_some_and(|program| program.exists()) || go().is_some();
        (!can_be_had).then_some("nats-server is not there, and go, which fetches it, is not installed")
    }

    /// Starts a server.
    ///
    /// # Errors
    /// What went wrong, with the server's last words.
    pub async fn start() -> Result<Self, String> {
        Self::start_with("").await
    }

    /// Starts a server with more in its configuration.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn start_with(more: &str) -> Result<Self, String> {
        let [port] = free_ports().map_err(|error| error.to_string())?;
        let mut server = Self::new(port, more)?;
        server.run().await?;
        Ok(server)
    }

    fn new(port: u16, more: &str) -> Result<Self, String> {
        let program = fetched()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let store = folder.path().join("store");
        let config = format!(
            "listen: 127.0.0.1:{port}\nmax_payload: 8388608\n\
             jetstream {{ store_dir: \"{}\", max_mem: 256M, max_file: 2G, sync_interval: always }}\n{more}\n",
            store.display()
        );
        fs::write(folder.path().join("config"), config).map_err(|error| error.to_string())?;
        Ok(Self { folder, program, port, supervisor: None })
    }

    /// Its address, without a user.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Connects to it.
    ///
    /// # Errors
    /// As [`Nats::connect`].
    pub async fn connect(&self) -> Result<Nats, Error> {
        Nats::connect(&self.url(), Options::default()).await
    }

    /// Names of its streams.
    ///
    /// # Errors
    /// What the server said.
    pub async fn streams(&self) -> Result<Vec<String>, String> {
        let answer = self.api("STREAM.NAMES").await?;
        let names = answer["streams"].as_array().into_iter().flatten();
        Ok(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
    }

    /// Where the server keeps a stream that is on its disk.
    #[must_use]
    pub fn folder_of(&self, stream: &str) -> PathBuf {
        self.folder.path().join("store/jetstream/$G/streams").join(stream)
    }

    /// Removes a stream behind everybody's back.
    ///
    /// # Errors
    /// What the server said.
    pub async fn remove(&self, stream: &str) -> Result<(), String> {
        self.api(&format!("STREAM.DELETE.{stream}")).await.map(drop)
    }

    async fn api(&self, path: &str) -> Result<serde_json::Value, String> {
        let client = async_nats::connect(self.url()).await.map_err(|error| error.to_string())?;
        let answer = client.request(format!("$JS.API.{path}"), "".into()).await;
        let answer = answer.map_err(|error| error.to_string())?.payload;
        let answer: serde_json::Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        answer.get("error").map_or(Ok(()), |error| Err(error.to_string()))?;
        Ok(answer)
    }

    /// Stops the server: in good order, or as a killed process would.
    pub async fn stop(&mut self, in_good_order: bool) {
        let Some(mut supervisor) = self.supervisor.take() else { return };
        if let Some(mut input) = supervisor.stdin.take()
            && in_good_order
        {
            let _ = std::io::Write::write_all(&mut input, b"stop\n");
        }
        let _ = tokio::task::spawn_blocking(move || supervisor.wait()).await;
    }

    /// Starts it again, on the same port with the same data.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn run(&mut self) -> Result<(), String> {
        let output = self.folder.path().join("output");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SUPERVISOR])
            .env("PROGRAM", &self.program)
            .env("CONFIG", self.folder.path().join("config"))
            .env("OUTPUT", &output)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.supervisor = Some(command.spawn().map_err(|error| error.to_string())?);
        let started = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            if started.elapsed() > START_TIMEOUT {
                let said = fs::read_to_string(&output).unwrap_or_default();
                return Err(format!("the server does not answer; it said: {said}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Three servers that are one cluster.
pub struct NatsCluster {
    servers: [NatsServer; 3],
}

impl NatsCluster {
    /// Starts a cluster.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn start() -> Result<Self, String> {
        let ports: [u16; 6] = free_ports().map_err(|error| error.to_string())?;
        let routes: Vec<_> = ports[..3].iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let server = |n: usize| {
            let more = format!(
                "server_name: server-{n}\ncluster {{ name: test, listen: \"127.0.0.1:{}\", routes: [{}] }}",
                ports[n],
                routes.join(", ")
            );
            NatsServer::new(ports[3 + n], &more)
        };
        let mut cluster = Self { servers: [server(0)?, server(1)?, server(2)?] };
        cluster.run().await?;
        Ok(cluster)
    }

    /// One of its servers.
    #[must_use]
    pub fn server(&mut self, number: usize) -> &mut NatsServer {
        &mut self.servers[number % 3]
    }

    /// Connects to one of its servers, and to another one only when that one is away.
    ///
    /// # Errors
    /// As [`Nats::connect`].
    pub async fn connect(&self, number: usize) -> Result<Nats, Error> {
        Nats::connect(&self.servers[number % 3].url(), Options::default()).await
    }

    /// Starts those of its servers that do not run.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn run(&mut self) -> Result<(), String> {
        for server in self.servers.iter_mut().filter(|server| server.supervisor.is_none()) {
            server.run().await?;
        }
        let started = Instant::now();
        for server in &self.servers {
            // Who leads is decided meanwhile.
            while let Err(why) = server.api("STREAM.NAMES").await {
                if started.elapsed() > START_TIMEOUT {
                    return Err(format!("the cluster does not answer: {why}"));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Stops all of its servers, in good order.
    pub async fn stop(&mut self) {
        for server in &mut self.servers {
            server.stop(true).await;
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            drop(supervisor.stdin.take());
            let _ = supervisor.wait();
        }
    }
}

/// Where the server is, or is fetched to.
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SLUICE_TEST_NATS_SERVER") {
        return Some(named.into());
    }
    // Tests are built into `target/PROFILE/deps`.
    let own = std::env::current_exe().ok()?;
    Some(own.ancestors().nth(3)?.join("servers").join(PROGRAM))
}

fn go() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = [PathBuf::from("/usr/local/go/bin")];
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join("go")).find(|go| go.exists())
}

/// The program, which is fetched where it is missing.
fn fetched() -> Result<PathBuf, String> {
    let program = program().ok_or("no folder to keep the server in")?;
    if program.exists() {
        return Ok(program);
    }
    let go = go().ok_or("go is not installed")?;
    let folder = program.parent().unwrap_or(Path::new("."));
    let mut install = Command::new(go);
    install.args(["install", MODULE]).env("GOBIN", folder);
    let output = install.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(program);
    }
    Err(format!("go install {MODULE}: {}", String::from_utf8_lossy(&output.stderr)))
}
