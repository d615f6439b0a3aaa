//! What holds for any input, not only for the examples we thought of.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_schema::api::{self, Caller};
use sluice_schema::doors::{self, Home};
use sluice_schema::{Class, FlowId, Topic, WorkspaceId, message as m, wire};

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

/// Any number that JSON can say.
fn number() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("JSON has no word for it", |number| number.is_finite())
}

fn term() -> impl Strategy<Value = m::Term> {
    let leaf = (text(), text(), text()).prop_map(|(kind, iri, value)| m::Term {
        r#type: kind,
        iri,
        value,
        ..Default::default()
    });
    leaf.prop_recursive(3, 8, 1, |inner| {
        inner.prop_map(|s| m::Term {
            r#type: "t".to_owned(),
            triple: Some(Box::new(m::Triple { s: Some(s), ..Default::default() })),
            ..Default::default()
        })
    })
}

fn triple() -> impl Strategy<Value = m::Triple> {
    (option::of(term()), option::of(term()), option::of(term()), option::of(text()))
        .prop_map(|(s, p, o, g)| m::Triple { s, p, o, g })
}

fn metadata() -> impl Strategy<Value = Option<m::Metadata>> {
    option::of((text(), text(), text()).prop_map(|(id, root, collection)| m::Metadata {
        id,
        root,
        collection,
    }))
}

fn attributes() -> impl Strategy<Value = BTreeMap<String, m::TextOrList>> {
    let value =
        prop_oneof![text().prop_map(m::TextOrList::Text), vec(text(), 0..3).prop_map(m::TextOrList::List)];
    btree_map(text(), value, 0..3)
}

fn error() -> impl Strategy<Value = Option<m::Error>> {
    option::of((text(), text()).prop_map(|(kind, message)| m::Error::new(kind, message)))
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let name = prop_oneof![
            text(),
            "(operation|query|id|s|t|tr|values|keys|terms|error|metadata|payload|triples)"
        ];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((name, inner), 0..4).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn comes_back<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &M) {
    assert_eq!(&wire::decode::<M>(&wire::encode(message)).unwrap(), message);
}

proptest! {
    #[test]
    fn a_chunk_comes_back_as_it_was(metadata in metadata(), chunk in text(), document_id in text(), attributes in attributes()) {
        comes_back(&m::Chunk { metadata, chunk, document_id, attributes });
    }

    #[test]
    fn triples_come_back_as_they_were(error in error(), triples in vec(triple(), 0..4), is_final: bool) {
        comes_back(&m::TriplesQueryResponse { error, triples, is_final });
    }

    #[test]
    fn vectors_come_back_as_they_were(error in error(), vectors in vec(vec(number(), 0..6), 0..4)) {
        comes_back(&m::EmbeddingsResponse { error, vectors });
    }

    #[test]
    fn config_comes_back_as_it_was(
        version: i64,
        values in vec((text(), text(), option::of(text()), any::<i64>()), 0..4),
        config in btree_map(text(), btree_map(text(), text(), 0..3), 0..3),
        error in error(),
    ) {
        let values = values.into_iter().map(|(kind, key, value, version)| m::ConfigValue {
            r#type: kind, key, value, version, ..Default::default()
        });
        comes_back(&m::ConfigResponse { version, values: values.collect(), config, error, ..Default::default() });
    }

    #[test]
    fn reading_never_panics(body in vec(any::<u8>(), 0..200)) {
        let _ = wire::decode::<m::LibrarianRequest>(&body);
        let _ = wire::decode::<m::TriplesQueryResponse>(&body);
        let _ = wire::decode::<Value>(&body);
    }

    #[test]
    fn broken_json_never_panics(body in "[{}\\[\\]\",:a-f\\\\ud800NaInfity0-9.-]{0,80}") {
        let _ = wire::decode::<Value>(body.as_bytes());
    }

    #[test]
    fn translating_never_panics_and_shows_an_error_exactly_when_there_is_one(body in json(), answer in json(), parts: bool) {
        let workspace = WorkspaceId::existing("w");
        let caller = Caller { handle: "u", default_workspace: &workspace, parts };
        for service in api::services() {
            if let Ok(call) = service.encode(body.clone(), &caller) {
                let written: Value = serde_json::from_slice(&call.body).unwrap();
                prop_assert!(written.is_object());
                if let Ok(reply) = call.decode(answer.to_string().as_bytes()) {
                    prop_assert_eq!(reply.body.get("error").is_some(), reply.error.is_some());
                }
            }
        }
        for import in api::imports() {
            let _ = import.encode(body.clone());
        }
        for export in api::exports() {
            let _ = export.decode(answer.to_string().as_bytes());
        }
    }

    #[test]
    fn reading_a_topic_never_panics(text in "\\PC{0,160}") {
        if let Ok(topic) = Topic::parse(&text) {
            prop_assert_eq!(topic.as_str(), text);
        }
    }

    #[test]
    fn a_topic_is_its_parts(class in 0..4_usize, space in "[a-z]{1,8}", name in "[a-zA-Z0-9:._-]{1,60}") {
        let class = Class::ALL[class];
        let topic = Topic::parse(&format!("{class}:{space}:{name}")).unwrap();
        prop_assert_eq!((topic.class(), topic.space(), topic.name()), (class, space.as_str(), name.as_str()));
    }

    #[test]
    fn no_topic_is_the_own_of_two_flows(
        base in "[a-z:-]{1,12}",
        one in ("[a-z]{1,3}", "[a-z0-9]{1,3}"),
        two in ("[a-z]{1,3}", "[a-z0-9]{1,3}"),
    ) {
        prop_assume!(one != two);
        let own = |(workspace, flow): &(String, String), topic: &Topic| {
            let (workspace, flow) = (WorkspaceId::parse(workspace).unwrap(), FlowId::parse(flow).unwrap());
            doors::is_own(topic, Home { workspace: &workspace, names: &[flow.as_str()] })
        };
        let topic = Topic::parse(&format!("flow:tg:{base}:{}:{}", one.0, one.1)).unwrap();
        prop_assert!(own(&one, &topic) && !own(&two, &topic));
    }
}
