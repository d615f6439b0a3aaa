//! A Pulsar broker for tests, with its bookie and its metadata in one process. It is fetched once with Maven, into `servers`
//! beside the build's own folders; another folder of its jars is used when `SLUICE_TEST_PULSAR` names it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sluice_bus::Error;
use tokio::time::Instant;

use super::free_ports;
use crate::pulsar::{Options, Pulsar};

const VERSION: &str = "4.2.4";
/// Of the client for Python.
const CLIENT: &str = "3.13.0";
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// One question may be lost with the start of the broker.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Fetches the jars into the folder `$1`, unless that was done before. What was begun and not finished is done anew.
const FETCH: &str = r#"
set -eu
mkdir -p "$1" && cd "$1"
exec 9>"lock-pulsar-$2" && flock -w 600 9
[ ! -e "pulsar-$2" ] || exit 0
rm -rf "new-pulsar-$2" && mkdir "new-pulsar-$2"
cat > "new-pulsar-$2/pom.xml" <<END
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>test</groupId><artifactId>server</artifactId><version>1</version>
  <dependencyManagement><dependencies><dependency>
    <groupId>org.apache.pulsar</groupId><artifactId>pulsar</artifactId><version>$2</version>
    <type>pom</type><scope>import</scope>
  </dependency></dependencies></dependencyManagement>
  <dependencies><dependency>
    <groupId>org.apache.pulsar</groupId><artifactId>pulsar-broker</artifactId><version>$2</version>
  </dependency></dependencies>
</project>
END
(cd "new-pulsar-$2" && mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=lib)
mv "new-pulsar-$2/lib" "pulsar-$2" && rm -rf "new-pulsar-$2"
"#;

/// Ends the broker as soon as its input ends: when the guard is dropped, or the test process is killed.
const SUPERVISOR: &str = r#"
O=ALL-UNNAMED
java -Xmx384m -XX:MaxDirectMemorySize=256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dio.netty.tryReflectionSetAccessible=true \
    --add-opens java.base/java.nio=$O --add-opens java.base/jdk.internal.misc=$O \
    --add-opens java.base/sun.net=$O --add-opens java.base/jdk.internal.platform=$O \
    --add-opens java.management/sun.management=$O --add-opens jdk.management/com.sun.management.internal=$O \
    -cp "$JARS/*" org.apache.pulsar.PulsarStandaloneStarter --config "$FOLDER/config" -nfw -nss \
    --metadata-dir "$FOLDER/metadata" --bookkeeper-dir "$FOLDER/bookie" --advertised-address 127.0.0.1 \
    </dev/null >>"$FOLDER/output" 2>&1 &
broker=$!
read -r how
if [ "$how" = stop ]; then kill -TERM $broker; else kill -KILL $broker; fi
wait $broker
"#;

/// A Pulsar broker that is ours, with its data in a folder of its own.
pub struct PulsarServer {
    folder: tempfile::TempDir,
    jars: PathBuf,
    port: u16,
    admin: u16,
    /// For `pulsar+ssl://` and `https://`, where there are certificates.
    tls: [u16; 2],
    /// Whom it lets look at its health.
    token: Option<String>,
    supervisor: Option<Child>,
}

