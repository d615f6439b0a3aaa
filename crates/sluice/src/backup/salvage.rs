//! A damaged data folder, copied into a new one as far as it can be read. The old one is only read.

mod names;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sluice_bus::embedded::Config;
use sluice_store::embedded::{About, Owner, Place, Salvage, Untouched};
use sluice_store::{Embedded as Store, Options};

use self::names::Names;
use super::files::NotCopied;
use super::{ADMIN_KEY, copy_whole, is_within};
use crate::bus::Bus;
use crate::exit::{Code, Told};
use crate::folder::{self, FilledFrom, Folder, Taken};

/// Bytes of content looked at in one step.
const STEP_BYTES: u64 = 16 * 1024 * 1024;
/// The table that says where content is.
const PLACES: &str = "blobs";
/// The same for content that rests in a bucket.
const PLACES_IN_BUCKET: &str = "objects";

/// What came of it.
#[derive(Debug, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Found {
    /// Rows of tables that were copied.
    pub(crate) rows: u64,
    /// Files of content and of the log that were copied.
    pub(crate) files: u64,
    /// What is not there, or not as it was written last, by name.
    pub(crate) lost: Vec<String>,
    /// What has to be done beside starting on the new folder.
    pub(crate) next: Vec<String>,
}

/// Copies what can be read of a folder that no process works in.
pub(crate) async fn salvage(old: &Path, data: &Path) -> anyhow::Result<Found> {
    Folder::insist(old).map_err(|told| match told.code {
        Code::NotFound => told.next("name the damaged data folder: sluice salvage FOLDER --data NEW"),
        _ => told,
    })?;
    if is_within(old, data)? && is_within(data, old)? {
        let what = format!("'{}' and '{}' are one folder", old.display(), data.display());
        return Err(Told::usage(what).next("name a new folder with --data NEW").into());
    }
    if is_within(data, old)? {
        return Err(Told::usage("a data folder inside the damaged one would change that")
            .next("name a folder elsewhere with --data NEW, on another disk at best")
            .into());
    }
    let _held = Untouched::hold(old)?;
    let salvage = Salvage::open(old).map_err(|error| {
        Told::new(Code::Failed, error.to_string()).next("restore a backup: sluice restore BACKUP --data NEW")
    })?;
    let about = salvage.about()?;
    folder::check_formats(&about.formats)?;
    let taken = Taken::empty(data)?;
    let filled = fill(old, data, salvage, about, &taken).await;
    filled.map_err(|error| taken.failed("nothing was salvaged", &error))
}

/// Copies it into a folder that is in use by nobody else, and closes that, whatever comes of it.
async fn fill(
    old: &Path,
    data: &Path,
    salvage: Salvage,
    about: About,
    taken: &Taken,
) -> anyhow::Result<Found> {
    let folder = Folder::restoring(data, taken.lock(), FilledFrom::Damaged)?;
    let options = Options { owners: Some(sluice_library::OWNERS), ..Options::default() };
    let store = Arc::new(Store::open_held(data, taken.lock(), &options)?);
    let mut bus = None;
    let poured = async {
        let (found, url) = pour(old, data, salvage, about, &store, &folder, &mut bus).await?;
        folder.restored(&store, bus.as_ref().and_then(Bus::embedded), url.as_deref()).await?;
        anyhow::Ok(found)
    };
    let poured = poured.await;
    if poured.is_err() {
        if let Some(bus) = &bus {
            bus.close().await;
        }
        store.close().await;
    }
    poured
}

/// Copies rows, content, log and key; where the objects are.
async fn pour(
    old: &Path,
    data: &Path,
    salvage: Salvage,
    about: About,
    store: &Store,
    folder: &Folder,
    bus: &mut Option<Bus>,
) -> anyhow::Result<(Found, Option<String>)> {
    let mut found = Found::default();
    let is_incomplete = rows(salvage, store, &mut found).await?;
    store.set_formats(&about.formats).await?;
    let url = sluice_databases::used_by(&*store.tables()).await?;
    if let (Some(url), Some(id)) = (&url, about.folder) {
        // The bucket is marked with it.
        folder.take_the_place_of(id, about.generation.unwrap_or(0)).await;
        found.next.push(format!(
            "its content rests in {url}, which the new folder uses from now on: do not start on the old one any more"
        ));
    }
    if is_incomplete {
        let places = if url.is_some() { PLACES_IN_BUCKET } else { PLACES };
        let unplaced = store.upkeep().unplaced(places).await?;
        let told = |one: Owner| format!("the content of {}: it is not known any more where it is", one.name);
        found.lost.extend(unplaced.into_iter().map(told));
    }
    content(old, data, store, &mut found).await?;
    *bus = log(old, data, &mut found)?;
    let has_key = sluice_iam::knows_admin_key(&*store.tables()).await?;
    match fs::read(old.join(folder::ADMIN_KEY)) {
        Ok(key) => {
            copy_whole(&key[..], key.len() as u64, &data.join(ADMIN_KEY))?;
        }
        // Whoever lets everybody in has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !has_key => {}
        Err(error) => {
            found.lost.push(format!("the admin key cannot be read: {error}"));
            found.next.push("start with --accept-loss admin-key, which makes a new one".to_owned());
        }
    }
    Ok((found, url))
}

