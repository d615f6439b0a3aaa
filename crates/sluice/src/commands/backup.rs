//! `sluice backup`, `restore` and `verify`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;

use super::up;
use crate::api::data_folder;
use crate::backup::{self, Source, Summary};
use crate::cli::{Backup, Output, Restore, Target, Verify};
use crate::control;
use crate::exit::{Code, Told};
use crate::folder::{self, Folder};
use crate::output;

/// Findings that are printed at most.
const WRONG_MAX: usize = 100;

pub(super) async fn make(target: &Target, command: Backup) -> anyhow::Result<()> {
    let data = data_folder(target)?;
    let dir = std::path::absolute(&command.dir)?;
    let data_is_at = std::path::absolute(&data)?;
    if dir.starts_with(&data_is_at) {
        return Err(Told::usage("a backup inside the data folder would be lost together with it")
            .next("name a folder elsewhere, on another disk at best")
            .into());
    }
    if !data.is_dir() {
        return Err(Told::new(Code::NotFound, format!("there is no data folder '{}'", data.display()))
            .next("name it with --data DIR")
            .into());
    }
    let summary = match control::ask_for_backup(&data, &dir).await? {
        Some(summary) => summary,
        None => of_stopped(&data, command, &dir).await?,
    };
    tell(target.output, &summary, &format!("Backed up '{}' into '{}'", data.display(), dir.display()));
    Ok(())
}

/// Makes a backup of a folder that no process holds.
async fn of_stopped(data: &Path, command: Backup, dir: &Path) -> anyhow::Result<Summary> {
    let objects = up::objects(command.objects)?;
    let opened = folder::Stopped::open(data).await?;
    let made = async {
        if let (Some(known), None) = (sluice_databases::used_by(&*opened.store.tables()).await?, &objects) {
            return Err(Told::usage(format!("the content of this folder's documents rests in {known}"))
                .next(format!("--objects {known}"))
                .into());
        }
        let source = Source {
            path: data.to_owned(),
            folder: opened.folder.id().await,
            store: opened.store.clone(),
            broker: opened.bus.as_ref().and_then(|bus| bus.embedded().cloned()),
            objects,
        };
        backup::make(Arc::new(source), dir).await
    };
    let made = made.await;
    opened.close().await;
    made
}

pub(super) async fn restore(target: &Target, command: Restore) -> anyhow::Result<()> {
    let Some(data) = &target.data else {
        return Err(Told::usage("a backup is restored into a new folder, and none is named")
            .next("--data NEW")
            .into());
    };
    let objects = up::objects(command.objects)?;
    let summary = backup::restore(&command.dir, data, objects).await?;
    tell(target.output, &summary, &format!("Restored '{}' into '{}'", command.dir.display(), data.display()));
    if target.output == Output::Table {
        output::say(&format!("Start with: sluice up --data '{}'", data.display()));
    }
    Ok(())
}

pub(super) async fn verify(target: &Target, command: Verify) -> anyhow::Result<Code> {
    let dir: PathBuf = command.dir;
    let (what, wrong) = match backup::Manifest::read(&dir)? {
        Some(manifest) => {
            let place = dir.clone();
            let wrong = tokio::task::spawn_blocking(move || backup::verify(&place, &manifest));
            ("backup", wrong.await.context("the check was cut off")?)
        }
        None if Folder::is_at(&dir) => ("data folder", folder::verify(&dir).await?),
        None => {
            return Err(Told::new(
                Code::NotFound,
                format!("there is neither a backup nor a data folder in '{}'", dir.display()),
            )
            .next("name the folder of a backup, or a data folder that is not in use")
            .into());
        }
    };
    match target.output {
        Output::Table if wrong.is_empty() => {
            output::say(&format!("The {what} in '{}' is whole.", dir.display()))
        }
        Output::Table => {
            wrong.iter().take(WRONG_MAX).for_each(|one| output::say(one));
            output::say(&format!("Next: {}", next(what)));
        }
        Output::Json | Output::Yaml => {
            let next = (!wrong.is_empty()).then(|| next(what));
            let told = json!({"what": what, "wrong": wrong, "next": next});
            output::show(target.output, &told, |_| String::new())?
        }
    }
    Ok(if wrong.is_empty() { Code::Ok } else { Code::Differs })
}

/// What to do about damage.
fn next(what: &str) -> &'static str {
    match what {
        "backup" => {
            "run `sluice backup DIR` with this folder once more, which copies anew what is damaged or missing; restore \
             another backup if its data folder is lost"
        }
        _ => "restore the last whole backup with `sluice restore DIR --data NEW`, and set this folder aside",
    }
}

fn tell(output: Output, summary: &Summary, what: &str) {
    match output {
        Output::Table => {
            let Summary { rows, files, bytes, copied_bytes } = summary;
            let copied = if *copied_bytes > 0 {
                format!(", {copied_bytes} of them copied now")
            } else {
                String::new()
            };
            output::say(&format!("{what}: {rows} rows and {files} files, {bytes} bytes{copied}."));
        }
        Output::Json | Output::Yaml => {
            // It can be printed: it is three numbers.
            let _ = output::show(output, &json!(summary), |_| String::new());
        }
    }
}
