//! How a process serves: where, on which broker, with which models.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args as ClapArgs;
use clap::builder::FalseyValueParser;
use sluice_gateway::{Host, Network, WebOrigin};
use sluice_processors::Dialect;
use sluice_schema::address;

use crate::folder::Loss;

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) serve: Serve,
    /// Services and processors to leave to other processes on the broker, for example chunker,prompt
    #[arg(long, env = "SLUICE_WITHOUT", value_name = "NAMES", value_delimiter = ',')]
    pub(crate) without: Vec<String>,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Run {
    /// What to run: config, iam, library, flow, gateway, processors (all), stores (those that keep data), or ids of processors
    #[arg(required = true, value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

/// How to serve.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Serve {
    /// Address that the gateway serves on
    #[arg(
        long,
        env = "SLUICE_LISTEN",
        hide_env_values = true,
        default_value = "127.0.0.1:8888",
        value_name = "HOST:PORT"
    )]
    pub(crate) listen: Listen,
    /// Let everybody in without a key; only on a loopback address unless forced
    #[arg(long, env = "SLUICE_NO_AUTH", value_parser = FalseyValueParser::new())]
    pub(crate) no_auth: bool,
    /// Serve without a key on an address that others can reach
    #[arg(long, env = "SLUICE_FORCE", value_parser = FalseyValueParser::new())]
    pub(crate) force: bool,
    /// Begin with an empty data folder where the one that is there is refused; what is in it is set aside, not removed
    #[arg(long)]
    pub(crate) init_empty: bool,
    /// Start although a part of the data folder is lost, older than the others, or copied while it was in use
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',', conflicts_with = "init_empty")]
    pub(crate) accept_loss: Vec<Loss>,
    #[command(flatten)]
    pub(crate) door: Door,
    #[command(flatten)]
    pub(crate) broker: Broker,
    #[command(flatten)]
    pub(crate) model: Model,
    #[command(flatten)]
    pub(crate) embeddings: Embeddings,
    #[command(flatten)]
    pub(crate) decoding: Decoding,
    #[command(flatten)]
    pub(crate) objects: Objects,
}

/// Whom the gateway serves.
#[derive(Debug, Clone, Default, ClapArgs)]
#[command(next_help_heading = "Gateway")]
pub(crate) struct Door {
    /// Origin whose pages may use the gateway from a browser, for example `https://app.example.org`; may be repeated
    #[arg(
        long,
        env = "SLUICE_ALLOW_ORIGIN",
        hide_env_values = true,
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub(crate) allow_origin: Vec<WebOrigin>,
    /// Host that a proxy in front sends, for example sluice.example.org; may be repeated
    #[arg(
        long,
        env = "SLUICE_ALLOW_HOST",
        hide_env_values = true,
        value_name = "HOST",
        value_delimiter = ','
    )]
    pub(crate) allow_host: Vec<Host>,
    /// Address or range of proxies whose X-Forwarded-For is believed, for example 10.0.0.0/8; may be repeated
    #[arg(
        long,
        env = "SLUICE_TRUSTED_PROXY",
        hide_env_values = true,
        value_name = "NETWORK",
        value_delimiter = ','
    )]
    pub(crate) trusted_proxy: Vec<Network>,
    /// Serve with TLS: file of the certificate (PEM), followed by those of its issuers; read again when it changes
    #[arg(long, env = "SLUICE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// File of the certificate's private key (PEM)
    #[arg(long, env = "SLUICE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Let in only callers with a certificate of these issuers (PEM); they need their key all the same
    #[arg(long, env = "SLUICE_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,
}

/// Where to listen, and what that was called.
#[derive(Debug, Clone)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    pub(crate) name: Option<Host>,
}

impl FromStr for Listen {
    type Err = String;

    /// Reads `HOST:PORT`; a name is looked up and its first address taken.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = text
            .to_socket_addrs()
            .map_err(|error| format!("'{text}' is not of the form HOST:PORT: {error}"))?;
        let address = found.into_iter().next().ok_or_else(|| format!("'{text}' has no address"))?;
        let name = text.rsplit_once(':').and_then(|(host, _)| host.parse().ok());
        Ok(Self { address, name })
    }
}

