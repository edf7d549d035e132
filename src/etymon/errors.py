"""What can go wrong, by name.

Every error that a user can cause is an `EtymonError`. Its message says what was wrong, where, what was
expected and what to do; the command line prints it without a traceback and exits with code 2, the service
answers with a 4xx. Broken invariants of our own are `assert`s instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EtymonError(Exception):
    """A fault in what etymon was given; the message is written for the person who gave it."""


class ConfigError(EtymonError, ValueError):
    """A recipe, spec or `config.json` asks for something unknown or impossible."""


class DataError(EtymonError, ValueError):
    """Documents, conversations or token shards that cannot be used as they are."""


class CheckpointError(EtymonError, ValueError):
    """A checkpoint that is missing, truncated, corrupted, or made for something else."""


class TokenizerError(EtymonError, ValueError):
    """A tokenizer file that cannot be read, or text and ids that it cannot carry."""


class RenderError(EtymonError, ValueError):
    """A conversation that its chat template cannot render, or that trains no token."""


class TrainingError(EtymonError, RuntimeError):
    """Training cannot start, resume or go on (a non-finite loss, a run that differs from its recipe)."""


class RequestError(EtymonError, ValueError):
    """A request that the engine refuses; `param` names the field and `code` is OpenAI's error code."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
