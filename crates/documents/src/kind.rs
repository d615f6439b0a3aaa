//! What a document is. The content decides; the declared type only settles what content cannot tell.

use memchr::memmem;
use serde::{Deserialize, Serialize};

use crate::encoding;
use crate::{Problem, ProblemKind};

/// Bytes in which the mark of a PDF is looked for: some begin with what a mail or web server left there.
const PDF_MARK_BYTES_MAX: usize = 1024;

/// A content of fewer bytes than these can be read where other work is done, if it is plain.
pub const PLAIN_BYTES_MAX: usize = 1024 * 1024;

/// A kind of document that is read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Text of any sort.
    Text,
    /// Markdown, which is passed on as it is.
    Markdown,
    /// Rows of values separated by commas, semicolons or tabs.
    Csv,
    /// A web page.
    Html,
    /// PDF.
    Pdf,
    /// Word, since 2007.
    Docx,
    /// Excel, since 2007.
    Xlsx,
    /// PowerPoint, since 2007.
    Pptx,
    /// Word, before 2007.
    Doc,
    /// Excel, before 2007.
    Xls,
    /// PowerPoint, before 2007.
    Ppt,
}

/// Every kind with its MIME type.
const KINDS: [(Kind, &str); 11] = [
    (Kind::Text, "text/plain"),
    (Kind::Markdown, "text/markdown"),
    (Kind::Csv, "text/csv"),
    (Kind::Html, "text/html"),
    (Kind::Pdf, "application/pdf"),
    (Kind::Docx, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    (Kind::Xlsx, "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    (Kind::Pptx, "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    (Kind::Doc, "application/msword"),
    (Kind::Xls, "application/vnd.ms-excel"),
    (Kind::Ppt, "application/vnd.ms-powerpoint"),
];
/// Other names that are in use.
const ALIASES: [(&str, Kind); 5] = [
    ("text/x-markdown", Kind::Markdown),
    ("text/tab-separated-values", Kind::Csv),
    ("application/csv", Kind::Csv),
    ("application/xhtml+xml", Kind::Html),
    ("application/x-pdf", Kind::Pdf),
];

/// How files begin that are no text and are not read here.
const OTHERS: [(&[u8], &str); 14] = [
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"RIFF", "a sound, film or picture"),
    (b"OggS", "a sound or film"),
    (b"ID3", "a sound"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x7fELF", "a program"),
    (b"{\\rtf", "an RTF document"),
];

/// What to do about a kind that is not read here.
const READS: &str = "what is read is PDF, Word, Excel, PowerPoint, HTML, Markdown, CSV and plain text";

impl Kind {
    /// Its MIME type.
    #[must_use]
    pub fn mime(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("application/octet-stream", |(_, mime)| mime)
    }

    /// The kind that a MIME type names; parameters such as `charset` do not matter.
    #[must_use]
    pub fn of_mime(mime: &str) -> Option<Self> {
        let mime = essence(mime);
        let known = KINDS.iter().find(|(_, name)| *name == mime).map(|(kind, _)| *kind);
        known.or_else(|| ALIASES.iter().find(|(name, _)| *name == mime).map(|(_, kind)| *kind))
    }

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "plain text",
            Self::Markdown => "Markdown",
            Self::Csv => "CSV",
            Self::Html => "HTML",
            Self::Pdf => "a PDF",
            Self::Docx | Self::Doc => "a Word document",
            Self::Xlsx | Self::Xls => "an Excel workbook",
            Self::Pptx | Self::Ppt => "a PowerPoint presentation",
        }
    }

    /// Whether reading it is no more than decoding characters: nothing in it can make the reader recurse, unpack, multiply or
    /// loop.
    #[must_use]
    pub const fn is_plain(self) -> bool {
        matches!(self, Self::Text | Self::Markdown)
    }

    const fn is_text(self) -> bool {
        self.is_plain() || matches!(self, Self::Csv | Self::Html)
    }
}

