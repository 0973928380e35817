"""`woodfrog tenants` and `woodfrog keys`: who may ask, and how much."""

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from woodfrog.catalog.tenants import Tenants
from woodfrog.cli import options
from woodfrog.cli.cluster import NODES_MAX, Cluster, to_type
from woodfrog.cli.show import table
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.errors import InvalidArgument
from woodfrog.model import tenant as values
from woodfrog.model.tenant import Tenant

NO_LIMIT = "none"
_WHAT = {
    "concurrency_max": "requests at once",
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute, of prompts and answers",
    "tokens_per_month": "tokens a calendar month, in UTC",
    "gpu_seconds_per_month": "GPU seconds that its models hold in a calendar month",
    "host_gib_hours_per_month": "GiB hours of memory that its models hold in a calendar month",
}


def take(verbs: Any) -> None:
    """Adds both verbs."""
    tenants = verbs.add_parser("tenants", help="who may ask, and how much").add_subparsers(
        dest="action", required=True
    )
    _take_limits(tenants.add_parser("add", help="add a tenant"))
    _take_limits(tenants.add_parser("set", help="change a tenant's limits; others stay"))
    tenants.add_parser("list", help="list tenants")
    rm = tenants.add_parser("rm", help="remove a tenant and its keys; its models stay")
    rm.add_argument("name")

    keys = verbs.add_parser("keys", help="API keys of tenants").add_subparsers(
        dest="action", required=True
    )
    create = keys.add_parser("create", help="make a key, and show it this once")
    create.add_argument("tenant")
    create.add_argument("--label", default="", help="for people, at most 100 characters")
    listed = keys.add_parser("list", help="list keys by their ids")
    listed.add_argument("tenant", nargs="?", default="")
    revoke = keys.add_parser("revoke", help="end a key; requests under way go on")
    revoke.add_argument("id")


def name(text: str) -> str:
    """Of a tenant. Raises ArgumentTypeError."""
    try:
        return values.check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def of_node(text: str) -> tuple[str, str]:
    """`2=acme,globex`: a node's number, and whose models alone it takes. Raises ArgumentTypeError."""
    number, equals, names = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not NUMBER=TENANT[,TENANT]")
    whole = options.whole(1, NODES_MAX)(number)
    for each in names.split(",") if names else ():
        name(each)
    return str(whole), names


def _take_limits(verb: options.Parser) -> None:
    verb.add_argument("name")
    verb.add_argument(
        "--share", type=options.number(values.SHARE_MIN, values.SHARE_MAX), metavar="N",
        help="of the turns where several tenants wait for one model, against others', who have 1",
    )  # fmt: skip
    for limit, most in values.LIMITS.items():
        option, what = f"--{limit.replace('_', '-')}", _WHAT[limit]
        verb.add_argument(option, type=_limit(most), metavar="N", help=f"{what}, or '{NO_LIMIT}'")


def _limit(most: int) -> Any:
    whole = options.whole(1, most, f"nor '{NO_LIMIT}'")
    return lambda text: NO_LIMIT if text == NO_LIMIT else whole(text)


async def add(cluster: Cluster, args: argparse.Namespace) -> None:
    async with _tenants(cluster) as tenants:
        await tenants.create(_with(Tenant(args.name, create_time=SystemClock().wall()), args))
    print(
        f"added {args.name}; make it a key with: {to_type(f'keys create {args.name}', cluster.home)}"
    )
    _warn(cluster)


async def change(cluster: Cluster, args: argparse.Namespace) -> None:
    """Raises InvalidArgument."""
    if not _limits(args):
        raise InvalidArgument(
            "NOTHING_TO_SET",
            f"nothing is said that {args.name} is to have; see: woodfrog tenants set --help",
        )
    async with _tenants(cluster) as tenants:
        await tenants.change(_with(await tenants.get(args.name), args))


async def check(cluster: Cluster, name: str) -> None:
    """Raises NotFound when there is no such tenant."""
    async with _tenants(cluster) as tenants:
        await tenants.get(name)


async def show(cluster: Cluster) -> None:
    async with _tenants(cluster) as tenants:
        found, keys = await tenants.all(), await tenants.list_keys()
    rows = [
        (
            each.name, sum(key.tenant == each.name for key in keys), f"{each.share:g}",
            *("-" if limit is None else limit for limit in (
                getattr(each, name) for name in values.LIMITS
            )),
        )
        for each in found
    ]  # fmt: skip
    header = (
        "TENANT",
        "KEYS",
        "SHARE",
        "AT ONCE",
        "REQUESTS/MIN",
        "TOKENS/MIN",
        "TOKENS/MONTH",
        "GPU-S/MONTH",
        "GIB-H/MONTH",
    )
    print(table(header, rows))
    _warn(cluster)


async def remove(cluster: Cluster, name: str) -> None:
    async with _tenants(cluster) as tenants:
        gone = await tenants.remove(name)
    print(
        f"{name} is gone with {gone} {'key' if gone == 1 else 'keys'}; its models and usage stay,"
        " and are those of a later tenant of that name"
    )


async def create_key(cluster: Cluster, tenant: str, label: str) -> None:
    """Prints the key alone on stdout."""
    async with _tenants(cluster) as tenants:
        key, kept = await tenants.create_key(tenant, label, SystemClock().wall())
    print(key)
    print(
        f"this is shown once; {to_type(f'keys revoke {kept.key_id}', cluster.home)} ends it",
        file=sys.stderr,
    )
    _warn(cluster)


async def list_keys(cluster: Cluster, tenant: str) -> None:
    async with _tenants(cluster) as tenants:
        if tenant:
            await tenants.get(tenant)  # a typo is no empty list
        found = await tenants.list_keys(tenant)
    rows = [(key.key_id, key.tenant, _day(key.create_time), key.label or "-") for key in found]
    print(table(("ID", "TENANT", "CREATED", "LABEL"), rows))


async def revoke_key(cluster: Cluster, key_id: str) -> None:
    async with _tenants(cluster) as tenants:
        gone = await tenants.revoke_key(key_id)
    print(f"key {gone.key_id} of {gone.tenant} opens nothing any more")


def _with(tenant: Tenant, args: argparse.Namespace) -> Tenant:
    limits = _limits(args)
    wanted: dict[str, Any] = {k: None if v == NO_LIMIT else v for k, v in limits.items()}
    return replace(tenant, **wanted)


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were named."""
    return {
        name: getattr(args, name)
        for name in ("share", *values.LIMITS)
        if getattr(args, name) is not None
    }  # fmt: skip


def _warn(cluster: Cluster) -> None:
    if cluster.auth != "keys":
        print(
            "the gateway does not look at keys, and no limit holds: start it with: "
            f"{to_type('up --auth keys', cluster.home)}",
            file=sys.stderr,
        )


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


@asynccontextmanager
async def _tenants(cluster: Cluster) -> AsyncIterator[Tenants]:
    async with Session([cluster.address("etcd")], SystemClock()) as session:
        yield Tenants(session)
