"""Checkpoints of a run: everything that its next step depends on, whole or absent, checked when read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from etymon.config import Config
from etymon.errors import CheckpointError
from etymon.files import atomic_directory, write_json
from etymon.hub import copy_future_heads, read_future_heads, save_model, write_future_heads
from etymon.hub.native import read_weights, stored_names
from etymon.nn import Model
from etymon.nn.future import FutureHeads
from etymon.nn.layers import Layers
from etymon.nn.mtp import AnyHeads, SequentialHeads
from etymon.objectives.objective import Companion
from etymon.text import Tokenizer
from etymon.train.hardware import Precision
from etymon.train.optimizers import load_optimizer_tensors, optimizer_tensors
from etymon.train.together import together

OPTIMIZER, RECORD, AVERAGE = "optimizer.safetensors", "trainer.json", "average"


class RunRecord(Config):
    """What was decided once, at the start of a run: with the data and the weights it decides every later step.

    `settings` are the parts of the configuration that weights depend on; `environment` is what bitwise equality needs.
    """

    total_steps: int
    precision: Precision
    matrix_precision: Precision
    compiled: bool
    settings: dict[str, Any]
    environment: dict[str, Any]


class Position(Config):
    """Where in its run a checkpoint stands. Random numbers need no entry: every step seeds them by (seed, step)."""

    step: int
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None


class Trainer(Config):
    """`trainer.json`; `files` are the SHA-256 sums of what lies beside it."""

    format: int = 1
    run: RunRecord
    position: Position
    files: dict[str, str]


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the directory of the checkpoint after `step` updates."""
    return run / "checkpoints" / f"step-{step:06d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint directories of a run, oldest first, without looking inside."""
    found = [p for p in (run / "checkpoints").glob("step-*") if p.is_dir() and p.name[5:].isdecimal()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def write_checkpoint(
    run: Path,
    record: RunRecord,
    position: Position,
    model: Model,
    tokenizer: Tokenizer | None,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    keep: int,
    companions: Mapping[str, Companion] = MappingProxyType({}),
    average: Model | None = None,
) -> Path:
    """Write a checkpoint atomically, then remove all but the newest `keep`; return its directory.

    It is a model directory that `etymon.load` reads, with the optimizer's state and `trainer.json` beside the weights;
    each companion that is a model is one inside it, and so is `average`, the model with the average of its weights;
    heads that look ahead lie beside both, other layers in a file of their own.
    """
    path = checkpoint_path(run, position.step)
    with atomic_directory(path) as directory:
        write_model(model, tokenizer, directory)
        for name, companion in companions.items():
            if isinstance(companion, AnyHeads):
                write_future_heads(companion, directory)
            elif isinstance(companion, Layers):
                save_file({k: v.cpu() for k, v in weights(companion).items()}, directory / f"{name}.safetensors")
            else:
                (directory / name).mkdir()
                write_model(companion, None, directory / name)
        if average is not None:
            (directory / AVERAGE).mkdir()
            write_model(average, tokenizer, directory / AVERAGE)
            copy_future_heads(directory, directory / AVERAGE)
        trained = together(model, companions)
        state = {k: v.detach().cpu().contiguous() for k, v in optimizer_tensors(trained, optimizers).items()}
        save_file(state, directory / OPTIMIZER)
        files = sorted(file for file in directory.rglob("*") if file.is_file())
        sums = {file.relative_to(directory).as_posix(): _sha256(file) for file in files}
        trainer = Trainer(run=record, position=position, files=sums)
        write_json(directory / RECORD, trainer.model_dump(mode="json"))
    for old in list_checkpoints(run)[:-keep]:
        hidden = old.with_name(f".{old.name}.old")  # a kill half-way leaves no half checkpoint under a real name
        old.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return path


def weights_of(checkpoint: Path) -> Path:
    """Return the model directory of a checkpoint's result: the average of its weights where its run keeps one."""
    return checkpoint / AVERAGE if (checkpoint / AVERAGE).is_dir() else checkpoint


def newest_checkpoint(run: Path, warn: Callable[[str], None]) -> tuple[Path, Trainer] | None:
    """Return the newest checkpoint that is whole; each newer one that is not is reported through `warn`.

    Returns None where there is no checkpoint at all; raises CheckpointError where there are some and none is whole.
    """
    broken: list[str] = []
    for path in reversed(list_checkpoints(run)):
        try:
            trainer = read_trainer(path)
        except CheckpointError as error:
            broken.append(str(error))
            continue
        for message in broken:
            warn(f"warning: {message}; resuming from {path.name} instead")
        return path, trainer
    if broken:
        raise CheckpointError(
            f"{run}: no checkpoint can be read. Start again in another directory. " + "; ".join(broken)
        )
    return None


def read_trainer(path: Path) -> Trainer:
    """Return `trainer.json` of a checkpoint after checking every file against its sum.

    Raises CheckpointError that names the first file that is missing, damaged or written by something else.
    """
    try:
        trainer = Trainer.model_validate(json.loads((path / RECORD).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        raise CheckpointError(f"{path / RECORD} cannot be read ({_first_line(error)})") from None
    for name, expected in trainer.files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{path / RECORD} names {name!r}, which lies outside the checkpoint")
        if not file.is_file() or _sha256(file) != expected:
            raise CheckpointError(f"{file} is missing or damaged")
    return trainer


def load_checkpoint(
    path: Path,
    model: Model,
    optimizers: Sequence[torch.optim.Optimizer] | None,
    companions: Mapping[str, Companion] = MappingProxyType({}),
    average: Model | None = None,
) -> None:
    """Put a checkpoint's weights into `model`, its companions and average into theirs, and, unless that is None, its
    optimizer state into `optimizers`.

    Raises CheckpointError for tensors that are missing, surplus or of another shape.
    """
    load_weights(path, model)
    load_companions(path, companions)
    if average is not None:
        load_weights(path / AVERAGE, average)
    if optimizers is not None:
        load_optimizer_tensors(together(model, companions), optimizers, _load(path / OPTIMIZER))


def load_companions(path: Path, companions: Mapping[str, Companion]) -> None:
    """Put a checkpoint's weights into what was trained beside its model. Raises CheckpointError as `load_checkpoint`
    does."""
    for name, each in companions.items():
        match each:
            case FutureHeads() | SequentialHeads():
                load_weights(path, each)
            case Layers():
                load_weights(path / f"{name}.safetensors", each)
            case _:
                load_weights(path / name, each)


def load_weights(path: Path, model: Companion) -> None:
    """Put the weights of a model directory into `model`, or those of a file into layers. Raises CheckpointError as
    `load_checkpoint` does."""
    found: Iterable[tuple[str, Tensor]]
    if isinstance(model, AnyHeads):
        found = read_future_heads(path).state_dict().items()
    elif isinstance(model, Layers):
        tensors = _load(path)
        if tensors.keys() != model.state_dict().keys():
            raise CheckpointError(f"{path} holds {', '.join(tensors)}; expected {', '.join(model.state_dict())}")
        found = tensors.items()
    else:
        found = read_weights(path, model)
    own = weights(model)
    with torch.no_grad():
        for name, tensor in found:
            if tensor.shape != own[name].shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
                )
            own[name].copy_(tensor)


def weights(model: Companion) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint holds, by name: shared ones once."""
    state = model.state_dict()
    if isinstance(model, AnyHeads | Layers):
        return state
    return {name: state[name] for name in sorted(stored_names(model))}


def write_model(model: Model, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Write a model directory into one that is being made."""
    save_model(model, directory, "etymon", {}, 5 << 30)
    if tokenizer is not None:
        tokenizer.save(directory)


def differences(recorded: dict[str, Any], given: dict[str, Any]) -> Iterator[str]:
    """Yield `key: recorded value -> given value` for every dotted key in which two settings differ."""
    old, new = dict(_flatten(recorded)), dict(_flatten(given))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"


def remove_leftovers(run: Path) -> None:
    """Remove what a killed process left half-written beside the checkpoints."""
    for path in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value:
        for i, item in enumerate(value):
            yield from _flatten(item, f"{path}[{i}]")
    else:
        yield path, value


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)})") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
