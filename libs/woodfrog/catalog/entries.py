"""What the catalog holds, under which keys, in which bytes. Pure. `docs/formats.md` has the same for people.

/woodfrog/models/<model>                                   ModelSpec
/woodfrog/snapshots/<model>/<32 hex digits of fingerprint> SnapshotPointer
/woodfrog/nodes/<node>                                     NodeRecord, under a lease
/woodfrog/tenants/<tenant>                                 Tenant
/woodfrog/keys/<tenant>/<key id>                           ApiKey
/woodfrog/leaders/scheduler                                who leads, under a lease; no entry

Names are percent-encoded, "/" too: else the snapshots of model `a` would begin like those of `a/b`.
"""

import json
from dataclasses import asdict, dataclass
from urllib.parse import quote

from woodfrog.model import digest
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.model.tenant import ApiKey, Tenant

ROOT = "/woodfrog/"
MODELS = ROOT + "models/"
SNAPSHOTS = ROOT + "snapshots/"
NODES = ROOT + "nodes/"
TENANTS = ROOT + "tenants/"
KEYS = ROOT + "keys/"
LEADER = ROOT + "leaders/scheduler"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node that is there now."""

    name: str
    address: str  # host:port of its node agent's gRPC server

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes) -> "NodeRecord":
        """Raises ValueError with one sentence."""
        value = json.loads(data)
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise ValueError("node record has another format than this version knows")
        if value.keys() != {"name", "address"} or not all(
            isinstance(part, str) for part in value.values()
        ):
            raise ValueError(f"node record is malformed: {data[:200]!r}")
        return NodeRecord(**value)


Entry = ModelSpec | SnapshotPointer | NodeRecord | Tenant | ApiKey


def model_key(model: str) -> str:
    return MODELS + quote(model, safe="")


def snapshots_prefix(model: str) -> str:
    return f"{SNAPSHOTS}{quote(model, safe='')}/"


def keys_prefix(tenant: str) -> str:
    return f"{KEYS}{quote(tenant, safe='')}/"


def key_of(entry: Entry) -> str:
    match entry:
        case ModelSpec():
            return model_key(entry.name)
        case SnapshotPointer():
            fingerprint = digest.hex_of(entry.fingerprint.digest)
            return snapshots_prefix(entry.model) + fingerprint[:32]
        case NodeRecord():
            return NODES + quote(entry.name, safe="")
        case Tenant():
            return TENANTS + quote(entry.name, safe="")
        case ApiKey():
            return keys_prefix(entry.tenant) + entry.key_id


def decode(key: str, value: bytes) -> Entry | None:
    """None for a key that is none of the catalog's. Raises ValueError with one sentence."""
    entry: Entry
    try:
        if key.startswith(MODELS):
            entry = ModelSpec.decode(value)
        elif key.startswith(SNAPSHOTS):
            entry = SnapshotPointer.decode(value)
        elif key.startswith(NODES):
            entry = NodeRecord.decode(value)
        elif key.startswith(TENANTS):
            entry = Tenant.decode(value)
        elif key.startswith(KEYS):
            entry = ApiKey.decode(value)
        else:
            return None
        if key_of(entry) != key:
            raise ValueError(f"it belongs under {key_of(entry)}")
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"a field has the wrong type: {error}") from None
    return entry
