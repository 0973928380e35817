"""`woodfrog tenants` and `woodfrog keys` as they are typed, before a real etcd and a real router that asks for keys."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from tests.capabilities import ROOT, need
from tests.service import router_process
from tests.service.router_process import RouterProcess

from woodfrog.cli.cluster import Cluster
from woodfrog.cli.supervisor import Lock

pytestmark = need("etcd")
WAIT_S = 60.0


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[RouterProcess]:
    """Its cluster's folder is `home`, in the same folder as its log and etcd's data."""
    settings = {"WOODFROG_ROUTER_AUTH": "keys"}
    async with router_process.opened(tmp_path, "m", 256, settings) as router:
        cluster = Cluster.open(tmp_path / "home")
        ports = {**cluster.ports, "etcd": int(router.etcd.rpartition(":")[2])}
        Cluster(cluster.home, cluster.http_port, ports, auth="keys").save()
        lock = Lock(cluster.home)  # as a supervisor has it
        lock.take()
        yield router
        lock.release()


async def typed(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "woodfrog.cli", "--home", str(folder / "home"), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    out, error = await process.communicate()
    return process.returncode or 0, out.decode(), error.decode()


async def said(folder: Path, *arguments: str) -> str:
    status, out, error = await typed(folder, *arguments)
    assert status == 0, error
    return out


async def ask(router: RouterProcess, key: str) -> str:
    async with openai.AsyncOpenAI(
        base_url=f"http://{router.http}/v1", api_key=key, max_retries=0
    ) as client:
        answer = await client.completions.create(model="m", prompt="hi")
    return answer.choices[0].text


async def until(router: RouterProcess, key: str, code: str) -> None:
    """Until the router answers so; "" is an answer. It hears of a change a moment after it was made."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await ask(router, key)
                told = ""
            except openai.APIStatusError as error:
                told = str(error.code)
            if told == code:
                return
            await asyncio.sleep(0.05)


async def test_a_key_opens_until_it_is_revoked_and_is_nowhere_else(
    router: RouterProcess, tmp_path: Path
) -> None:
    await said(tmp_path, "tenants", "add", "acme", "--concurrency-max", "2")
    out = await said(tmp_path, "keys", "create", "acme", "--label", "laptop")
    key = out.strip()
    assert out == f"{key}\n", "a script takes stdout"
    await until(router, key, "")
    await until(router, "wrong", "invalid_api_key")
    listed = await said(tmp_path, "keys", "list")
    (row,) = [line for line in listed.splitlines() if "laptop" in line]
    key_id = row.split()[0]
    secret = key.rpartition("-")[2][-20:]
    told = [
        listed,
        await said(tmp_path, "tenants", "list"),
        *await asyncio.to_thread(texts, tmp_path),
    ]
    assert all(secret not in text for text in told)
    assert any(key_id in text for text in told), "or nothing was looked through"
    await said(tmp_path, "keys", "revoke", key_id)
    await until(router, key, "invalid_api_key")
    assert "laptop" not in await said(tmp_path, "keys", "list")


def texts(folder: Path) -> list[str]:
    """All files of the cluster: etcd's data and log, the router's log, the cluster's own."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.read_bytes().decode("latin-1") for path in files]


async def test_a_limit_holds_is_shown_and_is_taken_away(
    router: RouterProcess, tmp_path: Path
) -> None:
    await said(tmp_path, "tenants", "add", "acme", "--requests-per-minute", "1")
    key = (await said(tmp_path, "keys", "create", "acme")).strip()
    shown = await said(tmp_path, "tenants", "list")
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("acme")]
    assert row == ["acme", "1", "1", "-", "1", "-", "-", "-", "-"]
    await until(router, key, "rate_limit_exceeded")
    await said(tmp_path, "tenants", "set", "acme", "--requests-per-minute", "none")
    await until(router, key, "")
    assert "1 key" in await said(tmp_path, "tenants", "rm", "acme")
    await until(router, key, "invalid_api_key")


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "nobody"),
        ("keys", "revoke", "nokey"),
        ("tenants", "rm", "nobody"),
        ("tenants", "set", "nobody", "--share", "2"),
        ("tenants", "add", "a/b"),
        ("tenants", "add", "0", "--share", "0"),
    ],
)
async def test_what_cannot_be_is_one_sentence(
    router: RouterProcess, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    status, out, error = await typed(tmp_path, *arguments)
    assert status != 0
    assert out == ""
    assert "Traceback" not in error
    assert arguments[2] in error
    assert len(error.strip().splitlines()) == 1
