"""The `woodfrog` command. Errors reach the user as one sentence and exit code 1."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from woodfrog.cli import (
    chat,
    commands,
    doctor,
    nodes,
    options,
    plans,
    tenants,
    top,
    up,
    usage,
    waterfall,
)
from woodfrog.cli.cluster import AUTH, HOME, NODES_MAX, ROUTERS_MAX, Cluster, Tools
from woodfrog.cli.convert import DTYPES
from woodfrog.clock import SystemClock
from woodfrog.errors import InvalidArgument, WoodfrogError
from woodfrog.model import spec
from woodfrog.model.placement import WhatIf

_CONTEXT_TOKENS_MIN, _CONTEXT_TOKENS_MAX = 16, 1 << 20
_PORT_MAX = 65_535
_WAIT_S_MAX = 86_400.0
_DEADLINE_S_MIN = 0.001
_PARK_S = 60.0  # idle, until a replica parks


def parser() -> options.Parser:
    """README.md has the same verbs for people."""
    whole = options.Parser(prog="woodfrog", description="Frozen replicas that wake at once.")
    whole.add_argument(
        "--home", type=options.folder, default=str(HOME), help="the cluster's folder (%(default)s)"
    )
    verbs = whole.add_subparsers(dest="verb", required=True)

    _take_up(verbs.add_parser("up", help="start the local cluster"))
    verbs.add_parser("down", help="stop it and clean up; models and snapshots stay")
    verbs.add_parser("doctor", help="check this machine")
    verbs.add_parser("ps", help="show models on their rungs, and replicas")
    verbs.add_parser("plan", help="show where idle replicas should rest, and why").add_argument(
        "--what-if", action="append", default=[], type=plans.what_if, metavar="NAME=VALUE",
        help=plans.HELP,
    )  # fmt: skip
    verbs.add_parser("demo", help="a model sleeps at zero and a request wakes it").add_argument(
        "--engine", choices=spec.ENGINES, default=spec.ENGINES[0], help="what runs it (%(default)s)"
    )

    models = verbs.add_parser("models", help="add, list or remove models").add_subparsers(
        dest="action", required=True
    )
    add = models.add_parser("add", help="add a Hugging Face folder or a GGUF file")
    _take_model(add)
    models.add_parser("list", help="list models")
    rm = models.add_parser("rm", help="remove a model, its snapshots and its weights")
    rm.add_argument("name")

    _take_nodes(verbs.add_parser("nodes", help="list nodes, or empty one"))

    snapshots = verbs.add_parser("snapshots", help="list or remove snapshots").add_subparsers(
        dest="action", required=True
    )
    snapshots.add_parser("list", help="list snapshots")
    drop = snapshots.add_parser("rm", help="remove the snapshots of a model")
    drop.add_argument("model")

    _take_usage(verbs.add_parser("usage", help="show who used what, and what sleeping saved"))
    tenants.take(verbs)
    traced = verbs.add_parser("trace", help="show where a request's time went; the latest traces")
    traced.add_argument("trace_id", nargs="?", help="or its first digits, six or more")
    watched = verbs.add_parser("top", help="show models on their rungs, live")
    watched.add_argument("--once", action="store_true", help="print one view and end")

    talk = verbs.add_parser("chat", help="talk to a model")
    talk.add_argument("model")
    talk.add_argument("question", nargs="*", help="ask this and end; without it, a conversation")
    return whole


def _take_up(one: options.Parser) -> None:
    one.add_argument(
        "--port", type=options.whole(1, _PORT_MAX), help="of the gateway; kept for the next start"
    )
    one.add_argument(
        "--nodes",
        type=options.whole(1, NODES_MAX),
        metavar="N",
        help=f"nodes on this machine, 1 to {NODES_MAX}, each with a share of its memory and GPUs; kept for the next start",
    )
    one.add_argument(
        "--routers",
        type=options.whole(1, ROUTERS_MAX),
        metavar="N",
        help=f"processes behind the gateway's port, 1 to {ROUTERS_MAX}, so that it can use as many cores; kept for the next start",
    )
    one.add_argument(
        "--foreground", action="store_true", help="stay, show the log, end with Ctrl-C"
    )
    one.add_argument(
        "--auth",
        choices=AUTH,
        help="whether requests need a tenant's API key (none); kept for the next start",
    )
    one.add_argument(
        "--node-tenants",
        action="append",
        type=tenants.of_node,
        metavar="NUMBER=TENANT[,TENANT]",
        help="a node that takes only models of these tenants; for several nodes, several times; kept for the next start,"
        " 1= alone takes all of them back",
    )


def _take_usage(verb: options.Parser) -> None:
    begin = verb.add_mutually_exclusive_group()
    begin.add_argument("--since", type=options.moment, metavar="TIME", help="from this hour on")
    begin.add_argument(
        "--last", type=options.hours, metavar="SPAN", help="such as 7d; 24h if nothing is said"
    )
    verb.add_argument("--until", type=options.moment, metavar="TIME", help="to this hour; now")
    verb.add_argument("--by", choices=usage.BY, help="sums; without it, by tenant and model")
    verb.add_argument("--csv", action="store_true", help="exact numbers, with commas between")


def _take_nodes(verb: options.Parser) -> None:
    actions = verb.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list nodes")
    drain = actions.add_parser(
        "drain", help="let a node's models move to others, then its replicas end"
    )
    drain.add_argument("name")
    drain.add_argument(
        "--wait",
        type=options.number(0, _WAIT_S_MAX, "seconds"),
        default=nodes.WAIT_S,
        metavar="S",
        help="seconds in which it must be empty (%(default)s); it drains on after them",
    )
    undrain = actions.add_parser("undrain", help="let a node take replicas again")
    undrain.add_argument("name")


def _take_model(add: options.Parser) -> None:
    add.add_argument(
        "name", help="by which clients ask for it; without one it is called as its file or folder"
    )
    add.add_argument("path", type=options.path, nargs="?", help="the folder, or the GGUF file")
    add.add_argument("--tenant", type=tenants.name, help="who owns it, and alone may ask it")
    add.add_argument(
        "--dedicated", action="store_true", help="it goes only to nodes that are its tenant's"
    )
    _take_rest(add)
    add.add_argument(
        "--slots",
        type=options.whole(1, spec.SLOTS_MAX),
        default=16,
        help="requests that a replica runs at once (%(default)s)",
    )
    add.add_argument(
        "--replicas-max",
        type=options.whole(1, spec.REPLICAS_MAX),
        metavar="N",
        help="as many at once (1, or --replicas-min)",
    )
    add.add_argument(
        "--replicas-min",
        type=options.whole(0, spec.REPLICAS_MAX),
        default=0,
        metavar="N",
        help="so many serve always (0)",
    )
    add.add_argument(
        "--deadline",
        type=options.number(_DEADLINE_S_MIN, spec.DEADLINE_S_MAX, "seconds"),
        metavar="S",
        help="how long a request waits for a replica, if its client does not say less",
    )
    add.add_argument(
        "--memory",
        type=options.gib(spec.MEMORY_BYTES_MIN, spec.MEMORY_BYTES_MAX),
        default=4 << 30,
        metavar="GIB",
        help="limit of a replica's own memory (4)",
    )
    add.add_argument(
        "--gpu-memory",
        type=options.gib(spec.GPU_BYTES_MIN, spec.MEMORY_BYTES_MAX),
        default=0,
        metavar="GIB",
        help="a replica's own GPU memory beside the weights; without it, it runs on the CPU",
    )
    _take_engine(add)


def _take_engine(add: options.Parser) -> None:
    """What runs it, and how."""
    add.add_argument(
        "--engine",
        choices=spec.ENGINES,
        default=spec.ENGINES[0],
        help="what runs it; llamacpp takes a GGUF file as it lies (%(default)s)",
    )
    add.add_argument("--dtype", choices=DTYPES, help="convert the weights to it first")
    add.add_argument(
        "--context",
        type=options.whole(_CONTEXT_TOKENS_MIN, _CONTEXT_TOKENS_MAX, "tokens"),
        default=2048,
        metavar="TOKENS",
        help="of a prompt and its answer together (%(default)s)",
    )
    add.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers of a text model at its first start",
    )
    add.add_argument(
        "--snapshot",
        choices=("eager", "never"),
        default="eager",
        help="whether its first start makes one (%(default)s)",
    )


def _take_rest(add: options.Parser) -> None:
    """How long it idles on a rung."""
    add.add_argument(
        "--park-after",
        type=options.number(0, spec.REST_S_MAX, "seconds"),
        metavar="S",
        help="idle seconds until it parks (60, or --freeze-after if that is less)",
    )
    add.add_argument(
        "--freeze-after",
        type=options.number(0, spec.REST_S_MAX, "seconds"),
        metavar="S",
        help="idle seconds until it sleeps at zero; if not given, as long as its node has no better use for its room",
    )
    add.add_argument(
        "--keep-hot",
        type=options.number(0, spec.REST_S_MAX, "seconds"),
        default=0.0,
        metavar="S",
        help="idle seconds in which it is not lowered below hot (on the CPU: parked), unless another could not be served otherwise",
    )
    add.add_argument(
        "--priority",
        type=options.number(spec.PRIORITY_MIN, spec.PRIORITY_MAX),
        default=1.0,
        help="what a second of waiting for it counts where room is short, 0.01 to 100; others have 1",
    )


def parsed(typed: Sequence[str] | None = None) -> argparse.Namespace:
    """`typed`, else what the command was called with. Raises InvalidArgument NAME_NEEDED."""
    whole = parser()
    args, rest = whole.parse_known_args(typed)
    if args.verb == "models" and args.action == "add" and args.path is None:
        if len(rest) == 1 and rest[0] and not rest[0].startswith("-"):  # options were in between
            args.path = options.path(rest.pop())
        elif not rest:
            args.name, args.path = _name_of(args.name), options.path(args.name)
    if rest:
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _name_of(path: str) -> str:
    """What a model is called whose path alone is given. Raises InvalidArgument NAME_NEEDED."""
    there = Path(os.path.abspath(path))
    name = there.stem if there.suffix == ".gguf" else there.name
    if not spec.can_name(name):
        raise InvalidArgument(
            "NAME_NEEDED",
            f"no model can be called {name[:80]!r}; say how: woodfrog models add NAME {path}",
        )
    return name


def main() -> None:
    try:
        sys.exit(run(parsed()))
    except WoodfrogError as error:
        print(f"woodfrog: {error.message}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args: argparse.Namespace) -> int:
    match args.verb:
        case "up":
            tenants_of = dict(args.node_tenants) if args.node_tenants else None
            wanted = up.Wanted(args.port, args.nodes, args.routers, args.auth, tenants_of)
            return up.up(args.home, wanted, args.foreground)
        case "down":
            return up.down(args.home)
        case "doctor":
            return _doctor()
        case "demo":
            from woodfrog.cli import demo  # needs the extra of the same name

            return demo.run(args.home, args.engine)
        case "trace":
            path = Cluster.existing(args.home).traces_file
            waterfall.trace(path, args.trace_id) if args.trace_id else waterfall.latest(path)
            return 0
        case "chat":
            return _chat(up.running(args.home), args.model, " ".join(args.question))
        case _:
            asyncio.run(_ACTIONS[args.verb, getattr(args, "action", "")](args))
            return 0


def _park_after_s(said: float | None, freeze_after_s: float | None) -> float:
    if said is not None:
        return said
    return _PARK_S if freeze_after_s is None else min(_PARK_S, freeze_after_s)


async def _add(args: argparse.Namespace) -> None:
    asked = spec.ModelSpec(
        name=args.name,
        weights="sha256:" + "0" * 64,  # taken from the files
        weights_bytes=0,
        engine=args.engine,
        engine_args={"context_tokens": args.context, **({"compile": 1} if args.compile else {})},
        slots=args.slots,
        replicas_max=max(1, args.replicas_min) if args.replicas_max is None else args.replicas_max,
        replicas_min=args.replicas_min,
        deadline_s=args.deadline,
        park_after_s=_park_after_s(args.park_after, args.freeze_after),
        freeze_after_s=args.freeze_after,
        memory_bytes=args.memory,
        snapshot=args.snapshot,
        gpu_bytes=args.gpu_memory,
        priority=args.priority,
        keep_hot_s=args.keep_hot,
        tenant=args.tenant or "",
        dedicated=args.dedicated,
    )
    await commands.models_add(up.running(args.home), asked, args.path, args.dtype)


_Action = Callable[[argparse.Namespace], Coroutine[Any, Any, None]]
_ACTIONS: dict[tuple[str, str], _Action] = {
    ("ps", ""): lambda args: commands.ps(up.running(args.home)),
    ("top", ""): lambda args: top.top(up.running(args.home), once=args.once),
    ("plan", ""): lambda args: plans.plan(up.running(args.home), WhatIf(**dict(args.what_if))),
    ("models", "add"): _add,
    ("models", "list"): lambda args: commands.models_list(up.running(args.home)),
    ("models", "rm"): lambda args: commands.models_rm(up.running(args.home), args.name),
    ("nodes", "list"): lambda args: nodes.nodes_list(up.running(args.home)),
    ("nodes", "drain"): lambda args: nodes.drain(up.running(args.home), args.name, args.wait),
    ("nodes", "undrain"): lambda args: nodes.undrain(up.running(args.home), args.name),
    ("usage", ""): lambda args: usage.usage(
        up.running(args.home),
        usage.Span.of(args.since, args.until, args.last or usage.LAST_HOURS, SystemClock().wall()),
        args.by,
        args.csv,
    ),
    ("tenants", "add"): lambda args: tenants.add(up.running(args.home), args),
    ("tenants", "set"): lambda args: tenants.change(up.running(args.home), args),
    ("tenants", "list"): lambda args: tenants.show(up.running(args.home)),
    ("tenants", "rm"): lambda args: tenants.remove(up.running(args.home), args.name),
    ("keys", "create"): lambda args: tenants.create_key(
        up.running(args.home), args.tenant, args.label
    ),
    ("keys", "list"): lambda args: tenants.list_keys(up.running(args.home), args.tenant),
    ("keys", "revoke"): lambda args: tenants.revoke_key(up.running(args.home), args.id),
    ("snapshots", "list"): lambda args: commands.snapshots_list(up.running(args.home)),
    ("snapshots", "rm"): lambda args: commands.snapshots_rm(up.running(args.home), args.model),
}


def _doctor() -> int:
    bad = 0
    for finding in doctor.examine(Tools.find()):
        mark = "ok  " if not finding.mend else "FAIL"
        print(f"{mark} {finding.name:14} {finding.said}")
        if finding.mend:
            print(f"     → {finding.mend}")
            bad += finding.needed
    return 1 if bad else 0


def _chat(cluster: Cluster, model: str, question: str) -> int:
    """One question, or a conversation until the input ends."""
    messages: list[dict[str, str]] = []
    while line := question or _input():
        messages.append({"role": "user", "content": line})
        answer = ""
        for piece in chat.ask(cluster.base_url, model, messages):
            print(piece, end="", flush=True)
            answer += piece
        print()
        if question:
            break
        messages.append({"role": "assistant", "content": answer})
    return 0


def _input() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        print()
        return ""
