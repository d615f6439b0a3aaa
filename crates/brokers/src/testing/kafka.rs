//! A Kafka broker for tests, which is its own controller. It is fetched once with Maven, into `servers` beside the build's own
//! folders; another folder of its jars is used when `SLUICE_TEST_KAFKA` names it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use krafka::admin::{
    AdminClient, ConfigOp, ConfigResource, CreateTopicsOptions, DeleteRecordsOptions, DeleteTopicsOptions,
    IncrementalAlterConfigsOptions, ListTopicsOptions, NewTopic, TopicPartition,
};
use sluice_bus::Error;
use tokio::time::Instant;

use super::free_ports;
use crate::kafka::{Kafka, Options};

const VERSION: &str = "4.3.1";
/// Of the client library of TrustGraph 2.11.
const CLIENT: &str = "0.14.0";
const START_TIMEOUT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches the jars into the folder `$1`, unless that was done before. What was begun and not finished is done anew.
const FETCH: &str = r#"
set -eu
mkdir -p "$1" && cd "$1"
exec 9>"lock-kafka-$2" && flock -w 600 9
[ ! -e "kafka-$2" ] || exit 0
rm -rf "new-kafka-$2" && mkdir "new-kafka-$2"
cat > "new-kafka-$2/pom.xml" <<END
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>test</groupId><artifactId>server</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$2</version>
  </dependency><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$2</version>
  </dependency></dependencies>
</project>
END
(cd "new-kafka-$2" && mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=lib)
mv "new-kafka-$2/lib" "kafka-$2" && rm -rf "new-kafka-$2"
"#;

/// Ends the broker as soon as its input ends: when the guard is dropped, or the test process is killed.
const SUPERVISOR: &str = r#"
J="-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
if [ ! -e "$FOLDER/data/meta.properties" ]; then
    nice java $J -cp "$JARS/*" kafka.tools.StorageTool format -t AAAAAAAAQACAAAAAAAAAAQ -c "$FOLDER/config" \
        --add-scram 'SCRAM-SHA-512=[name=owner,password=open sesame]' </dev/null >>"$FOLDER/output" 2>&1
fi
nice java $J -cp "$JARS/*" kafka.Kafka "$FOLDER/config" </dev/null >>"$FOLDER/output" 2>&1 &
broker=$!
read -r how
if [ "$how" = stop ]; then kill -TERM $broker; else kill -KILL $broker; fi
wait $broker
"#;

/// A Kafka broker that is ours, with its data in a folder of its own.
pub struct KafkaServer {
    folder: tempfile::TempDir,
    jars: PathBuf,
    port: u16,
    /// Where users say who they are, and where connections are encrypted, if anywhere.
    sasl: u16,
    tls: u16,
    supervisor: Option<Child>,
}

impl KafkaServer {
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
    /// As [`KafkaServer::start`].
    pub async fn start_with(more: &str) -> Result<Self, String> {
        let mut server = Self::new(more, "").await?;
        server.run().await?;
        Ok(server)
    }

    /// Starts a broker with doors for users too: one where `owner` may do all with the password `open sesame`, and `reader` nothing
    /// with `hush`; and one with `cert.pem` and `key.pem` of a folder, which anybody may use.
    ///
    /// # Errors
    /// As [`KafkaServer::start`].
    pub async fn start_closed(certificates: &Path) -> Result<Self, String> {
        let read =
            |name: &str| fs::read_to_string(certificates.join(name)).map_err(|error| error.to_string());
        let keys = certificates.join("keys.pem");
        fs::write(&keys, read("key.pem")? + &read("cert.pem")?).map_err(|error| error.to_string())?;
        let plain = "org.apache.kafka.common.security.plain.PlainLoginModule";
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule";
        let more = format!(
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:owner;User:ANONYMOUS\nsasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
             listener.name.users.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
             listener.name.users.plain.sasl.jaas.config={plain} required user_owner=\"open sesame\" user_reader=\"hush\";\n\
             listener.name.users.scram-sha-512.sasl.jaas.config={scram} required;\n\
             ssl.keystore.type=PEM\nssl.keystore.location={}\n",
            keys.display()
        );
        let mut server = Self::new(&more, "USERS,TLS").await?;
        server.run().await?;
        Ok(server)
    }

