//! The page of operations is what the tables say; `SLUICE_UPDATE_DOCS=1 cargo test -p sluice-schema --test docs` rewrites it
//! from its words in `data/operations.md` and the tables.

use std::path::Path;

#[test]
fn the_page_of_operations_is_what_the_table_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let wanted = include_str!("data/operations.md")
        .replace("{operations}", sluice_schema::operation::markdown().trim_end())
        .replace("{ceilings}", sluice_schema::operation::ceilings_markdown().trim_end());
    if std::env::var_os("SLUICE_UPDATE_DOCS").is_some() {
        std::fs::write(&page, &wanted).expect("the docs folder can be written");
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/operations.md is behind the table; rewrite it as this file's first line says"
    );
}
