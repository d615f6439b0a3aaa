"""What every script here stands on: where the system is, and how a case is chosen, run and judged.

A script is run as `python SCRIPT CASE`; a case is a function of the script without arguments, and fails by raising.
"""

import contextlib
import os
import sys
import time

from trustgraph.api import Api

URL = os.environ["TRUSTGRAPH_URL"]
TOKEN = os.environ.get("TRUSTGRAPH_TOKEN")
PATIENCE_S = 60

# The documents that every system of these tests holds, put through the flow `main`.
FLOW = "main"
QUESTION = "Where does the spare key of the pump house hang?"
PASSAGE = "behind the blue door"
OTHER_PASSAGE = "ferry to the island leaves at a quarter past nine"


def api(token=TOKEN):
    return Api(url=URL, timeout=PATIENCE_S, token=token)


@contextlib.contextmanager
def socket():
    client = api().socket()
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def refused(*says, kind=Exception):
    """The block must fail, and the failure must say all of this."""
    try:
        yield
    except kind as error:
        said = f"{type(error).__name__}: {error}"
        for text in says:
            assert text.lower() in said.lower(), f"wanted '{text}' in: {said}"
        return
    raise AssertionError(f"it was not refused; wanted: {says}")


def wait_for(what, question):
    """Asks until the answer is true; asking takes a moment of its own."""
    until = time.monotonic() + PATIENCE_S
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < until, f"waited in vain for {what}"


def main(cases):
    chosen = cases[sys.argv[1]]
    if chosen.__code__.co_flags & 0x80:  # a coroutine function
        import asyncio

        asyncio.run(chosen())
    else:
        chosen()
