//! Real servers for tests: started on free loopback ports with folders of their own, gone when the test process is.
//!
//! A RabbitMQ that is there already is used only when `SLUICE_TEST_AMQP_URL` says so (with
//! `SLUICE_TEST_AMQP_MANAGEMENT_URL` for its management API); it is neither stopped nor restarted.

mod declares;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "pulsar")]
mod pulsar;
mod version_4;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sluice_bus::{BrokerAdmin, Error};
use tokio::time::Instant;

use crate::Secret;
use crate::rabbitmq::{Options, RabbitMq};
pub use declares::Declares;
#[cfg(feature = "kafka")]
pub use kafka::KafkaServer;
#[cfg(feature = "nats")]
pub use nats::{NatsCluster, NatsServer};
#[cfg(feature = "pulsar")]
pub use pulsar::PulsarServer;

/// The program itself, not the wrapper that insists on a user of its own.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
const START_TIMEOUT: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Ends everything it started as soon as its input ends: when the guard is dropped, or the test process is killed.
const SUPERVISOR: &str = r#"
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 </dev/null >/dev/null 2>&1 &
names=$!
"$PROGRAM" </dev/null >>"$OUTPUT" 2>&1 &
broker=$!
read -r how
if [ "$how" = stop ]; then "$CONTROL" stop >/dev/null 2>&1; else kill -KILL $broker; fi
wait $broker
kill -KILL $names
wait $names
"#;

/// A RabbitMQ server for tests.
pub struct RabbitServer {
    home: Option<Home>,
    /// `amqp://user:password@host:port`, without a vhost.
    base: String,
    management: String,
    client: reqwest::Client,
}

/// A server that is ours.
struct Home {
    folder: tempfile::TempDir,
    ports: Ports,
    supervisor: Option<Child>,
    /// Where its programs are, if not on this machine.
    root: Option<PathBuf>,
}

