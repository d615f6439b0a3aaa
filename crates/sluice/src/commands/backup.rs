//! `sluice backup`, `restore`, `verify` and `salvage`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::up;
use crate::apart;
use crate::api::data_folder;
use crate::backup::{self, Checked, Found, How, Source, Summary};
use crate::cli::{Backup, Output, Restore, Salvage, Target, Verify};
use crate::control;
use crate::exit::{Code, Told};
use crate::folder::{self, Folder};
use crate::output;

/// Findings that are printed at most.
const WRONG_MAX: usize = 100;

/// What to do about a backup that is not what was written.
const NEXT_OF_BACKUP: &str = "run `sluice backup DIR` with this folder once more, which copies anew what is damaged or \
    missing; restore another backup if its data folder is lost";
/// What to do about damage that a backup took over from its data folder.
const NEXT_OF_DAMAGED: &str = "all else is whole and can be restored; add the damaged documents anew, or take them from an \
    earlier backup, and check the disk of the data folder";
/// What to do about a damaged data folder.
const NEXT_OF_FOLDER: &str = "restore the last whole backup with `sluice restore DIR --data NEW`, and set this folder aside; without one, `sluice \
    salvage` copies what can be read of it";

pub(super) async fn make(target: &Target, command: Backup) -> anyhow::Result<Code> {
    let data = data_folder(target)?;
    let dir = std::path::absolute(&command.dir)?;
    let timeout = Duration::from_secs(target.timeout);
    apart::insist_answering(&[&data, &dir], timeout).await?;
    if backup::is_within(&dir, &data)? {
        return Err(Told::usage("a backup inside the data folder would be lost together with it")
            .next("name a folder elsewhere, on another disk at best")
            .into());
    }
    // First, since the process that works there may hold what is there no more.
    let summary = match control::ask_for_backup(&data, &dir, command.older, timeout).await? {
        Some(summary) => summary,
        None => {
            Folder::insist(&data)?;
            of_stopped(&data, command, &dir).await?
        }
    };
    let made = dir.clone();
    let made = apart::look(&dir, timeout, move || backup::Manifest::read(&made)).await??;
    let damaged = made.map(|made| made.damaged).unwrap_or_default();
    tell(
        target.output,
        &summary,
        &damaged,
        &format!("Backed up '{}' into '{}'", data.display(), dir.display()),
    );
    Ok(if damaged.is_empty() { Code::Ok } else { Code::Differs })
}

/// Makes a backup of a folder that no process holds.
async fn of_stopped(data: &Path, command: Backup, dir: &Path) -> anyhow::Result<Summary> {
    let objects = up::objects(command.objects)?;
    let opened = folder::Stopped::look(data).await.map_err(|error| control::unreached(data, error))?;
    let made = async {
        if let (Some(known), None) = (sluice_databases::used_by(&*opened.store.tables()).await?, &objects) {
            return Err(Told::usage(format!("the content of this folder's documents rests in {known}"))
                .next(format!("--objects {known}"))
                .into());
        }
        let source = Source {
            path: data.to_owned(),
            folder: opened.folder.id().await,
            restored_from: opened.folder.restored_from().await,
            store: opened.store.clone(),
            broker: opened.bus.as_ref().and_then(|bus| bus.embedded().cloned()),
            objects,
        };
        let how = How { older: command.older, ..How::default() };
        backup::make(Arc::new(source), dir, &how).await
    };
    let made = made.await;
    opened.close().await;
    made
}

pub(super) async fn restore(target: &Target, command: Restore) -> anyhow::Result<Code> {
    let Some(data) = &target.data else {
        return Err(Told::usage("a backup is restored into a new folder, and none is named")
            .next("--data NEW")
            .into());
    };
    let objects = up::objects(command.objects)?;
    apart::insist_answering(&[&command.dir, data], Duration::from_secs(target.timeout)).await?;
    let (summary, damaged) = backup::restore(&command.dir, data, objects).await?;
    let what = format!("Restored '{}' into '{}'", command.dir.display(), data.display());
    tell(target.output, &summary, &damaged, &what);
    if target.output == Output::Table {
        output::say(&format!("Start with: sluice up --data '{}'", data.display()));
    }
    Ok(if damaged.is_empty() { Code::Ok } else { Code::Differs })
}