/// What a content is, whatever it was declared as.
///
/// # Errors
/// [`ProblemKind::NotWhatItClaims`] for text that was declared as something binary, [`ProblemKind::Unsupported`] for what
/// is not read here, [`ProblemKind::Encrypted`] for office files that are locked as a whole.
pub fn recognise(declared: &str, content: &[u8]) -> Result<Kind, Problem> {
    let claim = Kind::of_mime(declared);
    let head = &content[..content.len().min(PDF_MARK_BYTES_MAX)];
    let start = head.trim_ascii_start();
    if start.starts_with(b"%PDF-") || (claim == Some(Kind::Pdf) && memmem::find(head, b"%PDF-").is_some()) {
        return Ok(Kind::Pdf);
    }
    if start.starts_with(b"PK\x03\x04") {
        return in_zip(content);
    }
    if start.starts_with(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") {
        return in_compound_file(claim, content);
    }
    let other = OTHERS.iter().find(|(mark, _)| start.starts_with(mark)).map(|(_, name)| *name);
    let other = other.or_else(|| (!encoding::is_text(content)).then_some("binary data"));
    match (other, claim) {
        (Some(found), Some(claim)) if !claim.is_plain() && claim != Kind::Csv => {
            Err(not_as_claimed(claim, found))
        }
        (Some(found), _) => Err(unsupported(found)),
        (None, Some(claim)) if !claim.is_text() => {
            let found = if looks_like_html(start) { "a web page" } else { "plain text" };
            Err(not_as_claimed(claim, found))
        }
        (None, _) if looks_like_html(start) => Ok(Kind::Html),
        (None, claim) => Ok(claim.unwrap_or(Kind::Text)),
    }
}

/// The kind of a content that may be read without a process of its own: plain, and of fewer than [`PLAIN_BYTES_MAX`] bytes.
/// `None` for everything else. Looks at no more than so many bytes.
///
/// # Errors
/// As [`recognise`], for contents of that size.
pub fn plain(declared: &str, content: &[u8]) -> Result<Option<Kind>, Problem> {
    if content.len() >= PLAIN_BYTES_MAX {
        return Ok(None);
    }
    recognise(declared, content).map(|kind| Some(kind).filter(|kind| kind.is_plain()))
}

