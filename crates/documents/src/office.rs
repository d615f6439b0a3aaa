//! Office documents: a Word document is one section, each sheet of a workbook one, each slide a page.

use std::io::Cursor;

use office_oxide::limits::Limits as OfficeLimits;
use office_oxide::options::ParseOptions;
use office_oxide::xls::XlsDocument;
use office_oxide::xlsx::XlsxDocument;
use office_oxide::{Document, DocumentFormat};

use crate::event::{Out, Stop};
use crate::{Kind, Limits, Problem, ProblemKind, Unit, rows};

pub(crate) fn read(kind: Kind, content: Vec<u8>, limits: &Limits, out: &mut Out<'_>) -> Result<(), Stop> {
    let document = opened(kind, content, limits)?;
    if let Some(book) = document.as_xlsx() {
        // Sheets that cannot be read at all come after the others.
        let (sound, broken) = (&book.worksheets, &book.unreadable_sheets);
        return workbook(out, sound.len() + broken.len(), |at| match sound.get(at) {
            Some(_) => xlsx_sheet(book, at, limits),
            None => {
                let (name, cause) = &broken[at - sound.len()];
                Err(said(kind, &format!("sheet '{name}': {cause}"), limits))
            }
        });
    }
    if let Some(book) = document.as_xls() {
        return workbook(out, book.sheets.len(), |at| xls_sheet(book, at, limits));
    }
    if kind != Kind::Pptx && kind != Kind::Ppt {
        out.begin(Unit::Section, 1)?;
        return out.part(1, Ok(document.to_markdown()));
    }
    let mut slides = document.to_ir();
    let sections = std::mem::take(&mut slides.sections);
    let count = out.begin(Unit::Page, sections.len())?;
    for (at, section) in sections.into_iter().take(count).enumerate() {
        slides.sections = vec![section];
        out.part(at + 1, Ok(slides.to_markdown()))?;
    }
    Ok(())
}

fn workbook(
    out: &mut Out<'_>,
    sheets: usize,
    sheet: impl Fn(usize) -> Result<String, Problem>,
) -> Result<(), Stop> {
    let count = out.begin(Unit::Section, sheets)?;
    (0..count).try_for_each(|at| out.part(at + 1, sheet(at)))
}

fn xlsx_sheet(book: &XlsxDocument, at: usize, limits: &Limits) -> Result<String, Problem> {
    let sheet = &book.worksheets[at];
    let rows = sheet.rows.iter().map(|row| {
        let mut values = Vec::new();
        for cell in &row.cells {
            // The reader keeps columns within Excel's grid.
            let column = cell.reference.col as usize;
            if values.len() <= column {
                values.resize(column + 1, String::new());
            }
            values[column] = book.format_cell_value(cell);
        }
        values
    });
    let mut lines = rows::lines(rows, limits)?;
    match &sheet.damage {
        Some(damage) if lines.is_empty() => return Err(said(Kind::Xlsx, &damage.to_string(), limits)),
        Some(damage) => lines.push_str(&format!("\n(The sheet is damaged here: {damage})\n")),
        None => {}
    }
    Ok(named(&sheet.name, lines))
}

fn xls_sheet(book: &XlsDocument, at: usize, limits: &Limits) -> Result<String, Problem> {
    let sheet = &book.sheets[at];
    let value = |row, column| sheet.display_text(row, column).unwrap_or_default().into_owned();
    let rows = sheet.rows.iter().enumerate();
    let rows = rows.map(|(row, cells)| (0..cells.len()).map(|column| value(row, column)).collect());
    Ok(named(&sheet.name, rows::lines(rows, limits)?))
}

/// The lines of a sheet under its name; a blank sheet stays blank.
fn named(name: &str, lines: String) -> String {
    if lines.is_empty() { lines } else { format!("# {name}\n\n{lines}") }
}

fn opened(kind: Kind, content: Vec<u8>, limits: &Limits) -> Result<Document, Problem> {
    let format = match kind {
        Kind::Xlsx => DocumentFormat::Xlsx,
        Kind::Pptx => DocumentFormat::Pptx,
        Kind::Doc => DocumentFormat::Doc,
        Kind::Xls => DocumentFormat::Xls,
        Kind::Ppt => DocumentFormat::Ppt,
        Kind::Docx | Kind::Text | Kind::Markdown | Kind::Csv | Kind::Html | Kind::Pdf => DocumentFormat::Docx,
    };
    let mut options = ParseOptions::default();
    options.limits = OfficeLimits::strict();
    options.limits.package_bytes = limits.inflated_bytes_max;
    options.limits.part_bytes = limits.inflated_bytes_max;
    Document::from_reader_with(Cursor::new(content), format, &options)
        .map_err(|error| said(kind, &error.to_string(), limits))
}

/// What went wrong, for people.
fn said(kind: Kind, text: &str, limits: &Limits) -> Problem {
    // Each format wraps the error that says so in its own, transparently: the text is what they share.
    if text.contains("limit exceeded") {
        let most = limits.inflated_bytes_max / (1024 * 1024);
        let reason = format!("{} unpacks to more than the {most} MiB that are taken ({text})", kind.name());
        return Problem::too_large(reason);
    }
    if ["encrypt", "password"].iter().any(|word| text.to_lowercase().contains(word)) {
        let reason =
            format!("{} is locked with a password; save it without one and add it again", kind.name());
        return Problem::new(ProblemKind::Encrypted, reason);
    }
    Problem::damaged(kind.name(), text)
}
