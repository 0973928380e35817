import pytest

from woodfrog.errors import NotFound
from woodfrog.model import digest
from woodfrog.model.spec import ModelSpec
from woodfrog.router.model_list import ModelList


def spec(name: str) -> ModelSpec:
    return ModelSpec(name, digest.of_bytes(b""), 0)


def test_before_the_first_listing_nobody_is_refused() -> None:
    models = ModelList()
    models.check("m", None)
    for name in ("=1+1", "a\nb", "\ud800", "a/b/c", "m" * 200):  # it would stand in the ledger
        with pytest.raises(NotFound):
            models.check(name, None)
    models.replace([])
    with pytest.raises(NotFound) as error:
        models.check("m", None)
    assert error.value.metadata["param"] == "model"


def test_follows_changes() -> None:
    models = ModelList()
    models.replace([spec("b"), spec("a")])
    models.put(spec("c"))
    models.remove("b")
    models.remove("b")
    assert [model.name for model in models.all(None)] == ["a", "c"]
    assert models.label("a") == "a"
    assert models.label("b") == "", "clients must not be able to grow a metric"
