"""Schemas are compiled beside the event loop, in turns; what was compiled is kept. Compiling is simulated."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.unit.engine.test_constraint import DIGITS, grammars, tokenizer  # noqa: F401

from woodfrog.engine.constraint import Constraint, Grammars
from woodfrog.engine.formats import Schema
from woodfrog.engine.schemas import Schemas
from woodfrog.engine.tokenizer import Tokenizer
from woodfrog.errors import InvalidArgument

DEADLINE_S = 100


class SimulatedCompiler:
    """Holds each schema until `go_on`, and gives what a real one made of another."""

    def __init__(self, make: Callable[[Schema], Constraint]) -> None:
        self.begun: list[str] = []
        self.threads: list[str] = []
        self._make = make
        self._may_end = threading.Semaphore(0)

    def __call__(self, schema: Schema) -> Constraint:
        self.begun.append(schema.text)
        self.threads.append(threading.current_thread().name)
        assert self._may_end.acquire(timeout=DEADLINE_S)
        if schema.text == "bad":
            raise InvalidArgument("INVALID_JSON_SCHEMA", "bad")
        return self._make(DIGITS)

    def go_on(self, count: int = 1) -> None:
        self._may_end.release(count)

    async def has_begun(self, text: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while text not in self.begun:
                await asyncio.sleep(0)


@pytest.fixture
def compiler(grammars: Grammars) -> Iterator[SimulatedCompiler]:  # noqa: F811
    simulated = SimulatedCompiler(grammars.constraint)
    yield simulated
    simulated.go_on(100)
    assert not [t for t in threading.enumerate() if t.name.startswith("schema")]


def schema(text: str) -> Schema:
    return Schema(text, "response_format")


async def test_others_go_on_while_a_schema_is_compiled(compiler: SimulatedCompiler) -> None:
    schemas = Schemas(compiler)
    asked = asyncio.ensure_future(schemas.constraint(schema("large")))
    await compiler.has_begun("large")
    assert not asked.done()  # and yet this goes on
    compiler.go_on()
    assert isinstance(await asked, Constraint)
    await schemas.quiet()


async def test_each_schema_is_compiled_once_and_in_turn(compiler: SimulatedCompiler) -> None:
    schemas = Schemas(compiler)
    texts = ["one", "two", "one", "two"]
    asked = [asyncio.ensure_future(schemas.constraint(schema(text))) for text in texts]
    await compiler.has_begun("one")
    assert compiler.begun == ["one"]
    compiler.go_on(2)
    given = await asyncio.gather(*asked)
    assert compiler.begun == ["one", "two"]
    assert len({id(constraint) for constraint in given}) == 4
    await schemas.quiet()


async def test_who_leaves_gives_up_its_turn(compiler: SimulatedCompiler) -> None:
    schemas = Schemas(compiler)
    begun, waiting = (asyncio.ensure_future(schemas.constraint(schema(t))) for t in ("one", "two"))
    await compiler.has_begun("one")
    for asked in (begun, waiting):
        asked.cancel()
    await asyncio.wait({begun, waiting})
    assert begun.cancelled()
    assert waiting.cancelled()
    quiet = asyncio.ensure_future(schemas.quiet())
    await asyncio.sleep(0)
    assert not quiet.done()  # what has begun is finished
    compiler.go_on()
    await quiet
    await schemas.constraint(schema("one"))  # and kept
    assert compiler.begun == ["one"]


async def test_a_refusal_reaches_its_client_and_is_not_kept(compiler: SimulatedCompiler) -> None:
    schemas = Schemas(compiler)
    compiler.go_on(3)
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            await schemas.constraint(schema("bad"))
    await schemas.constraint(schema("good"))
    assert compiler.begun == ["bad", "bad", "good"]
    await schemas.quiet()


async def test_the_newest_are_kept_and_forgotten_at_rest(compiler: SimulatedCompiler) -> None:
    schemas = Schemas(compiler)
    compiler.go_on(100)
    for number in range(9):
        await schemas.constraint(schema(str(number)))
    await schemas.constraint(schema("8"))
    assert len(compiler.begun) == 9
    await schemas.constraint(schema("0"))
    assert len(compiler.begun) == 10
    schemas.forget()
    await schemas.constraint(schema("8"))
    assert len(compiler.begun) == 11
    await schemas.quiet()


async def test_one_whose_answer_broke_is_compiled_anew(
    compiler: SimulatedCompiler,
    tokenizer: Tokenizer,  # noqa: F811
) -> None:
    """Copies share their states, so one client could use up what another one needs."""
    schemas = Schemas(compiler)
    compiler.go_on(2)
    first = await schemas.constraint(schema("one"))
    first.copy().advance(tokenizer.encode("x", special=False)[0])
    assert not (await schemas.constraint(schema("one"))).broken
    assert compiler.begun == ["one", "one"]
    await schemas.quiet()


async def test_references_may_lead_deeper_than_a_common_stack(grammars: Grammars) -> None:  # noqa: F811
    """In the thread of who calls, this one would end the process."""
    count = 2400
    chain = {f"{n}": {"properties": {"": {"$ref": f"#/d/{n + 1}"}}} for n in range(count)}
    deep = json.dumps({"$ref": "#/d/0", "d": {**chain, str(count): {"type": "string"}}})
    schemas = Schemas(grammars.constraint)
    assert not (await schemas.constraint(schema(deep))).broken
    await schemas.quiet()
