//! Whole documents of every kind, and bad ones: what each gives, and the one clear reason for what it does not give.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[allow(dead_code, reason = "shared with the tests of the whole system, which use more")]
mod made;

use sluice_documents::{Event, Kind, Limits, ProblemKind, Unit, child, read, recognise};

/// What a document of a declared type tells.
fn told(declared: &str, content: &[u8], limits: &Limits) -> Vec<Event> {
    let kind = match recognise(declared, content) {
        Ok(kind) => kind,
        Err(problem) => return vec![Event::Failed(problem)],
    };
    let mut told = Vec::new();
    let mut tell = |event| {
        told.push(event);
        Ok(())
    };
    read(kind, declared, content.to_vec(), limits, &mut tell).unwrap();
    told
}

fn texts(told: &[Event]) -> Vec<(usize, &str)> {
    let text = |event| match event {
        &Event::Part { number, ref text } => Some((number, text.trim())),
        _ => None,
    };
    told.iter().filter_map(text).collect()
}

/// First and last part and kind of every loss; a failure of the whole is from 0 to 0.
fn losses(told: &[Event]) -> Vec<(usize, usize, ProblemKind)> {
    told.iter()
        .filter_map(|event| match event {
            Event::Lost { first, last, problem } => Some((*first, *last, problem.kind)),
            Event::Failed(problem) => Some((0, 0, problem.kind)),
            _ => None,
        })
        .collect()
}

fn reason(told: &[Event]) -> &str {
    let reason = told.iter().find_map(|event| match event {
        Event::Lost { problem, .. } | Event::Failed(problem) => Some(problem.reason.as_str()),
        _ => None,
    });
    reason.unwrap_or_default()
}

#[cfg(feature = "pdf")]
mod pdf {
    use super::*;

    #[test]
    fn a_pdf_gives_its_pages_with_their_numbers() {
        let document = made::pdf(&["The first page.", "The second page, about leeks."]);
        let told = told("application/octet-stream", &document, &Limits::default());
        assert_eq!(told[0], Event::Begin { kind: Kind::Pdf, unit: Unit::Page, count: 2 });
        assert_eq!(texts(&told), [(1, "The first page."), (2, "The second page, about leeks.")]);
        assert_eq!(told.last(), Some(&Event::End));
    }

    #[test]
    fn a_blank_page_is_said_and_the_others_keep_their_numbers() {
        let told = told("application/pdf", &made::pdf(&["One.", "", "Three."]), &Limits::default());
        assert_eq!(texts(&told), [(1, "One."), (3, "Three.")]);
        assert_eq!(losses(&told), [(2, 2, ProblemKind::Empty)]);
        assert!(reason(&told).contains("page 2"), "{told:?}");
    }

    #[test]
    fn a_pdf_without_any_text_is_refused_with_what_to_do() {
        let told = told("application/pdf", &made::pdf(&["", ""]), &Limits::default());
        let Some(Event::Failed(problem)) = told.last() else { panic!("{told:?}") };
        assert_eq!(problem.kind, ProblemKind::Empty);
        assert!(problem.reason.contains("OCR"), "{problem}");
    }

    #[test]
    fn of_five_thousand_pages_the_first_are_read_and_the_rest_is_named() {
        let pages: Vec<String> = (1..=5_000).map(|number| format!("Text of {number}.")).collect();
        let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
        let limits = Limits { parts_max: 40, ..Limits::default() };
        let told = told("application/pdf", &made::pdf(&pages), &limits);
        assert_eq!(texts(&told).last(), Some(&(40, "Text of 40.")));
        assert_eq!(losses(&told), [(41, 5_000, ProblemKind::TooLarge)]);
        assert!(reason(&told).contains("pages 41 to 5000 were left out"), "{}", reason(&told));
    }

    #[test]
    fn too_much_text_ends_the_reading_and_keeps_what_was_read() {
        let page = "word ".repeat(30);
        let limits = Limits { text_bytes_max: 400, ..Limits::default() };
        let told = told("application/pdf", &made::pdf(&[page.as_str(); 5]), &limits);
        assert_eq!(texts(&told).len(), 2);
        assert_eq!(losses(&told), [(0, 0, ProblemKind::TooLarge)]);
        assert!(reason(&told).contains("page 3"), "{}", reason(&told));
    }

    #[test]
    fn a_locked_pdf_is_told_to_be_locked() {
        let told = told("application/pdf", &made::locked_pdf(), &Limits::default());
        assert_eq!(losses(&told), [(0, 0, ProblemKind::Encrypted)], "{told:?}");
        assert!(reason(&told).contains("password"));
    }

    #[test]
    fn a_broken_pdf_is_told_to_be_damaged() {
        for content in [&b"%PDF-1.7"[..], b"%PDF-1.7\n%%EOF", b"%PDF-1.4\ntrailer << /Root 1 0 R >>"] {
            let told = told("application/pdf", content, &Limits::default());
            assert_eq!(losses(&told), [(0, 0, ProblemKind::Damaged)], "{told:?}");
        }
    }

    #[test]
    fn a_pdf_cut_anywhere_ends_in_text_or_a_reason() {
        let whole = made::pdf(&["One.", "Two.", "Three."]);
        for cut in (0..whole.len()).step_by(37) {
            let told = told("application/pdf", &whole[..cut], &Limits::default());
            assert!(matches!(told.last(), Some(Event::End | Event::Failed(_))), "cut at {cut}: {told:?}");
        }
    }
}

