//! Documents made by hand, as small as they can be.

use std::io::{Cursor, Write};

use sluice_documents::Kind;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A PDF with a line of text on each page; a page of nothing is blank.
pub(crate) fn pdf(pages: &[&str]) -> Vec<u8> {
    let kids: Vec<String> = (0..pages.len()).map(|at| format!("{} 0 R", 4 + at * 2)).collect();
    let mut objects = vec![
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        format!("<< /Type /Pages /Kids [{}] /Count {} >>", kids.join(" "), pages.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    for (at, text) in pages.iter().enumerate() {
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {} 0 R /Resources << /Font << /F1 3 0 R >> >> >>",
            5 + at * 2
        ));
        let drawn =
            if text.is_empty() { String::new() } else { format!("BT /F1 12 Tf 72 720 Td ({text}) Tj ET") };
        objects.push(format!("<< /Length {} >>\nstream\n{drawn}\nendstream", drawn.len()));
    }
    file(&objects)
}

/// A PDF that wants a password.
pub(crate) fn locked_pdf() -> Vec<u8> {
    let key = "ab".repeat(32);
    let lock = format!(
        "/Encrypt << /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -4 >> /ID [<{key}> <{key}>]"
    );
    let plain = pdf(&["Secret."]);
    let text = String::from_utf8(plain).unwrap();
    text.replace("/Root 1 0 R", &format!("/Root 1 0 R {lock}")).into_bytes()
}

/// A PDF whose pages hold themselves, and of which there are said to be a thousand million: its parser never ends.
pub(crate) fn endless_pdf() -> Vec<u8> {
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [2 0 R 2 0 R] /Parent 2 0 R /Count 1000000000 >>".to_owned(),
    ];
    file(&objects)
}

/// A PDF of a few bytes whose page unpacks to 32 GiB: each filter makes 64 times as many.
pub(crate) fn pdf_bomb() -> Vec<u8> {
    let filters = "/RunLengthDecode ".repeat(5);
    let packed = "81".repeat(32);
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R >>".to_owned(),
        format!(
            "<< /Length {} /Filter [/ASCIIHexDecode {filters}] >>\nstream\n{packed}>\nendstream",
            packed.len() + 1
        ),
    ];
    file(&objects)
}

fn file(objects: &[String]) -> Vec<u8> {
    let mut file = b"%PDF-1.4\n".to_vec();
    let mut places = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        places.push(file.len());
        write!(file, "{} 0 obj\n{object}\nendobj\n", at + 1).unwrap();
    }
    let table = file.len();
    write!(file, "xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).unwrap();
    for place in places {
        writeln!(file, "{place:010} 00000 n ").unwrap();
    }
    let size = objects.len() + 1;
    write!(file, "trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n").unwrap();
    file
}

const OFFICE: &str = "application/vnd.openxmlformats-officedocument";
const RELATIONS: &str = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
const PACKAGE: &str = "http://schemas.openxmlformats.org/package/2006";