/// Where the content of documents is kept.
#[derive(Clone, ClapArgs)]
#[command(next_help_heading = "Content of documents")]
pub(crate) struct Objects {
    /// Bucket and folder of an S3-compatible object store that keeps the content of documents, for example
    /// s3://bucket/sluice; without it the data folder does
    #[arg(long, env = "SLUICE_OBJECTS", hide_env_values = true, value_name = "URL")]
    pub(crate) objects: Option<String>,
    /// Where that object store is, for example http://127.0.0.1:9000; without it the one of the region
    #[arg(long, env = "AWS_ENDPOINT_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) objects_endpoint: Option<String>,
    /// Its region; default us-east-1
    #[arg(long, env = "AWS_REGION", value_name = "NAME")]
    pub(crate) objects_region: Option<String>,
    /// Id of the key to it; without a key, what the machine itself may do
    #[arg(long, env = "AWS_ACCESS_KEY_ID", hide_env_values = true, value_name = "ID")]
    pub(crate) objects_key: Option<String>,
    /// File that holds the key's secret; or set AWS_SECRET_ACCESS_KEY
    #[arg(long, env = "SLUICE_OBJECTS_SECRET_FILE", value_name = "FILE")]
    pub(crate) objects_secret_file: Option<PathBuf>,
    /// File of certificates (PEM) to trust beside those of the machine
    #[arg(long, env = "SLUICE_OBJECTS_CA", value_name = "FILE")]
    pub(crate) objects_ca: Option<PathBuf>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses may hold passwords, here and below.
        let objects = self.objects.as_deref().and_then(address::shown);
        f.debug_struct("Objects").field("objects", &objects).finish_non_exhaustive()
    }
}

/// What reading one document may take; each is read in a process of its own.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Reading documents")]
pub(crate) struct Decoding {
    /// Pages, slides or sheets of a document that are read; what comes after is left out, and said to be
    #[arg(long, env = "SLUICE_DECODE_PAGES", default_value = "2000", value_name = "COUNT")]
    pub(crate) decode_pages: usize,
    /// Memory that reading a document may take, in MiB
    #[arg(long, env = "SLUICE_DECODE_MEMORY_MIB", default_value = "1024", value_name = "MIB")]
    pub(crate) decode_memory_mib: u64,
    /// Computing that reading a document may take at most, in seconds: it gets 10, and 5 for each million bytes
    #[arg(long, env = "SLUICE_DECODE_SECONDS", default_value = "300", value_name = "SECONDS")]
    pub(crate) decode_seconds: u64,
}

/// The broker.
#[derive(Clone, ClapArgs)]
#[command(next_help_heading = "Broker")]
pub(crate) struct Broker {
    /// The broker, for example amqp://user@host/vhost; `up` without it uses the embedded one
    #[arg(long, env = "SLUICE_BROKER", hide_env_values = true, value_name = "URL")]
    pub(crate) broker: Option<String>,
    /// Password for the broker, in place of the one in its address; better set as a variable than typed
    #[arg(
        long,
        env = "SLUICE_BROKER_PASSWORD",
        hide_env_values = true,
        value_name = "TEXT",
        requires = "broker"
    )]
    pub(crate) broker_password: Option<String>,
    /// File that holds the password
    #[arg(
        long,
        env = "SLUICE_BROKER_PASSWORD_FILE",
        value_name = "FILE",
        requires = "broker",
        conflicts_with = "broker_password"
    )]
    pub(crate) broker_password_file: Option<PathBuf>,
    /// The broker's management API, for example http://host:15672; finds queues that nobody asked about
    #[arg(
        long,
        env = "SLUICE_BROKER_MANAGEMENT",
        hide_env_values = true,
        value_name = "URL",
        requires = "broker"
    )]
    pub(crate) broker_management: Option<String>,
    /// File of certificates (PEM) to trust beside those of the machine, for amqps:// addresses
    #[arg(long, env = "SLUICE_BROKER_CA", value_name = "FILE", requires = "broker")]
    pub(crate) broker_ca: Option<PathBuf>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses may hold passwords.
        f.debug_struct("Broker").field("broker", &self.broker.as_ref().map(|_| "***")).finish_non_exhaustive()
    }
}