/// Rows, and what follows from those that are lost; whether any are.
async fn rows(salvage: Salvage, store: &Store, found: &mut Found) -> anyhow::Result<bool> {
    let read = salvage.copy_to(store).await?;
    found.rows = read.rows;
    if read.is_older {
        found.lost.push(
            "what was committed last is not complete, as after a loss of power; all is as of the commit before".to_owned(),
        );
    }
    let tables = store.tables();
    let names = Names::of(&tables).await?;
    for lost in &read.lost {
        found.lost.push(names.lost(lost));
    }
    if read.lost.iter().any(|lost| lost.table.as_deref().is_none_or(|table| table.starts_with("config."))) {
        let values = sluice_config::rebuild(&*tables).await.context("config cannot be made whole")?;
        found.lost.extend(values.into_iter().map(|value| format!("the config value {value} is lost")));
    }
    // Readers that saw later versions must not take these for old news.
    sluice_config::begin_history(&*tables).await.context("config has no usable version")?;
    for unindexed in Salvage::mend(store, &read.lost).await? {
        found.lost.extend(names.unindexed(&unindexed));
    }
    Ok(!read.lost.is_empty())
}

/// Files of content, damaged ones too: what is whole of them can be read.
async fn content(old: &Path, data: &Path, store: &Store, found: &mut Found) -> anyhow::Result<()> {
    let files = store.snapshot()?.contents().context("it cannot be read which content there is")?.files;
    let (from, to) = (old.join(folder::BLOBS), data.join(folder::BLOBS));
    let copying = tokio::task::spawn_blocking(move || {
        let mut copied = 0;
        for name in files.into_iter().map(|file| file.name) {
            let Ok(file) = File::open(from.join(&name)) else { continue };
            // What cannot be read of it is found below.
            let Ok(bytes) = file.metadata().map(|meta| meta.len()) else { continue };
            match copy_whole(file, bytes, &to.join(&name)) {
                Ok(_) => copied += 1,
                Err(NotCopied::From(_)) => {}
                Err(error @ NotCopied::To(..)) => return Err(error.into()),
            }
        }
        File::open(&to)?.sync_all()?;
        anyhow::Ok(copied)
    });
    found.files += copying.await.context("the copy was cut off")??;
    let audit = store.audit_blobs().await?;
    let mut damage: Vec<_> = audit.missing.iter().map(folder::unreadable).collect();
    store.accept_lost(&audit).await?;
    let mut place = Some(Place::Content { after: String::new(), offset: 0 });
    while let Some(from) = place {
        let step = store.upkeep().check(from, STEP_BYTES).await?;
        damage.extend(step.damage);
        place = step.next;
    }
    found.lost.extend(store.upkeep().named(damage).await.iter().map(ToString::to_string));
    Ok(())
}

/// The log of the embedded broker, if the folder has one that can be used.
fn log(old: &Path, data: &Path, found: &mut Found) -> anyhow::Result<Option<Bus>> {
    let (from, to) = (old.join(folder::BROKER), data.join(folder::BROKER));
    let names = fs::read_dir(&from).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("log-")).collect();
    if names.is_empty() {
        return Ok(None);
    }
    fs::create_dir_all(&to)?;
    let copy = || -> Result<Bus, anyhow::Error> {
        for name in &names {
            let file = File::open(from.join(name))?;
            let bytes = file.metadata()?.len();
            copy_whole(file, bytes, &to.join(name))?;
        }
        Ok(Bus::embed(Config { end: folder::log_end(old), ..Config::in_dir(&to) })?)
    };
    match copy() {
        Ok(bus) => {
            found.files += names.len() as u64;
            Ok(Some(bus))
        }
        // That says nothing about the old one.
        Err(error) if matches!(error.downcast_ref(), Some(NotCopied::To(..))) => Err(error),
        Err(error) => {
            found.lost.push(format!("the messages that waited in the log of the broker: {error:#}"));
            fs::remove_dir_all(&to)?;
            Ok(None)
        }
    }
}
