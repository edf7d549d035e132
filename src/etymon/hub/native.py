"""Checkpoints in etymon's own format: `spec.json`, and tensors under our own names, quantised ones included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from etymon.errors import CheckpointError
from etymon.files import write_json
from etymon.hub.tensors import open_tensors, read_json, write_tensors
from etymon.nn import Model
from etymon.spec import ModelSpec

SPEC = "spec.json"
FORMAT = 1


def read_spec(directory: Path) -> ModelSpec:
    """Read `spec.json`. Raises CheckpointError for a format of the future, ConfigError for unknown fields."""
    value = read_json(directory / SPEC)
    if value.get("format") != FORMAT:
        raise CheckpointError(f"{directory / SPEC}: format {value.get('format')!r}, this version reads {FORMAT}")
    return ModelSpec.from_dict(value.get("spec", {}))


def read_weights(directory: Path, model: Model) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that `model` (on any device) needs. Raises CheckpointError naming missing and surplus ones."""
    with open_tensors(directory) as files:
        wanted = stored_names(model)
        missing, surplus = sorted(wanted - files.names()), sorted(files.names() - wanted)
        if missing or surplus:
            raise CheckpointError(f"{directory}: missing tensors {missing[:5]}, unexpected tensors {surplus[:5]}")
        for name in sorted(wanted):
            yield name, files.read(name)


def stored_names(model: Model) -> set[str]:
    """Return the names of the tensors that a checkpoint holds: a tied head is not stored a second time."""
    state = model.state_dict()
    linear = getattr(model.head, "linear", None)
    tied = model.head.tied and isinstance(linear, nn.Linear) and linear.weight is model.embed.tokens.weight
    return state.keys() - ({"head.linear.weight"} if tied else set())


def write(model: Model, directory: Path, max_shard_bytes: int) -> None:
    """Write `spec.json` and the tensors into `directory`."""
    write_json(directory / SPEC, {"format": FORMAT, "spec": model.spec.to_dict()})
    state = model.state_dict()
    write_tensors(((name, state[name]) for name in sorted(stored_names(model))), directory, max_shard_bytes)
