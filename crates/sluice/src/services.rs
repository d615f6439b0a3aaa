//! What a process runs: any of the five services and of the processors, by the names that people give them.

use std::collections::BTreeSet;

use crate::exit::Told;

/// A service that can run by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Config,
    Iam,
    Library,
    Flow,
    Gateway,
}

const SERVICES: &[(Service, &str)] = &[
    (Service::Config, "config"),
    (Service::Iam, "iam"),
    (Service::Library, "library"),
    (Service::Flow, "flow"),
    (Service::Gateway, "gateway"),
];

/// Stands for every processor.
const PROCESSORS: &str = "processors";
/// Stands for every processor that keeps what it is given.
const STORES: &str = "stores";

/// Everything that one process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    services: BTreeSet<Service>,
    processors: BTreeSet<String>,
}

impl Selection {
    /// Every service and processor there is.
    pub(crate) fn everything() -> Self {
        let roster = sluice_processors::roster();
        Self {
            services: SERVICES.iter().map(|(service, _)| *service).collect(),
            processors: roster.ids().map(|id| id.to_string()).collect(),
        }
    }

    /// What is named, and nothing else.
    pub(crate) fn of(names: &[String]) -> Result<Self, Told> {
        let mut selection = Self { services: BTreeSet::new(), processors: BTreeSet::new() };
        names.iter().try_for_each(|name| selection.name(name, |set, one| set.add(one)))?;
        selection.whole()
    }

    /// Everything but what is named.
    pub(crate) fn without(names: &[String]) -> Result<Self, Told> {
        let mut selection = Self::everything();
        names.iter().try_for_each(|name| selection.name(name, |set, one| set.remove(one)))?;
        selection.whole()
    }

    pub(crate) fn runs(&self, service: Service) -> bool {
        self.services.contains(&service)
    }

    pub(crate) fn runs_processor(&self, id: &str) -> bool {
        self.processors.contains(id)
    }

    pub(crate) fn runs_processors(&self) -> bool {
        !self.processors.is_empty()
    }

