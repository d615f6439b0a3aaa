//! The page of brokers is what their traits say; `SLUICE_UPDATE_DOCS=1 cargo test -p sluice-brokers --features kafka,nats,pulsar
//! --test docs` rewrites it from its words in `data/brokers.txt`, the promises below and the traits.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

use sluice_brokers::{TRAITS, kafka, pulsar};
use sluice_bus::{Promise, Traits, conformance};

/// Brokers in the order of their rows.
const BROKERS: [&str; 5] = ["embedded", "RabbitMQ", "NATS", "Pulsar", "Kafka"];
const BLIND: &str = "RabbitMQ without the management API";

struct Section {
    title: &'static str,
    says: &'static str,
    /// What brokers may not promise of it.
    of: &'static [Promise],
    /// Cases of the contract, run against every broker.
    cases: &'static [&'static str],
    /// Further tests of each broker, in their order.
    tests: [&'static [&'static str]; BROKERS.len()],
    /// Tests beside processes of 2.11 on RabbitMQ, or why it is not promised there.
    beside: Result<&'static [&'static str], &'static str>,
    /// The same on Pulsar, where the address says that they take part.
    beside_on_pulsar: Result<&'static [&'static str], &'static str>,
    /// The same on Kafka.
    beside_on_kafka: Result<&'static [&'static str], &'static str>,
}