impl PulsarServer {
    /// Why there can be no server here; `None` when there can.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        if !has("java") {
            return Some("java, which runs the broker, is not installed");
        }
        let is_there = jars().is_some_and(|jars| jars.exists());
        (!is_there && !has("mvn"))
            .then_some("the broker is not there, and mvn, which fetches it, is not installed")
    }

    /// Starts a broker.
    ///
    /// # Errors
    /// What went wrong, with the broker's last words.
    pub async fn start() -> Result<Self, String> {
        Self::start_with("").await
    }

    /// Starts a broker with more in its configuration.
    ///
    /// # Errors
    /// As [`PulsarServer::start`].
    pub async fn start_with(more: &str) -> Result<Self, String> {
        let mut server = Self::new(more).await?;
        server.run().await?;
        Ok(server)
    }

    /// Starts a broker with more in its configuration that lets in only tokens such as this one.
    ///
    /// # Errors
    /// As [`PulsarServer::start`].
    pub async fn start_with_token(more: &str, token: &str) -> Result<Self, String> {
        let mut server = Self::new(more).await?;
        server.token = Some(token.to_owned());
        server.run().await?;
        Ok(server)
    }

    /// Starts a broker that listens for `pulsar+ssl://` too, with `ca.pem`, `cert.pem` and `key.pem` of a folder.
    ///
    /// # Errors
    /// As [`PulsarServer::start`].
    pub async fn start_with_tls(certificates: &Path) -> Result<Self, String> {
        let mut server = Self::new("").await?;
        let ([broker, admin], folder) = (server.tls, certificates.display());
        let more = format!(
            "brokerServicePortTls={broker}\nwebServicePortTls={admin}\ntlsTrustCertsFilePath={folder}/ca.pem\n\
             tlsCertificateFilePath={folder}/cert.pem\ntlsKeyFilePath={folder}/key.pem\n"
        );
        let at = server.folder.path().join("config");
        let config = fs::read_to_string(&at).map_err(|error| error.to_string())?;
        fs::write(at, config + &more).map_err(|error| error.to_string())?;
        server.run().await?;
        Ok(server)
    }

    async fn new(more: &str) -> Result<Self, String> {
        let jars = tokio::task::spawn_blocking(fetched).await.map_err(|error| error.to_string())??;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let [port, admin, tls_port, tls_admin] = free_ports().map_err(|error| error.to_string())?;
        // The bookie listens on every interface unless it has one.
        let config = format!(
            "clusterName=standalone\nwebServicePort={admin}\nbrokerServicePort={port}\nbindAddress=127.0.0.1\n\
             advertisedAddress=127.0.0.1\nmanagedLedgerDefaultEnsembleSize=1\nmanagedLedgerDefaultWriteQuorum=1\n\
             managedLedgerDefaultAckQuorum=1\nlisteningInterface=lo\nallowLoopback=true\n{more}\n"
        );
        fs::write(folder.path().join("config"), config).map_err(|error| error.to_string())?;
        Ok(Self { folder, jars, port, admin, tls: [tls_port, tls_admin], token: None, supervisor: None })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("pulsar://127.0.0.1:{}?admin={}", self.port, self.admin_url())
    }

    /// Its address over TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let [broker, admin] = self.tls;
        format!("pulsar+ssl://127.0.0.1:{broker}?admin=https://127.0.0.1:{admin}")
    }

    /// A folder with the client for Python, which strangers use; it is fetched where it is missing. Blocks meanwhile.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn python_client() -> Result<PathBuf, String> {
        let jars = jars().ok_or("no folder to keep the client in")?;
        let folder = jars.with_file_name(format!("pulsar-client-{CLIENT}"));
        if folder.exists() {
            return Ok(folder);
        }
        let new = folder.with_extension("new");
        let mut fetch = Command::new("python3");
        fetch.args(["-m", "pip", "install", "-q", "--target"]).arg(&new);
        let output =
            fetch.arg(format!("pulsar-client=={CLIENT}")).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("the client cannot be fetched: {}", String::from_utf8_lossy(&output.stderr)));
        }
        fs::rename(&new, &folder).map_err(|error| error.to_string())?;
        Ok(folder)
    }

    /// Where its admin API is.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }

    /// Connects to it.
    ///
    /// # Errors
    /// As [`Pulsar::connect`].
    pub async fn connect(&self) -> Result<Pulsar, Error> {
        Pulsar::connect(&self.url(), Options::default()).await
    }

    /// URIs of the topics in namespaces such as `tg/flow`; none in one that is not there.
    ///
    /// # Errors
    /// What the broker said.
    pub async fn topics(&self, namespaces: &[&str]) -> Result<Vec<String>, String> {
        let client = reqwest::Client::new();
        let mut topics = Vec::new();
        for namespace in namespaces {
            let url = format!("{}/admin/v2/persistent/{namespace}", self.admin_url());
            let answer = client.get(url).send().await.map_err(|error| error.to_string())?;
            if answer.status() == reqwest::StatusCode::NOT_FOUND {
                continue;
            }
            let answer = answer.error_for_status().map_err(|error| error.to_string())?;
            let answer = answer.text().await.map_err(|error| error.to_string())?;
            topics.extend(serde_json::from_str::<Vec<String>>(&answer).map_err(|error| error.to_string())?);
        }
        Ok(topics)
    }

    /// Stops the broker: in good order, or as a killed process would.
    pub async fn stop(&mut self, in_good_order: bool) {
        let Some(mut supervisor) = self.supervisor.take() else { return };
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
    /// As [`PulsarServer::start`].
    pub async fn run(&mut self) -> Result<(), String> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SUPERVISOR])
            .env("JARS", &self.jars)
            .env("FOLDER", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        self.supervisor = Some(command.spawn().map_err(|error| error.to_string())?);
        let started = Instant::now();
        // The port opens before topics can be had.
        while !self.is_healthy().await {
            if started.elapsed() > START_TIMEOUT {
                return Err(format!("the broker does not answer; it said: {}", self.last_words()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Removes a topic, which its URI names, behind everybody's back and whoever is attached.
    ///
    /// # Errors
    /// What the broker said.
    pub async fn remove(&self, topic: &str) -> Result<(), String> {
        let path = topic.replacen("://", "/", 1);
        let mut url = url::Url::parse(&self.admin_url()).map_err(|error| error.to_string())?;
        let _ = url.path_segments_mut().map(|mut segments| {
            segments.extend(["admin", "v2"]).extend(path.split('/'));
        });
        url.set_query(Some("force=true"));
        let sent = reqwest::Client::new().delete(url).timeout(CALL_TIMEOUT).send().await;
        sent.and_then(reqwest::Response::error_for_status).map(drop).map_err(|error| error.to_string())
    }

    async fn is_healthy(&self) -> bool {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut ask = reqwest::Client::new().get(format!("{}/admin/v2/brokers/health", self.admin_url()));
        if let Some(token) = &self.token {
            ask = ask.bearer_auth(token);
        }
        let Ok(answer) = ask.timeout(HEALTH_TIMEOUT).send().await else { return false };
        answer.text().await.is_ok_and(|said| said == "ok")
    }

    fn last_words(&self) -> String {
        let said = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
        let lines: Vec<_> = said.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for PulsarServer {
    fn drop(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            drop(supervisor.stdin.take());
            let _ = supervisor.wait();
        }
    }
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Where the broker's jars are, or are fetched to.
fn jars() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SLUICE_TEST_PULSAR") {
        return Some(named.into());
    }
    // Tests are built into `target/PROFILE/deps`.
    let own = std::env::current_exe().ok()?;
    Some(own.ancestors().nth(3)?.join("servers").join(format!("pulsar-{VERSION}")))
}

/// The jars, which are fetched where they are missing.
fn fetched() -> Result<PathBuf, String> {
    let jars = jars().ok_or("no folder to keep the broker in")?;
    if jars.exists() {
        return Ok(jars);
    }
    let cache = jars.parent().unwrap_or(Path::new("."));
    let mut fetch = Command::new("/bin/sh");
    let output = fetch.args(["-c", FETCH, "fetch"]).arg(cache).arg(VERSION).output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(jars);
    }
    Err(format!("the broker cannot be fetched: {}", String::from_utf8_lossy(&output.stdout)))
}
