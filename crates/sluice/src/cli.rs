//! The command line: what can be asked, with defaults and examples.

mod secrets;
mod serve;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub(crate) use self::serve::{Broker, Decoding, Door, Embeddings, Listen, Model, Objects, Run, Serve, Up};

/// The commands that serve. They talk to no gateway, so what only clients use is not in their help.
const SERVERS: [&str; 2] = ["up", "run"];
/// Options of clients, which may stand before the command as well as after it.
const CLIENT_OPTIONS: [&str; 8] =
    ["url", "workspace", "output", "timeout", "token_file", "ca", "client_cert", "client_key"];

/// The whole command line, as help, completions and the parser know it.
pub(crate) fn command() -> clap::Command {
    let mut command = Args::command();
    // Only then do the commands have the options that all share.
    command.build();
    SERVERS.into_iter().fold(command, |command, server| {
        command.mut_subcommand(server, |one| {
            one.mut_args(|arg| {
                let is_clients = CLIENT_OPTIONS.contains(&arg.get_id().as_str());
                if is_clients { arg.hide(true) } else { arg }
            })
        })
    })
}

/// Reads a command line.
pub(crate) fn parse(from: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
    let mut matches = command().try_get_matches_from(from).map_err(secrets::not_repeated)?;
    let typed_secrets = secrets::typed(&matches);
    let mut args = Args::from_arg_matches_mut(&mut matches).map_err(secrets::not_repeated)?;
    args.typed_secrets = typed_secrets;
    Ok(args)
}

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
    /// What should have been used instead of secrets that were typed.
    #[arg(skip)]
    pub(crate) typed_secrets: Vec<&'static str>,
}