/// A MIME type without its parameters.
fn essence(mime: &str) -> String {
    mime.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn looks_like_html(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    [&b"<!doctype html"[..], b"<html"]
        .iter()
        .any(|mark| start.get(..mark.len()).is_some_and(|head| head.eq_ignore_ascii_case(mark)))
}

/// Office files are ZIP archives; the names in an archive are not packed.
fn in_zip(content: &[u8]) -> Result<Kind, Problem> {
    let holds = |name: &[u8]| memmem::find(content, name).is_some();
    if holds(b"word/document") {
        Ok(Kind::Docx)
    } else if holds(b"xl/workbook") {
        Ok(Kind::Xlsx)
    } else if holds(b"ppt/presentation") {
        Ok(Kind::Pptx)
    } else {
        Err(unsupported("a ZIP archive"))
    }
}

/// Old office files are small file systems; so is what locks a new one with a password.
fn in_compound_file(claim: Option<Kind>, content: &[u8]) -> Result<Kind, Problem> {
    let holds = |name: &str| {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        memmem::find(content, &name).is_some()
    };
    if holds("EncryptedPackage") {
        return Err(Problem::new(
            ProblemKind::Encrypted,
            "the office document is locked with a password; save it without one and add it again",
        ));
    }
    let marks = [
        (Kind::Doc, "WordDocument"),
        (Kind::Ppt, "PowerPoint Document"),
        (Kind::Xls, "Workbook"),
        (Kind::Xls, "Book"),
    ];
    let found = || marks.iter().filter(|(_, mark)| holds(mark)).map(|(kind, _)| *kind);
    // A document may hold one of another kind; then the claim tells which is the outer one.
    let kind = found().find(|kind| Some(*kind) == claim).or_else(|| found().next());
    kind.ok_or_else(|| unsupported("an old office or mail document"))
}

fn unsupported(found: &str) -> Problem {
    Problem::new(ProblemKind::Unsupported, format!("the content is {found}, which is not read here; {READS}"))
}

fn not_as_claimed(claim: Kind, found: &str) -> Problem {
    let claim = claim.name();
    Problem::new(
        ProblemKind::NotWhatItClaims,
        format!(
            "it was added as {claim} and is {found}; perhaps the download failed: get the file again, or add it as what it is"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(declared: &str, content: &[u8]) -> Result<Kind, ProblemKind> {
        recognise(declared, content).map_err(|problem| problem.kind)
    }

    #[test]
    fn content_beats_the_declared_type() {
        assert_eq!(kind("text/plain", b"\n%PDF-1.7"), Ok(Kind::Pdf));
        assert_eq!(kind("application/pdf", b"From a mail\r\n\r\n%PDF-1.4"), Ok(Kind::Pdf));
        assert_eq!(kind("application/pdf", b"PK\x03\x04....word/document.xml"), Ok(Kind::Docx));
        assert_eq!(kind("", b"PK\x03\x04....xl/workbook.xml"), Ok(Kind::Xlsx));
        assert_eq!(kind("", b"PK\x03\x04....ppt/presentation.xml"), Ok(Kind::Pptx));
        assert_eq!(kind("text/plain", b"\xef\xbb\xbf <!DOCTYPE html><p>x"), Ok(Kind::Html));
    }

    #[test]
    fn the_declared_type_settles_what_content_cannot_tell() {
        for (declared, expected) in [
            ("text/csv; charset=utf-8", Kind::Csv),
            ("Text/Markdown", Kind::Markdown),
            ("text/html", Kind::Html),
            ("text/plain", Kind::Text),
            ("application/json", Kind::Text),
            ("application/octet-stream", Kind::Text),
            ("", Kind::Text),
        ] {
            assert_eq!(kind(declared, b"a,b\n1,2\n"), Ok(expected), "{declared}");
        }
    }

    #[test]
    fn what_is_not_as_claimed_is_told_apart_from_what_is_not_read() {
        use ProblemKind::{Encrypted, NotWhatItClaims, Unsupported};
        assert_eq!(kind("application/pdf", b"<html><h1>404"), Err(NotWhatItClaims));
        assert_eq!(kind("application/pdf", b"dear all"), Err(NotWhatItClaims));
        assert_eq!(kind("application/pdf", b"\x89PNG\r\n\x1a\n"), Err(NotWhatItClaims));
        assert_eq!(kind("image/png", b"\x89PNG\r\n\x1a\n"), Err(Unsupported));
        assert_eq!(kind("", b"a\0b"), Err(Unsupported));
        assert_eq!(kind("", b"PK\x03\x04....readme.txt"), Err(Unsupported));
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let compound = |name: &str| [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec(), utf16(name)].concat();
        assert_eq!(kind("", &compound("EncryptedPackage")), Err(Encrypted));
        assert_eq!(kind("", &compound("WordDocument Workbook")), Ok(Kind::Doc));
        assert_eq!(kind("application/vnd.ms-excel", &compound("WordDocument Workbook")), Ok(Kind::Xls));
    }

    #[test]
    fn only_small_text_and_markdown_are_plain() {
        assert_eq!(plain("text/markdown", b"# Leeks"), Ok(Some(Kind::Markdown)));
        assert_eq!(plain("", &b"a".repeat(PLAIN_BYTES_MAX - 1)), Ok(Some(Kind::Text)));
        assert_eq!(plain("", &b"a".repeat(PLAIN_BYTES_MAX)), Ok(None));
        for declared in ["text/csv", "text/html"] {
            assert_eq!(plain(declared, b"a,b"), Ok(None), "{declared}");
        }
        assert_eq!(plain("text/plain", b"%PDF-1.7"), Ok(None));
        assert!(plain("text/plain", b"\x89PNG\r\n\x1a\n").is_err());
    }

    #[test]
    fn every_kind_is_found_by_its_mime_type() {
        for (kind, mime) in KINDS {
            assert_eq!((Kind::of_mime(mime), kind.mime()), (Some(kind), mime));
        }
        assert_eq!(Kind::of_mime("image/png"), None);
    }
}
