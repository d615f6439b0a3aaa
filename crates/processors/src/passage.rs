//! Where a passage stands in its document, carried as labels of its chunk through the vector and keyword stores, so that
//! an answer can cite its sources without asking for each.

use std::collections::BTreeMap;

use sluice_schema::message::TextOrList;

const TITLE: &str = "title";
const PAGE: &str = "page";
const OFFSET: &str = "offset";
const LENGTH: &str = "length";
/// The document that a stored chunk came from; written by the stores' writers.
pub(crate) const DOCUMENT: &str = "doc_id";

/// What is known of a passage's place; a chunk of another maker's may carry none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The root document.
    pub document_id: String,
    /// The document's title.
    pub title: String,
    /// The page that offset and length count in; `None` when they count in the whole text.
    pub page: Option<i64>,
    /// Characters before the passage.
    pub offset: Option<usize>,
    /// Characters of the passage.
    pub length: Option<usize>,
}

impl Place {
    /// The labels of a chunk.
    pub fn attributes(&self) -> impl Iterator<Item = (String, String)> {
        let title = Some(self.title.clone()).filter(|title| !title.is_empty());
        let document = Some(self.document_id.clone()).filter(|id| !id.is_empty());
        [
            (TITLE, title),
            (PAGE, self.page.map(|page| page.to_string())),
            (OFFSET, self.offset.map(|offset| offset.to_string())),
            (LENGTH, self.length.map(|length| length.to_string())),
            (DOCUMENT, document),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    }

    /// What labels tell; those that are missing or odd are left unset.
    #[must_use]
    pub fn from_attributes(attributes: &BTreeMap<String, TextOrList>) -> Self {
        let text = |name: &str| match attributes.get(name) {
            Some(TextOrList::Text(text)) => Some(text.as_str()),
            Some(TextOrList::List(texts)) => texts.first().map(String::as_str),
            None => None,
        };
        Self {
            document_id: text(DOCUMENT).unwrap_or_default().to_owned(),
            title: text(TITLE).unwrap_or_default().to_owned(),
            page: text(PAGE).and_then(|page| page.parse().ok()),
            offset: text(OFFSET).and_then(|offset| offset.parse().ok()),
            length: text(LENGTH).and_then(|length| length.parse().ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_being_written_as_labels() {
        let place = Place {
            document_id: "urn:d".to_owned(),
            title: "Handbook".to_owned(),
            page: Some(3),
            offset: Some(120),
            length: Some(40),
        };
        let labels = place.attributes().map(|(name, value)| (name, TextOrList::Text(value))).collect();
        assert_eq!(Place::from_attributes(&labels), place);
        assert_eq!(Place::from_attributes(&BTreeMap::new()), Place::default());
    }
}