/// The language model.
#[derive(Clone, ClapArgs)]
#[command(next_help_heading = "Language model")]
pub(crate) struct Model {
    /// Base address of the model's provider, for example http://127.0.0.1:11434
    #[arg(long, env = "SLUICE_LLM_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) llm_url: Option<String>,
    /// What the provider speaks: openai, anthropic or ollama; without it its address tells
    #[arg(long, env = "SLUICE_LLM_DIALECT", value_name = "NAME", requires = "llm_url")]
    pub(crate) llm_dialect: Option<Dialect>,
    /// Name of the model; without it the flow's `llm-model` parameter decides
    #[arg(long, env = "SLUICE_LLM_MODEL", value_name = "NAME")]
    pub(crate) llm_model: Option<String>,
    /// Key of the provider; better set as a variable than typed
    #[arg(long, env = "SLUICE_LLM_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) llm_key: Option<String>,
    /// File that holds the key
    #[arg(long, env = "SLUICE_LLM_KEY_FILE", value_name = "FILE", conflicts_with = "llm_key")]
    pub(crate) llm_key_file: Option<PathBuf>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("llm_url", &self.llm_url.as_deref().and_then(address::shown))
            .field("llm_model", &self.llm_model)
            .field("llm_key", &self.llm_key.as_ref().map(|_| "***"))
            .finish_non_exhaustive()
    }
}

/// Where vectors come from; without any of these, from hashed words, offline.
#[derive(Clone, ClapArgs)]
#[command(next_help_heading = "Embeddings (offline unless one of these is set)")]
pub(crate) struct Embeddings {
    /// Base address of a provider of embeddings
    #[arg(
        long,
        env = "SLUICE_EMBEDDINGS_URL",
        hide_env_values = true,
        value_name = "URL",
        conflicts_with = "embeddings_local"
    )]
    pub(crate) embeddings_url: Option<String>,
    /// What the provider speaks: openai or ollama; without it its address tells
    #[arg(long, env = "SLUICE_EMBEDDINGS_DIALECT", value_name = "NAME", requires = "embeddings_url")]
    pub(crate) embeddings_dialect: Option<Dialect>,
    /// Name of the provider's model; without it the flow's `embeddings-model` parameter decides
    #[arg(long, env = "SLUICE_EMBEDDINGS_MODEL", value_name = "NAME")]
    pub(crate) embeddings_model: Option<String>,
    /// Key of the provider; better set as a variable than typed
    #[arg(long, env = "SLUICE_EMBEDDINGS_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) embeddings_key: Option<String>,
    /// File that holds the key
    #[arg(long, env = "SLUICE_EMBEDDINGS_KEY_FILE", value_name = "FILE", conflicts_with = "embeddings_key")]
    pub(crate) embeddings_key_file: Option<PathBuf>,
    /// A BERT-family model that is run here: a folder, or the URL under which its files lie (kept in DATA/models)
    #[arg(long, env = "SLUICE_EMBEDDINGS_LOCAL", hide_env_values = true, value_name = "FOLDER|URL")]
    pub(crate) embeddings_local: Option<String>,
}

impl std::fmt::Debug for Embeddings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embeddings")
            .field("embeddings_url", &self.embeddings_url.as_deref().and_then(address::shown))
            .field("embeddings_local", &self.embeddings_local.as_deref().and_then(address::shown))
            .field("embeddings_model", &self.embeddings_model)
            .field("embeddings_key", &self.embeddings_key.as_ref().map(|_| "***"))
            .finish_non_exhaustive()
    }
}
