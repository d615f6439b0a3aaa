//! Restoring a backup into a new data folder.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use sluice_bus::embedded::Config;
use sluice_store::{Batch, Embedded as Store, Options, Tables};

use super::files::{NotCopied, copy_whole};
use super::{BLOBS, CHUNKS, Checked, LOG, Manifest, OBJECTS, Summary, check, is_within};
use crate::bus::Bus;
use crate::exit::{Code, Told};
use crate::folder::{self, FilledFrom, Folder, Taken, in_place_of_folder, read_file};

/// What one commit writes, roughly.
const COMMIT_BYTES: usize = 8 * 1024 * 1024;
/// Findings that a refusal names.
const NAMED_MAX: usize = 5;

/// Makes a data folder of a backup; answers, too, what was damaged already in what was backed up. The folder gets an id of its own: the one that was backed up may still be in use.
pub(crate) async fn restore(
    dir: &Path,
    data: &Path,
    objects: Option<(String, sluice_databases::Settings)>,
) -> anyhow::Result<(Summary, Vec<String>)> {
    // Held to the end: nothing is removed from the backup meanwhile.
    let Checked { manifest, reading: _reading, .. } = read_whole(dir).await?;
    folder::check_formats(&manifest.formats)?;
    if let (Some(kept), None) = (&manifest.objects, &objects) {
        return Err(Told::usage(format!("the content of these documents rested in {}", kept.url))
            .next("name the object store that it is to be put into with --objects")
            .into());
    }
    if is_within(data, dir)? {
        return Err(Told::usage("a data folder inside the backup would work in it")
            .next("name a folder elsewhere with --data NEW")
            .into());
    }
    if let Some(what) = in_place_of_folder(data) {
        return Err(Told::new(Code::Failed, what)
            .next("name a folder that is empty or not there with --data NEW")
            .into());
    }
    let taken = Taken::empty(data)?;
    let filled = fill(dir, data, manifest, objects, &taken).await;
    filled.map_err(|error| taken.failed("the backup was not restored", &error))
}

/// Puts all of a backup into a folder that is in use by nobody else, and closes that, whatever comes of it.
async fn fill(
    dir: &Path,
    data: &Path,
    manifest: Manifest,
    objects: Option<(String, sluice_databases::Settings)>,
    taken: &Taken,
) -> anyhow::Result<(Summary, Vec<String>)> {
    let folder = Folder::restoring(data, taken.lock(), FilledFrom::Backup(manifest.digest()?))?;
    let store = Arc::new(Store::open_held(data, taken.lock(), &Options::default())?);
    let mut bus = None;
    let poured = async {
        let (summary, url) = pour(dir, data, &manifest, objects, &store).await?;
        if !manifest.log.is_empty() {
            let opened = Bus::embed(Config::in_dir(data.join(folder::BROKER)));
            bus = Some(opened.context("the log cannot be opened")?);
        }
        folder.restored(&store, bus.as_ref().and_then(Bus::embedded), url.as_deref()).await?;
        anyhow::Ok(summary)
    };
    let poured = poured.await;
    if poured.is_err() {
        if let Some(bus) = &bus {
            bus.close().await;
        }
        store.close().await;
    }
    Ok((poured?, manifest.damaged))
}

/// Copies rows, files and objects; where the objects are now.
async fn pour(
    dir: &Path,
    data: &Path,
    manifest: &Manifest,
    objects: Option<(String, sluice_databases::Settings)>,
    store: &Store,
) -> anyhow::Result<(Summary, Option<String>)> {
    let mut summary = Summary::default();
    rows(dir, manifest, &*store.tables(), &mut summary).await?;
    store.set_formats(&manifest.formats).await?;
    // Readers that saw later versions than the backup holds must not take the restored config for old news.
    sluice_config::begin_history(&*store.tables())
        .await
        .context("the restored config has no usable version")?;
    if manifest.log.is_empty() {
        // It was damaged, or is that of another broker, which has gone on since.
        sluice_library::log_lost(&*store.tables()).await?;
    }
    let (from, to, files) = (dir.to_owned(), data.to_owned(), manifest.clone());
    let copied = tokio::task::spawn_blocking(move || copy_files(&from, &to, &files));
    summary.bytes += copied.await.context("the restore was cut off")??;
    summary.files = (manifest.blobs.len() + manifest.log.len()) as u64;
    if !manifest.damaged.is_empty() {
        // Files that were missing already are named to whoever restores: a start need not refuse the folder for them.
        store.accept_lost(&store.audit_blobs().await?).await?;
    }
    let url = match objects {
        Some((url, settings)) if manifest.objects.is_some() => {
            upload(dir, manifest, &url, &settings, store, &mut summary).await?;
            Some(url)
        }
        _ => None,
    };
    Ok((summary, url))
}

