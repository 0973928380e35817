"""A model whose layers are compiled sleeps with its compiled code, and wakes with it."""

import time

import openai
import pytest

from tests.cluster.conftest import Answer, Running

NAME = "compiled"
QUESTION = "Name three animals that live in a forest."
COMPILES_S = 500.0  # on a slow machine longer than a request waits


@pytest.mark.timeout(2 * COMPILES_S)
def test_it_wakes_with_what_was_compiled(running: Running) -> None:
    running.add(NAME, engine_args={"context_tokens": 512, "compile": 1})
    try:
        cold = _answer(running)
        running.freeze(NAME)
        for _ in range(2):
            woken = running.ask(QUESTION, NAME)
            assert woken.rung == "frozen"
            assert woken.text == cold.text
            running.freeze(NAME)
    finally:
        running.remove(NAME)


def _answer(running: Running) -> Answer:
    """The first one, once its climb is over, however often it is to be asked for."""
    deadline = time.monotonic() + COMPILES_S
    again = False
    while True:
        try:
            answer = running.ask(QUESTION, NAME)
        except openai.InternalServerError as error:
            if error.code != "model_waking" or time.monotonic() > deadline:
                raise
            again = True
        else:
            assert answer.rung in (("absent", "serving") if again else ("absent",))
            return answer
