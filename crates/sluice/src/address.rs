//! Addresses that somebody gave on the command line or in a variable: whether they can be one at all, told by where they came
//! from. Nothing of a text that cannot be read is repeated, for it may hold a password; [`sluice_schema::address`] says what
//! may be shown of one that can.

use std::path::Path;

use sluice_schema::address;
use url::Url;

use crate::exit::Told;

/// An option that takes an address.
pub(crate) struct Given {
    pub(crate) option: &'static str,
    pub(crate) variable: &'static str,
    schemes: &'static [&'static str],
    /// What such an address looks like.
    like: &'static str,
}

const HTTP: &[&str] = &["http", "https"];

pub(crate) const GATEWAY: Given =
    Given { option: "--url", variable: "TRUSTGRAPH_URL", schemes: HTTP, like: "http://127.0.0.1:8888/" };
pub(crate) const MANAGEMENT: Given = Given {
    option: "--broker-management",
    variable: "SLUICE_BROKER_MANAGEMENT",
    schemes: HTTP,
    like: "http://host:15672",
};
pub(crate) const MODEL: Given = Given {
    option: "--llm-url",
    variable: "SLUICE_LLM_URL",
    schemes: HTTP,
    like: "http://127.0.0.1:11434/v1",
};
pub(crate) const EMBEDDINGS: Given = Given {
    option: "--embeddings-url",
    variable: "SLUICE_EMBEDDINGS_URL",
    schemes: HTTP,
    like: "http://127.0.0.1:11434/v1",
};
const LOCAL_MODEL: Given = Given {
    option: "--embeddings-local",
    variable: "SLUICE_EMBEDDINGS_LOCAL",
    schemes: HTTP,
    like: "models/all-MiniLM-L6-v2 or https://host/model",
};
pub(crate) const OBJECTS: Given = Given {
    option: "--objects",
    variable: "SLUICE_OBJECTS",
    schemes: sluice_databases::SCHEMES,
    like: "s3://bucket/folder",
};
pub(crate) const OBJECTS_ENDPOINT: Given = Given {
    option: "--objects-endpoint",
    variable: "AWS_ENDPOINT_URL",
    schemes: HTTP,
    like: "http://127.0.0.1:9000",
};

impl Given {
    /// Reads an address that has one of the schemes and a host.
    pub(crate) fn read(&self, text: &str) -> Result<Url, Told> {
        let text = text.trim();
        if !address::scheme(text).is_some_and(|scheme| self.schemes.contains(&&*scheme.to_ascii_lowercase()))
        {
            return Err(self.refused(&format!("does not begin with {}://", self.schemes.join(":// or "))));
        }
        let url = Url::parse(text).map_err(|error| self.refused(&format!("cannot be read ({error})")))?;
        match url.host_str() {
            Some(host) if !host.is_empty() => Ok(url),
            _ => Err(self.refused("names no host")),
        }
    }

    /// Reads an address that holds a place and nothing else: whoever may see it may see all of it.
    pub(crate) fn read_bare(&self, text: &str) -> Result<Url, Told> {
        let url = self.read(text)?;
        let has_user = !url.username().is_empty() || url.password().is_some();
        if has_user || url.query().is_some() || url.fragment().is_some() {
            return Err(self.refused("holds more than a place: a user, a key or a query"));
        }
        Ok(url)
    }

    /// What may be shown of an address.
    pub(crate) fn shown(&self, text: &str) -> String {
        address::shown(text)
            .unwrap_or_else(|| format!("the address given with {} or {}", self.option, self.variable))
    }

    fn refused(&self, why: &str) -> Told {
        Told::usage(format!("the address given with {} or {} {why}", self.option, self.variable))
            .next(format!("{} {}", self.option, self.like))
    }
}

/// Checks where a model lies that is run here: a folder, or an address.
pub(crate) fn check_local_model(text: &str) -> Result<(), Told> {
    if address::scheme(text).is_some() {
        return LOCAL_MODEL.read(text).map(drop);
    }
    // A mistyped address would be repeated as the name of a folder.
    match address::is_harmless(text) || Path::new(text).is_dir() {
        true => Ok(()),
        false => Err(LOCAL_MODEL.refused("is no folder, and does not begin with http:// or https://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_read_is_named_by_its_option_and_not_repeated() {
        for given in [GATEWAY, MANAGEMENT, MODEL, EMBEDDINGS, LOCAL_MODEL, OBJECTS, OBJECTS_ENDPOINT] {
            for wrong in ["u:hush@h/v1", "http:/u:hush@h", "gopher://u:hush@h", "http://u:hush@h:99999/"] {
                let told = given.read(wrong).err().map(|told| format!("{told:?}")).unwrap();
                let is_named = told.contains(given.option) && told.contains(given.variable);
                assert!(is_named && told.contains(given.like) && !told.contains("hush"), "{wrong}: {told}");
            }
        }
        assert!(MODEL.read("HTTP://u:p@h/v1").is_ok() && OBJECTS.read_bare("s3://b/f").is_ok());
        assert!(
            OBJECTS.read_bare("s3://u:hush@b/f").is_err() && OBJECTS.read_bare("s3://b/f?k=hush").is_err()
        );
        assert!(check_local_model("models/tiny").is_ok() && check_local_model("http://h/m").is_ok());
        assert!(check_local_model("u:hush@h/m").is_err() && check_local_model("http:/u:hush@h/m").is_err());
    }
}
