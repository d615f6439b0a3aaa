"""The published Python API against a system with a language model behind it."""

from trustgraph.api.types import RAGChunk

from support import FLOW, QUESTION, api, main, refused, socket

# What the model of these tests says to any question, and where it shows that it was given the passage.
GREETING = "The model greets you."
INFORMED = "The key hangs where the notes say: behind the blue door."


def a_text_is_completed_over_rest():
    result = api().flow().id(FLOW).text_completion("You are terse.", "Hello?")
    assert result.text == GREETING, result
    assert (result.in_token, result.out_token, result.model) == (11, 4, "tiny-test"), result


def a_text_is_completed_over_the_socket():
    with socket() as client:
        result = client.flow(FLOW).text_completion("You are terse.", "Hello?")
        assert (result.text, result.in_token, result.out_token) == (GREETING, 11, 4), result
        parts = list(client.flow(FLOW).text_completion("You are terse.", "Hello?", streaming=True))
    assert all(isinstance(part, RAGChunk) for part in parts)
    assert "".join(part.content for part in parts) == GREETING, parts
    assert parts[-1].end_of_stream and parts[-1].model == "tiny-test", parts


def a_prompt_is_filled_in_and_answered():
    assert api().flow().id(FLOW).prompt("question", {"question": "Hello?"}) == GREETING
    with socket() as client:
        assert client.flow(FLOW).prompt("question", {"question": "Hello?"}).text == GREETING
        parts = list(client.flow(FLOW).prompt("question", {"question": "Hello?"}, streaming=True))
    assert "".join(part.content for part in parts) == GREETING, parts


def an_unknown_prompt_is_named():
    with refused("no-such-prompt"):
        api().flow().id(FLOW).prompt("no-such-prompt", {})


def the_models_are_listed():
    with socket() as client:
        assert "tiny-test" in str(client.flow(FLOW).list_models())


def a_question_is_answered_by_the_model_from_the_passage():
    assert api().flow().id(FLOW).document_rag(QUESTION).text == INFORMED
    with socket() as client:
        assert client.flow(FLOW).document_rag(QUESTION, "default").text == INFORMED
        parts = list(client.flow(FLOW).document_rag(QUESTION, "default", streaming=True))
    assert "".join(part.content for part in parts) == INFORMED, parts
    assert parts[-1].in_token and parts[-1].model == "tiny-test", parts[-1]


async def a_question_is_answered_by_the_model_asynchronously():
    client = api().async_socket()
    async with client:
        assert await client.flow(FLOW).document_rag(QUESTION, "default") == INFORMED
        completed = await client.flow(FLOW).text_completion("You are terse.", "Hello?")
        assert getattr(completed, "text", completed) == GREETING, completed
    flow = api().async_flow().id(FLOW)
    completed = await flow.text_completion("You are terse.", "Hello?")
    assert getattr(completed, "text", completed) == GREETING, completed


def a_failing_model_is_a_typed_error_with_its_reason():
    with refused("llm-error", "the model is on holiday"):
        api().flow().id(FLOW).text_completion("You are terse.", "Please fail.")
    with socket() as client:
        with refused("LLMError", "the model is on holiday"):
            client.flow(FLOW).text_completion("You are terse.", "Please fail.")
        with refused("LLMError", "the model is on holiday"):
            list(client.flow(FLOW).text_completion("You are terse.", "Please fail.", streaming=True))
        assert client.flow(FLOW).text_completion("You are terse.", "Hello?").text == GREETING


if __name__ == "__main__":
    main(globals())