/// The manifest of a backup of which nothing is missing or damaged.
async fn read_whole(dir: &Path) -> anyhow::Result<Checked> {
    let Some(checked) = check(dir).await? else {
        return Err(Told::new(Code::NotFound, format!("there is no backup in '{}'", dir.display()))
            .next("name the folder that was given to 'sluice backup'")
            .into());
    };
    let wrong = &checked.wrong;
    if !wrong.is_empty() {
        let named: Vec<&str> = wrong.iter().take(NAMED_MAX).map(String::as_str).collect();
        let more = wrong.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let what = format!("the backup in '{}' is not whole: {}{more}", dir.display(), named.join("; "));
        return Err(Told::new(Code::Failed, what)
            .next("take another copy of it; nothing was restored")
            .into());
    }
    Ok(checked)
}

/// How a backup that was whole a moment ago, and is not any more, is told.
fn unread(place: &str, reason: impl std::fmt::Display) -> Told {
    Told::new(Code::Failed, format!("'{place}' of the backup: {reason}")).next(
        "see what changes the backup or what its disk lacks, then restore again, or take another copy of it",
    )
}

async fn rows(
    dir: &Path,
    manifest: &Manifest,
    tables: &dyn Tables,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    for table in &manifest.tables {
        let (mut batch, mut bytes) = (Batch::new(), 0);
        for chunk in &table.chunks {
            let content = read_file(&dir.join(CHUNKS).join(&chunk.sha256))
                .map_err(|error| unread(&format!("{CHUNKS}/{}", chunk.sha256), error))?;
            let mut rest = &content[..];
            while !rest.is_empty() {
                let (key, value) = (part(&mut rest)?, part(&mut rest)?);
                bytes += key.len() + value.len();
                batch.put(table.name.clone(), key, value.to_vec());
                summary.rows += 1;
                if bytes >= COMMIT_BYTES {
                    tables.commit(std::mem::take(&mut batch)).await?;
                    bytes = 0;
                }
            }
            summary.bytes += chunk.bytes;
        }
        if !batch.is_empty() {
            tables.commit(batch).await?;
        }
    }
    Ok(())
}

/// Takes the next key or value off.
fn part<'a>(rest: &mut &'a [u8]) -> anyhow::Result<&'a [u8]> {
    let taken = rest.split_first_chunk().and_then(|(bytes, after)| {
        let bytes = usize::try_from(u32::from_le_bytes(*bytes)).ok()?;
        after.split_at_checked(bytes)
    });
    let Some((part, after)) = taken else { bail!("a chunk of rows ends in the middle of a row") };
    *rest = after;
    Ok(part)
}

fn copy_files(dir: &Path, data: &Path, manifest: &Manifest) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for (part, place, items) in
        [(BLOBS, folder::BLOBS, &manifest.blobs), (LOG, folder::BROKER, &manifest.log)]
    {
        if items.is_empty() {
            continue;
        }
        let to = data.join(place);
        fs::create_dir_all(&to)?;
        for item in items {
            let place = format!("{part}/{}", item.name);
            let copied = copy_whole(item.reader(dir, part), item.bytes, &to.join(&item.name));
            let sums = copied.map_err(|error| match error {
                NotCopied::From(reason) => anyhow::Error::from(unread(&place, reason)),
                error @ NotCopied::To(..) => error.into(),
            })?;
            if sums.sha256 != item.sha256 {
                return Err(unread(&place, "it was changed while it was restored").into());
            }
            bytes += item.bytes;
        }
        File::open(&to)?.sync_all()?;
    }
    if let Some(place) = manifest.key_place() {
        let key = read_file(&dir.join(place)).map_err(|error| unread(place, error))?;
        copy_whole(&key[..], key.len() as u64, &data.join(folder::ADMIN_KEY))?;
    }
    Ok(bytes)
}

async fn upload(
    dir: &Path,
    manifest: &Manifest,
    url: &str,
    settings: &sluice_databases::Settings,
    store: &Store,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let bucket = sluice_databases::Bucket::open(url, settings)?;
    bucket.check_free().await?;
    for item in manifest.objects.iter().flat_map(|objects| &objects.files) {
        bucket.put(&item.name, &dir.join(OBJECTS).join(item.file())).await?;
        summary.files += 1;
        summary.bytes += item.bytes;
    }
    sluice_databases::move_to(&*store.tables(), url).await?;
    Ok(())
}
