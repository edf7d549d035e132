"""The base of every declarative setting: unknown keys and infinite numbers are errors, values do not change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen pydantic model without unknown keys, infinities and NaN; each room declares its own settings with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