    async fn new(more: &str, doors: &str) -> Result<Self, String> {
        let jars = tokio::task::spawn_blocking(fetched).await.map_err(|error| error.to_string())??;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let [port, controller, sasl, tls] = free_ports().map_err(|error| error.to_string())?;
        let further = match doors {
            "" => String::new(),
            _ => format!(",USERS://127.0.0.1:{sasl},TLS://127.0.0.1:{tls}"),
        };
        let config = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{further}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}{further}\n\
             inter.broker.listener.name=PLAINTEXT\ncontroller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_PLAINTEXT,TLS:SSL\n\
             log.dirs={}\noffsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\nshare.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\nshare.coordinator.state.topic.num.partitions=1\n\
             group.initial.rebalance.delay.ms=0\nbroker.session.timeout.ms=2000\n\
             broker.heartbeat.interval.ms=500\nauto.create.topics.enable=false\n\
             group.share.delivery.count.limit=10\n{more}\n",
            folder.path().join("data").display()
        );
        fs::write(folder.path().join("config"), config).map_err(|error| error.to_string())?;
        Ok(Self { folder, jars, port, sasl, tls, supervisor: None })
    }

    /// Fetches the client library of TrustGraph 2.11's processes; the folder that it is in.
    ///
    /// # Errors
    /// What `pip` said.
    pub fn python_client() -> Result<PathBuf, String> {
        let jars = jars().ok_or("no folder to keep the client in")?;
        let folder = jars.with_file_name(format!("aiokafka-{CLIENT}"));
        if folder.exists() {
            return Ok(folder);
        }
        let new = folder.with_extension("new");
        let mut fetch = Command::new("python3");
        fetch.args(["-m", "pip", "install", "-q", "--target"]).arg(&new);
        let output = fetch.arg(format!("aiokafka=={CLIENT}")).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("the client cannot be fetched: {}", String::from_utf8_lossy(&output.stderr)));
        }
        fs::rename(&new, &folder).map_err(|error| error.to_string())?;
        Ok(folder)
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("kafka://127.0.0.1:{}", self.port)
    }

    /// Its address for users, without who it is.
    #[must_use]
    pub fn users(&self) -> String {
        format!("127.0.0.1:{}", self.sasl)
    }

    /// Its address over TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("kafka+ssl://127.0.0.1:{}", self.tls)
    }

    /// Connects to it.
    ///
    /// # Errors
    /// As [`Kafka::connect`].
    pub async fn connect(&self) -> Result<Kafka, Error> {
        Kafka::connect(&self.url(), Options::default()).await
    }

    async fn admin(&self) -> Result<AdminClient, String> {
        let kafka = krafka::Kafka::builder(format!("127.0.0.1:{}", self.port));
        let kafka = kafka.connect_timeout(CALL_TIMEOUT).request_timeout(CALL_TIMEOUT);
        Ok(kafka.connect().await.map_err(|error| error.to_string())?.admin())
    }

    /// What its topics are called that are not its own.
    ///
    /// # Errors
    /// What the broker said.
    pub async fn topics(&self) -> Result<Vec<String>, String> {
        let options = ListTopicsOptions::default().timeout(CALL_TIMEOUT);
        self.admin().await?.list_topics(options).await.map_err(|error| error.to_string())
    }

    /// Makes a topic behind everybody's back.
    ///
    /// # Errors
    /// What the broker said.
    pub async fn make(&self, topic: &str) -> Result<(), String> {
        let new = NewTopic::new(topic, 1, 1).map_err(|error| error.to_string())?;
        let options = CreateTopicsOptions::default().timeout(CALL_TIMEOUT);
        let made = self.admin().await?.create_topics([new], options).await;
        let made = made.map_err(|error| error.to_string())?.remove(topic);
        made.map_or(Ok(()), |made| made.map(drop)).map_err(|error| error.to_string())
    }

    /// Removes a topic behind everybody's back.
    ///
    /// # Errors
    /// What the broker said.
    pub async fn remove(&self, topic: &str) -> Result<(), String> {
        let options = DeleteTopicsOptions::default().timeout(CALL_TIMEOUT);
        let removed = self.admin().await?.delete_topics([topic], options).await;
        let removed = removed.map_err(|error| error.to_string())?.remove(topic);
        removed.unwrap_or(Ok(())).map_err(|error| error.to_string())
    }

    /// Drops everything in a topic up to an offset, as its retention does.
    ///
    /// # Errors
    /// What the broker said.
    pub async fn cut(&self, topic: &str, before: i64) -> Result<(), String> {
        let at = TopicPartition::new(topic, 0);
        let options = DeleteRecordsOptions::default().timeout(CALL_TIMEOUT);
        let cut = self.admin().await?.delete_records([(at.clone(), before)], options).await;
        let cut = cut.map_err(|error| error.to_string())?.remove(&at);
        cut.unwrap_or(Ok(0)).map(drop).map_err(|error| error.to_string())
    }

    /// Lets a group have so many deliveries of a message.
    ///
    /// # Errors
    /// What the broker said.
    pub async fn limit(&self, group: &str, deliveries: u32) -> Result<(), String> {
        let of = ConfigResource::group(group);
        let change = ConfigOp::set("share.delivery.count.limit", deliveries.to_string());
        let options = IncrementalAlterConfigsOptions::default().timeout(CALL_TIMEOUT);
        let set = self.admin().await?.incremental_alter_configs([(of.clone(), vec![change])], options).await;
        let set = set.map_err(|error| error.to_string())?.remove(&of);
        set.unwrap_or(Ok(())).map_err(|error| error.to_string())
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
    /// As [`KafkaServer::start`].
    pub async fn run(&mut self) -> Result<(), String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
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
        while let Err(why) = self.topics().await {
            if started.elapsed() > START_TIMEOUT {
                return Err(format!("the broker does not answer: {why}; it said: {}", self.last_words()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let said = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
        let lines: Vec<_> = said.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for KafkaServer {
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
    if let Some(named) = std::env::var_os("SLUICE_TEST_KAFKA") {
        return Some(named.into());
    }
    // Tests are built into `target/PROFILE/deps`.
    let own = std::env::current_exe().ok()?;
    Some(own.ancestors().nth(3)?.join("servers").join(format!("kafka-{VERSION}")))
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
