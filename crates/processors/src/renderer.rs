//! Runs what users wrote — prompt templates and the schemas of answers — in processes of their own.
//!
//! A template is a program: it can loop, build lists of lists and nest them until a stack ends, and no count of steps sees all
//! of that. So it never runs on a thread of this process: a child, in a [sandbox](crate::sandbox), renders one at a time with limits
//! on its computing and its memory, and is ended when it reaches one. Children are kept for the next rendering, since starting one takes longer than
//! that.

pub mod child;
mod process;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;

use self::child::{Answer, Job};
use self::process::{Failed, Process};
use crate::prompt::results::ResponseType;
use crate::sandbox::own_program;

/// Bytes of everything that one job is given: a template, its schema and its terms.
pub const JOB_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Jobs that a process does before another takes its place.
const JOBS_MAX: usize = 1_000;
/// Seconds that it may compute for all of them: more than they may one by one, and an end for what does none of them.
const CPU_SECONDS_MAX: u64 = JOBS_MAX as u64;

/// How templates are rendered.
#[derive(Debug, Clone)]
pub struct RendererConfig {
    /// The program that serves [`child::serve`] on its standard streams. Default: this program.
    pub program: PathBuf,
    /// Its arguments. Default: `render`.
    pub arguments: Vec<String>,
    /// Bytes of address space of a process, its program's own included. Default 512 MiB.
    pub address_bytes_max: u64,
    /// How long a process may take to start. Default 30 s.
    pub start_timeout: Duration,
    /// Longest wait for an answer; what it computes is bounded by itself, to 1 s. Default 10 s.
    pub answer_timeout: Duration,
    /// Processes at once, over all flows. Default 4.
    pub processes_max: usize,
}

impl Default for RendererConfig {
    fn default() -> Self {
        Self {
            program: own_program(),
            arguments: vec!["render".to_owned()],
            address_bytes_max: 512 * 1024 * 1024,
            start_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(10),
            processes_max: 4,
        }
    }
}

/// How templates are rendered in this program; one for all flows. Cheap to clone.
#[derive(Clone)]
pub struct Renderer(Arc<Shared>);

struct Shared {
    config: RendererConfig,
    slots: Semaphore,
    idle: Mutex<Vec<Process>>,
    /// One turn per workspace, so that the templates of one take no more than a slot.
    turns: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Default for Renderer {
    fn default() -> Self {
        Self::new(RendererConfig::default())
    }
}

impl Renderer {
    /// With these settings.
    #[must_use]
    pub fn new(config: RendererConfig) -> Self {
        let slots = Semaphore::new(config.processes_max.max(1));
        Self(Arc::new(Shared { config, slots, idle: Mutex::default(), turns: Mutex::default() }))
    }

    /// The renderer as one workspace uses it.
    pub(crate) fn of(&self, workspace: &str) -> WorkspaceRenderer {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = turns.get(workspace).and_then(Weak::upgrade).unwrap_or_else(|| {
            let turn = Arc::new(Semaphore::new(1));
            turns.insert(workspace.to_owned(), Arc::downgrade(&turn));
            turn
        });
        WorkspaceRenderer { renderer: self.clone(), turn }
    }

    /// Fills terms, each JSON text or else the text itself, into a template, as one workspace's prompt.
    ///
    /// # Errors
    /// Why it cannot be rendered, for those that wrote it.
    pub async fn render(
        &self,
        workspace: &str,
        template: &str,
        terms: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        let job = Job::Render { name: "template", system: "", template, schema: "", terms };
        match self.of(workspace).run(&job).await? {
            Answer::Rendered { prompt, .. } => Ok(prompt),
            Answer::Result { .. } => Err("the renderer answered something else".to_owned()),
        }
    }

    /// The JSON value in a text, as JSON text, if a JSON schema allows it.
    ///
    /// # Errors
    /// What is wrong with the text or the schema, for those that wrote them.
    pub async fn check(&self, workspace: &str, schema: &str, text: &str) -> Result<String, String> {
        let job = Job::Result { form: ResponseType::Json, schema, text };
        match self.of(workspace).run(&job).await? {
            Answer::Result { object, .. } => Ok(object),
            Answer::Rendered { .. } => Err("the renderer answered something else".to_owned()),
        }
    }

    fn kept(&self) -> Option<Process> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn keep(&self, process: Process) {
        if process.jobs < JOBS_MAX {
            self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        }
    }
}

/// The renderer of one workspace: one job of it at a time.
#[derive(Clone)]
pub(crate) struct WorkspaceRenderer {
    renderer: Renderer,
    turn: Arc<Semaphore>,
}

impl WorkspaceRenderer {
    /// Has a job done. The error is for those that wrote what it ran. Dropped, it ends the process.
    pub(crate) async fn run(&self, job: &Job<'_>) -> Result<Answer, String> {
        let bytes = job.size_bytes();
        if bytes > JOB_BYTES_MAX {
            return Err(format!(
                "the prompt, its schema and its terms have {bytes} bytes, more than the {JOB_BYTES_MAX} that are taken; send less"
            ));
        }
        let closed = |_| "the renderer is gone".to_owned();
        let _turn = self.turn.acquire().await.map_err(closed)?;
        let _slot = self.renderer.0.slots.acquire().await.map_err(closed)?;
        let config = &self.renderer.0.config;
        if let Some(mut kept) = self.renderer.kept() {
            match kept.run(config, job).await {
                // It may have been ended from outside while it was kept.
                Err(Failed::Gone) => {}
                done => return self.done(kept, done),
            }
        }
        let mut process = Process::start(config).await?;
        let done = process.run(config, job).await;
        self.done(process, done)
    }

    fn done(&self, process: Process, done: Result<Answer, Failed>) -> Result<Answer, String> {
        match done {
            Ok(answer) => {
                self.renderer.keep(process);
                Ok(answer)
            }
            Err(Failed::Refused(reason)) => {
                self.renderer.keep(process);
                Err(reason)
            }
            Err(Failed::Ended(reason)) => Err(reason),
            Err(Failed::Gone) => Err("the program that renders prompts was ended; try again".to_owned()),
        }
    }
}
