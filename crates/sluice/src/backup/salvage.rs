//! A damaged data folder, copied into a new one as far as it can be read. The old one is only read.

mod names;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sluice_bus::embedded::Config;
use sluice_store::embedded::{About, Owner, Place, Salvage, Untouched};
use sluice_store::{Embedded as Store, Options, Stamp};

use self::names::Names;
use super::files::NotCopied;
use super::{ADMIN_KEY, copy_whole, is_within};
use crate::bus::Bus;
use crate::exit::{Code, Told};
use crate::folder::{self, Damaged, FilledFrom, Folder, Taken, open_file, read_file};

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
    /// What the first start on it has to be told to do without.
    #[serde(skip)]
    pub(crate) accepted: Option<folder::Loss>,
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
    if let Some(what) = folder::in_place_of_folder(data) {
        return Err(Told::new(Code::Failed, what)
            .next("name a folder that is empty or not there with --data NEW")
            .into());
    }
    let _held = Untouched::hold(old)?;
    let mut damaged = Damaged::look(old)?;
    let salvage = Salvage::open(old).map_err(|error| {
        Told::new(Code::Failed, error.to_string()).next("restore a backup: sluice restore BACKUP --data NEW")
    })?;
    let about = salvage.about()?;
    folder::check_formats(&about.formats)?;
    let taken = Taken::empty(data)?;
    let filled = fill(&mut damaged, data, salvage, about, &taken).await;
    filled.map_err(|error| taken.failed("nothing was salvaged", &error))
}

/// Copies it into a folder that is in use by nobody else, and closes that, whatever comes of it.
async fn fill(
    damaged: &mut Damaged,
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
        let (found, url) = pour(damaged, data, salvage, about, &store, &folder, &mut bus).await?;
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
    damaged: &mut Damaged,
    data: &Path,
    salvage: Salvage,
    about: About,
    store: &Store,
    folder: &Folder,
    bus: &mut Option<Bus>,
) -> anyhow::Result<(Found, Option<String>)> {
    let mut found = Found::default();
    let is_incomplete = rows(salvage, store, &mut found).await?;
    let stamp = about.folder.clone().zip(about.generation);
    let stamp = stamp.map(|(folder, generation)| Stamp { folder, generation });
    found.lost.extend(damaged.check_store(stamp, is_incomplete).await);
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
    content(damaged, data, store, &mut found).await?;
    *bus = log(damaged, data, &mut found).await?;
    if bus.is_none() {
        sluice_library::log_lost(&*store.tables()).await?;
    }
    key(damaged, data, store, &mut found).await?;
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
async fn content(damaged: &Damaged, data: &Path, store: &Store, found: &mut Found) -> anyhow::Result<()> {
    let files = store.snapshot()?.contents().context("it cannot be read which content there is")?.files;
    let (from, to) = (damaged.part(folder::BLOBS), data.join(folder::BLOBS));
    let copying = tokio::task::spawn_blocking(move || {
        let mut copied = 0;
        for name in files.into_iter().map(|file| file.name) {
            let file = match open_file(&from.join(&name)) {
                Ok(file) => file,
                Err(error) if folder::is_lost(&error) => continue,
                Err(error) => return Err(closed(&from.join(&name), &error).into()),
            };
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

/// How content is told that is there, but for others.
fn closed(file: &Path, error: &io::Error) -> Told {
    Told::new(Code::Failed, format!("'{}' is there, but cannot be read: {error}", file.display()))
        .next("see who owns it, and with which permissions; then salvage again, or as the user who owns it")
}

/// The log of the embedded broker, if the folder has one that can be used.
async fn log(damaged: &Damaged, data: &Path, found: &mut Found) -> anyhow::Result<Option<Bus>> {
    let (from, to) = (damaged.part(folder::BROKER), data.join(folder::BROKER));
    let mut lost = |why: String| {
        found.lost.push(format!("the messages that waited in the log of the broker: {why}"));
    };
    let names = match damaged.logs() {
        Ok(names) => names,
        Err(error) => {
            lost(format!("{error:#}"));
            return Ok(None);
        }
    };
    if names.is_empty() {
        damaged.without_log().into_iter().for_each(lost);
        return Ok(None);
    }
    fs::create_dir_all(&to)?;
    let end = damaged.log_end().await;
    let copy = || -> Result<Bus, anyhow::Error> {
        for name in &names {
            let file = open_file(&from.join(name))?;
            let bytes = file.metadata()?.len();
            copy_whole(file, bytes, &to.join(name))?;
        }
        Ok(Bus::embed(Config { end, ..Config::in_dir(&to) })?)
    };
    let why = match copy() {
        Ok(bus) => {
            let wrong = match bus.embedded() {
                Some(log) => damaged.check_log(log).await,
                None => None,
            };
            let Some(wrong) = wrong else {
                found.files += names.len() as u64;
                return Ok(Some(bus));
            };
            bus.close().await;
            wrong
        }
        // That says nothing about the old one.
        Err(error) if matches!(error.downcast_ref(), Some(NotCopied::To(..))) => return Err(error),
        // It is read from where it was copied to.
        Err(error) => format!("{error:#}").replace(&*to.to_string_lossy(), &from.to_string_lossy()),
    };
    lost(why);
    fs::remove_dir_all(&to)?;
    Ok(None)
}

/// The admin key, if it is that of the rows.
async fn key(damaged: &Damaged, data: &Path, store: &Store, found: &mut Found) -> anyhow::Result<()> {
    let wrong = match damaged.check_key(store).await? {
        None => match read_file(&damaged.part(folder::ADMIN_KEY)) {
            Ok(key) => {
                copy_whole(&key[..], key.len() as u64, &data.join(ADMIN_KEY))?;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => format!("{ADMIN_KEY} cannot be read: {error}"),
        },
        Some(wrong) => wrong,
    };
    found.lost.push(wrong);
    found.next.push("start with --accept-loss admin-key, which makes a new one".to_owned());
    found.accepted = Some(folder::Loss::AdminKey);
    Ok(())
}