const SECTIONS: &[Section] = &[
    Section {
        title: "Owned",
        says: "Only the owner of a topic makes and removes it; readers and writers attach to what is \
               there, or are told that it is not.",
        of: &[],
        cases: &[
            "a_publish_to_a_topic_that_nobody_made_fails",
            "a_subscription_that_nobody_made_cannot_be_read",
            "ensuring_twice_changes_nothing",
            "ensuring_adds_subscriptions_and_leaves_others",
            "a_class_without_subscriptions_takes_none",
        ],
        tests: [
            &[],
            &["a_deleted_queue_ends_its_reader_and_nobody_makes_it_but_its_owner"],
            &["a_reader_of_a_consumer_that_was_removed_alone_ends_and_its_owner_learns_of_it"],
            &["namespaces_that_somebody_opened_are_closed_by_the_next_owner"],
            &["a_topic_that_was_removed_at_the_broker_is_made_again_by_its_owner"],
        ],
        beside: Ok(&["a_stranger_attaches_to_what_the_owner_made_whatever_the_default_queue_type"]),
        beside_on_pulsar: Ok(&[
            "a_keeper_and_a_mirror_are_there_again_after_a_restart_and_gone_with_their_topic",
        ]),
        beside_on_kafka: Ok(&[
            "topics_that_would_have_one_name_at_the_broker_are_refused",
            "a_topic_of_the_other_shape_is_refused_by_name",
        ]),
    },
    Section {
        title: "Delivered",
        says: "What is published is kept for each subscription until one of its readers has settled it, \
               in order and as it was sent.",
        of: &[Promise::ReadersCompete],
        cases: &[
            "a_message_reaches_a_reader_with_its_properties",
            "a_message_published_before_its_reader_is_kept",
            "readers_of_one_subscription_compete",
            "each_subscription_gets_its_own_copy",
            "first_deliveries_keep_publish_order",
            "a_body_over_the_limit_is_refused",
            "a_large_body_arrives_whole",
        ],
        tests: [
            &["what_memory_cannot_hold_is_read_again_from_the_log"],
            &["a_message_of_20_mb_goes_through", "a_body_of_17_mib_is_refused_with_the_limit_of_the_broker"],
            &["of_two_subscriptions_the_slow_one_loses_nothing_and_nothing_settled_stays"],
            &["of_two_subscriptions_the_slow_one_loses_nothing_and_nothing_settled_stays"],
            &["of_two_subscriptions_the_slow_one_loses_nothing_and_nothing_settled_stays"],
        ],
        beside: Ok(&[
            "what_others_send_passes_through_untouched",
            "a_document_goes_through_their_chunker_and_a_question_is_answered_with_its_source",
        ]),
        beside_on_pulsar: Ok(&[
            "what_was_sent_before_theirs_attached_is_all_processed",
            "a_document_goes_through_their_chunker_and_a_question_is_answered_with_its_source",
        ]),
        beside_on_kafka: Ok(&[
            "strangers_and_ours_read_the_same_subscription_in_turns",
            "what_was_published_before_a_stranger_started_is_not_lost",
            "another_reader_waits_for_what_is_in_hand_before_it_takes_over",
        ]),
    },
    Section {
        title: "Told when nobody gets it",
        says: "A message that no subscription takes is counted, or refused where a reader is on record \
               or an answer is waited for.",
        of: &[],
        cases: &[
            "a_flow_message_without_subscription_is_counted_not_kept",
            "a_flow_message_for_a_reader_on_record_is_refused_where_there_is_none",
            "a_request_without_subscription_is_unroutable",
        ],
        tests: [
            &[],
            &["a_message_for_a_reader_on_record_is_refused_while_its_queue_is_missing"],
            &[],
            &["a_reader_of_a_subscription_that_was_removed_alone_ends_and_its_owner_learns_of_it"],
            &[],
        ],
        beside: Err(
            "what Sluice's own processes send is told, but those of 2.11 do not ask the broker to tell \
             them",
        ),
        beside_on_pulsar: Err(
            "what they send that nobody reads is kept by nobody, and they do not ask whether anybody does",
        ),
        beside_on_kafka: Err(
            "what they send that nobody reads is kept by nobody, and they do not ask whether anybody does",
        ),
    },
    Section {
        title: "Durable",
        says: "A publish to a flow's queue returns after the message is durable; a server that is \
               restarted or killed loses nothing of that.",
        of: &[],
        cases: &["flow_messages_survive_a_restart"],
        tests: [
            &["a_killed_process_loses_nothing_acknowledged", "a_torn_end_is_cut_and_the_rest_is_there"],
            &["a_broker_killed_and_started_again_loses_nothing_acknowledged"],
            &["publishes_under_way_when_the_server_is_killed_end_and_what_was_acknowledged_is_kept"],
            &["publishes_under_way_when_the_broker_is_killed_end_and_what_was_acknowledged_is_kept"],
            &[
                "messages_survive_a_killed_broker_and_those_settled_do_not_come_back",
                "publishes_under_way_when_the_broker_is_killed_end_and_what_was_acknowledged_is_kept",
            ],
        ],
        beside: Ok(&[
            "flow_and_config_killed_at_random_moments_beside_theirs_at_work_converge_and_leave_nothing",
        ]),
        beside_on_pulsar: Ok(&["nothing_is_lost_when_theirs_is_killed_at_work"]),
        beside_on_kafka: Ok(&["a_group_that_nobody_reads_outlives_what_the_broker_keeps"]),
    },
    Section {
        title: "Tried again, and counted",
        says: "What is not settled comes back, behind good messages and not too early; each attempt is \
               counted, also one that ends its process.",
        of: &[],
        cases: &[
            "a_message_not_settled_comes_back_and_is_counted",
            "a_message_given_back_untried_is_not_counted",
            "a_message_wanted_again_comes_behind_good_ones_and_not_too_early",
            "a_reader_that_leaves_gives_back_what_it_held",
            "a_reader_holds_no_more_than_its_prefetch",
            "a_reader_that_stops_waiting_loses_nothing",
        ],
        tests: [
            &["a_message_that_kills_the_process_is_counted"],
            &[
                "attempts_are_counted_on_a_quorum_queue",
                "only_messages_on_which_work_began_are_counted_whatever_ended",
            ],
            &[
                "a_killed_readers_message_comes_back_and_is_shown_as_unsettled_until_then",
                "a_beginning_is_noted_and_outlives_its_reader",
            ],
            &[
                "a_message_that_kills_its_readers_is_counted_each_time",
                "counts_outlive_all_processes_and_the_broker_and_the_collection_of_notes",
            ],
            &[
                "a_message_that_kills_its_readers_is_counted_each_time",
                "a_message_is_tried_more_often_than_the_broker_delivers_one",
            ],
        ],
        beside: Err(
            "Sluice's own readers count, but those of 2.11 give a message back at once, uncounted, which \
             \"No poison of others\" ends",
        ),
        beside_on_pulsar: Err(
            "what their clients do not settle they give back after a minute, uncounted, and what a killed one had comes back uncounted",
        ),
        beside_on_kafka: Err(
            "what their processes take counts as settled with the next one that they settle, and what a killed one had comes back uncounted",
        ),
    },
    Section {
        title: "No poison of others",
        says: "A message that a reader which is not ours gives back for ever ends in the dead letters, \
               or it is said why the broker cannot be told to do that.",
        of: &[],
        cases: &["poison_is_bounded_or_said_why_not"],
        tests: [&[], &["without_the_management_api_all_works_but_the_unknown"], &[], &[], &[]],
        beside: Ok(&[
            "poison_that_a_stranger_gives_back_for_ever_is_parked_and_good_messages_pass",
            "a_loop_on_a_classic_queue_is_found_with_its_name",
        ]),
        beside_on_pulsar: Err(
            "how often a message is given back is up to each reader's client, and theirs set no end",
        ),
        beside_on_kafka: Err(
            "the broker counts nothing in groups as theirs are, so what ends their process comes again whenever it starts",
        ),
    },
    Section {
        title: "Requests expire",
        says: "A request that nobody has taken by its deadline is dropped.",
        of: &[Promise::RequestsExpire],
        cases: &["a_request_is_not_delivered_after_its_deadline"],
        tests: [
            &["a_request_queue_that_is_full_says_so_until_a_deadline_makes_room"],
            &[],
            &[],
            &[],
            &["a_late_request_is_dropped_by_the_reader_that_gets_it"],
        ],
        beside: Ok(&["a_request_that_a_stranger_gives_back_for_ever_ends_by_its_deadline"]),
        beside_on_pulsar: Err("the broker drops what is old by a namespace's term only, an hour"),
        beside_on_kafka: Err(
            "Kafka cannot drop one message; readers of ours drop what is late, theirs answer it",
        ),
    },
    Section {
        title: "Answers and notices",
        says: "An inbox gets its own copy of whatever it follows from then on, and what is sent to its \
               address; it dies with its reader.",
        of: &[],
        cases: &[
            "a_request_is_answered_through_the_response_topic_and_directly",
            "every_follower_gets_every_broadcast",
            "a_broadcast_without_followers_is_fine",
            "an_inbox_that_unfollows_hears_no_more",
            "an_inbox_dies_with_its_reader",
            "followers_of_a_removed_topic_follow_no_more",
        ],
        tests: [
            &["a_reader_that_never_reads_loses_the_newest_and_stops_nobody"],
            &[
                "connections_closed_by_the_broker_are_rebuilt_and_inboxes_keep_their_address",
                "a_direct_answer_reaches_one_inbox_and_one_by_topic_all",
            ],
            &["followers_and_requests_go_on_after_a_restart"],
            &[
                "followers_and_requests_go_on_after_a_restart",
                "an_inbox_goes_with_its_reader_and_the_broker_looks_for_others",
            ],
            &[
                "followers_and_requests_go_on_after_a_restart",
                "inboxes_of_a_process_that_was_killed_are_removed_and_others_stay",
            ],
        ],
        beside: Ok(&[
            "their_prompt_service_answers_with_our_model",
            "a_published_client_reaches_them_through_our_gateway",
        ]),
        beside_on_pulsar: Ok(&[
            "what_strangers_send_and_read_elsewhere_crosses_once",
            "their_prompt_service_answers_with_our_model",
            "a_published_client_reaches_them_through_our_gateway",
        ]),
        beside_on_kafka: Ok(&[
            "strangers_and_ours_read_the_same_subscription_in_turns",
            "their_prompt_service_answers_with_our_model",
            "a_published_client_reaches_them_through_our_gateway",
        ]),
    },
    Section {
        title: "Seen",
        says: "The owner sees which of its topics and subscriptions are there, what waits in them, what \
               is in readers' hands, and who reads.",
        of: &[
            Promise::UnsettledIsShown,
            Promise::ReadersAreShown,
            Promise::DelayedIsReady,
            Promise::TopicsAreListed,
        ],
        cases: &[
            "observing_answers_in_order_also_for_what_is_not_there",
            "counts_are_exact",
            "a_reader_given_up_half_way_leaves_nobody_attached",
            "delayed_messages_are_counted",
            "listing_finds_by_prefix",
            "examining_changes_nothing",
        ],
        tests: [
            &["a_backlog_above_the_high_water_mark_is_a_finding"],
            &[
                "policies_and_limits_that_lose_or_refuse_messages_are_named",
                "without_the_management_api_all_works_but_the_unknown",
            ],
            &["an_examination_names_what_loses_messages", "a_topic_bound_half_way_is_seen_so_and_made_whole"],
            &[],
            &[
                "what_is_in_hand_is_counted_until_it_is_settled",
                "a_reader_of_a_group_whose_messages_are_dropped_too_soon_is_refused_by_name",
            ],
        ],
        beside: Ok(&[
            "a_stop_names_one_of_theirs_that_hangs_and_is_done_when_it_lets_go",
            "a_queue_that_a_stranger_makes_again_after_its_removal_is_listed_and_can_be_removed",
        ]),
        beside_on_pulsar: Ok(&[
            "a_stop_names_one_of_theirs_that_hangs_and_is_done_when_it_lets_go",
            "the_last_stranger_that_leaves_takes_no_subscription_along",
        ]),
        beside_on_kafka: Ok(&["their_prompt_service_answers_with_our_model"]),
    },
    Section {
        title: "Removed is gone",
        says: "A removed topic takes its subscriptions and what is in them along, its readers are told, \
               and nothing of it comes into the next of its name.",
        of: &[],
        cases: &[
            "removing_takes_everything_and_may_be_repeated",
            "removing_what_is_idle_takes_nothing_that_is_read_or_filled",
            "readers_of_a_removed_topic_are_told",
            "a_delivery_of_a_removed_topic_settles_into_nothing",
            "a_topic_made_again_is_another_one",
        ],
        tests: [
            &[],
            &["a_reader_ends_with_its_queue_however_soon_it_is_made_again"],
            &["what_settles_a_message_of_a_removed_topic_settles_none_of_the_next"],
            &["what_is_removed_under_strangers_that_are_attached_does_not_come_back"],
            &["what_settles_a_message_of_a_removed_topic_settles_none_of_the_next"],
        ],
        beside: Ok(&[
            "what_is_idle_goes_with_the_queues_of_strangers_unless_they_hold_something",
            "a_queue_that_theirs_declares_again_after_the_stop_is_swept_and_other_flows_go_on",
        ]),
        beside_on_pulsar: Ok(&[
            "what_is_removed_under_strangers_that_are_attached_does_not_come_back",
            "a_flow_starts_and_stops_twice_and_nothing_is_left",
        ]),
        beside_on_kafka: Ok(&["a_topic_made_again_under_its_name_begins_anew"]),
    },
    Section {
        title: "One actor",
        says: "At most one process holds a name, and only it makes life-cycle calls under it.",
        of: &[Promise::HoldEndsWithConnection],
        cases: &[
            "a_held_name_is_refused_to_others_until_it_is_let_go",
            "calls_under_a_hold_do_what_they_do_without",
            "a_hold_does_not_outlive_the_broker",
        ],
        tests: [
            &["a_folder_in_use_is_refused_and_free_after_shutdown"],
            &[
                "a_hold_ends_with_its_connection_and_another_may_hold",
                "a_holder_that_was_paused_changes_nothing_afterwards",
            ],
            &[
                "a_holder_that_hears_nothing_of_the_server_acts_no_more",
                "a_hold_that_somebody_took_away_is_lost_for_good",
            ],
            &[
                "a_holder_whose_broker_is_gone_acts_no_more",
                "a_hold_whose_topic_somebody_removed_is_lost_for_good",
            ],
            &["a_holder_whose_broker_is_gone_acts_no_more", "of_many_that_claim_a_name_at_once_one_has_it"],
        ],
        beside: Ok(&[
            "flow_and_config_killed_at_random_moments_beside_theirs_at_work_converge_and_leave_nothing",
        ]),
        beside_on_pulsar: Err(
            "killing owners at random moments beside them was tried, and not everything came through in time",
        ),
        beside_on_kafka: Err("killing owners at random moments beside them was not tried"),
    },
];

