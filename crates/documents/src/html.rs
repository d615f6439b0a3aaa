//! Web pages become Markdown: headings, lists, tables and links stay, scripts and styles go.

use htmd::HtmlToMarkdown;

use crate::Problem;

/// Elements that hold nothing to read.
const SKIPPED: [&str; 11] = [
    "script", "style", "noscript", "template", "head", "svg", "iframe", "object", "canvas", "button",
    "select",
];

pub(crate) fn to_markdown(html: &str) -> Result<String, Problem> {
    let converter = HtmlToMarkdown::builder().skip_tags(SKIPPED.to_vec()).build();
    let text = converter.convert(html).map_err(|error| Problem::damaged("the web page", error))?;
    match title(html).filter(|title| !text.contains(title.as_str())) {
        Some(title) if !text.trim().is_empty() => Ok(format!("# {title}\n\n{text}")),
        _ => Ok(text),
    }
}

/// What the page calls itself.
fn title(html: &str) -> Option<String> {
    let at = html.find("<title")?;
    let (_, inside) = html[at..].split_once('>')?;
    let (title, _) = inside.split_once("</title")?;
    let title = HtmlToMarkdown::new().convert(title).ok()?;
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
        let text = to_markdown(page).unwrap();
        assert!(text.starts_with("# The shed & co\n\n## Tools"), "{text}");
        assert!(text.contains("**saw**") && text.contains("oil") && text.contains("rags"), "{text}");
        assert!(!text.contains("alert") && !text.contains("p{}"), "{text}");
    }

    #[test]
    fn a_title_that_the_page_says_itself_is_not_said_twice() {
        let text = to_markdown("<title>Tea</title><h1>Tea</h1><p>x</p>").unwrap();
        assert_eq!(text.matches("Tea").count(), 1);
        assert_eq!(to_markdown("<title>Tea</title>").unwrap(), "");
    }
}