pub(super) async fn salvage(target: &Target, command: Salvage) -> anyhow::Result<Code> {
    let Some(data) = &target.data else {
        return Err(Told::usage("what can be read is copied into a new folder, and none is named")
            .next("--data NEW")
            .into());
    };
    apart::insist_answering(&[&command.dir, data], Duration::from_secs(target.timeout)).await?;
    let found = backup::salvage(&command.dir, data).await?;
    match target.output {
        Output::Table => {
            let Found { rows, files, lost, next, accepted } = &found;
            let (from, to) = (command.dir.display(), data.display());
            output::say(&format!("Copied {rows} rows and {files} files of '{from}' into '{to}'."));
            match lost.len() {
                0 => output::say("Nothing is lost."),
                count => output::say(&format!("Lost, or not as it was written last ({count}):")),
            }
            lost.iter().for_each(|one| output::say(one));
            next.iter().for_each(|one| output::say(&format!("Next: {one}")));
            let without = accepted.map_or_else(String::new, |loss| format!(" --accept-loss {loss}"));
            output::say(&format!("Start with: sluice up --data '{to}'{without}"));
        }
        Output::Json | Output::Yaml => output::show(target.output, &json!(found), |_| String::new())?,
    }
    Ok(if found.lost.is_empty() { Code::Ok } else { Code::Differs })
}

pub(super) async fn verify(target: &Target, command: Verify) -> anyhow::Result<Code> {
    let dir: PathBuf = command.dir;
    apart::insist_answering(&[&dir], Duration::from_secs(target.timeout)).await?;
    let (what, wrong, next) = match backup::check(&dir).await? {
        Some(Checked { manifest, wrong, .. }) => {
            let next = if wrong.is_empty() { NEXT_OF_DAMAGED } else { NEXT_OF_BACKUP };
            let named = manifest.damaged.iter().map(|one| format!("was backed up as it is: {}", plain(one)));
            ("backup", wrong.into_iter().chain(named).collect(), next)
        }
        None if Folder::is_at(&dir)? => ("data folder", folder::verify(&dir).await?, NEXT_OF_FOLDER),
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
            output::say(&format!("Next: {next}"));
        }
        Output::Json | Output::Yaml => {
            let next = (!wrong.is_empty()).then_some(next);
            let told = json!({"what": what, "wrong": wrong, "next": next});
            output::show(target.output, &told, |_| String::new())?
        }
    }
    Ok(if wrong.is_empty() { Code::Ok } else { Code::Differs })
}

/// A text of a manifest, which anybody can write, as it is printed.
fn plain(text: &str) -> String {
    text.chars().filter(|one| !one.is_control()).collect()
}

fn tell(output: Output, summary: &Summary, damaged: &[String], what: &str) {
    match output {
        Output::Table => {
            let Summary { rows, files, bytes, copied_bytes } = summary;
            let copied = if *copied_bytes > 0 {
                format!(", {copied_bytes} of them copied now")
            } else {
                String::new()
            };
            output::say(&format!("{what}: {rows} rows and {files} files, {bytes} bytes{copied}."));
            if !damaged.is_empty() {
                output::say("Damaged already in what was backed up:");
                damaged.iter().take(WRONG_MAX).for_each(|one| output::say(&format!("  {}", plain(one))));
                output::say(&format!("Next: {NEXT_OF_DAMAGED}"));
            }
        }
        Output::Json | Output::Yaml => {
            let mut all = json!(summary);
            all["damaged"] = json!(damaged);
            // It can be printed: it is numbers and texts.
            let _ = output::show(output, &all, |_| String::new());
        }
    }
}
