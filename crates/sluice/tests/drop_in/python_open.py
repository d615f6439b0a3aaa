"""The published Python API without a token, against a system that lets everybody in."""

from support import FLOW, PASSAGE, QUESTION, TOKEN, api, main, socket


def an_anonymous_client_works_over_rest():
    assert TOKEN is None
    assert FLOW in api().flow().list()
    assert PASSAGE in api().flow().id(FLOW).document_rag(QUESTION).text


def an_anonymous_client_works_over_the_socket():
    with socket() as client:
        assert PASSAGE in client.flow(FLOW).document_rag(QUESTION, "default").text


def any_token_is_accepted():
    assert FLOW in api(token="whatever").flow().list()
    client = api(token="whatever").socket()
    assert len(client.flow(FLOW).embeddings(["x"])["vectors"]) == 1
    client.close()


async def an_anonymous_client_works_asynchronously():
    assert FLOW in await api().async_flow().list()
    client = api().async_socket()
    async with client:
        assert PASSAGE in await client.flow(FLOW).document_rag(QUESTION, "default")


if __name__ == "__main__":
    main(globals())
