"""The published Python API against a system without a language model."""

import asyncio
import uuid

from trustgraph.api import ConfigKey, ConfigValue
from trustgraph.api.types import ProvenanceEvent, RAGChunk

from support import FLOW, OTHER_PASSAGE, PASSAGE, QUESTION, api, main, refused, socket, wait_for


def fresh(word):
    return f"{word}-{uuid.uuid4().hex[:8]}"


def config_values_are_put_read_listed_and_deleted():
    config, kind = api().config(), fresh("kind")
    config.put([ConfigValue(kind, "a", "1"), ConfigValue(kind, "b", '{"deep": ["ü", 2]}')])
    read = config.get([ConfigKey(kind, "b"), ConfigKey(kind, "a")])
    assert [(v.type, v.key, v.value) for v in read] == [(kind, "b", '{"deep": ["ü", 2]}'), (kind, "a", "1")], read
    assert sorted(config.list(kind)) == ["a", "b"]
    assert {v.key: v.value for v in config.get_values(kind)} == {"a": "1", "b": '{"deep": ["ü", 2]}'}
    with refused("bad-operation"):  # nobody looks into other workspaces through one
        config.get_values_all_workspaces(kind)
    whole, version = config.all()
    assert whole[kind]["a"] == "1" and int(version) > 0
    config.delete([ConfigKey(kind, "a"), ConfigKey(kind, "b")])
    assert config.list(kind) == []
    assert int(config.all()[1]) > int(version)


def blueprints_are_put_read_and_deleted():
    flows, name = api().flow(), fresh("blueprint")
    assert "document-rag" in flows.list_blueprints()
    flows.put_blueprint(name, {"description": "mine", "flow": {}, "blueprint": {}, "interfaces": {}})
    assert flows.get_blueprint(name)["description"] == "mine"
    flows.delete_blueprint(name)
    assert name not in flows.list_blueprints()
    with refused("flow-error", "does not exist"):
        flows.get_blueprint(name)


def a_flow_is_started_read_and_stopped():
    flows, flow = api().flow(), fresh("flow")
    flows.start("document-rag", flow, "Started by a test", {"chunk-size": "500"})
    assert flow in flows.list()
    read = flows.get(flow)
    assert read["description"] == "Started by a test" and read["blueprint-name"] == "document-rag", read
    assert read["parameters"]["chunk-size"] == "500", read
    assert len(flows.id(flow).embeddings(["ready at once"])) == 1
    with refused("flow-error", "already exists"):
        flows.start("document-rag", flow, "again")
    flows.stop(flow)
    assert flow not in flows.list()
    with refused(flow):
        flows.id(flow).embeddings(["gone"])
    with refused("invalid"):
        flows.stop(flow)


def a_flow_of_an_unknown_blueprint_is_refused():
    with refused("flow-error", "does not exist"):
        api().flow().start("nowhere-blueprint", fresh("flow"), "never")


def a_document_goes_through_the_library_and_comes_back():
    library, document = api().library(), f"urn:{fresh('doc')}"
    text = "The lighthouse keeper keeps a grey parrot named Jonas.\n"
    library.add_document(
        document=text.encode(), id=document, metadata=[], title="Keeper", comments="one line",
        kind="text/plain", tags=["birds", "towers"],
    )
    listed = {d.id: d for d in library.get_documents()}[document]
    assert (listed.title, listed.comments, listed.kind) == ("Keeper", "one line", "text/plain"), listed
    assert listed.tags == ["birds", "towers"], listed
    assert library.get_document(document).title == "Keeper"
    assert library.get_document_content(document) == text.encode()

    run = fresh("run")
    library.start_processing(id=run, document_id=document, flow=FLOW, collection="default", tags=[])
    assert (run, document, FLOW) in [(p.id, p.document_id, p.flow) for p in library.get_processings()]
    flow = api().flow().id(FLOW)
    wait_for("the parrot", lambda: "Jonas" in flow.document_rag("What is the name of the grey parrot?").text)
    library.stop_processing(run)
    assert run not in [p.id for p in library.get_processings()]

    library.remove_document(document)
    assert document not in [d.id for d in library.get_documents()]
    with refused(document):
        library.get_document_content(document)


