//! A system with a running flow and three documents in it, and the clients beside it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::clients;
use crate::common::{PATIENCE, Up};
use crate::model::Model;
use crate::program::{self, Said};

/// The flow that every system of these tests runs, and what is in it.
pub(crate) const FLOW: &str = "main";
pub(crate) const QUESTION: &str = "Where does the spare key of the pump house hang?";
pub(crate) const PASSAGE: &str = "behind the blue door";
const DOCUMENTS: &[(&str, &str)] = &[
    ("pump.md", "# Pump house\n\nThe spare key of the pump house hangs behind the blue door.\n"),
    ("ferry.md", "# Ferry\n\nThe ferry to the island leaves at a quarter past nine, except on Sundays.\n"),
    ("garden.txt", "Tomatoes on the balcony want a deep pot, a warm wall and water every evening.\n"),
];

/// A case has as long as several calls that use all of their patience.
const CASE_LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) up: Up,
    pub(crate) folder: TempDir,
    token: Option<String>,
    _model: Option<Model>,
}

impl World {
    /// No language model, the admin key.
    pub(crate) fn plain() -> Self {
        Self::with_documents(Self::start(&[], None))
    }

    /// A language model, the admin key.
    pub(crate) fn with_model() -> Self {
        let model = Model::start();
        let url = model.url.clone();
        Self::with_documents(Self::start(&["--llm-url", &url, "--llm-model", "tiny-test"], Some(model)))
    }

    /// Everybody is let in, and no client has a token.
    pub(crate) fn open() -> Self {
        let mut world = Self::start(&["--no-auth"], None);
        world.token = None;
        Self::with_documents(world)
    }

    /// Nothing in it but what a first start puts there.
    pub(crate) fn empty() -> Self {
        Self::start(&[], None)
    }

    fn start(more: &[&str], model: Option<Model>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let up = Up::start_with(&folder.path().join("data"), more);
        let token = std::fs::read_to_string(up.data.join("admin.key")).ok();
        Self { up, folder, token: token.map(|key| key.trim().to_owned()), _model: model }
    }

    fn with_documents(world: Self) -> Self {
        world.up.json(&["flow", "start", FLOW, "document-rag", "-d", "Main flow"]);
        let files: Vec<_> = DOCUMENTS.iter().map(|(name, text)| world.file(name, text)).collect();
        let mut command = vec!["doc", "add", "--flow", FLOW];
        command.extend(files.iter().map(String::as_str));
        world.up.json(&command);
        world
    }

    /// Writes a file, and tells its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Runs a command-line tool as the administrator, or as nobody where everybody is let in.
    pub(crate) fn tool(&self, name: &str, arguments: &[&str]) -> Said {
        let mut command = Command::new(clients::python_programs().join(name));
        self.introduce(&mut command);
        program::run(command.args(arguments), CASE_LIMIT).unwrap()
    }

    /// Runs a case of a Python script.
    pub(crate) fn python(&self, script: &Path, case: &str) {
        let mut command = Command::new(clients::python_programs().join("python"));
        self.introduce(&mut command);
        // Nothing is written beside the scripts.
        let said = program::run(command.arg("-B").arg(script).arg(case), CASE_LIMIT).unwrap();
        assert_eq!(said.code, Some(0), "{}\n{}", said.text(), self.up.log());
    }

    /// Runs a case of a JavaScript script.
    pub(crate) fn javascript(&self, script: &Path, case: &str) {
        let mut command = Command::new("node");
        self.introduce(&mut command);
        command.env("DROP_IN_PACKAGES", clients::javascript_packages());
        let said = program::run(command.arg(script).arg(case), CASE_LIMIT).unwrap();
        assert_eq!(said.code, Some(0), "{}\n{}", said.text(), self.up.log());
    }

    fn introduce(&self, command: &mut Command) {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRUSTGRAPH_")) {
            command.env_remove(name);
        }
        command.env("TRUSTGRAPH_URL", format!("{}/", self.up.url)).env("PYTHONIOENCODING", "utf-8");
        if let Some(token) = &self.token {
            command.env("TRUSTGRAPH_TOKEN", token);
        }
    }
}

/// Asks until the answer holds; asking takes a moment of its own.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited in vain for {what}");
    }
}
