"""Settings come from the environment, and only here is it read.

A service declares `class Settings(ServiceSettings, env_prefix="WOODFROG_ROUTER_")` and calls `load(Settings)`. A variable
with the service's prefix that no field has is refused, so that a misspelt name cannot pass unseen.
"""

import os
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from woodfrog.errors import InvalidArgument


class ServiceSettings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
        name = prefix + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidArgument(
            "BAD_SETTING", f"environment variable {name} cannot be used: {first['msg']}", name=name
        ) from None
