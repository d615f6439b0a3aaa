//! The copies of blueprints and parameter types that the flow service keeps: of all workspaces together no more than a bound.
//! What is beyond it is read when a flow is started that needs it. Each workspace begins with a copy of the template, which is
//! kept once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sluice_schema::message::ScopedKey;
use sluice_schema::record;
use sluice_sdk::config::Page;

use crate::memory::FlowKey;

/// Bytes of texts that are kept beside the template's.
const KEPT_BYTES_MAX: usize = 32 << 20;
const KINDS: [&str; 2] = [record::BLUEPRINT, record::PARAMETER_TYPE];

/// A text on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// It is kept.
    Kept(Arc<str>),
    /// It is the same as the template's.
    Same(Arc<str>),
    /// It is to be read when it is needed.
    Elsewhere,
    /// Why it cannot be read.
    Unreadable(String),
}

impl Text {
    fn kept_bytes(&self) -> usize {
        match self {
            Self::Kept(text) => text.len(),
            Self::Same(_) | Self::Elsewhere | Self::Unreadable(_) => 0,
        }
    }
}

/// Texts of one kind, by workspace and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Texts {
    all: BTreeMap<FlowKey, Text>,
    kept_bytes: usize,
}

impl Texts {
    /// What is known of one.
    #[must_use]
    pub fn get(&self, key: &FlowKey) -> Option<&Text> {
        self.all.get(key)
    }

    /// What is known of all.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &Text)> {
        self.all.iter()
    }

    pub(crate) fn put(&mut self, key: FlowKey, text: Option<Text>) {
        let more = text.as_ref().map_or(0, Text::kept_bytes);
        let was = match text {
            Some(text) => self.all.insert(key, text),
            None => self.all.remove(&key),
        };
        self.kept_bytes = self.kept_bytes + more - was.as_ref().map_or(0, Text::kept_bytes);
    }

    /// A text as it is to be kept.
    pub(crate) fn of(&self, key: &FlowKey, text: &str) -> Text {
        match self.template(&key.id) {
            Some(template) if *key.workspace != *record::TEMPLATE && **template == *text => {
                Text::Same(template.clone())
            }
            _ => Text::Kept(text.into()),
        }
    }

    fn template(&self, name: &str) -> Option<&Arc<str>> {
        match self.all.get(&FlowKey::new(record::TEMPLATE, name))? {
            Text::Kept(text) | Text::Same(text) => Some(text),
            Text::Elsewhere | Text::Unreadable(_) => None,
        }
    }
}

/// Takes out of pages, as they come, what is not to be kept, so that nobody holds all of it at once.
pub(crate) struct Strip {
    room_bytes: usize,
    templates: HashMap<(String, String), Arc<str>>,
}

/// A page with the keys of the texts that were taken out.
#[derive(Default)]
pub(crate) struct Stripped {
    pub(crate) page: Page,
    /// With the template's text that each of them is the same as.
    pub(crate) same: Vec<(ScopedKey, Arc<str>)>,
    pub(crate) elsewhere: Vec<ScopedKey>,
}

impl Stripped {
    /// Whether it tells anything.
    pub(crate) fn changes(&self) -> bool {
        let Page { is_whole, values, deleted, .. } = &self.page;
        let is_empty = self.same.is_empty() && self.elsewhere.is_empty() && deleted.is_empty();
        *is_whole || !values.is_empty() || !is_empty
    }
}

