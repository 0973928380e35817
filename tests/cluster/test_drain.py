"""A node of one is drained: nothing climbs there until it is undrained, whatever restarts meanwhile."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from subprocess import PIPE

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.cluster.conftest import NAME, Running, wait
from woodfrog.cli import nodes
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.errors import DeadlineExceeded, FailedPrecondition, NotFound, ResourceExhausted
from woodfrog.model.spec import ModelSpec

QUESTION = "Name three animals that live in a forest."


def test_a_drained_node_climbs_nothing_until_it_is_undrained(
    frog: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = frog.cluster
    expected = frog.ask(QUESTION).text
    assert len(frog.replicas()) == 1
    try:
        asyncio.run(nodes.drain(cluster, cluster.node, 60.0))
        assert not frog.replicas()
        assert f"{cluster.node} is empty and takes nothing new" in capsys.readouterr().out
        with pytest.raises(openai.APIStatusError, match="1 node is draining"):
            frog.ask(QUESTION)
        frog.kill9("node_agent")
        with pytest.raises(openai.APIStatusError, match="1 node is draining"):
            frog.ask(QUESTION)
        with pytest.raises(ResourceExhausted) as refused:
            asyncio.run(climb(frog))
        assert refused.value.reason == "NODE_DRAINING"
        asyncio.run(nodes.nodes_list(cluster))
        assert "drained" in capsys.readouterr().out
    finally:
        asyncio.run(nodes.undrain(cluster, cluster.node))
    answer = frog.ask(QUESTION)
    assert (answer.rung, answer.text) == ("frozen", expected)


def begun(frog: Running) -> Iterator[ChatCompletionChunk]:
    """A long answer, of which the first piece came."""
    chunks = iter(
        frog.client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "Tell a very long story."}],
            max_tokens=300,
            stream=True,
        )
    )
    next(chunks)
    return chunks


def is_whole(answer: Iterator[ChatCompletionChunk]) -> bool:
    """Its last piece says why it ended; in how many it comes depends on how busy the machine is."""
    *_, last = answer
    return last.choices[0].finish_reason in ("length", "stop")


def test_a_drain_waits_for_the_answer_under_way_and_says_so(frog: Running) -> None:
    cluster = frog.cluster
    answer = begun(frog)
    try:
        with pytest.raises(DeadlineExceeded, match=r"is serving \(1 active\); no other node takes"):
            asyncio.run(nodes.drain(cluster, cluster.node, 0.3))
        assert is_whole(answer)
        wait(lambda: not frog.replicas(), "the replica to leave")
    finally:
        asyncio.run(nodes.undrain(cluster, cluster.node))
    assert frog.ask(QUESTION).rung == "frozen"


def test_a_drain_that_is_interrupted_goes_on_and_says_so(frog: Running) -> None:
    cluster = frog.cluster
    answer = begun(frog)
    command = [sys.executable, "-m", "woodfrog.cli", "--home", str(cluster.home), "nodes", "drain"]
    try:
        with subprocess.Popen([*command, cluster.node], stdout=PIPE, stderr=PIPE, text=True) as cli:
            assert cli.stdout is not None
            assert "drains: " in cli.stdout.readline()
            cli.send_signal(signal.SIGINT)
            _, said = cli.communicate(timeout=30)
        assert cli.returncode == 130
        assert said == (
            f"{cluster.node} drains on; woodfrog nodes list shows when it is done, "
            f"woodfrog nodes undrain {cluster.node} ends it\n"
        )
        assert is_whole(answer)
        wait(lambda: not frog.replicas(), "the replica to leave")
    finally:
        asyncio.run(nodes.undrain(cluster, cluster.node))


def test_a_drain_that_somebody_ends_says_so(frog: Running) -> None:
    cluster = frog.cluster

    async def ended() -> None:
        waiting = asyncio.create_task(nodes.drain(cluster, cluster.node, 60.0))
        await asyncio.sleep(0.5)
        await nodes.undrain(cluster, cluster.node)
        with pytest.raises(FailedPrecondition, match="somebody undrained it"):
            await waiting

    answer = begun(frog)
    try:
        asyncio.run(ended())
    finally:
        asyncio.run(nodes.undrain(cluster, cluster.node))
        assert is_whole(answer)


def test_a_node_that_is_not_there_is_named(frog: Running) -> None:
    with pytest.raises(
        NotFound, match=f"no node 'nowhere' is registered; there is: {frog.cluster.node}"
    ):
        asyncio.run(nodes.drain(frog.cluster, "nowhere", 1.0))


async def climb(running: Running) -> None:
    async with NodeAgentClient(running.cluster.address("node_agent")) as agent:
        spec = ModelSpec("m", "sha256:" + "0" * 64, 0)
        await agent.climb(spec, None, None, request_id="drain-test", timeout_s=10.0)
