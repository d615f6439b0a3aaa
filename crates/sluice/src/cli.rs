//! The command line: what can be asked, with defaults and examples.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about = "Runs AI data flows: documents in, answers with sources out. One binary.",
    after_help = "Examples:\n  sluice demo                               everything once, on sample documents\n  sluice up                                 serve on 127.0.0.1:8888\n  sluice flow start default document-rag    make a flow\n  sluice doc add notes/*.md                 load documents into it\n  sluice ask \"how do I reset the pump?\"     ask, with sources\n\nExit codes: 0 ok, 1 failed, 2 differs, 3 not found, 4 denied, 5 timed out, 64 usage."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) target: Target,
    /// How log lines look (on standard error; filter with SLUICE_LOG, for example SLUICE_LOG=debug)
    #[arg(long, global = true, value_enum, default_value = "text", env = "SLUICE_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

/// Which running system a command talks to, and how it prints.
#[derive(Debug, Clone, ClapArgs)]
#[command(
    next_help_heading = "Options of every command (address, workspace and output matter to those that ask a running system)"
)]
pub(crate) struct Target {
    /// Address of the gateway to talk to
    #[arg(
        long,
        global = true,
        env = "TRUSTGRAPH_URL",
        default_value = "http://127.0.0.1:8888/",
        value_name = "URL"
    )]
    pub(crate) url: String,
    /// Workspace to work in
    #[arg(
        long,
        short = 'w',
        global = true,
        env = "TRUSTGRAPH_WORKSPACE",
        default_value = "default",
        value_name = "ID"
    )]
    pub(crate) workspace: String,
    /// Folder with the data and the admin key; default: `sluice` in the user's data folder
    #[arg(long, global = true, env = "SLUICE_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// How results are printed
    #[arg(long, short = 'o', global = true, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// Longest wait for an answer, in seconds
    #[arg(long, global = true, default_value = "600", value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve everything in this process until it is told to stop
    #[command(
        after_help = "Examples:\n  sluice up\n  sluice up --data /var/lib/sluice --listen 127.0.0.1:9000\n  sluice up --no-auth\n\nThe first start writes an admin key to DATA/admin.key; other sluice commands read it.\nA language model is configured by SLUICE_LLM_URL, SLUICE_LLM_MODEL and SLUICE_LLM_KEY."
    )]
    Up(Up),
    /// Serve some of it in this process, beside others on one broker
    #[command(
        after_help = "Examples:\n  export SLUICE_BROKER=amqp://sluice@broker/sluice\n  export SLUICE_BROKER_PASSWORD_FILE=/etc/sluice/broker\n  sluice run config iam --data /var/lib/sluice/control\n  sluice run library --data /var/lib/sluice/library\n  sluice run stores --data /var/lib/sluice/stores\n  sluice run flow\n  sluice run gateway --listen 0.0.0.0:8888\n  sluice run document-decoder chunker embeddings document-embeddings\n\nProcesses may start in any order and be started again at any time.\nEach that keeps data (config, iam, library, stores) has a folder of its own;\nof the others as many may run as are wanted.\nThe admin key is in the folder of iam."
    )]
    Run(Run),
    /// Run the main job once on sample documents, in a temporary folder on a free port
    #[command(
        after_help = "Examples:\n  sluice demo\n  sluice demo --keep\n  sluice demo --documents notes --question \"where is the spare key?\""
    )]
    Demo(Demo),
    /// Read and write config values
    #[command(
        subcommand,
        after_help = "Examples:\n  sluice config ls prompt\n  sluice config get prompt system\n  sluice config put prompt system '\"Be brief.\"'\n  sluice config put tool t1 @tool.json"
    )]
    Config(Config),
    /// Blueprints: which processors make a flow
    #[command(
        subcommand,
        after_help = "Examples:\n  sluice blueprint ls\n  sluice blueprint show document-rag\n  sluice blueprint put mine mine.json"
    )]
    Blueprint(Blueprint),
    /// Flows: blueprints made real
    #[command(
        subcommand,
        after_help = "Examples:\n  sluice flow start default document-rag\n  sluice flow start f2 document-rag -p chunk-size=500\n  sluice flow ls\n  sluice flow describe default\n  sluice flow stop default --drain 60s"
    )]
    Flow(Flow),
    /// Documents in the library
    #[command(
        subcommand,
        after_help = "Examples:\n  sluice doc add handbook.md notes/\n  sluice doc ls\n  sluice doc rm urn:sluice:doc:3f2a…"
    )]
    Doc(Doc),
    /// Ask a question; the answer comes with its sources
    #[command(
        after_help = "Examples:\n  sluice ask \"how often should the filter be cleaned?\"\n  sluice ask \"what is a sluice?\" --flow f2 -o json"
    )]
    Ask(Ask),
    /// Messages that could not be processed
    #[command(
        subcommand,
        after_help = "Examples:\n  sluice dead ls\n  sluice dead export > letters.jsonl\n  sluice dead replay --flow default"
    )]
    Dead(Dead),
    /// What is wrong with the flows and what they run on, and what to do about it
    #[command(
        after_help = "Examples:\n  sluice doctor\n  sluice doctor -w acme -o json\n\nExit code 0 when nothing is wrong, 2 when something is."
    )]
    Doctor,
    /// Read one document from standard input, for a processor
    #[command(hide = true)]
    Decode,
    /// Print shell completions
    #[command(after_help = "Example:\n  sluice completions bash > /etc/bash_completion.d/sluice")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

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
    #[arg(long, env = "SLUICE_LISTEN", default_value = "127.0.0.1:8888", value_name = "HOST:PORT", value_parser = address)]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) broker: Broker,
    /// Let everybody in without a key; only on a loopback address unless forced
    #[arg(long, env = "SLUICE_NO_AUTH", value_parser = FalseyValueParser::new())]
    pub(crate) no_auth: bool,
    /// Serve without a key on an address that others can reach
    #[arg(long, env = "SLUICE_FORCE", value_parser = FalseyValueParser::new())]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) model: Model,
    #[command(flatten)]
    pub(crate) decoding: Decoding,
}

