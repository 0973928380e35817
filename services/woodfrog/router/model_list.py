"""The models that can be asked, as the catalog last said."""

from collections.abc import Iterable

from woodfrog.errors import NotFound
from woodfrog.model.spec import ModelSpec, can_name
from woodfrog.model.tenant import Tenant


class ModelList:
    def __init__(self) -> None:
        self._specs: dict[str, ModelSpec] = {}
        self.known = False  #: the catalog's listing came once; a lost etcd leaves the last list

    def replace(self, specs: Iterable[ModelSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self.known = True

    def put(self, spec: ModelSpec) -> None:
        self._specs[spec.name] = spec

    def remove(self, name: str) -> None:
        self._specs.pop(name, None)

    def all(self, tenant: Tenant | None) -> list[ModelSpec]:
        """Those that the tenant may ask; without one all."""
        found = (spec for spec in self._specs.values() if _open(spec, tenant))
        return sorted(found, key=lambda spec: spec.name)

    def get(self, name: str, tenant: Tenant | None) -> ModelSpec:
        """Raises NotFound."""
        spec = self._specs.get(name)
        if spec is None or not _open(spec, tenant):
            raise unknown(name)
        return spec

    def check(self, name: str, tenant: Tenant | None) -> None:
        """Raises NotFound when `name` certainly is no model that the tenant may ask: before the first listing nobody can say,
        but of what is no name.
        """
        if self.known:
            self.get(name, tenant)
        elif not can_name(name):
            raise unknown(name)

    def label(self, name: str) -> str:
        """`name` for a metric; empty when it is no model of ours."""
        return name if name in self._specs else ""


def _open(spec: ModelSpec, tenant: Tenant | None) -> bool:
    return tenant is None or spec.tenant in ("", tenant.name)


def unknown(name: str) -> NotFound:
    return NotFound(
        "MODEL_NOT_FOUND",
        f"model {name[:200]!r} does not exist; GET /v1/models lists those that do",
        model=name[:200],
        param="model",
    )