impl Strip {
    pub(crate) fn new(blueprints: &Texts, parameter_types: &Texts) -> Self {
        let kept = blueprints.kept_bytes + parameter_types.kept_bytes;
        let of = |kind: &'static str, texts: &Texts| {
            let templates = texts.iter().filter(|(key, _)| *key.workspace == *record::TEMPLATE);
            let templates = templates.filter_map(|(key, text)| match text {
                Text::Kept(text) | Text::Same(text) => {
                    Some(((kind.to_owned(), key.id.to_string()), text.clone()))
                }
                Text::Elsewhere | Text::Unreadable(_) => None,
            });
            templates.collect::<Vec<_>>()
        };
        let templates = of(record::BLUEPRINT, blueprints);
        let templates = templates.into_iter().chain(of(record::PARAMETER_TYPE, parameter_types)).collect();
        Self { room_bytes: KEPT_BYTES_MAX.saturating_sub(kept), templates }
    }

    pub(crate) fn page(&mut self, mut page: Page) -> Stripped {
        if page.is_whole {
            self.room_bytes = KEPT_BYTES_MAX;
            self.templates.clear();
        }
        let (mut same, mut elsewhere) = (Vec::new(), Vec::new());
        page.values.retain(|value| {
            let Some(text) = value.value.as_deref().filter(|_| KINDS.contains(&&*value.r#type)) else {
                return true;
            };
            let name = (value.r#type.clone(), value.key.clone());
            if value.workspace == record::TEMPLATE {
                self.templates.insert(name, text.into());
                return true;
            }
            let template = self.templates.get(&name).filter(|template| ***template == *text).cloned();
            let (r#type, key) = name;
            let at = ScopedKey { workspace: value.workspace.clone(), r#type, key };
            if let Some(template) = template {
                same.push((at, template));
            } else if let Some(left) = self.room_bytes.checked_sub(text.len()) {
                self.room_bytes = left;
                return true;
            } else {
                elsewhere.push(at);
            }
            false
        });
        Stripped { page, same, elsewhere }
    }
}

#[cfg(test)]
mod tests {
    use sluice_bus::Naming;
    use sluice_schema::message::ConfigValue;

    use super::*;
    use crate::memory::Records;

    fn value(workspace: &str, text: &str) -> ConfigValue {
        sluice_sdk::config::value(workspace, record::BLUEPRINT, "b", text)
    }

    fn take(records: &mut Records, is_whole: bool, values: Vec<ConfigValue>) {
        let mut strip = Strip::new(&records.blueprints, &records.parameter_types);
        let stripped = strip.page(Page { is_whole, values, ..Page::default() });
        records.take(stripped, Naming::IDENTIFIERS);
    }

    fn text<'a>(records: &'a Records, workspace: &str) -> &'a Text {
        records.blueprints.get(&FlowKey::new(workspace, "b")).unwrap()
    }

    #[test]
    fn a_copy_of_the_template_is_kept_once() {
        let mut records = Records::default();
        let first = vec![value(record::TEMPLATE, "{}"), value("a", "{}"), value("b", "{\"other\": 1}")];
        take(&mut records, true, first);
        assert_eq!(*text(&records, "a"), Text::Same("{}".into()));
        assert_eq!(*text(&records, "b"), Text::Kept("{\"other\": 1}".into()));
        // It stays what it was when the template becomes another one.
        take(&mut records, false, vec![value(record::TEMPLATE, "{\"new\": 1}"), value("c", "{\"new\": 1}")]);
        assert_eq!(*text(&records, "a"), Text::Same("{}".into()));
        assert_eq!(*text(&records, "c"), Text::Same("{\"new\": 1}".into()));
        // Also where both are told of at once, and the template after it.
        let newest = value(record::TEMPLATE, "{\"newest\": 1}");
        take(&mut records, false, vec![value("0d", "{\"new\": 1}"), newest]);
        assert_eq!(*text(&records, "0d"), Text::Same("{\"new\": 1}".into()));
    }

    #[test]
    fn texts_of_all_workspaces_together_are_kept_up_to_a_bound() {
        let mut records = Records::default();
        let large = "x".repeat(1 << 20);
        let many = |from: usize, to: usize| (from..to).map(|n| value(&format!("w{n}"), &large)).collect();
        take(&mut records, true, many(0, 50));
        let elsewhere = |records: &Records| {
            records.blueprints.iter().filter(|(_, text)| **text == Text::Elsewhere).count()
        };
        assert_eq!((records.blueprints.kept_bytes, elsewhere(&records)), (KEPT_BYTES_MAX, 18));
        take(&mut records, false, many(50, 60));
        assert_eq!((records.blueprints.kept_bytes, elsewhere(&records)), (KEPT_BYTES_MAX, 28));
        // There is no room for another one of the same name before that is gone; then there is for others.
        take(&mut records, false, vec![value("w0", "{}")]);
        take(&mut records, false, vec![value("w59", "{}")]);
        assert_eq!((records.blueprints.kept_bytes, elsewhere(&records)), ((31 << 20) + 2, 28));
        take(&mut records, true, many(0, 1));
        assert_eq!((records.blueprints.kept_bytes, elsewhere(&records)), (1 << 20, 0));
    }
}
