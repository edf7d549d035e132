"""Where two models that should be one part ways: what every layer reads and writes, compared in the order of the call.

A layer is a module with tensors of its own. A checkpoint is compared with the reference implementation (through the
family's weight table, which also tells how activations correspond), with another checkpoint, or with a recording.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from etymon.errors import CheckpointError, ConfigError, DataError
from etymon.families import family_named
from etymon.families.weights import Concat, PermuteRotary, Regroup, Rule, Transpose, TurnedFirst
from etymon.nn import Model

Trace = dict[str, Tensor]  # by place ("decoder.blocks.0.ffn.op.down output"), in the order of the call
IDS, LOGITS, STREAM = "input_ids", "logits", "hidden_states."
BLOCK = re.compile(r"((?:encoder|decoder)\.blocks\.\d+)\.")
ROWS = (Concat, Regroup, PermuteRotary, TurnedFirst)  # what is done to rows of a matrix is done to its output


@dataclass(frozen=True)
class Place:
    """A place in a call, and the largest difference there over the largest number of the reference."""

    name: str
    error: float

    @property
    def part(self) -> str:
        """The block, or the layer outside the blocks, in which it lies."""
        found = BLOCK.match(self.name)
        return found[1] if found else self.name.split(" ")[0]


@dataclass(frozen=True)
class Divergence:
    """Two traces compared: the places that both have, in the order of the call."""

    places: tuple[Place, ...]
    tolerance: float

    @property
    def first(self) -> Place | None:
        """The first place with a difference above the tolerance."""
        return next((place for place in self.places if not place.error <= self.tolerance), None)

    def parts(self) -> Iterator[tuple[str, tuple[Place, ...]]]:
        """Yield blocks, and layers outside them, with their places."""
        for part, places in groupby(self.places, key=lambda place: place.part):
            yield part, tuple(places)


def compare_traces(ours: Trace, reference: Trace, tolerance: float) -> Divergence:
    """Compare what both traces have. Raises DataError where that is nothing, or differs in shape."""
    places = []
    for name in ours.keys() & reference.keys():
        a, b = ours[name].flatten(0, -2).float(), reference[name].flatten(0, -2).float()
        if a.shape != b.shape:
            raise DataError(f"{name}: {list(a.shape)} numbers here, {list(b.shape)} there: not the same architecture")
        places.append(Place(name, _relative(a, b)))
    if not places:
        raise DataError("the two sides have no layer in common: not the same architecture")
    order = {name: number for number, name in enumerate(ours)}
    return Divergence(tuple(sorted(places, key=lambda place: order[place.name])), tolerance)


def _relative(a: Tensor, b: Tensor) -> float:
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    if not difference < torch.inf:
        return torch.inf
    return difference / scale if scale else (torch.inf if difference else 0.0)


# -- what is recorded -------------------------------------------------------------------------------------------------


@torch.no_grad()
def trace(model: Model, ids: Tensor, *, stream: bool = False) -> Trace:
    """Run `model` on `ids` [1, time] and return what every layer read and wrote; with `stream`, the hidden states too.
    A decoder behind an encoder reads the same ids."""
    owners = {name: module for name, module in model.named_modules() if _owns_tensors(module)}
    given = {"decoder_input_ids": ids} if len(model.spec.stacks) == 2 else {}
    with _listening(owners) as heard:
        output = model(ids, **given, output_hidden_states=stream)
    hidden = {f"{STREAM}{i}": x for i, x in enumerate(output.hidden_states or ())}
    last = output.last_hidden_state if output.logits is None else output.logits
    return _numbered(heard) | hidden | {LOGITS: last if last.dim() > 2 else last[..., None]}


def _owns_tensors(module: nn.Module) -> bool:
    return any(True for _ in chain(module.parameters(recurse=False), module.buffers(recurse=False)))


@contextlib.contextmanager
def _listening(modules: Mapping[str, nn.Module]) -> Iterator[list[tuple[str, Tensor]]]:
    """Collect (place, value) of every call of `modules`."""
    heard: list[tuple[str, Tensor]] = []

    def hear(name: str, values: Any) -> None:
        value = values[0] if isinstance(values, tuple) and values else values
        if isinstance(value, Tensor) and value.is_floating_point():
            heard.append((name, value.clone()))

    hooks = []
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: hear(f"{name} input", inputs)))
        hooks.append(module.register_forward_hook(lambda _, __, outputs, name=name: hear(f"{name} output", outputs)))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _numbered(heard: Iterable[tuple[str, Tensor]]) -> Trace:
    """Name later calls of the same layer by their number."""
    seen: Counter[str] = Counter()
    result = {}
    for name, value in heard:
        seen[name] += 1
        result[name if seen[name] == 1 else f"{name} of call {seen[name]}"] = value
    return result


def write_recording(recorded: Trace, ids: Tensor, path: Path) -> None:
    """Write a trace as safetensors, with the ids [1, time] that it belongs to."""
    save_file({name: value.contiguous() for name, value in recorded.items()} | {IDS: ids}, path)


def read_recording(path: Path) -> tuple[Trace, Tensor]:
    """Read a trace and its ids: what `write_recording` wrote, or `input_ids` with any of `hidden_states.0` (the stream
    before block 0) … and `logits`, recorded from any implementation. Raises DataError for other files."""
    try:
        recorded = load_file(path)
        return recorded, recorded.pop(IDS)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: a recording needs input_ids; {error} is missing") from None
    except Exception as error:
        raise DataError(f"{path}: not a safetensors file ({str(error).splitlines()[0]})") from None


# -- the reference ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def trace_transformers(directory: Path, model: Model, ids: Tensor) -> Trace:
    """Run the class of transformers that a checkpoint names, and return its trace under the names of `model`'s layers.

    Raises ConfigError where transformers is not installed, and CheckpointError where it cannot load the checkpoint.
    """
    theirs = _load(directory)
    family = family_named(model.spec.family)
    if family.tensors.weights is None:
        raise ConfigError(f"{family.title} has no published format, so transformers knows nothing of it")
    rules = {}
    for rule in family.tensors.weights(model.spec):
        modules = [_find(theirs, name, family.tensors.prefix) for name in rule.published if name.endswith(".weight")]
        if rule.ours.endswith(".weight") and len(modules) == len(rule.published) and all(modules):
            rules[rule.ours.removesuffix(".weight")] = (rule, modules)
    listened = {f"{name}/{i}": module for name, (_, found) in rules.items() for i, module in enumerate(found) if module}
    given = {"decoder_input_ids": ids} if len(model.spec.stacks) == 2 else {}
    with _listening(listened) as heard:
        output = theirs(ids, **given)
    values = _numbered(heard)
    result: Trace = {}
    for name, (rule, modules) in rules.items():
        result |= _aligned(name, rule, len(modules), values)
    last = getattr(output, "logits", None)
    last = output.last_hidden_state if last is None else last
    return result | {LOGITS: last if last.dim() > 2 else last[..., None]}


def _load(directory: Path) -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError("the reference is transformers, which is not installed: pip install transformers") from None
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
        name = (config.architectures or ["AutoModel"])[0]
        kind = getattr(transformers, name, None)
        if kind is None:
            raise CheckpointError(f"{directory}: transformers has no class {name!r}")
        model = kind.from_pretrained(directory, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: transformers cannot load it ({str(error).splitlines()[0]})") from None
    model.config.use_cache = False
    return model


def _find(theirs: nn.Module, tensor: str, prefix: str) -> nn.Module | None:
    """Return the module that owns a published tensor, whose name in memory may lack the family's prefix."""
    name = tensor.removesuffix(".weight")
    for candidate in (name, name.removeprefix(prefix)):
        with contextlib.suppress(AttributeError):
            return theirs.get_submodule(candidate)
    return None


def _aligned(name: str, rule: Rule, parts: int, values: Trace) -> Trace:
    """Return the inputs and outputs of one of our layers, made of those of the reference's `parts`."""
    result = {}
    ops = tuple(op for op in rule.ops if not isinstance(op, Transpose))
    for key, value in values.items():
        if not key.startswith(f"{name}/0 "):
            continue
        where = key.removeprefix(f"{name}/0 ")
        if where.startswith("input"):  # which all parts share
            result[f"{name} {where}"] = value
            continue
        outputs = [values.get(f"{name}/{i} {where}") for i in range(parts)]
        if all(isinstance(op, ROWS) for op in ops):
            rows = [x.flatten(0, -2).T for x in outputs if x is not None]
            if len(rows) == parts:
                result[f"{name} {where}"] = Rule(rule.ours, rule.published, ops).read(rows).T
    return result
