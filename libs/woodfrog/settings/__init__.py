"""Settings come from the environment, and only here is it read.

A service declares `class Settings(ServiceSettings, env_prefix="WOODFROG_ROUTER_")` and calls `load(Settings)`. A variable
with the service's prefix that no field has is refused, so that a misspelt name cannot pass unseen.
"""

import os
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from woodfrog.errors import InvalidArgument

_NUMBER_MAX = 1 << 62  # 64 bits of the wire hold it


class ServiceSettings(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _countable(cls, value: object) -> object:
        if isinstance(value, int | float) and abs(value) > _NUMBER_MAX:
            raise ValueError(f"a number is at most {_NUMBER_MAX}")
        return value


S = TypeVar("S", bound=ServiceSettings)


def load(settings: type[S], environ: Mapping[str, str] = os.environ) -> S:
    """Raises InvalidArgument naming the variable."""
    prefix = settings.model_config["env_prefix"]
    known = {(prefix + name).upper() for name in settings.model_fields}
    unknown = sorted(n for n in environ if n.startswith(prefix) and n.upper() not in known)
    if unknown:
        raise InvalidArgument(
            "UNKNOWN_SETTING",
            f"environment variable {unknown[0]} is not a setting; known are {', '.join(sorted(known))}",
            name=unknown[0],
        )
    try:
        return settings()
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        name = prefix + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidArgument(
            "BAD_SETTING", f"environment variable {name} cannot be used: {said}", name=name
        ) from None
