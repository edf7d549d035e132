"""The base of every declarative setting: unknown keys are errors, values do not change once read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen pydantic model that forbids unknown keys; each room declares its own settings with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