/// Which running system a command talks to, and how it prints.
#[derive(Clone, ClapArgs)]
pub(crate) struct Target {
    /// Address of the gateway to talk to
    #[arg(
        long,
        global = true,
        env = "TRUSTGRAPH_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8888/",
        value_name = "URL"
    )]
    pub(crate) url: String,
    /// File that holds the key to send; or set TRUSTGRAPH_TOKEN. Without either, the key of the data folder is sent, to
    /// the server of that folder on this machine alone
    #[arg(long, global = true, env = "SLUICE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// File of certificates (PEM) to trust beside those of the machine, for https:// addresses
    #[arg(long, global = true, env = "SLUICE_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// File with the certificate (PEM) to show to a gateway that asks for one
    #[arg(long, global = true, env = "SLUICE_CLIENT_CERT", value_name = "FILE")]
    pub(crate) client_cert: Option<PathBuf>,
    /// File with the private key of that certificate
    #[arg(long, global = true, env = "SLUICE_CLIENT_KEY", value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,
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

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address may hold a password.
        f.debug_struct("Target").field("workspace", &self.workspace).finish_non_exhaustive()
    }
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
        after_help = "Examples:\n  sluice up\n  sluice up --data /var/lib/sluice --listen 127.0.0.1:9000\n  sluice up --llm-url http://127.0.0.1:11434 --llm-model gemma3\n  sluice up --llm-url https://api.anthropic.com --llm-model NAME --llm-key-file key\n  sluice up --embeddings-local models/all-MiniLM-L6-v2\n  sluice up --no-auth\n\nThe first start writes an admin key to DATA/admin.key; other sluice commands read it."
    )]
    Up(Up),
    /// Serve some of it in this process, beside others on one broker
    #[command(
        after_help = "Examples:\n  export SLUICE_BROKER=amqp://sluice@broker/sluice\n  export SLUICE_BROKER_PASSWORD_FILE=/etc/sluice/broker\n  sluice run config iam --data /var/lib/sluice/control\n  sluice run library --data /var/lib/sluice/library\n  sluice run stores --data /var/lib/sluice/stores\n  sluice run flow\n  sluice run gateway --listen 0.0.0.0:8888\n  sluice run document-decoder chunker embeddings document-embeddings\n\nProcesses may start in any order and be started again at any time.\nEach that keeps data (config, iam, library, stores) has a folder of its own;\nof the others as many may run as are wanted. The admin key is in the folder of iam."
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
        after_help = "Examples:\n  sluice flow start default document-rag\n  sluice flow start f2 document-rag -p chunk-size=500\n  sluice flow ls\n  sluice flow describe default\n  sluice flow watch default\n  sluice flow stop default --drain 60s"
    )]
    Flow(Flow),
    /// Documents in the library
    #[command(
        subcommand,
        after_help = "Examples:\n  sluice doc add handbook.md notes/\n  sluice doc ls\n  sluice doc show urn:sluice:doc:3f2a…\n  sluice doc retry urn:sluice:doc:3f2a…\n  sluice doc rm urn:sluice:doc:3f2a…"
    )]
    Doc(Doc),
    /// Ask a question; the answer comes with its sources
    #[command(
        after_help = "Examples:\n  sluice ask \"how often should the filter be cleaned?\"\n  sluice ask \"what is a sluice?\" --flow f2 -o json\n  sluice ask \"error E1234\" --mode keyword\n  sluice ask \"what speaks against it?\" --limit 10 --diverse"
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
        after_help = "Examples:\n  sluice doctor\n  sluice doctor -w acme -o json\n  SLUICE_BROKER=amqp://sluice@broker/sluice sluice doctor\n\nExit code 0 when nothing is wrong, 2 when something is.\nWith the address of a broker, that is looked at too.\nWith --verify all of the data folder is read, by the process that works in it\nor, if none does, here."
    )]
    Doctor(Doctor),
    /// Whether a broker keeps what Sluice relies on, case by case, tried on topics of their own
    #[command(
        after_help = "Examples:\n  sluice conformance\n  sluice conformance --broker amqp://sluice@broker/sluice --broker-password-file FILE\n  SLUICE_BROKER=amqp://sluice@broker/sluice sluice conformance -o json\n  sluice conformance hold restart\n\nWithout a broker the embedded one is tried, in a temporary folder. What the cases\nmake is removed; cases that would restart a server, or change what holds for all of\nit, are named as not run. See docs/brokers.md for what is promised where.\n\nExit code 0 when every promise is kept, 2 when one is broken, 1 when the server cannot\nbe tried."
    )]
    Conformance(Conformance),
    /// Back up a data folder, also while it is in use; a second time only what changed is copied
    #[command(
        after_help = "Examples:\n  sluice backup /mnt/backup/sluice\n  sluice backup /mnt/backup/library --data /var/lib/sluice/library\n\nRun it on the machine of the data folder. See docs/backup.md.\n\nExit code 2 when something in the data folder is damaged: it is named, and all else\nis backed up; 5 when the process that works in it says nothing for --timeout seconds."
    )]
    Backup(Backup),
    /// Make a new data folder of a backup
    #[command(
        after_help = "Examples:\n  sluice restore /mnt/backup/sluice --data /var/lib/sluice-new\n  sluice up --data /var/lib/sluice-new\n\nThe folder must be empty or not there. Nothing is restored of a backup that is not whole.\n\nExit code 2 when all is restored, and something in it was damaged already when it was\nbacked up."
    )]
    Restore(Restore),
    /// Copy what can be read of a damaged data folder into a new one, and name what cannot
    #[command(
        after_help = "Examples:\n  sluice salvage /var/lib/sluice --data /var/lib/sluice-new\n  sluice salvage /var/lib/sluice --data /var/lib/sluice-new -o json > lost.json\n\nFor a folder without a backup. It must not be in use, and nothing in it is changed.\nExit code 0 when nothing is lost, 2 when something is. See docs/backup.md."
    )]
    Salvage(Salvage),
    /// Read all of a backup, or of a data folder that is not in use, and name what is wrong with it
    #[command(
        after_help = "Examples:\n  sluice verify /mnt/backup/sluice\n  sluice verify /var/lib/sluice\n\nExit code 0 when it is whole, 1 when it cannot be used, 2 when something is damaged."
    )]
    Verify(Verify),
    /// Read one document from standard input, for a processor
    #[command(hide = true)]
    Decode {
        /// Try what such a process must not be able to do, and say what this system lacks to prevent it
        #[arg(long)]
        check: bool,
        /// With --check: try it without anything that prevents it
        #[arg(long, requires = "check")]
        bare: bool,
    },
    /// Print the licence, and what those of the software of others in this binary ask to be passed on
    #[command(after_help = "Example:\n  sluice notices | less")]
    Notices,
    /// Render prompts from standard input, for a processor
    #[command(hide = true)]
    Render {
        /// Try what such a process must not be able to do, and say what this system lacks to prevent it
        #[arg(long)]
        check: bool,
        /// With --check: try it without anything that prevents it
        #[arg(long, requires = "check")]
        bare: bool,
    },
    /// Print shell completions
    #[command(after_help = "Example:\n  sluice completions bash > /etc/bash_completion.d/sluice")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What the doctor looks at.