/// What reading one document may take; each is read in a process of its own.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Decoding {
    /// Pages, slides or sheets of a document that are read; what comes after is left out, and said to be
    #[arg(long, env = "SLUICE_DECODE_PAGES", default_value = "2000", value_name = "COUNT")]
    pub(crate) decode_pages: usize,
    /// Memory that reading a document may take, in MiB
    #[arg(long, env = "SLUICE_DECODE_MEMORY_MIB", default_value = "1024", value_name = "MIB")]
    pub(crate) decode_memory_mib: u64,
    /// Computing that reading a document may take, in seconds
    #[arg(long, env = "SLUICE_DECODE_SECONDS", default_value = "300", value_name = "SECONDS")]
    pub(crate) decode_seconds: u64,
}

/// The broker.
#[derive(Clone, ClapArgs)]
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

/// The language model, OpenAI-compatible.
#[derive(Clone, ClapArgs)]
pub(crate) struct Model {
    /// Base address of an OpenAI-compatible language model, for example http://127.0.0.1:11434/v1
    #[arg(long, env = "SLUICE_LLM_URL", value_name = "URL")]
    pub(crate) llm_url: Option<String>,
    /// Name of the model; without it the flow's `llm-model` parameter decides
    #[arg(long, env = "SLUICE_LLM_MODEL", value_name = "NAME")]
    pub(crate) llm_model: Option<String>,
    /// Key of the model's provider; better set as a variable than typed
    #[arg(long, env = "SLUICE_LLM_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) llm_key: Option<String>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("llm_url", &self.llm_url)
            .field("llm_model", &self.llm_model)
            .field("llm_key", &self.llm_key.as_ref().map(|_| "***"))
            .finish()
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    /// Go on serving after the job is done, until interrupted
    #[arg(long)]
    pub(crate) keep: bool,
    /// Files or folders to load instead of the samples
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(crate) documents: Vec<PathBuf>,
    /// The question to ask
    #[arg(long, value_name = "TEXT")]
    pub(crate) question: Option<String>,
    #[command(flatten)]
    pub(crate) model: Model,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print one value
    Get {
        /// Config type, for example `prompt`
        r#type: String,
        /// Key within the type
        key: String,
    },
    /// List the keys of a type
    Ls {
        /// Config type, for example `prompt`
        r#type: String,
    },
    /// Write a value
    Put {
        /// Config type, for example `prompt`
        r#type: String,
        /// Key within the type
        key: String,
        /// JSON text, `@FILE`, or `-` for standard input
        value: String,
    },
    /// Delete a key
    Rm {
        /// Config type, for example `prompt`
        r#type: String,
        /// Key within the type
        key: String,
    },
    /// Print every value of the workspace
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Blueprint {
    /// List blueprints
    Ls,
    /// Print a blueprint
    Show {
        /// Name of the blueprint
        name: String,
    },
    /// Write a blueprint from a JSON file (`-` for standard input), or a standard one with `--standard`
    Put {
        /// Name of the blueprint
        name: String,
        /// JSON file, `-` for standard input
        #[arg(required_unless_present = "standard")]
        file: Option<PathBuf>,
        /// Take the standard blueprint of that name, with its parameter types
        #[arg(long, conflicts_with = "file")]
        standard: bool,
    },
    /// Delete a blueprint; running flows keep theirs
    Rm {
        /// Name of the blueprint
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Flow {
    /// Start a flow; on return everything sent into it is kept
    Start {
        /// Id of the flow
        id: String,
        /// Blueprint to make it from
        blueprint: String,
        /// A parameter of the blueprint
        #[arg(long = "param", short = 'p', value_name = "NAME=VALUE", value_parser = key_value)]
        params: Vec<(String, String)>,
        /// Text for people
        #[arg(long, short = 'd', default_value = "")]
        description: String,
    },
    /// Stop a flow; on return nothing of it is left
    Stop {
        /// Id of the flow
        id: String,
        /// How long queued messages may take to drain (`60s`), or `discard`
        #[arg(long)]
        drain: Option<String>,
    },
    /// List flows
    Ls,
    /// Show a flow: its phase, queues, parameters
    Describe {
        /// Id of the flow
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Doc {
    /// Add files or folders and load them into a flow
    Add {
        /// Files or folders
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Flow to load into
        #[arg(long, default_value = "default")]
        flow: String,
        /// Collection to load into
        #[arg(long, default_value = "default")]
        collection: String,
        /// Title instead of the file's name (one file only)
        #[arg(long)]
        title: Option<String>,
        /// Return once accepted, without waiting for the flow
        #[arg(long)]
        no_wait: bool,
        /// Only store, load into no flow
        #[arg(long)]
        store_only: bool,
    },
    /// List documents
    Ls,
    /// Remove documents from the library, with everything that flows made of them
    Rm {
        /// Ids of documents
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Ask {
    /// The question
    pub(crate) question: String,
    /// Flow to ask
    #[arg(long, default_value = "default")]
    pub(crate) flow: String,
    /// Collection to ask
    #[arg(long, default_value = "default")]
    pub(crate) collection: String,
    /// Passages to answer from, at most
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) limit: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dead {
    /// List them, newest first
    Ls {
        /// Only those of one flow
        #[arg(long)]
        flow: Option<String>,
        /// At most this many
        #[arg(long, default_value = "100")]
        limit: u32,
    },
    /// Write them as JSON lines, bodies included
    Export {
        /// Only those of one flow
        #[arg(long)]
        flow: Option<String>,
    },
    /// Send them again, to the running flow of the same id
    Replay {
        /// Ids of messages
        #[arg(required_unless_present = "flow")]
        ids: Vec<String>,
        /// All of one flow
        #[arg(long, conflicts_with = "ids")]
        flow: Option<String>,
        /// Send them into this run of the flow instead of the one they were meant for
        #[arg(long)]
        run: Option<String>,
    },
    /// Delete them
    Rm {
        /// Ids of messages
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Reads `HOST:PORT`; a name is looked up and its first address taken.
fn address(text: &str) -> Result<SocketAddr, String> {
    let found =
        text.to_socket_addrs().map_err(|error| format!("'{text}' is not of the form HOST:PORT: {error}"))?;
    found.into_iter().next().ok_or_else(|| format!("'{text}' has no address"))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("'{text}' is not of the form NAME=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn an_address_may_be_a_name() {
        let args = Args::try_parse_from(["sluice", "up", "--listen", "localhost:18912"]).unwrap();
        let Command::Up(up) = args.command else { panic!("it is `up`") };
        assert!(up.serve.listen.ip().is_loopback() && up.serve.listen.port() == 18912, "{}", up.serve.listen);
        assert!(Args::try_parse_from(["sluice", "up", "--listen", "localhost"]).is_err());
    }

    #[test]
    fn a_key_is_never_printed() {
        let args = Args::try_parse_from(["sluice", "up", "--llm-key", "sk-very-secret"]).unwrap();
        assert!(!format!("{args:?}").contains("very-secret"));
    }
}