fn package(main: &str, main_type: &str, others: &[(&str, &str)], parts: &[(&str, String)]) -> Vec<u8> {
    let mut types = format!(
        "<Types xmlns=\"{PACKAGE}/content-types\"><Default Extension=\"rels\" ContentType=\"application/vnd.openxmlformats-package.relationships+xml\"/><Default Extension=\"xml\" ContentType=\"application/xml\"/><Override PartName=\"/{main}\" ContentType=\"{OFFICE}.{main_type}.main+xml\"/>"
    );
    for (part, content_type) in others {
        types.push_str(&format!(
            "<Override PartName=\"/{part}\" ContentType=\"{OFFICE}.{content_type}+xml\"/>"
        ));
    }
    types.push_str("</Types>");
    let root = relations(&[("rId1", "officeDocument", main)]);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let fixed = [("[Content_Types].xml", types), ("_rels/.rels", root)];
    for (name, content) in fixed.iter().chain(parts) {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn relations(of: &[(&str, &str, &str)]) -> String {
    let each: Vec<String> = of
        .iter()
        .map(|(id, kind, target)| {
            format!("<Relationship Id=\"{id}\" Type=\"{RELATIONS}/{kind}\" Target=\"{target}\"/>")
        })
        .collect();
    format!("<Relationships xmlns=\"{PACKAGE}/relationships\">{}</Relationships>", each.concat())
}

pub(crate) fn docx() -> Vec<u8> {
    docx_of(concat!(
        "<w:p><w:pPr><w:pStyle w:val=\"Heading1\"/></w:pPr><w:r><w:t>Leeks</w:t></w:r></w:p>",
        "<w:p><w:r><w:t xml:space=\"preserve\">Sow them in </w:t></w:r><w:r><w:rPr><w:b/></w:rPr><w:t>March</w:t></w:r><w:r><w:t>.</w:t></w:r></w:p>",
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>Autumn</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Winter</w:t></w:r></w:p></w:tc></w:tr></w:tbl>",
    ))
}

fn docx_of(body: &str) -> Vec<u8> {
    let space = "xmlns:w=\"http://schemas.openxmlformats.org/wordprocessingml/2006/main\"";
    let document = format!("<w:document {space}><w:body>{body}</w:body></w:document>");
    let styles = format!(
        "<w:styles {space}><w:style w:type=\"paragraph\" w:styleId=\"Heading1\"><w:name w:val=\"heading 1\"/><w:pPr><w:outlineLvl w:val=\"0\"/></w:pPr></w:style></w:styles>"
    );
    package(
        "word/document.xml",
        "wordprocessingml.document",
        &[("word/styles.xml", "wordprocessingml.styles")],
        &[
            ("word/document.xml", document),
            ("word/styles.xml", styles),
            ("word/_rels/document.xml.rels", relations(&[("rId1", "styles", "styles.xml")])),
        ],
    )
}

pub(crate) fn xlsx() -> Vec<u8> {
    let text =
        |cell: &str, value: &str| format!("<c r=\"{cell}\" t=\"inlineStr\"><is><t>{value}</t></is></c>");
    let number = |cell: &str, value: &str| format!("<c r=\"{cell}\"><v>{value}</v></c>");
    let row = |number: u32, cells: &[String]| format!("<row r=\"{number}\">{}</row>", cells.concat());
    let rows = [
        row(1, &[text("A1", "bed"), text("B1", "plant"), text("C1", "count")]),
        row(2, &[text("A2", "north"), text("B2", "leek"), number("C2", "12")]),
        row(9, &[text("A9", "south"), number("C9", "3.5")]),
    ];
    xlsx_of(&rows.concat())
}

fn xlsx_of(rows: &str) -> Vec<u8> {
    let space = "xmlns=\"http://schemas.openxmlformats.org/spreadsheetml/2006/main\"";
    let book = format!(
        "<workbook {space} xmlns:r=\"{RELATIONS}\"><sheets><sheet name=\"Beds\" sheetId=\"1\" r:id=\"rId1\"/><sheet name=\"Spare\" sheetId=\"2\" r:id=\"rId2\"/></sheets></workbook>"
    );
    let sheet = |rows: &str| format!("<worksheet {space}><sheetData>{rows}</sheetData></worksheet>");
    let sheet_type = "spreadsheetml.worksheet";
    package(
        "xl/workbook.xml",
        "spreadsheetml.sheet",
        &[("xl/worksheets/sheet1.xml", sheet_type), ("xl/worksheets/sheet2.xml", sheet_type)],
        &[
            ("xl/workbook.xml", book),
            ("xl/worksheets/sheet1.xml", sheet(rows)),
            ("xl/worksheets/sheet2.xml", sheet("")),
            (
                "xl/_rels/workbook.xml.rels",
                relations(&[
                    ("rId1", "worksheet", "worksheets/sheet1.xml"),
                    ("rId2", "worksheet", "worksheets/sheet2.xml"),
                ]),
            ),
        ],
    )
}

pub(crate) fn pptx() -> Vec<u8> {
    let spaces = format!(
        "xmlns:p=\"http://schemas.openxmlformats.org/presentationml/2006/main\" xmlns:a=\"http://schemas.openxmlformats.org/drawingml/2006/main\" xmlns:r=\"{RELATIONS}\""
    );
    let show = format!(
        "<p:presentation {spaces}><p:sldIdLst><p:sldId id=\"256\" r:id=\"rId1\"/><p:sldId id=\"257\" r:id=\"rId2\"/></p:sldIdLst></p:presentation>"
    );
    let slide = |text: &str| {
        format!(
            "<p:sld {spaces}><p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/><p:sp><p:nvSpPr><p:cNvPr id=\"2\" name=\"t\"/><p:cNvSpPr/><p:nvPr/></p:nvSpPr><p:spPr/><p:txBody><a:bodyPr/><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp></p:spTree></p:cSld></p:sld>"
        )
    };
    let slide_type = "presentationml.slide";
    package(
        "ppt/presentation.xml",
        "presentationml.presentation",
        &[("ppt/slides/slide1.xml", slide_type), ("ppt/slides/slide2.xml", slide_type)],
        &[
            ("ppt/presentation.xml", show),
            ("ppt/slides/slide1.xml", slide("What we grow")),
            ("ppt/slides/slide2.xml", slide("What we eat")),
            (
                "ppt/_rels/presentation.xml.rels",
                relations(&[("rId1", "slide", "slides/slide1.xml"), ("rId2", "slide", "slides/slide2.xml")]),
            ),
        ],
    )
}

/// A small file with a part that unpacks to many bytes of text.
pub(crate) fn bomb(kind: Kind, part: &str, bytes: usize) -> Vec<u8> {
    assert!(part.starts_with(if kind == Kind::Docx { "word/" } else { "xl/" }));
    if kind == Kind::Docx {
        docx_of(&format!("<w:p><w:r><w:t>{}</w:t></w:r></w:p>", "a".repeat(bytes)))
    } else {
        let cell = format!(
            "<row r=\"1\"><c r=\"A1\" t=\"inlineStr\"><is><t>{}</t></is></c></row>",
            "a".repeat(bytes)
        );
        xlsx_of(&cell)
    }
}