#[derive(Debug, ClapArgs)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) broker: Broker,
    /// Read all of the data folder and compare it with its checksums
    #[arg(long)]
    pub(crate) verify: bool,
    /// List the largest config values of a data folder that is not in use
    #[arg(long)]
    pub(crate) largest: bool,
    /// Remove one config value from a data folder that is not in use, and look at nothing else
    #[arg(long, value_name = "WORKSPACE/TYPE/KEY")]
    pub(crate) remove: Option<String>,
}

/// Which broker is tried, and by which cases.
#[derive(Debug, ClapArgs)]
pub(crate) struct Conformance {
    /// Only cases with one of these words in their name
    #[arg(value_name = "WORD")]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) broker: Broker,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Backup {
    /// Folder of the backup: an empty one, or that of an earlier backup of the same data folder
    pub(crate) dir: PathBuf,
    /// Replace a backup that has come further than the data folder, which is an older copy
    #[arg(long)]
    pub(crate) older: bool,
    #[command(flatten)]
    pub(crate) objects: Objects,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Restore {
    /// Folder of the backup
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) objects: Objects,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Salvage {
    /// The damaged data folder
    pub(crate) dir: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// Folder of a backup, or a data folder
    pub(crate) dir: PathBuf,
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
    #[command(after_help = "Example:\n  sluice config get prompt system")]
    Get {
        /// Config type, for example `prompt`
        r#type: String,
        /// Key within the type
        key: String,
    },
    /// List the keys of a type
    #[command(after_help = "Example:\n  sluice config ls prompt")]
    Ls {
        /// Config type, for example `prompt`
        r#type: String,
    },
    /// Write a value
    #[command(
        after_help = "Examples:\n  sluice config put prompt system '\"Be brief.\"'\n  sluice config put tool t1 @tool.json"
    )]
    Put {
        /// Config type, for example `prompt`
        r#type: String,
        /// Key within the type
        key: String,
        /// JSON text, `@FILE`, or `-` for standard input
        value: String,
    },
    /// Delete a key
    #[command(after_help = "Example:\n  sluice config rm tool t1")]
    Rm {
        /// Config type, for example `prompt`
        r#type: String,
        /// Key within the type
        key: String,
    },
    /// Print every value of the workspace
    #[command(after_help = "Example:\n  sluice config show -o yaml")]
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Blueprint {
    /// List blueprints
    #[command(after_help = "Example:\n  sluice blueprint ls")]
    Ls,
    /// Print a blueprint
    #[command(after_help = "Example:\n  sluice blueprint show document-rag -o json")]
    Show {
        /// Name of the blueprint
        name: String,
    },
    /// Write a blueprint from a JSON file (`-` for standard input), or a standard one with `--standard`
    #[command(
        after_help = "Examples:\n  sluice blueprint put mine mine.json\n  sluice blueprint put document-rag --standard"
    )]
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
    #[command(after_help = "Example:\n  sluice blueprint rm mine")]
    Rm {
        /// Name of the blueprint
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Flow {
    /// Start a flow; on return everything sent into it is kept
    #[command(
        after_help = "Examples:\n  sluice flow start default document-rag\n  sluice flow start f2 document-rag -p chunk-size=500 -d \"short chunks\""
    )]
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
    #[command(
        after_help = "Examples:\n  sluice flow stop default\n  sluice flow stop default --drain 60s\n  sluice flow stop default --drain discard"
    )]
    Stop {
        /// Id of the flow
        id: String,
        /// How long queued messages may take to drain (`60s`), or `discard`
        #[arg(long, value_parser = drain)]
        drain: Option<String>,
    },
    /// List flows
    #[command(after_help = "Examples:\n  sluice flow ls\n  sluice flow ls -w acme -o json")]
    Ls,
    /// Follow a flow: its queues, and how far its documents are; ends with Ctrl-C
    #[command(
        after_help = "Examples:\n  sluice flow watch default\n  sluice flow watch default --until-idle\n  sluice flow watch default -o json | jq .backlog\n\nOn a terminal the picture is updated in place; elsewhere each change is a line.\n\nWhere the broker does not show what is in work (its management API is not known),\n--until-idle ends well when all documents are complete; without documents, or with some\nopen, it ends with exit code 6 once nothing waits and nothing moves."
    )]
    Watch {
        /// Id of the flow
        id: String,
        /// End once nothing waits or is in work; with --timeout, fail when nothing moves for that long
        #[arg(long)]
        until_idle: bool,
    },
    /// Show a flow: its phase, queues, parameters
    #[command(after_help = "Example:\n  sluice flow describe default")]
    Describe {
        /// Id of the flow
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Doc {
    /// Add files or folders and load them into a flow
    #[command(
        after_help = "Examples:\n  sluice doc add handbook.md notes/\n  sluice doc add 'papers/**/*.pdf' --flow f2 --collection papers\n  sluice doc add big.pdf --no-wait && sluice flow watch default"
    )]
    Add {
        /// Files, folders, or patterns such as 'papers/**/*.pdf'
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
    #[command(after_help = "Example:\n  sluice doc ls")]
    Ls,
    /// Show a document: what it is, its parts, how far each flow is with it, and what failed
    #[command(after_help = "Example:\n  sluice doc show urn:sluice:doc:3f2a…")]
    Show {
        /// Id of the document
        id: String,
    },
    /// Send the pieces of documents that failed through their flows again, and documents of which messages were lost
    #[command(
        after_help = "Examples:\n  sluice doc retry urn:sluice:doc:3f2a…\n  sluice doc retry urn:sluice:doc:3f2a… --flow f2\n  sluice doc retry --lost"
    )]
    Retry {
        /// Ids of documents
        #[arg(required_unless_present = "lost")]
        ids: Vec<String>,
        /// Only what failed or was lost in this flow
        #[arg(long)]
        flow: Option<String>,
        /// All documents that were under way when the broker's log was lost
        #[arg(long, conflicts_with = "ids")]
        lost: bool,
    },
    /// Remove documents from the library, with everything that flows made of them
    #[command(after_help = "Example:\n  sluice doc rm urn:sluice:doc:3f2a…")]
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
    /// How to search: by meaning, by words, or by both; both unless the flow has no keyword index
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
    /// Pass over passages that repeat others
    #[arg(long)]
    pub(crate) diverse: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Mode {
    Vector,
    Keyword,
    Hybrid,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dead {
    /// List them, newest first
    #[command(after_help = "Examples:\n  sluice dead ls\n  sluice dead ls --flow default --limit 20")]
    Ls {
        /// Only those of one flow
        #[arg(long)]
        flow: Option<String>,
        /// At most this many
        #[arg(long, default_value = "100")]
        limit: u32,
    },
    /// Write them as JSON lines, bodies included
    #[command(after_help = "Example:\n  sluice dead export > letters.jsonl")]
    Export {
        /// Only those of one flow
        #[arg(long)]
        flow: Option<String>,
    },
    /// Send them again, to the running flow of the same id
    #[command(
        after_help = "Examples:\n  sluice dead replay --flow default\n  sluice dead replay ID… --run default-r2"
    )]
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
    #[command(after_help = "Example:\n  sluice dead rm ID…")]
    Rm {
        /// Ids of messages
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// What the flow service would refuse is refused here, as a mistake of the command line.
fn drain(text: &str) -> Result<String, String> {
    sluice_flow::check_drain(text).map(|()| text.to_owned())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("'{text}' is not of the form NAME=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &[&str]) -> Result<Args, clap::Error> {
        parse(line.iter().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
        command();
    }

    #[test]
    fn an_address_may_be_a_name() {
        let Command::Up(up) = args(&["sluice", "up", "--listen", "localhost:18912"]).unwrap().command else {
            panic!("it is `up`")
        };
        let listen = up.serve.listen;
        assert!(listen.address.ip().is_loopback() && listen.address.port() == 18912, "{listen:?}");
        assert_eq!(listen.name, Some("localhost".parse().unwrap()));
        assert!(args(&["sluice", "up", "--listen", "localhost"]).is_err());
    }

    #[test]
    fn what_pages_and_proxies_may_do_is_given_once_or_several_times() {
        let line = [
            "sluice",
            "up",
            "--allow-origin",
            "https://a.example,https://b.example:8443/",
            "--allow-origin",
            "http://localhost:3000",
            "--allow-host",
            "sluice.example.org",
            "--trusted-proxy",
            "127.0.0.1,10.0.0.0/8",
        ];
        let Command::Up(up) = args(&line).unwrap().command else { panic!("it is `up`") };
        let door = up.serve.door;
        assert_eq!((door.allow_origin.len(), door.allow_host.len(), door.trusted_proxy.len()), (3, 1, 2));
        for wrong in [
            ["--allow-origin", "*"],
            ["--allow-origin", "null"],
            ["--allow-origin", "app.example"],
            ["--allow-host", "https://x"],
            ["--trusted-proxy", "proxy.example"],
        ] {
            assert!(args(&[&["sluice", "up"], &wrong[..]].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        for secret in [
            &["--llm-key", "sk-very-secret"][..],
            &["--embeddings-key", "sk-very-secret"],
            &["--broker", "amqp://user@host", "--broker-password", "very-secret"],
            &["--broker", "amqp://user:very-secret@host"],
            &["--broker", "amqp://host", "--broker-management", "http://user:very-secret@host"],
            &["--objects", "s3://b", "--objects-key", "very-secret"],
            &["--objects", "s3://u:very-secret@b"],
            &["--llm-url", "http://u:very-secret@host"],
            &["--embeddings-url", "u:very-secret@host"],
            &["--embeddings-local", "u:very-secret@host"],
            &["--url", "http://u:very-secret@host"],
        ] {
            let args = args(&[&["sluice", "up"], secret].concat()).unwrap();
            assert!(!format!("{args:?} {args:#?}").contains("very-secret"), "{secret:?}");
        }
    }

    #[test]
    fn secrets_that_everybody_on_the_machine_can_read_are_noticed() {
        let check = |line: &[&str], expected: &[&str]| {
            let args = args(&[&["sluice"], line].concat()).unwrap();
            assert_eq!(args.typed_secrets, expected, "{line:?}");
        };
        check(&["up"], &[]);
        check(&["flow", "ls"], &[]);
        check(&["up", "--llm-key", "k"], &["--llm-key-file"]);
        check(
            &["up", "--embeddings-key", "k", "--llm-key", "k"],
            &["--llm-key-file", "--embeddings-key-file"],
        );
        let broker = ["--broker", "amqp://user@host"];
        check(&[&["up"], &broker[..]].concat(), &[]);
        check(&[&["doctor"], &broker[..], &["--broker-password", "p"]].concat(), &["--broker-password-file"]);
        check(&["run", "flow", "--broker", "amqp://user:p@host"], &["--broker-password-file"]);
        let management = ["--broker-management", "http://user:p@host"];
        check(&[&["up"], &broker[..], &management].concat(), &["SLUICE_BROKER_MANAGEMENT"]);
        check(&["demo", "--llm-key", "k"], &["--llm-key-file"]);
        check(&["up", "--llm-url", "http://u:p@host"], &["SLUICE_LLM_URL"]);
        check(&["doc", "ls", "--url", "http://u:p@host"], &["TRUSTGRAPH_URL"]);
        check(&["--url", "http://u:p@host", "doc", "ls"], &["TRUSTGRAPH_URL"]);
    }

    #[test]
    fn a_value_that_may_hold_a_password_is_not_repeated_when_it_is_refused() {
        for line in [
            &["up", "--listen", "u:very-secret@host:1"][..],
            &["up", "--allow-origin", "https://u:very-secret@app.example"],
            &["up", "--allow-origin", "https://u:very-secret,x@app.example"],
            &["up", "--allow-host", "u:very-secret@app.example"],
            &["up", "--trusted-proxy", "u:very-secret@app.example"],
            &["up", "--llm-url", "http://host", "--llm-dialect", "https://u:very-secret@host"],
            &["up", "amqp://u:very-secret@host"],
            &["up", "--broken=amqp://u:very-secret@host"],
            &["amqp://u:very-secret@host"],
            &["flow", "stop", "f", "--drain", "amqp://u:very-secret@host"],
        ] {
            let told = args(&[&["sluice"], line].concat()).unwrap_err().render().to_string();
            assert!(!told.contains("very-secret") && told.starts_with("error: "), "{line:?}: {told}");
        }
        let told = args(&["sluice", "up", "--listen", "nowhere"]).unwrap_err().render().to_string();
        assert!(told.contains("'nowhere'") && told.contains("--listen"), "{told}");
    }

    #[test]
    fn no_help_shows_the_value_of_a_variable_that_holds_an_address() {
        const MAY_HOLD_A_PASSWORD: [&str; 4] = ["URL", "FOLDER|URL", "ORIGIN", "HOST:PORT"];
        for one in all(&command()) {
            for arg in one.get_arguments().filter(|arg| arg.get_env().is_some()) {
                let names = arg.get_value_names().unwrap_or_default();
                let may_hold = names.iter().any(|name| MAY_HOLD_A_PASSWORD.contains(&name.as_str()));
                assert!(!may_hold || arg.is_hide_env_values_set(), "{} of {}", arg.get_id(), one.get_name());
            }
        }
    }

    /// Every command with everything below it.
    fn all(command: &clap::Command) -> Vec<&clap::Command> {
        let below = command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help");
        std::iter::once(command).chain(below.flat_map(all)).collect()
    }

    #[test]
    fn every_long_help_has_an_example_that_is_not_wrapped() {
        const COLUMNS_MAX: usize = 90;
        for one in all(&command()) {
            let name = one.get_name();
            let help = one.clone().render_long_help().to_string();
            assert!(help.contains("Example:") || help.contains("Examples:"), "{name}:\n{help}");
            let after = one.get_after_help().map(ToString::to_string).unwrap_or_default();
            let longest = after.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(COLUMNS_MAX), "{name}: a line of {longest:?} columns");
        }
    }

    #[test]
    fn commands_that_serve_do_not_show_what_only_clients_use() {
        let command = command();
        for name in SERVERS {
            let one = command.find_subcommand(name).unwrap();
            let help = one.clone().render_long_help().to_string();
            for option in CLIENT_OPTIONS {
                assert!(!help.contains(&format!("--{option} ")), "{name} shows --{option}:\n{help}");
            }
            assert!(help.contains("--data") && help.contains("--listen"), "{help}");
        }
        let args = args(&["sluice", "--timeout", "3", "flow", "ls", "--url", "http://x"]).unwrap();
        assert_eq!((args.target.timeout, args.target.url.as_str()), (3, "http://x"));
    }

    #[test]
    fn completions_know_every_command() {
        let mut script = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut command(), "sluice", &mut script);
        let script = String::from_utf8(script).unwrap();
        for name in ["watch", "retry", "--until-idle", "--embeddings-local"] {
            assert!(script.contains(name), "{name}");
        }
    }
}