fn traits(broker: &str) -> Traits {
    let (_, traits) = TRAITS.iter().find(|(name, _)| *name == broker).unwrap();
    *traits
}

fn names(tests: &[&str]) -> String {
    tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", ")
}

impl Section {
    /// What a broker does not promise of it.
    fn lacks(&self, broker: &str) -> Vec<(Promise, &'static str)> {
        self.of.iter().filter_map(|promise| Some((*promise, traits(broker).why_not(*promise)?))).collect()
    }

    fn ours(&self, at: usize) -> String {
        let broker = BROKERS[at];
        let lacks = self.lacks(broker);
        // One promise, one case: nothing else is left of it.
        if let ([(_, why)], [_]) = (&lacks[..], self.cases) {
            return format!("not promised: {why}");
        }
        let mut cell = names(&[self.cases, self.tests[at]].concat());
        let mut add = |when: &str, lacks: Vec<(Promise, &str)>| {
            for (promise, why) in lacks {
                cell.push_str(&format!("; {when}not promised: {} ({why})", promise.text()));
            }
        };
        add("", lacks);
        if broker == "RabbitMQ" {
            add("without the management API ", self.lacks(BLIND));
        }
        cell
    }

    fn beside(&self, broker: &str) -> String {
        let (traits, tests) = match broker {
            "Pulsar" => (pulsar::TRAITS_BESIDE, self.beside_on_pulsar),
            "Kafka" => (kafka::TRAITS_BESIDE, self.beside_on_kafka),
            _ => (traits(broker), self.beside),
        };
        match (traits.why_not(Promise::StrangersTakePart), tests) {
            (Some(why), _) | (None, Err(why)) => format!("not promised: {why}"),
            (None, Ok(tests)) => self
                .of
                .iter()
                .filter_map(|promise| Some((*promise, traits.why_not(*promise)?)))
                .fold(names(tests), |cell, (promise, why)| {
                    format!("{cell}; not promised: {} ({why})", promise.text())
                }),
        }
    }

