"""`python -m tests.service.holder_process ENDPOINT KEY`: leads, and writes under its first term for ever.

One JSON line a write: whether etcd took it, whether the term said that it leads, its token.
"""

import asyncio
import json
import sys

from woodfrog.coordination import Election, Session, operations


async def main(endpoint: str, key: str) -> None:
    async with Session([endpoint]) as session, asyncio.TaskGroup() as group:
        election = Election(session, key, b"holder", ttl_s=2)
        group.create_task(election.run())
        term = await election.won()
        while True:
            write = operations.write("plan", b"holder")
            result = await session.txn(term.guards, [write])
            line = {"succeeded": result.succeeded, "leads": term.leads, "token": term.token}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