#[test]
fn a_word_document_is_one_section_with_headings_lists_and_tables() {
    let told = told("", &made::docx(), &Limits::default());
    assert_eq!(told[0], Event::Begin { kind: Kind::Docx, unit: Unit::Section, count: 1 });
    let (_, text) = texts(&told)[0];
    assert!(text.contains("# Leeks"), "{text}");
    assert!(text.contains("Sow them in **March**.") || text.contains("Sow them in March."), "{text}");
    assert!(text.contains("Autumn") && text.contains("Winter"), "{text}");
}

#[test]
fn each_sheet_of_a_workbook_is_a_section_whose_lines_name_their_values() {
    let told = told("", &made::xlsx(), &Limits::default());
    assert_eq!(told[0], Event::Begin { kind: Kind::Xlsx, unit: Unit::Section, count: 2 });
    assert_eq!(
        texts(&told),
        [(1, "# Beds\n\nbed: north | plant: leek | count: 12\nbed: south | count: 3.5")]
    );
    assert_eq!(losses(&told), [(2, 2, ProblemKind::Empty)]);
}

#[test]
fn each_slide_is_a_page() {
    let told = told("", &made::pptx(), &Limits::default());
    assert_eq!(told[0], Event::Begin { kind: Kind::Pptx, unit: Unit::Page, count: 2 });
    let texts = texts(&told);
    assert!(texts[0].1.contains("What we grow") && texts[1].1.contains("What we eat"), "{texts:?}");
}

#[test]
fn a_zip_bomb_is_refused_for_its_size() {
    let limits = Limits { inflated_bytes_max: 1024 * 1024, ..Limits::default() };
    for (name, kind) in [("word/document.xml", Kind::Docx), ("xl/worksheets/sheet1.xml", Kind::Xlsx)] {
        let bomb = made::bomb(kind, name, 64 * 1024 * 1024);
        assert!(bomb.len() < 256 * 1024);
        let told = told("", &bomb, &limits);
        let kinds: Vec<ProblemKind> = losses(&told).into_iter().map(|(_, _, kind)| kind).collect();
        assert!(kinds.contains(&ProblemKind::TooLarge), "{told:?}");
        assert!(texts(&told).is_empty(), "nothing of a bomb is taken for text");
    }
}

#[test]
fn a_broken_office_file_is_told_to_be_damaged() {
    let whole = made::docx();
    let told = told("", &whole[..whole.len() / 2], &Limits::default());
    assert_eq!(losses(&told), [(0, 0, ProblemKind::Damaged)], "{told:?}");
}

#[test]
fn plain_text_and_markdown_stay_as_they_are() {
    let text = "# Käse\n\n  two  spaces \n\n\n\nthree lines\n";
    for declared in ["text/plain", "text/markdown"] {
        let told = told(declared, text.as_bytes(), &Limits::default());
        assert_eq!(told[1], Event::Part { number: 1, text: text.to_owned() }, "{declared}");
    }
    assert_eq!(losses(&told("text/plain", b" \n\t\n", &Limits::default()))[1], (0, 0, ProblemKind::Empty));
    assert_eq!(losses(&told("text/plain", b"", &Limits::default()))[1], (0, 0, ProblemKind::Empty));
}

/// What a document gives in the process that reads such, with the stack it has there.
fn served(declared: &str, content: &[u8]) -> Vec<Event> {
    let order = child::Order {
        declared: declared.to_owned(),
        content_bytes: content.len() as u64,
        limits: Limits::default(),
    };
    let mut output = Vec::new();
    child::serve([&order.line(), content].concat().as_slice(), &mut output).unwrap();
    let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let told: Vec<Event> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    let mut conversation = child::Conversation::new(Limits::default());
    assert!(told.iter().all(|event| conversation.accepts(event)), "{told:?}");
    told
}

#[test]
fn a_web_page_of_any_depth_gives_its_text() {
    // Hundreds of thousands of elements: with time or memory that grows faster than the page, this would not end.
    for (start, count) in
        [("<div>", 300_000), ("<b><i>", 100_000), ("<ul><li>", 100_000), ("<table><tr><td>", 100_000)]
    {
        let page = format!("<html><title>Deep</title><body>{}Deep down.", start.repeat(count));
        let told = served("text/html", page.as_bytes());
        let (_, text) = texts(&told)[0];
        assert!(text.contains("Deep down."), "{start}");
    }
    let page = format!("<html><title>{}</title><p>Here.", "<div>".repeat(300_000));
    assert!(texts(&served("", page.as_bytes()))[0].1.contains("Here."));
}

#[test]
fn a_table_of_millions_of_values_is_one_text_or_too_large() {
    let row = "a,".repeat(4_000_000);
    let told = served("text/csv", row.as_bytes());
    assert_eq!(texts(&told)[0].1.len(), 4_000_000 * 4 - 3);
    let told = served("text/csv", "a,".repeat(6_000_000).as_bytes());
    assert_eq!(losses(&told), [(0, 0, ProblemKind::TooLarge)]);
    let quoted = format!("\"{}", "a".repeat(20_000_000));
    assert_eq!(losses(&served("text/csv", quoted.as_bytes())), [(0, 0, ProblemKind::TooLarge)]);
}