def a_large_document_is_uploaded_in_chunks():
    library, document = api().library(), f"urn:{fresh('big')}"
    line = b"Ten thousand lines of this make a document that goes in pieces. \xc3\xbc\n"
    content, seen = line * (7 * 1024 * 1024 // len(line)), []
    library.add_document(
        document=content, id=document, metadata=[], title="Big", comments="", kind="text/plain", tags=[],
        on_progress=lambda sent, total: seen.append((sent, total)),
    )
    assert len(seen) > 1 and seen[-1] == (len(content), len(content)), seen
    assert library.get_pending_uploads() == []
    assert document in [d.id for d in library.get_documents()]
    assert library.get_document_content(document) == content
    library.remove_document(document)


def collections_are_made_listed_and_deleted():
    collections, name = api().collection(), fresh("collection")
    collections.update_collection(name, name="Mine", description="a few things", tags=["x"])
    listed = {c.collection: c for c in collections.list_collections()}[name]
    assert (listed.name, listed.description, listed.tags) == ("Mine", "a few things", ["x"]), listed
    assert name in [c.collection for c in collections.list_collections(tag_filter=["x"])]
    collections.delete_collection(name)
    assert name not in [c.collection for c in collections.list_collections()]


def a_question_over_rest_is_answered_from_the_right_document():
    answer = api().flow().id(FLOW).document_rag(QUESTION).text
    assert PASSAGE in answer, answer
    other = api().flow().id(FLOW).document_rag("When does the ferry to the island leave?", doc_limit=1).text
    assert OTHER_PASSAGE in other and PASSAGE not in other, other


def embeddings_are_one_list_for_each_text():
    texts = ["the pump house", "the island", "the pump house"]
    rest = api().flow().id(FLOW).embeddings(texts)
    assert len(rest) == 3 and rest[0] == rest[2] != rest[1]
    assert all(isinstance(number, float) for number in rest[0])
    with socket() as client:
        assert client.flow(FLOW).embeddings(texts)["vectors"] == rest


def chunks_near_a_text_are_found_over_the_socket():
    with socket() as client:
        found = client.flow(FLOW).document_embeddings_query("spare key of the pump house", "default", limit=2)
    assert 1 <= len(found["chunks"]) <= 2 and found["chunks"][0]["chunk_id"], found


def an_answer_streams_over_the_socket_and_ends_once():
    with socket() as client:
        parts = list(client.flow(FLOW).document_rag(QUESTION, "default", streaming=True))
    assert all(isinstance(part, RAGChunk) for part in parts)
    assert PASSAGE in "".join(part.content for part in parts)
    assert [part.end_of_stream for part in parts].count(True) == 1, parts


def an_answer_not_streamed_comes_whole_over_the_socket():
    with socket() as client:
        assert PASSAGE in client.flow(FLOW).document_rag(QUESTION, "default").text


def an_explained_answer_tells_how_it_came_about():
    with socket() as client:
        parts = list(client.flow(FLOW).document_rag_explain(QUESTION, "default"))
        events = [part for part in parts if isinstance(part, ProvenanceEvent)]
        assert PASSAGE in "".join(part.content for part in parts if isinstance(part, RAGChunk))
        assert events[0].entity.query == QUESTION, events
        assert len(events) >= 4 and all(event.triples and event.entity for event in events), events
        first = events[0]

        def kept():
            return client.flow(FLOW).triples_query(s=first.explain_id, g=first.explain_graph, collection="default")

        assert QUESTION in str(wait_for("what was explained in the graph", kept))
        batches = client.flow(FLOW).triples_query_stream(g=first.explain_graph, collection="default", batch_size=3)
        sizes = [len(batch) for batch in batches]
        assert sum(sizes) > 3 and max(sizes) <= 3, sizes

    subject = api().flow().id(FLOW).triples_query(s=first.explain_id, g=first.explain_graph, collection="default")
    assert subject and all(str(triple.s) == first.explain_id for triple in subject), subject


def calls_share_a_socket_without_mixing_their_answers():
    async def ask_all():
        client = api().async_socket()
        async with client:
            flow = client.flow(FLOW)
            asked = [(QUESTION, PASSAGE), ("When does the ferry to the island leave?", OTHER_PASSAGE)] * 8
            calls = [flow.document_rag(question, "default", doc_limit=1) for question, _ in asked]
            answers = await asyncio.gather(*calls, *[flow.embeddings([str(n)]) for n in range(16)])
            for (question, expected), answer in zip(asked, answers):
                assert expected in answer, (question, answer)
            vectors = [tuple(answer["vectors"][0]) for answer in answers[16:]]
            assert len(set(vectors)) == 16

    asyncio.run(ask_all())


async def the_asynchronous_socket_streams_and_asks():
    client = api().async_socket()
    async with client:
        flow = client.flow(FLOW)
        parts = [part async for part in await flow.document_rag(QUESTION, "default", streaming=True)]
        assert PASSAGE in "".join(parts), parts
        assert PASSAGE in await flow.document_rag(QUESTION, "default")
        assert isinstance(await flow.triples_query(collection="default", limit=5), (list, dict))


async def the_asynchronous_rest_client_lists_asks_and_stops():
    flows, flow = api().async_flow(), fresh("flow")
    # Its own `start` names blueprints by a word that 2.11 does not take either.
    api().flow().start("document-rag", flow, "asynchronous")
    assert flow in await flows.list()
    assert (await flows.get(flow))["description"] == "asynchronous"
    assert len(await flows.id(flow).embeddings(["hello"])) == 1
    assert PASSAGE in await flows.id(FLOW).document_rag(QUESTION, "default")
    await flows.stop(flow)
    assert flow not in await flows.list()


def metrics_are_read_as_text():
    assert "tg_gateway_request_total" in api().metrics().get()


def a_model_that_is_not_configured_is_a_typed_error_everywhere():
    flow = api().flow().id(FLOW)
    with refused("llm-error", "SLUICE_LLM_URL"):
        flow.text_completion("You are terse.", "Hello?")
    with refused("llm-error", "SLUICE_LLM_URL"):
        flow.prompt("question", {"question": "why?"})
    with socket() as client:
        with refused("LLMError", "SLUICE_LLM_URL"):
            client.flow(FLOW).text_completion("You are terse.", "Hello?")
        with refused("LLMError", "SLUICE_LLM_URL"):
            list(client.flow(FLOW).text_completion("You are terse.", "Hello?", streaming=True))


def an_unknown_flow_is_named_over_rest_and_socket():
    with refused("nowhere-flow"):
        api().flow().id("nowhere-flow").document_rag("anybody?")
    with socket() as client, refused("nowhere-flow"):
        client.flow("nowhere-flow").document_rag("anybody?", "default")


def a_wrong_token_is_refused_over_rest_and_socket():
    stranger = api(token="tg_wrong")
    with refused("401"):
        stranger.config().list("prompt")
    client = stranger.socket()
    with refused("auth failure"):
        client.flow(FLOW).embeddings(["x"])
    with refused("401"):
        api(token=None).flow().list()


if __name__ == "__main__":
    main(globals())
