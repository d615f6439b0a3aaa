//! Files and folders that people name, as documents to add.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sluice_documents::Kind;

use crate::exit::{Code, Told};

/// Files that are read, for people.
const READS: &str = "PDF, Word, Excel, PowerPoint, HTML, Markdown, CSV or text files";

/// A document to add.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) content: Vec<u8>,
}

/// The files that paths and patterns name, folders walked, in order.
pub(super) fn files_in(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let data = match std::fs::metadata(path) {
            Ok(data) => data,
            Err(_) if is_pattern(path) => {
                files.extend(files_in(&matches_of(path)?)?);
                continue;
            }
            Err(error) => {
                let told = format!("'{}' cannot be opened: {error}", path.display());
                return Err(Told::new(Code::NotFound, told).into());
            }
        };
        if data.is_file() {
            files.push(path.clone());
            continue;
        }
        let entries =
            std::fs::read_dir(path).with_context(|| format!("'{}' cannot be listed", path.display()))?;
        let mut inside: Vec<PathBuf> =
            entries.collect::<Result<Vec<_>, _>>()?.into_iter().map(|e| e.path()).collect();
        inside.sort();
        // In a folder only what can be decoded is taken; a file that was named is always tried.
        inside.retain(|entry| {
            !is_hidden(entry) && (entry.is_dir() || (kind_of(entry).is_ok() && has_content(entry)))
        });
        files.extend(files_in(&inside)?);
    }
    Ok(files)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// An empty file in a folder is told and left out; one that was named is refused.
fn has_content(file: &Path) -> bool {
    let is_empty = std::fs::metadata(file).is_ok_and(|data| data.len() == 0);
    if is_empty {
        eprintln!("note: '{}' is empty and was left out", file.display());
    }
    !is_empty
}

fn is_pattern(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(['*', '?', '[']))
}

/// What a pattern names: of files those that can be decoded, as in a folder that is named.
fn matches_of(pattern: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = pattern.display().to_string();
    let found = glob::glob(&text)
        .map_err(|error| Told::usage(format!("'{text}' is no pattern of files: {error}")))?;
    let mut paths: Vec<PathBuf> =
        found.collect::<Result<_, _>>().with_context(|| format!("'{text}' cannot be followed"))?;
    // Folders that a pattern names are walked by its `**`, and so are named twice.
    paths.retain(|path| path.is_file() && kind_of(path).is_ok());
    if paths.is_empty() {
        let told = format!("no file that can be decoded is named by '{text}'");
        return Err(Told::new(Code::NotFound, told).into());
    }
    Ok(paths)
}

/// Reads files, all of them before anything is added: those that cannot be loaded are named together.
pub(super) fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut faults = Vec::new();
    for file in files {
        match read(file) {
            Ok(source) => sources.push(source),
            Err(fault) => faults.push((file, fault)),
        }
    }
    match faults.len() {
        0 if sources.is_empty() => Err(Told::usage("there is nothing to load in what was named")
            .next(format!("name {READS}, or a folder that holds some"))
            .into()),
        0 => Ok(sources),
        1 => Err(faults.remove(0).1),
        count => {
            let lines: Vec<String> = faults.iter().map(|(_, fault)| format!("  {fault}")).collect();
            let message = format!("{count} files cannot be loaded; nothing was added:\n{}", lines.join("\n"));
            Err(Told::new(Code::Failed, message).into())
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Source> {
    let kind = kind_of(file)?;
    let content = std::fs::read(file).with_context(|| format!("'{}' could not be read", file.display()))?;
    if content.is_empty() {
        let told = format!("'{}' is empty; nothing was added", file.display());
        return Err(Told::new(Code::Failed, told).next("leave it out").into());
    }
    // Plain text goes past the decoder, which is where encodings are found out.
    let is_odd_text = kind == Kind::Text.mime() && std::str::from_utf8(&content).is_err();
    let kind = if is_odd_text { "application/octet-stream" } else { kind };
    Ok(Source { name: name_of(file), kind, content })
}

fn name_of(file: &Path) -> String {
    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(super) fn kind_of(file: &Path) -> anyhow::Result<&'static str> {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "md" | "markdown" => Ok(Kind::Markdown.mime()),
        "txt" | "text" | "" => Ok(Kind::Text.mime()),
        "csv" | "tsv" => Ok(Kind::Csv.mime()),
        "html" | "htm" | "xhtml" => Ok(Kind::Html.mime()),
        "pdf" => Ok(Kind::Pdf.mime()),
        "docx" | "docm" => Ok(Kind::Docx.mime()),
        "xlsx" | "xlsm" => Ok(Kind::Xlsx.mime()),
        "pptx" | "pptm" => Ok(Kind::Pptx.mime()),
        "doc" => Ok(Kind::Doc.mime()),
        "xls" => Ok(Kind::Xls.mime()),
        "ppt" => Ok(Kind::Ppt.mime()),
        other => Err(Told::usage(format!("'{}': files of kind '{other}' cannot be decoded", file.display()))
            .next(format!("load {READS}"))
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_what_can_be_decoded_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("in")).unwrap();
        for name in ["a.md", "b.png", "in/c.md", "[d].md"] {
            std::fs::write(at(name), "x").unwrap();
        }
        let named = |pattern: &str| files_in(&[at(pattern)]);
        assert_eq!(named("**/*.md").unwrap(), [at("[d].md"), at("a.md"), at("in/c.md")]);
        assert_eq!(named("*").unwrap(), [at("[d].md"), at("a.md")]);
        // A file that is called like a pattern is meant itself.
        assert_eq!(named("[d].md").unwrap(), [at("[d].md")]);
        assert!(named("*.pdf").unwrap_err().to_string().contains("no file"));
    }
}
