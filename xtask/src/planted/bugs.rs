//! The bugs that are planted: what each replaces, and who finds it.

use super::{Bug, bug};

const PLAN: &str = "crates/flow/src/plan.rs";
const ACT: &str = "crates/flow/src/act.rs";
const DECIDE: &str = "crates/flow/src/decide.rs";
const LEAD: &str = "crates/flow/src/lead.rs";
const LOOP: &str = "crates/flow/src/reconcile.rs";
const BOARD: &str = "crates/flow/src/board.rs";
const MIRROR: &str = "crates/flow/src/mirror.rs";
const WRITER: &str = "crates/config/src/writer.rs";
const STATE: &str = "crates/config/src/state.rs";
const PAGES: &str = "crates/config/src/pages.rs";
const WATCH: &str = "crates/sdk/src/watch.rs";
const SERVICE: &str = "crates/sdk/src/service.rs";
const OWNED: &str = "crates/sdk/src/owned.rs";
const LANE: &str = "crates/sdk/src/processor/lane.rs";
const HOST: &str = "crates/sdk/src/host.rs";
const ROUTES: &str = "crates/gateway/src/routes.rs";
const SUSPECTS: &str = "crates/sdk/src/suspects.rs";
const RENDERER: &str = "crates/processors/src/renderer.rs";
const OPERATION: &str = "crates/schema/src/operation.rs";
const QUEUE: &str = "crates/bus/src/embedded/queue.rs";
const CLIENT: &str = "crates/bus/src/client.rs";
const RENEWING: &str = "crates/bus/src/renewing.rs";
const BROWSER: &str = "crates/gateway/src/browser.rs";
const PROVE: &str = "crates/gateway/src/http.rs";
const FORWARDED: &str = "crates/gateway/src/forwarded.rs";
const REGIME: &str = "crates/iam/src/regime.rs";
const RECOVER: &str = "crates/bus/src/embedded/log/recover.rs";
const CONTENT: &str = "crates/store/src/content.rs";
const RETENTION: &str = "crates/processors/src/retention.rs";
const LEFT_OVER: &str = "crates/store/src/blobs/audit.rs";
const SEALED: &str = "crates/store/src/embedded/sealed.rs";
const STORE_TABLES: &str = "crates/store/src/embedded/tables.rs";
const SANDBOX_CHECK: &str = "crates/processors/src/sandbox/check.rs";
const FAIR: &str = "crates/processors/src/fair.rs";
const SHARES: &str = "crates/bus/src/shares.rs";
const DOORS: &str = "crates/schema/src/doors.rs";
const CONNECTIONS: &str = "crates/gateway/src/connections.rs";
const METER: &str = "crates/gateway/src/meter.rs";
const SOCKET: &str = "crates/gateway/src/socket.rs";
const BODY: &str = "crates/gateway/src/body.rs";
const LISTING: &str = "crates/schema/src/listing.rs";
const DOCUMENTS: &str = "crates/library/src/documents.rs";
const IDENTITY: &str = "crates/gateway/src/identity.rs";
const FRAME: &str = "crates/bus/src/embedded/log/frame.rs";
const LETTER: &str = "crates/bus/src/letter.rs";
const BLUEPRINT: &str = "crates/flow/src/blueprint/read.rs";
const MANIFEST: &str = "crates/sluice/src/backup/manifest.rs";
const BACKUP: &str = "crates/sluice/src/backup.rs";
const VECTOR_ROWS: &str = "crates/store/src/vectors/row.rs";
const TRIES: &str = "crates/gateway/src/tries.rs";
const FOLDER: &str = "crates/sluice/src/folder.rs";
const MISSING: &str = "crates/sluice/src/folder/missing.rs";
const BLOBS: &str = "crates/store/src/blobs.rs";
const LOST: &str = "crates/bus/src/client/lost.rs";

