//! Web pages become Markdown: headings, lists, tables and links stay, scripts and styles go.

mod tree;

use htmd::HtmlToMarkdown;

/// Elements that hold nothing to read.
const SKIPPED: [&str; 11] = [
    "script", "style", "noscript", "template", "head", "svg", "iframe", "object", "canvas", "button",
    "select",
];
/// Bytes of a title that are read.
const TITLE_BYTES_MAX: usize = 4 * 1024;

pub(crate) fn to_markdown(html: &str) -> String {
    let converter = HtmlToMarkdown::builder().skip_tags(SKIPPED.to_vec()).build();
    let text = converter.tree_to_markdown(&tree::parse(html));
    match title(html).filter(|title| !text.contains(title.as_str())) {
        Some(title) if !text.trim().is_empty() => format!("# {title}\n\n{text}"),
        _ => text,
    }
}

/// What the page calls itself.
fn title(html: &str) -> Option<String> {
    let at = html.find("<title")?;
    let end = html.floor_char_boundary(at.saturating_add(TITLE_BYTES_MAX));
    let (_, inside) = html[at..end].split_once('>')?;
    let (title, _) = inside.split_once("</title")?;
    let title = HtmlToMarkdown::new().tree_to_markdown(&tree::parse(title));
    let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
    (!title.is_empty()).then_some(title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_stays_and_machinery_goes() {
        let page = "<html><head><title>The  shed &amp; co</title><style>p{}</style></head><body>\
            <script>alert(1)</script><h2>Tools</h2><p>A <b>saw</b>, a&nbsp;rake.</p>\
            <ul><li>oil<li>rags</ul></body></html>";
        let text = to_markdown(page);
        assert!(text.starts_with("# The shed & co\n\n## Tools"), "{text}");
        assert!(text.contains("**saw**") && text.contains("oil") && text.contains("rags"), "{text}");
        assert!(!text.contains("alert") && !text.contains("p{}"), "{text}");
    }

    #[test]
    fn a_title_that_the_page_says_itself_is_not_said_twice() {
        let text = to_markdown("<title>Tea</title><h1>Tea</h1><p>x</p>");
        assert_eq!(text.matches("Tea").count(), 1);
        assert_eq!(to_markdown("<title>Tea</title>"), "");
    }
}
