//! The page of operations is what the table says; `SLUICE_UPDATE_DOCS=1 cargo test -p sluice-schema --test docs` rewrites it.

use std::path::Path;

#[test]
fn the_page_of_operations_is_what_the_table_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let wanted = format!(
        "# Operations\n\nEvery call that the gateway knows, and the capability it needs; a call whose service is not part of a deployment\nanswers that nobody serves it. A workspace service is called by `POST \
         /api/v1/<service>`\nwith the operation in the body, a flow's service by `POST /api/v1/flow/<flow>/service/<service>`, \
         both also over\nthe WebSocket `/api/v1/socket`. Made from `schema::operation`.\n\n{}\n\n\
         ## What a member of a call holds\n\n\
         A member of a call of a flow's service holds no more than this, over everything in it; beyond that the call is refused\n\
         as `too-large` before anything is made of it. `text-load`, `document-load` and pass-throughs are bounded by their body\n\
         alone. No call takes more memory than 256 MiB and 48 times its body, measured in a debug build.\n\n{}\n",
        sluice_schema::operation::markdown().trim_end(),
        sluice_schema::operation::ceilings_markdown().trim_end()
    );
    if std::env::var_os("SLUICE_UPDATE_DOCS").is_some() {
        std::fs::write(&page, &wanted).expect("the docs folder can be written");
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/operations.md is behind the table; rewrite it as this file's first line says"
    );
}