/// What is removed; see [`RabbitServer::damage`].
#[derive(Debug, Clone, Copy)]
pub enum Damage<'a> {
    /// A queue with what is in it.
    Queue(&'a str),
    /// An exchange with its bindings.
    Exchange(&'a str),
    /// The binding of a queue to an exchange.
    Binding(&'a str, &'a str),
}

#[derive(Clone, Copy)]
struct Ports {
    amqp: u16,
    management: u16,
    distribution: u16,
    epmd: u16,
    tls: u16,
}

impl RabbitServer {
    /// Why there can be no server here; `None` when there can.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        let is_told = std::env::var_os("SLUICE_TEST_AMQP_URL").is_some();
        (!is_told && !Path::new(PROGRAM).exists()).then_some("rabbitmq-server is not installed")
    }

    /// Starts a server, or takes the one that the environment names.
    ///
    /// # Errors
    /// What went wrong, with the server's last words.
    pub async fn start() -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::new();
        if let Ok(url) = std::env::var("SLUICE_TEST_AMQP_URL") {
            let management = std::env::var("SLUICE_TEST_AMQP_MANAGEMENT_URL")
                .map_err(|_| "SLUICE_TEST_AMQP_MANAGEMENT_URL must name the management API".to_owned())?;
            return Ok(Self { home: None, base: url.trim_end_matches('/').to_owned(), management, client });
        }
        Self::start_ours(client, None, None).await
    }

    /// Where RabbitMQ 4 is, for [`RabbitServer::start_in`]; it is fetched into the folder where it was not before. Blocks
    /// meanwhile, for half a minute.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn version_4(cache: &Path) -> Result<PathBuf, String> {
        version_4::root(cache)
    }

    /// Starts a server of our own out of another root.
    ///
    /// # Errors
    /// As [`RabbitServer::start`].
    pub async fn start_in(root: PathBuf) -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self::start_ours(reqwest::Client::new(), None, Some(root)).await
    }

    /// Starts a server of our own that listens for `amqps://` too, with `ca.pem`, `cert.pem` and `key.pem` of a folder.
    ///
    /// # Errors
    /// As [`RabbitServer::start`].
    pub async fn start_with_tls(certificates: &Path) -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self::start_ours(reqwest::Client::new(), Some(certificates), None).await
    }

    async fn start_ours(
        client: reqwest::Client,
        certificates: Option<&Path>,
        root: Option<PathBuf>,
    ) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let [amqp, management, distribution, epmd, tls] = free_ports().map_err(|error| error.to_string())?;
        let ports = Ports { amqp, management, distribution, epmd, tls };
        let mut conf = format!(
            "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\ncollect_statistics_interval = 1000\n\
             disk_free_limit.absolute = 50MB\n",
            ports.management
        );
        if let Some(folder) = certificates {
            let folder = folder.display();
            conf.push_str(&format!(
                "listeners.ssl.1 = 127.0.0.1:{}\nssl_options.cacertfile = {folder}/ca.pem\n\
                 ssl_options.certfile = {folder}/cert.pem\nssl_options.keyfile = {folder}/key.pem\n",
                ports.tls
            ));
        }
        fs::write(folder.path().join("rabbitmq.conf"), conf).map_err(|error| error.to_string())?;
        fs::write(folder.path().join("plugins"), "[rabbitmq_management].\n")
            .map_err(|error| error.to_string())?;
        let mut server = Self {
            base: format!("amqp://guest:guest@127.0.0.1:{}", ports.amqp),
            management: format!("http://guest:guest@127.0.0.1:{}", ports.management),
            client,
            home: Some(Home { folder, ports, supervisor: None, root }),
        };
        server.run().await?;
        Ok(server)
    }

    /// Whether this server may be stopped.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.home.is_some()
    }

    /// The address of a vhost.
    #[must_use]
    pub fn url(&self, vhost: &str) -> String {
        format!("{}/{vhost}", self.base)
    }

    /// The `amqps://` address of a vhost; `None` for a server that was not started with it.
    #[must_use]
    pub fn tls_url(&self, vhost: &str) -> Option<String> {
        let port = self.home.as_ref()?.ports.tls;
        Some(format!("amqps://guest:guest@127.0.0.1:{port}/{vhost}"))
    }

    /// Options with the management API.
    #[must_use]
    pub fn options(&self) -> Options {
        Options { management: Some(Secret::new(&self.management)), ..Options::default() }
    }

    /// Connects to a vhost, with the management API.
    ///
    /// # Errors
    /// As [`RabbitMq::connect`].
    pub async fn connect(&self, vhost: &str) -> Result<RabbitMq, Error> {
        RabbitMq::connect(&self.url(vhost), self.options()).await
    }

    /// Makes a vhost that nobody else has.
    ///
    /// # Errors
    /// What the management API said.
    pub async fn vhost(&self) -> Result<String, String> {
        self.vhost_of("{}").await
    }

    /// The same, whose durable queues are quorum queues unless told otherwise.
    ///
    /// # Errors
    /// What the management API said.
    pub async fn quorum_vhost(&self) -> Result<String, String> {
        // The first name is what 3.10 reads, the second what later ones do.
        self.vhost_of(r#"{"defaultqueuetype": "quorum", "default_queue_type": "quorum"}"#).await
    }

    async fn vhost_of(&self, settings: &'static str) -> Result<String, String> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        self.put(&format!("vhosts/{name}"), settings).await?;
        let all = r#"{"configure": ".*", "write": ".*", "read": ".*"}"#;
        let user = url::Url::parse(&self.base).map_err(|error| error.to_string())?.username().to_owned();
        self.put(&format!("permissions/{name}/{user}"), all).await?;
        Ok(name)
    }

    /// Removes a vhost with everything in it, and closes its connections.
    ///
    /// # Errors
    /// What the management API said.
    pub async fn remove_vhost(&self, name: &str) -> Result<(), String> {
        let url = format!("{}/api/vhosts/{name}", self.management);
        let sent = self.client.delete(url).send().await.and_then(reqwest::Response::error_for_status);
        sent.map(drop).map_err(|error| error.to_string())
    }

    async fn put(&self, path: &str, body: &'static str) -> Result<(), String> {
        let url = format!("{}/api/{path}", self.management);
        let sent = self.client.put(url).header("content-type", "application/json").body(body).send().await;
        sent.and_then(reqwest::Response::error_for_status).map(drop).map_err(|error| error.to_string())
    }

    /// Closes all connections of this name to a vhost, as an operator would; answers how many there were.
    ///
    /// # Errors
    /// What the management API said.
    pub async fn close_connections(&self, vhost: &str, name: &str) -> Result<usize, String> {
        #[derive(serde::Deserialize)]
        struct Connection {
            name: String,
            user_provided_name: Option<String>,
        }
        let url = format!("{}/api/vhosts/{vhost}/connections", self.management);
        let sent = self.client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let found: Vec<Connection> =
            sent.map_err(|error| error.to_string())?.json().await.map_err(|error| error.to_string())?;
        let mut closed = 0;
        for connection in found.iter().filter(|found| found.user_provided_name.as_deref() == Some(name)) {
            let mut url = url::Url::parse(&self.management).map_err(|error| error.to_string())?;
            let _ = url.path_segments_mut().map(|mut path| {
                path.extend(["api", "connections", connection.name.as_str()]);
            });
            let sent = self.client.delete(url).send().await.and_then(reqwest::Response::error_for_status);
            sent.map_err(|error| error.to_string())?;
            closed += 1;
        }
        Ok(closed)
    }

    /// Names of all queues and exchanges of a vhost.
    ///
    /// # Errors
    /// What the management API said.
    pub async fn names(&self, vhost: &str) -> Result<Vec<String>, String> {
        #[derive(serde::Deserialize)]
        struct Named {
            name: String,
        }
        let mut names = Vec::new();
        for kind in ["queues", "exchanges"] {
            let url = format!("{}/api/{kind}/{vhost}?columns=name", self.management);
            let sent = self.client.get(url).send().await.and_then(reqwest::Response::error_for_status);
            let found: Vec<Named> =
                sent.map_err(|error| error.to_string())?.json().await.map_err(|error| error.to_string())?;
            names.extend(found.into_iter().map(|named| named.name));
        }
        Ok(names)
    }

    /// All bindings of a vhost, as exchange and queue, but for those that every queue has.
    ///
    /// # Errors
    /// What the management API said.
    pub async fn bindings(&self, vhost: &str) -> Result<Vec<(String, String)>, String> {
        #[derive(serde::Deserialize)]
        struct Binding {
            source: String,
            destination: String,
        }
        let url = format!("{}/api/bindings/{vhost}", self.management);
        let sent = self.client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let found: Vec<Binding> =
            sent.map_err(|error| error.to_string())?.json().await.map_err(|error| error.to_string())?;
        let named = found.into_iter().filter(|found| !found.source.is_empty());
        Ok(named.map(|found| (found.source, found.destination)).collect())
    }

    /// Removes something of a vhost behind everybody's back.
    ///
    /// # Errors
    /// What the management API said.
    pub async fn damage(&self, vhost: &str, what: Damage<'_>) -> Result<(), String> {
        let mut url = url::Url::parse(&self.management).map_err(|error| error.to_string())?;
        let path: &[&str] = match what {
            Damage::Queue(name) => &["api", "queues", vhost, name],
            Damage::Exchange(name) => &["api", "exchanges", vhost, name],
            // A binding is called by its key, which is the queue's name.
            Damage::Binding(exchange, queue) => &["api", "bindings", vhost, "e", exchange, "q", queue, queue],
        };
        let _ = url.path_segments_mut().map(|mut segments| _ = segments.extend(path));
        let sent = self.client.delete(url).send().await.and_then(reqwest::Response::error_for_status);
        sent.map(drop).map_err(|error| error.to_string())
    }

    /// Runs `rabbitmqctl`.
    ///
    /// # Errors
    /// What it said; or that this server is not ours.
    pub async fn control(&self, args: &[&str]) -> Result<String, String> {
        let Some(home) = &self.home else { return Err("this server is not ours".to_owned()) };
        let mut command = tokio::process::Command::from(home.command(CONTROL));
        let output = command.args(args).output().await.map_err(|error| error.to_string())?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(told);
        }
        Err(format!("rabbitmqctl {args:?}: {told}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Stops the server: in good order, or as a killed process would.
    pub async fn stop(&mut self, in_good_order: bool) {
        let Some(mut supervisor) = self.home.as_mut().and_then(|home| home.supervisor.take()) else { return };
        if let Some(mut input) = supervisor.stdin.take()
            && in_good_order
        {
            let _ = std::io::Write::write_all(&mut input, b"stop\n");
        }
        let _ = tokio::task::spawn_blocking(move || supervisor.wait()).await;
    }

    /// Starts it again, on the same ports with the same data.
    ///
    /// # Errors
    /// As [`RabbitServer::start`].
    pub async fn run(&mut self) -> Result<(), String> {
        let Some(home) = &mut self.home else { return Ok(()) };
        let output = home.folder.path().join("output");
        let mut command = home.command("/bin/sh");
        command.args(["-c", SUPERVISOR]).env("OUTPUT", &output).stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        home.supervisor = Some(command.spawn().map_err(|error| error.to_string())?);
        let started = Instant::now();
        loop {
            let why = match self.answers().await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            if started.elapsed() > START_TIMEOUT {
                let said = fs::read_to_string(&output).unwrap_or_default();
                return Err(format!("the server does not answer: {why}; it said: {said}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn answers(&self) -> Result<(), String> {
        let broker =
            RabbitMq::connect(&self.base, self.options()).await.map_err(|error| error.to_string())?;
        let listed = broker.list("").await.map(drop).map_err(|error| error.to_string());
        broker.shutdown().await;
        listed
    }
}

impl Home {
    fn command(&self, program: &str) -> Command {
        let at = |name: &str| -> PathBuf { self.folder.path().join(name) };
        let mut command = match &self.root {
            Some(root) => version_4::command(root, program),
            None => Command::new(program),
        };
        command
            .env("PROGRAM", PROGRAM)
            .env("CONTROL", CONTROL)
            .env("HOME", self.folder.path())
            // Makes the script become the broker, so that its process is the one we know.
            .env("RUNNING_UNDER_SYSTEMD", "1")
            .env("RABBITMQ_NODENAME", "sluice@localhost")
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.ports.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string());
        command
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            drop(supervisor.stdin.take());
            let _ = supervisor.wait();
        }
    }
}

/// Ports that nobody listens on, all held until the last is found.
fn free_ports<const N: usize>() -> std::io::Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