    fn markdown(&self) -> String {
        let row = |(at, broker): (usize, &&str)| {
            format!("| {broker} | {} | {} |\n", self.ours(at), self.beside(broker))
        };
        let rows: String = BROKERS.iter().enumerate().map(row).collect();
        format!(
            "### {}\n\n{}\n\n| broker | ours only | beside 2.11 |\n|---|---|---|\n{rows}",
            self.title, self.says
        )
    }
}

#[test]
fn the_page_of_brokers_is_what_their_traits_say() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/brokers.md");
    let sections: Vec<String> = SECTIONS.iter().map(Section::markdown).collect();
    let wanted = include_str!("data/brokers.txt").replace("{promises}", sections.join("\n").trim_end());
    if std::env::var_os("SLUICE_UPDATE_DOCS").is_some() {
        std::fs::write(&page, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/brokers.md is behind the traits; rewrite it as this file's first line says"
    );
}

#[test]
fn every_case_and_every_promise_has_its_place_on_the_page_once() {
    let mut cases: Vec<&str> = SECTIONS.iter().flat_map(|section| section.cases).copied().collect();
    cases.sort_unstable();
    let mut known: Vec<&str> = conformance::cases().iter().map(|case| case.name).collect();
    known.sort_unstable();
    assert_eq!(cases, known);
    let placed = SECTIONS.iter().flat_map(|section| section.of).map(|promise| promise.text());
    let placed: BTreeSet<&str> = placed.chain([Promise::StrangersTakePart.text()]).collect();
    assert_eq!(placed, Promise::ALL.iter().map(|promise| promise.text()).collect());
    let brokers: Vec<&str> = TRAITS.iter().map(|(name, _)| *name).collect();
    assert_eq!(brokers, ["embedded", "RabbitMQ", BLIND, "NATS", "Pulsar", "Kafka"]);
}

#[test]
fn reasons_are_sentences_without_a_full_stop() {
    let lacks = TRAITS.iter().flat_map(|(broker, traits)| {
        Promise::ALL.into_iter().filter_map(move |promise| Some((broker, traits.why_not(promise)?)))
    });
    for (broker, why) in lacks {
        assert!(!why.is_empty() && !why.ends_with('.') && !why.contains('|'), "{broker}: {why}");
    }
}