    /// The services of this process that keep something in its data folder, and one of the processors of each store.
    pub(crate) fn keepers(&self) -> Vec<&'static str> {
        let keeps = |service: &Service| matches!(service, Service::Config | Service::Iam | Service::Library);
        let services = SERVICES.iter().filter(|(service, _)| keeps(service) && self.runs(*service));
        let stores = sluice_processors::STORES.iter().filter_map(|store| store.first().copied());
        let processors = stores.filter(|id| self.runs_processor(id));
        services.map(|(_, name)| *name).chain(processors).collect()
    }

    fn name(&mut self, name: &str, apply: impl Fn(&mut Self, One<'_>)) -> Result<(), Told> {
        let known = sluice_processors::roster();
        let stores = || sluice_processors::STORES.iter().copied().flatten();
        match name {
            PROCESSORS => known.ids().for_each(|id| apply(self, One::Processor(id))),
            STORES => stores().for_each(|id| apply(self, One::Processor(id))),
            _ => {
                let service = SERVICES.iter().find(|(_, own)| *own == name).map(|(service, _)| *service);
                let processor = known.ids().find(|id| ***id == *name);
                match (service, processor) {
                    (Some(service), _) => apply(self, One::Service(service)),
                    (None, Some(id)) => apply(self, One::Processor(id)),
                    (None, None) => return Err(unknown(name)),
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, one: One<'_>) {
        match one {
            One::Service(service) => drop(self.services.insert(service)),
            One::Processor(id) => drop(self.processors.insert(id.to_owned())),
        }
    }

    fn remove(&mut self, one: One<'_>) {
        match one {
            One::Service(service) => drop(self.services.remove(&service)),
            One::Processor(id) => drop(self.processors.remove(id)),
        }
    }

    /// Refuses halves of a store: what one process writes, another could not find.
    fn whole(self) -> Result<Self, Told> {
        for store in sluice_processors::STORES {
            let (here, elsewhere): (Vec<&str>, Vec<&str>) =
                store.iter().copied().partition(|id| self.runs_processor(id));
            if !here.is_empty() && !elsewhere.is_empty() {
                let (here, elsewhere) = (here.join(" "), elsewhere.join(" "));
                let told = format!("{here} and {elsewhere} share a store, so they run in one process");
                return Err(Told::usage(told).next(format!("name {elsewhere} too, or leave {here} out")));
            }
        }
        if self.services.is_empty() && self.processors.is_empty() {
            return Err(
                Told::usage("there is nothing to run").next("name a service; see 'sluice run --help'")
            );
        }
        Ok(self)
    }
}

#[derive(Clone, Copy)]
enum One<'a> {
    Service(Service),
    Processor(&'a str),
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let services = SERVICES.iter().filter(|(service, _)| self.runs(*service)).map(|(_, name)| *name);
        let names: Vec<&str> = services.chain(self.processors.iter().map(String::as_str)).collect();
        f.write_str(&names.join(" "))
    }
}

fn unknown(name: &str) -> Told {
    let services: Vec<&str> = SERVICES.iter().map(|(_, name)| *name).collect();
    let roster = sluice_processors::roster();
    let processors: Vec<&str> = roster.ids().map(|id| &**id).collect();
    Told::usage(format!("there is no service or processor '{name}'")).next(format!(
        "one of {}, {PROCESSORS} (all of them), {STORES} (those that keep data), {}",
        services.join(", "),
        processors.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Result<Selection, Told> {
        Selection::of(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_and_groups_select() {
        let selection = of(&["flow", "stores", "chunker"]).unwrap();
        assert!(selection.runs(Service::Flow) && !selection.runs(Service::Config));
        assert!(selection.runs_processor("chunker") && selection.runs_processor("kw-index"));
        assert!(!selection.runs_processor("prompt"));
        assert!(selection.to_string().starts_with("flow chunker doc-embeddings-query"), "{selection}");
        assert_eq!(
            of(&["config", "iam", "library", "flow", "gateway", "processors"]),
            Ok(Selection::everything())
        );
    }

    #[test]
    fn what_is_left_out_does_not_run() {
        let selection = Selection::without(&["chunker".to_owned(), "gateway".to_owned()]).unwrap();
        assert!(!selection.runs_processor("chunker") && !selection.runs(Service::Gateway));
        assert!(selection.runs_processor("prompt") && selection.runs(Service::Iam));
    }

    #[test]
    fn half_a_store_is_refused_by_name() {
        let told = of(&["triples-write"]).unwrap_err();
        assert!(told.message.contains("triples-query"), "{told}");
        assert!(of(&["nobody"]).unwrap_err().next.unwrap().contains("gateway"));
        assert!(of(&[]).is_err());
    }

    /// The table is true: who cannot be bound without a store is in it, and nobody else.
    #[tokio::test]
    async fn the_processors_that_need_a_store_are_those_of_the_table() {
        use sluice_bus::embedded::Embedded;
        use sluice_sdk::{ConfigWatch, Metrics, Process, watch};
        let process = Process::new(std::sync::Arc::new(Embedded::in_memory()), Default::default());
        let watch = ConfigWatch::start(&process, watch::RESYNC_INTERVAL);
        let model = sluice_processors::Model::new(None).unwrap();
        let resources = sluice_processors::resources(None, model, &Metrics::default());
        let roster = sluice_processors::roster();
        for id in roster.ids() {
            let bound = roster.clone().only(|one| *one == **id).catalogue(&process, &watch, &resources);
            let in_table = sluice_processors::STORES.iter().any(|store| store.contains(&&**id));
            assert_eq!(bound.is_err(), in_table, "{id}");
        }
        process.shutdown(std::time::Duration::from_secs(10)).await;
    }

    #[test]
    fn who_keeps_data_is_told() {
        assert_eq!(of(&["flow", "gateway", "chunker"]).unwrap().keepers(), Vec::<&str>::new());
        assert_eq!(of(&["iam", "kw-index"]).unwrap().keepers(), ["iam", "kw-index"]);
    }
}
