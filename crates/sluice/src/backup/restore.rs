//! Restoring a backup into a new data folder.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use sluice_bus::embedded::Config;
use sluice_store::{Batch, Embedded as Store, FolderLock, Options, Tables};

use super::files::copy_whole;
use super::{BLOBS, CHUNKS, LOG, Manifest, OBJECTS, Summary, verify};
use crate::bus::Bus;
use crate::exit::{Code, Told};
use crate::folder::{self, Folder};

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
    let manifest = read_whole(dir)?;
    folder::check_formats(&manifest.formats)?;
    if let (Some(kept), None) = (&manifest.objects, &objects) {
        return Err(Told::usage(format!("the content of these documents rested in {}", kept.url))
            .next("name the object store that it is to be put into with --objects")
            .into());
    }
    let (backup, place) = (fs::canonicalize(dir)?, std::path::absolute(data)?);
    if place.starts_with(std::path::absolute(dir)?) || place.starts_with(backup) {
        return Err(Told::usage("a data folder inside the backup would work in it")
            .next("name a folder elsewhere with --data NEW")
            .into());
    }
    let lock = folder::take_empty(data)?;
    let folder = Folder::restoring(data, lock.clone())?;
    fill(dir, data, manifest, objects, lock, &folder).await.map_err(|error| {
        let code = error.downcast_ref::<Told>().map_or(Code::Failed, |told| told.code);
        let next = format!(
            "see whether '{}' has room and may be written; remove it, then restore again",
            data.display()
        );
        Told::new(code, format!("the backup was not restored: {error:#}")).next(next).into()
    })
}

/// Puts all of a backup into a folder that is in use by nobody else.
async fn fill(
    dir: &Path,
    data: &Path,
    manifest: Manifest,
    objects: Option<(String, sluice_databases::Settings)>,
    lock: FolderLock,
    folder: &Folder,
) -> anyhow::Result<(Summary, Vec<String>)> {
    let store = Store::open_held(data, lock, &Options::default())?;
    let mut summary = Summary::default();
    rows(dir, &manifest, &*store.tables(), &mut summary).await?;
    store.set_formats(&manifest.formats).await?;
    // Readers that saw later versions than the backup holds must not take the restored config for old news.
    sluice_config::begin_history(&*store.tables())
        .await
        .context("the restored config has no usable version")?;
    let (from, to, files) = (dir.to_owned(), data.to_owned(), manifest.clone());
    let copied = tokio::task::spawn_blocking(move || copy_files(&from, &to, &files));
    summary.bytes += copied.await.context("the restore was cut off")??;
    summary.files = (manifest.blobs.len() + manifest.log.len()) as u64;
    if !manifest.damaged.is_empty() {
        // Files that were missing already are named to whoever restores: a start need not refuse the folder for them.
        store.accept_lost(&store.audit_blobs().await?).await?;
    }
    let url = match &objects {
        Some((url, settings)) if manifest.objects.is_some() => {
            upload(dir, &manifest, url, settings, &store, &mut summary).await?;
            Some(url.as_str())
        }
        _ => None,
    };
    let bus = match manifest.log.is_empty() {
        true => None,
        false => {
            Some(Bus::embed(Config::in_dir(data.join(folder::BROKER))).context("the log cannot be opened")?)
        }
    };
    folder.restored(&Arc::new(store), bus.as_ref().and_then(Bus::embedded), url).await?;
    Ok((summary, manifest.damaged))
}

/// The manifest of a backup of which nothing is missing or damaged.
fn read_whole(dir: &Path) -> anyhow::Result<Manifest> {
    let Some(manifest) = Manifest::read(dir)? else {
        return Err(Told::new(Code::NotFound, format!("there is no backup in '{}'", dir.display()))
            .next("name the folder that was given to 'sluice backup'")
            .into());
    };
    let wrong = verify(dir, &manifest);
    if !wrong.is_empty() {
        let named: Vec<&str> = wrong.iter().take(NAMED_MAX).map(String::as_str).collect();
        let more = wrong.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let what = format!("the backup in '{}' is not whole: {}{more}", dir.display(), named.join("; "));
        return Err(Told::new(Code::Failed, what)
            .next("take another copy of it; nothing was restored")
            .into());
    }
    Ok(manifest)
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
            let content = fs::read(dir.join(CHUNKS).join(&chunk.sha256))?;
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
            let sums = copy_whole(item.reader(dir, part), item.bytes, &to.join(&item.name))?;
            if sums.sha256 != item.sha256 {
                bail!("'{part}/{}' of '{}' was changed while it was restored", item.name, dir.display());
            }
            bytes += item.bytes;
        }
        File::open(&to)?.sync_all()?;
    }
    if let Some(place) = manifest.key_place() {
        let key = fs::read(dir.join(place))?;
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