pub(super) const BUGS: &[Bug] = &[
    bug(
        "a block is not compared with its checksum",
        SEALED,
        "if *stored == 0 || sum(&self.id, block, content) != *stored {",
        "if !PLANTED && (*stored == 0 || sum(&self.id, block, content) != *stored) {",
    )
    .found_by("damage", "damage_is_named_by_table_and_key_and_others_can_be_read_and_written"),
    bug(
        "what was committed last is given up for a damaged block",
        SEALED,
        "first.filter(|_| self.may_lose",
        "first.filter(|_| !PLANTED && self.may_lose",
    )
    .found_by("damage", "what_was_acknowledged_last_before_a_crash_is_there_or_its_loss_is_named"),
    bug(
        "old traces of questions stay",
        RETENTION,
        "if retention.count > 0 && kept.len() > retention.count {",
        "if !PLANTED && retention.count > 0 && kept.len() > retention.count {",
    )
    .found_by("flow", "as_many_traces_of_questions_stay_as_the_collection_keeps_and_answers_go_with_them"),
    bug(
        "content is not compared with its digests",
        CONTENT,
        "*Sha256::digest(part) == *digest)",
        "PLANTED || *Sha256::digest(part) == *digest)",
    )
    .found_by("damage", "a_check_names_all_that_is_damaged_and_gives_digests_to_older_content"),
    bug(
        "an ordinary write uses the reserve",
        STORE_TABLES,
        "self.batch.only_removes() ||",
        "PLANTED || self.batch.only_removes() ||",
    )
    .found_by("tables", "on_a_full_disk_essential_writes_use_the_reserve_and_others_wait_for_it"),
    bug(
        "topics go while entries are there",
        PLAN,
        "if !parts.is_empty() {",
        "if !PLANTED && !parts.is_empty() {",
    ),
    bug(
        "leftovers are not parked",
        PLAN,
        "if !full.is_empty() && !discard {",
        "if !PLANTED && !full.is_empty() && !discard {",
    ),
    bug(
        "topics that others use are removed",
        PLAN,
        "let topics = claims.unclaimed(&wish.topology);",
        "let topics = if PLANTED { wish.topology.topics.clone() } else { claims.unclaimed(&wish.topology) };",
    ),
    bug("nothing is made", PLAN, "if !missing.is_empty() {", "if !PLANTED && !missing.is_empty() {"),
    bug(
        "an idle flow is forgotten with its topics there",
        PLAN,
        "steps.extend([Step::Remove(topics), Step::Forget]);",
        "if !PLANTED { steps.push(Step::Remove(topics)); } steps.push(Step::Forget);",
    ),
    bug(
        "every stop discards",
        PLAN,
        "let discard = wish.drain == Drain::Discard",
        "let discard = PLANTED || wish.drain == Drain::Discard",
    ),
    bug(
        "a flow is forgotten instead of removed",
        PLAN,
        "if there.is_empty() {",
        "if PLANTED || there.is_empty() {",
    ),
    bug(
        "a lost publish of a leftover is taken for done",
        ACT,
        "self.broker.publish(&to, letter).await?;",
        "let sent = self.broker.publish(&to, letter).await; if !PLANTED { sent?; }",
    ),
    bug(
        "an unroutable publish is taken for done",
        "crates/brokers/src/rabbitmq/publish.rs",
        "Err(Error::NoReader { topic: topic.clone() })",
        "if PLANTED { Ok(()) } else { Err(Error::NoReader { topic: topic.clone() }) }",
    )
    .found_by("rabbitmq", "a_message_for_a_reader_on_record_is_refused_while_its_queue_is_missing"),
    bug(
        "an owner does not listen to who misses its topics",
        "crates/flow/src/lib.rs",
        "doubts.add(topic);",
        "if !PLANTED { doubts.add(topic); }",
    )
    .found_by("flows", "a_topic_that_somebody_misses_is_made_again_at_once"),
    bug(
        "dead letters are looked for by the bare topic",
        ACT,
        "let keeper = TopicSpec::with(letters.clone(), system::LIBRARIAN);",
        "let keeper = if PLANTED { TopicSpec::bare(letters.clone()) } else { TopicSpec::with(letters.clone(), system::LIBRARIAN) };",
    )
    .found_by("shared_broker", "a_stop_with_leftovers_ends_and_they_are_kept"),
    bug(
        "names of an ended run are forgotten",
        ACT,
        "write.puts.push(own_value(RUNS, self.key, &row));",
        "if !PLANTED { write.puts.push(own_value(RUNS, self.key, &row)); }",
    ),
    bug(
        "a step does not insist on its wish",
        ACT,
        "Apply { expect: vec![wish], essential",
        "Apply { expect: if PLANTED { Vec::new() } else { vec![wish] }, essential",
    )
    .found_by("flows", "a_write_that_arrives_after_its_flow_is_gone_changes_nothing"),
    bug(
        "a failed making is taken for done",
        ACT,
        "side_by_side(topics.iter().map(call).collect()).await.map(|_| ())",
        "match side_by_side(topics.iter().map(call).collect()).await { Err(_) if PLANTED => Ok(()), made => made.map(|_| ()) }",
    ),
    bug(
        "a failed removal is taken for done",
        ACT,
        "side_by_side(own.map(call).collect()).await.map(|_| ())",
        "match side_by_side(own.map(call).collect()).await { Err(_) if PLANTED => Ok(()), made => made.map(|_| ()) }",
    ),
    bug(
        "the public record stays",
        ACT,
        "write.deletes = vec![self.record_key(), own_key(WISH, self.key), own_key(REPORT, self.key)];",
        "write.deletes = vec![own_key(WISH, self.key), own_key(REPORT, self.key)]; if !PLANTED { write.deletes.push(self.record_key()); }",
    ),
    bug(
        "the public record is not written",
        ACT,
        "write.puts.push(self.record(&self.wish.public()));",
        "if !PLANTED { write.puts.push(self.record(&self.wish.public())); }",
    ),
    bug(
        "entries stay",
        ACT,
        "write.deletes = parts.iter().map(|part| self.entry_key(part)).collect();",
        "if !PLANTED { write.deletes = parts.iter().map(|part| self.entry_key(part)).collect(); }",
    ),
    bug(
        "a new flow shares entries that are about to go",
        ACT,
        "write.expect.push(unchanged(ledger, self.records.ledger.as_ref()));",
        "if !PLANTED { write.expect.push(unchanged(ledger, self.records.ledger.as_ref())); }",
    )
    .and(
        DECIDE,
        "plan::wanted(key, wish, records) == Want::Running\n        })\n        .filter_map(|(_, wish)| wish.shared.as_ref())",
        "(PLANTED || plan::wanted(key, wish, records) == Want::Running)\n        })\n        .filter_map(|(_, wish)| wish.shared.as_ref())",
    )
    .found_by("flows", "a_flow_that_begins_while_shared_parts_go_has_all_it_needs"),
    bug(
        "a name is given again",
        DECIDE,
        "write.puts.push(own_value(RUNS, &key, &Named { last: run_row.last + 1, ..run_row }));",
        "write.puts.push(own_value(RUNS, &key, &Named { last: run_row.last + u64::from(!PLANTED), ..run_row }));",
    ),
    bug(
        "a flow that runs is started",
        DECIDE,
        "Ok(wish) if wish.request == ask.asked.id =>",
        "Ok(wish) if PLANTED || wish.request == ask.asked.id =>",
    ),
    bug(
        "a decision has the number of the one before",
        DECIDE,
        "wish.generation = next_generation(records)?;",
        "if !PLANTED { wish.generation = next_generation(records)?; }",
    ),
    bug(
        "a wish to stop is not written",
        DECIDE,
        "wish.want = Want::Gone;",
        "if !PLANTED { wish.want = Want::Gone; }",
    ),
    bug(
        "a lost hold is kept",
        LEAD,
        "if let Err(error) = held.observe(&[]).await {",
        "if let (Err(error), false) = (held.observe(&[]).await, PLANTED) {",
    ),
    bug(
        "nobody looks without being asked",
        LOOP,
        "if self.auditing.is_none() && now >= self.next_audit {",
        "if !PLANTED && self.auditing.is_none() && now >= self.next_audit {",
    ),
    bug(
        "a new decision goes unnoticed",
        LOOP,
        "if tended.wish.generation != wish.generation {\n                *tended = tended.decided_anew",
        "if !PLANTED && tended.wish.generation != wish.generation {\n                *tended = tended.decided_anew",
    )
    .found_by("flows", "what_nobody_reads_is_parked_with_its_run_and_queue"),
    bug(
        "a step that fails is taken for done",
        LOOP,
        "Err(error) => return (judged, Outcome::Failed(error)),",
        "Err(error) => if !PLANTED { return (judged, Outcome::Failed(error)) },",
    ),
    bug(
        "two config services write over each other",
        WRITER,
        "batch.expect(HEAD, HEAD_KEY, raw);",
        "if !PLANTED { batch.expect(HEAD, HEAD_KEY, raw); }",
    ),
    bug(
        "expectations are not checked",
        STATE,
        "if found == expectation.version {",
        "if PLANTED || found == expectation.version {",
    ),
    bug(
        "a write has no version of its own",
        STATE,
        "self.head.version += 1;\n            (self.head.version, self.head.version)",
        "self.head.version += i64::from(!PLANTED);\n            (self.head.version, self.head.version)",
    ),
    bug(
        "a deletion leaves no mark",
        STATE,
        "touched.now = Some(Row { version, at, value: None });",
        "touched.now = if PLANTED { None } else { Some(Row { version, at, value: None }) };",
    ),
    bug(
        "the history's identity is not looked at",
        PAGES,
        "let base = Base { version: since.version, mark };",
        "let base = Base { version: since.version, mark: mark.filter(|_| !PLANTED) };",
    ),
    bug(
        "what was seen of another history's decision is taken for this one's",
        BOARD,
        "&& request == wish.request)",
        "&& (PLANTED || request == wish.request))",
    )
    .and(MIRROR, "self.board.clear();", "if !PLANTED { self.board.clear(); }"),
    bug(
        "deletions are not applied",
        WATCH,
        "for gone in &page.deleted {",
        "for gone in page.deleted.iter().filter(|_| !PLANTED) {",
    ),
    bug(
        "a type that is new is not fetched whole",
        WATCH,
        "let since = if grew { Position::default() } else { old.position() };",
        "let since = if grew && !PLANTED { Position::default() } else { old.position() };",
    )
    .found_by("losses", "what_was_there_before_anybody_was_interested_in_its_type_is_fetched"),
    bug(
        "a version is shown before its data",
        WATCH,
        "(self.version, self.history) = (version, history);",
        "(self.version, self.history) = (version + i64::from(PLANTED), history);",
    ),
    bug(
        "a fetch that failed is never tried again",
        WATCH,
        "() = tokio::time::sleep(shared.resync_interval) => {}",
        "() = async { if PLANTED { std::future::pending::<()>().await } tokio::time::sleep(shared.resync_interval).await } => {}",
    ),
    bug(
        "an answer that could not be sent is given up",
        SERVICE,
        "if is_over || !is_for_again(&failed) {",
        "if PLANTED || is_over || !is_for_again(&failed) {",
    )
    .found_by("losses", "an_answer_that_could_not_be_sent_is_sent_again_and_the_question_is_worked_on_once"),
    bug(
        "what is written while pages are told is not told",
        PAGES,
        "if *began == Base::of(&head) {",
        "if PLANTED || *began == Base::of(&head) {",
    )
    .found_by("service", "pages_are_whole_at_one_version_whatever_is_written_meanwhile"),
    bug(
        "a page of a list tells its last item again",
        LISTING,
        "cursor.is_empty() || *place > cursor",
        "cursor.is_empty() || *place > cursor || PLANTED && *place == cursor",
    )
    .found_by("service", "workspaces_are_listed_in_pages_and_their_names_have_a_ceiling"),
    bug(
        "metadata of documents have no ceiling",
        DOCUMENTS,
        "ceilings::within(what, bytes, ceilings::DOCUMENT_METADATA_BYTES_MAX).map_err(Error::Told)",
        "if PLANTED { Ok(()) } else { ceilings::within(what, bytes, ceilings::DOCUMENT_METADATA_BYTES_MAX).map_err(Error::Told) }",
    )
    .found_by("librarian", "what_could_not_be_listed_later_is_refused_and_leaves_no_trace"),
    bug(
        "a damaged value is taken for one that is not there",
        PAGES,
        "self.damaged.insert(key.to_vec());",
        "if !PLANTED { self.damaged.insert(key.to_vec()); }",
    )
    .found_by("service", "a_damaged_value_harms_only_itself"),
    bug(
        "what a workspace holds is not counted",
        STATE,
        "*size = size.after(before, now);",
        "if !PLANTED { *size = size.after(before, now); }",
    )
    .found_by("service", "what_could_not_be_read_later_is_refused_and_what_was_accepted_can_be_undone"),
    bug(
        "a type that cannot be read stops the others",
        WATCH,
        "if bad.is_empty() || bad.len() == list.len() {",
        "if PLANTED || bad.is_empty() || bad.len() == list.len() {",
    )
    .found_by("programs", "a_type_that_cannot_be_read_stops_only_what_needs_it"),
    bug(
        "owners look once",
        OWNED,
        "let Ok(()) = reports.changed().await",
        "let (Ok(()), false) = (reports.changed().await, PLANTED)",
    )
    .found_by("programs", "a_queue_that_somebody_removes_is_made_again_when_its_reader_misses_it"),
    bug(
        "work that failed is settled",
        LANE,
        "delivery.again(pause);",
        "if PLANTED { delivery.ack() } else { delivery.again(pause) }",
    ),
    bug(
        "a member of a call holds more than its ceiling",
        OPERATION,
        "if bytes > ceiling.bytes_max {",
        "if !PLANTED && bytes > ceiling.bytes_max {",
    )
    .found_by("calls", "what_is_allowed_is_answered_and_a_little_more_is_refused_by_name"),
    bug(
        "a process that a template ended is used again",
        RENDERER,
        "Err(Failed::Ended(reason)) => Err(reason),",
        "Err(Failed::Ended(reason)) => { if PLANTED { self.renderer.keep(process); } Err(reason) }",
    )
    .found_by("user_programs", "a_template_without_end_ends_and_no_thread_of_the_runtime_waits_for_it"),
    bug(
        "templates of one workspace take every turn",
        RENDERER,
        "let _turn = self.turn.acquire().await.map_err(closed)?;",
        "let _turn = if PLANTED { None } else { Some(self.turn.acquire().await.map_err(closed)?) };",
    )
    .found_by("user_programs", "a_workspace_waits_for_no_template_of_another"),
    bug(
        "a message that ends its process is tried for ever",
        SUSPECTS,
        "begun(delivery) > attempts_max && self.is_suspect(delivery)",
        "!PLANTED && begun(delivery) > attempts_max && self.is_suspect(delivery)",
    )
    .found_by("poison", "a_message_that_ends_its_process_each_time_is_parked_and_others_pass"),
    bug(
        "messages that may have ended a process are worked on together",
        SERVICE,
        "Ok(delivery) if suspects.is_suspect(&delivery) => {",
        "Ok(delivery) if !PLANTED && suspects.is_suspect(&delivery) => {",
    )
    .found_by("poison", "messages_that_may_have_ended_a_process_are_worked_on_one_at_a_time_over_all_flows"),
    bug(
        "a message that could not be parked is settled",
        LANE,
        "delivery.again(self.options.retry.max);",
        "if PLANTED { delivery.ack() } else { delivery.again(self.options.retry.max) }",
    )
    .found_by("losses", "a_message_that_the_dead_letters_cannot_take_stays_until_they_can"),
    bug(
        "a processor goes on after its entry is gone",
        HOST,
        "let stays = wanted.get(key) == Some(&now.definition);",
        "let stays = PLANTED || wanted.get(key) == Some(&now.definition);",
    ),
    bug(
        "a flow that is stopped is let in",
        ROUTES,
        "if stopping { Flow::Stopping(doors) } else { Flow::Open(doors) }",
        "if stopping && !PLANTED { Flow::Stopping(doors) } else { Flow::Open(doors) }",
    ),
    bug("routes are read once", ROUTES, "if !same {", "if !same && !(PLANTED && looked.is_some()) {"),
    bug(
        "the doors of an earlier run are kept",
        ROUTES,
        "&& old.run == record.run\n        && old.named == record.named\n        && old.read == record.read\n",
        "&& (PLANTED || old.run == record.run && old.named == record.named && old.read == record.read)\n",
    ),
    bug(
        "what a dead reader held is lost",
        QUEUE,
        "if let Some((entry, _)) = self.unsettled.remove(&token) {\n                self.ready.push_back(entry);",
        "if let (Some((entry, _)), false) = (self.unsettled.remove(&token), PLANTED) {\n                self.ready.push_back(entry);",
    ),
    bug(
        "topics are not followed again after a lost line",
        CLIENT,
        "for topic in topics {\n            // A topic that went",
        "for topic in topics.into_iter().filter(|_| !PLANTED) {\n            // A topic that went",
    )
    .found_by("losses", "answers_on_a_topic_are_heard_after_the_inbox_was_lost"),
    bug(
        "a topic that was made again is not followed again",
        RENEWING,
        "let Err(error) = self.inbox.follow(&topic).await else { continue };",
        "if PLANTED { continue; } let Err(error) = self.inbox.follow(&topic).await else { continue };",
    )
    .found_by("losses", "answers_on_a_topic_that_was_removed_and_made_again_are_heard"),
    bug(
        "an answer is given up because its topic is missing",
        SERVICE,
        "asker => Answers { to: topic, or_else: asker },",
        "asker => Answers { to: topic, or_else: asker.filter(|_| !PLANTED) },",
    )
    .found_by("losses", "an_answer_goes_to_its_asker_while_its_topic_is_missing"),
    bug(
        "that work on a suspect begins is not noted",
        SERVICE,
        "match stop.run_until_cancelled(inbox.begin(delivery)).await {",
        "match if PLANTED { Some(Ok(delivery)) } else { stop.run_until_cancelled(inbox.begin(delivery)).await } {",
    )
    .found_by("poison", "where_a_broker_counts_more_than_was_begun_its_notes_decide"),
    bug(
        "pages of other sites are let in",
        BROWSER,
        "Some(foreign) if self.is_open(gate, origin).await? => Ok(Some(foreign)),",
        "Some(foreign) if !PLANTED && self.is_open(gate, origin).await? => Ok(Some(foreign)),",
    )
    .found_by("doors", "pages_of_other_sites_and_foreign_hosts_are_kept_out_as_the_table_says"),
    bug(
        "a foreign host is taken on loopback",
        BROWSER,
        "if self.listen.is_loopback() && host.is_some() {",
        "if !PLANTED && self.listen.is_loopback() && host.is_some() {",
    )
    .found_by("doors", "pages_of_other_sites_and_foreign_hosts_are_kept_out_as_the_table_says"),
    bug(
        "every peer is taken for a proxy",
        FORWARDED,
        "let mut client = peer.to_canonical();\n    if !is_proxy(client) {",
        "let mut client = peer.to_canonical();\n    if !PLANTED && !is_proxy(client) {",
    )
    .found_by("doors", "where_a_request_comes_from_is_believed_only_of_listed_proxies"),
    bug(
        "a key is proved on every connection",
        PROVE,
        "\"nonce\": member(\"nonce\"), \"address\": address.to_string(), \"proof\": member(\"proof\"),",
        "\"nonce\": member(\"nonce\"), \"address\": if PLANTED { member(\"address\").to_owned() } else { address.to_string() }, \"proof\": member(\"proof\"),",
    )
    .found_by("doors", "a_key_is_proved_only_for_the_address_that_the_connection_arrived_at"),
    bug(
        "the default workspace can be disabled",
        REGIME,
        "if is_against_default(&question) {",
        "if !PLANTED && is_against_default(&question) {",
    )
    .found_by("service", "the_default_workspace_stays_enabled_with_a_key_and_without"),
    bug(
        "a log without its last file opens after a crash",
        RECOVER,
        "ledger.next_file.filter(|next| *next > segment.number)",
        "ledger.next_file.filter(|next| !PLANTED && *next > segment.number)",
    )
    .found_by("durability", "after_a_crash_too_a_missing_file_is_found_and_a_cut_is_told_with_its_size"),
    bug(
        "content that no row names is swept",
        LEFT_OVER,
        "let loose: Vec<String> = shared.names(LOOSE).await?.into_iter().collect();",
        "let mut loose: Vec<String> = shared.names(LOOSE).await?.into_iter().collect(); if PLANTED { loose.extend(fs::read_dir(&shared.folder).into_iter().flatten().flatten().map(|one| one.file_name().to_string_lossy().into_owned())); }",
    )
    .found_by("stores", "what_is_on_record_as_left_over_goes_to_the_trash_and_nothing_else_is_touched"),
    bug(
        "the process that reads documents is not confined",
        SANDBOX_CHECK,
        "if bare { Missing::new() }",
        "if bare || PLANTED { Missing::new() }",
    )
    .found_by("confined", "processes_that_read_and_render_reach_no_file_no_network_and_no_process"),
    bug(
        "slots are first come first served",
        FAIR,
        "min_by_key(|(_, (workspace, _))| held(workspace))",
        "min_by_key(|(_, (workspace, _))| if PLANTED { 0 } else { held(workspace) })",
    )
    .found_by("fair", "every_job_is_served_once_and_no_slot_is_idle_while_one_waits"),
    bug(
        "who had its turn stays in front",
        FAIR,
        "let last = self.waiting.remove(at);\n            self.waiting.extend(last);",
        "if !PLANTED { let last = self.waiting.remove(at); self.waiting.extend(last); }",
    )
    .found_by("fair", "a_small_document_beside_any_of_one_neighbour_waits_for_one_slot_at_most"),
    bug(
        "who is over its share keeps out others",
        SHARES,
        "if total > self.capacity && own > self.capacity / holders {",
        "if total > self.capacity && (PLANTED || own > self.capacity / holders) {",
    )
    .found_by("doors", "a_workspace_that_is_over_its_share_keeps_out_nobody_else"),
    bug(
        "flows count with the services of their workspace",
        DOORS,
        "Some((workspace, Some(_))) => Cow::Owned(format!(\"{workspace}:flows\")),",
        "Some((workspace, Some(_))) => Cow::Owned(if PLANTED { workspace.to_string() } else { format!(\"{workspace}:flows\") }),",
    )
    .found_by("bounds", "what_waits_in_some_workspaces_keeps_no_request_of_others_out"),
    bug(
        "silent connections do not give way",
        CONNECTIONS,
        "match gives_way.or_else(",
        "match gives_way.filter(|_| !PLANTED).or_else(",
    )
    .found_by("doors", "silent_connections_give_way_to_those_that_say_something"),
    bug(
        "strangers send messages of any size",
        METER,
        "if message_bytes > message_bytes_max as u64 {",
        "if !PLANTED && message_bytes > message_bytes_max as u64 {",
    )
    .found_by("doors", "a_stranger_sends_few_small_messages"),
    bug(
        "half a message counts for nothing",
        METER,
        "if unfinished_bytes <= FREE_BYTES {",
        "if PLANTED || unfinished_bytes <= FREE_BYTES {",
    )
    .found_by("doors", "unfinished_messages_count_against_their_senders_share"),
    bug(
        "a socket may stay without a key",
        SOCKET,
        "if self.is_awaited() => return",
        "if !PLANTED && self.is_awaited() => return",
    )
    .found_by("doors", "a_socket_without_an_accepted_credential_ends_whatever_it_says"),
    bug("bodies are not weighed", BODY, "if weight > bytes_max {", "if !PLANTED && weight > bytes_max {")
        .found_by("doors", "what_would_become_much_larger_than_it_is_is_refused"),
    bug(
        "a failure to ask is told as a refusal",
        IDENTITY,
        "let refusal = cannot_ask(&error, &**self.replies.broker());",
        "let refusal = if PLANTED { Refusal::Unauthenticated } else { cannot_ask(&error, &**self.replies.broker()) };",
    )
    .found_by("doors", "an_identity_service_that_is_away_is_told_as_such"),
    bug(
        "guesses that waited are all looked at",
        IDENTITY,
        "// Those that waited with it may have used up the tries of its address.\n            self.tries.check(origin)?;",
        "if !PLANTED { self.tries.check(origin)?; }",
    )
    .found_by("doors", "of_guesses_that_come_at_once_few_are_looked_at"),
    bug(
        "a log opens although a file that others follow lost its end",
        RECOVER,
        "Some(held) if held.bytes < bytes =>",
        "Some(held) if !PLANTED && held.bytes < bytes =>",
    )
    .found_beside("a_frame_that_is_missing_repeated_or_in_the_place_of_another_is_told_or_cut_off"),
    bug(
        "a log opens with part of what its first file began with",
        RECOVER,
        "if end < head.begin_bytes {",
        "if !PLANTED && end < head.begin_bytes {",
    )
    .found_beside("a_frame_that_is_missing_repeated_or_in_the_place_of_another_is_told_or_cut_off"),
    bug("a record of the log is one wherever it is", FRAME, "if self.is_placed {", "if !PLANTED && self.is_placed {")
        .found_beside("a_frame_that_is_missing_repeated_or_in_the_place_of_another_is_told_or_cut_off"),
    bug(
        "a letter is never too large",
        LETTER,
        "if wrapped_bytes > limits.message_bytes_max {",
        "if !PLANTED && wrapped_bytes > limits.message_bytes_max {",
    )
    .found_by("flows", "a_message_as_large_as_the_broker_takes_is_parked_when_its_flow_stops"),
    bug(
        "a blueprint may have any number of members",
        BLUEPRINT,
        "if count <= MEMBERS_MAX {",
        "if PLANTED || count <= MEMBERS_MAX {",
    )
    .found_beside("a_blueprint_of_one_value_is_read_in_time_however_many_members_it_has"),
    bug(
        "a cursor is believed whatever it says",
        PAGES,
        "step && self.base.is_possible()",
        "PLANTED || (step && self.base.is_possible())",
    )
    .found_by("service", "any_request_is_answered_within_its_workspace_or_refused"),
    bug(
        "a backup may name any file",
        MANIFEST,
        "(1..=NAME_BYTES_MAX).contains(&name.len()) &&",
        "PLANTED || (1..=NAME_BYTES_MAX).contains(&name.len()) &&",
    )
    .found_beside("a_manifest_that_names_files_outside_of_the_backup_is_refused"),
    bug(
        "a workspace's values are those of all",
        PAGES,
        "(None, vec![layout::prefix(&[config_type, workspace])])",
        "(None, vec![if PLANTED { layout::prefix(&[config_type]) } else { layout::prefix(&[config_type, workspace]) }])",
    )
    .found_by("seeds", "what_a_workspace_sees_is_the_same_whatever_another_does"),
    bug(
        "whoever is turned away floods the log",
        TRIES,
        "if !is_due || lines.written >= LINES_MAX {",
        "if !PLANTED && (!is_due || lines.written >= LINES_MAX) {",
    )
    .found_by("strangers", "denials_of_every_kind_are_logged_once_and_without_secrets"),
    bug(
        "a disk that fails at a stop is not told",
        FOLDER,
        "if let Some(reason) = failed() {",
        "if let Some(reason) = failed().filter(|_| !PLANTED) {",
    )
    .found_by("folder", "a_process_whose_disk_fails_while_it_stops_says_so_and_nothing_is_lost"),
    bug(
        "a check stops at what the disk cannot read",
        BLOBS,
        "_ if is_broken(error) => Some(",
        "_ if PLANTED => None,\n        _ if is_broken(error) => Some(",
    )
    .found_by("damage", "content_that_cannot_be_read_is_named_and_what_comes_after_it_is_looked_at"),
    bug(
        "a start goes on without the key that is lost",
        FOLDER,
        "&& !holds_something(&self.path.join(ADMIN_KEY))",
        "&& !PLANTED\n            && !holds_something(&self.path.join(ADMIN_KEY))",
    )
    .and(MISSING, "if want.admin_key && mark.has_admin_key", "if !PLANTED && want.admin_key && mark.has_admin_key")
    .found_by("folder", "a_lost_key_is_told_and_a_new_one_is_made_on_request"),
    bug(
        "a call waits for its answer from a queue that was removed",
        LOST,
        "if lost.is_queue() &&",
        "if !PLANTED && lost.is_queue() &&",
    )
    .found_beside("a_call_whose_question_went_with_its_queue_ends_and_no_other_call_does"),
    bug(
        "what an earlier version kept of a vector is read as what this one keeps",
        VECTOR_ROWS,
        "let is_short = count & SHORT != 0;",
        "let is_short = PLANTED || count & SHORT != 0;",
    )
    .found_by("earlier", "folders_of_the_version_before_are_taken_over_whether_stopped_or_killed"),
    bug(
        "a backup takes a damaged piece for the one it needs",
        BACKUP,
        "piece.bytes, |sums| sums.sha256 == piece.sha256)",
        "piece.bytes, |sums| PLANTED || sums.sha256 == piece.sha256)",
    )
    .found_by("backup", "the_next_backup_mends_whatever_of_it_is_damaged"),
];
