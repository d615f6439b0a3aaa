//! Names of collections as stores of other makes fold them: workspace and collection as one name, in which whatever is no letter
//! and no digit is alike.

use std::collections::{BTreeMap, BTreeSet};

/// Collections by their folded names.
#[derive(Default)]
pub(crate) struct FoldedNames {
    names: BTreeMap<String, BTreeSet<(String, String)>>,
}

impl FoldedNames {
    pub(crate) fn insert(&mut self, workspace: &str, id: &str) {
        let place = (workspace.to_owned(), id.to_owned());
        self.names.entry(folded(workspace, id)).or_default().insert(place);
    }

    pub(crate) fn remove(&mut self, workspace: &str, id: &str) {
        let name = folded(workspace, id);
        let Some(places) = self.names.get_mut(&name) else { return };
        places.remove(&(workspace.to_owned(), id.to_owned()));
        if places.is_empty() {
            self.names.remove(&name);
        }
    }

    /// Another collection that folds to the same name, as the caller may see it.
    pub(crate) fn alike(&self, workspace: &str, id: &str) -> Option<String> {
        let places = self.names.get(&folded(workspace, id))?;
        other_than(workspace, id, places.iter())
    }

    /// Another collection whose folded name begins with that of this one, as the caller may see it.
    pub(crate) fn below(&self, workspace: &str, id: &str) -> Option<String> {
        let name = folded(workspace, id);
        let below = self.names.range(name.clone()..).take_while(|(other, _)| other.starts_with(&name));
        other_than(workspace, id, below.flat_map(|(_, places)| places))
    }
}

fn folded(workspace: &str, id: &str) -> String {
    let fold = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '_' })
            .collect()
    };
    format!("{}_{}_", fold(workspace), fold(id))
}

fn other_than<'a>(
    workspace: &str,
    id: &str,
    mut places: impl Iterator<Item = &'a (String, String)>,
) -> Option<String> {
    let (in_workspace, other) = places.find(|(w, c)| !(w == workspace && c == id))?;
    Some(if in_workspace == workspace {
        format!("collection '{other}'")
    } else {
        "a collection of another workspace".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fold_alike_block_each_other_and_foreign_ones_are_not_named() {
        let mut names = FoldedNames::default();
        for (workspace, id) in [("default", "docs"), ("default", "docs-2024"), ("a", "b_c")] {
            names.insert(workspace, id);
        }
        assert_eq!(names.alike("default", "docs_2024").unwrap(), "collection 'docs-2024'");
        assert_eq!(names.alike("a-b", "c").unwrap(), "a collection of another workspace");
        assert_eq!(names.alike("default", "docs"), None, "the same one is no stranger");
        assert_eq!(names.alike("default", "other"), None);
        assert_eq!(names.below("default", "docs").unwrap(), "collection 'docs-2024'");
        assert_eq!(names.below("default", "docs-2024"), None);
        names.remove("default", "docs-2024");
        assert_eq!(names.below("default", "docs"), None, "what is gone blocks nothing");
        assert_eq!(names.alike("default", "docs_2024"), None);
        names.remove("default", "never-there");
    }
}
