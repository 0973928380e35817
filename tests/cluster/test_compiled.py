"""A model whose layers are compiled sleeps with its compiled code, and wakes with it."""

from tests.cluster.conftest import Running

NAME = "compiled"
QUESTION = "Name three animals that live in a forest."


def test_it_wakes_with_what_was_compiled(running: Running) -> None:
    running.add(NAME, engine_args={"context_tokens": 512, "compile": 1})
    cold = running.ask(QUESTION, NAME)
    assert cold.rung == "absent"
    running.freeze(NAME)
    for _ in range(2):
        woken = running.ask(QUESTION, NAME)
        assert woken.rung == "frozen"
        assert woken.text == cold.text
        running.freeze(NAME)
    running.remove(NAME)
