"""The weight table of a model, read off the modules that its spec builds.

A family says how its checkpoints call each slot (`"attention.op.out": "self_attn.o_proj"`); which slots there are, and
which of them have weights or biases, follows from the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from etymon.families.weights import Concat, Operation, Rule, StackExperts, Transpose
from etymon.nn import Model
from etymon.spec import ModelSpec

Names = Mapping[str, str | tuple[str, ...]]
Operations = Mapping[str, tuple[Operation, ...]]
LAYER = re.compile(r"^(encoder|decoder)\.blocks\.(\d+)\.(.*)$")
KINDS = ("", ".weight", ".bias")


@dataclass(frozen=True)
class Slot:
    """One of our tensors: the rows of the parts that were fused into it, and how many experts are stacked."""

    parts: tuple[int, ...]
    experts: int | None


def table(
    spec: ModelSpec,
    layer: Names,
    top: Names,
    operations: Operations | None = None,
    encoder_layer: Names | None = None,
) -> Iterator[Rule]:
    """Yield the rules of all tensors: those of `top` in its order, with all layers where it says "layers" (of a model
    with two stacks, "encoder.layers" and "decoder.layers").

    `layer` and `top` map our modules, or single tensors, to published names; `encoder_layer` where an encoder's differ
    from the decoder's. A tuple of names is one tensor whose parts are published apart; in a name, `{}` stands for the
    layer's number and `{expert}` for each expert in turn. `operations` are what else is done to a module's tensors.
    Raises AssertionError when a tensor of the model has no name.
    """
    operations, outer, layers = operations or {}, *_slots(spec)
    rest = {key: names for key, names in top.items() if not key.endswith("layers")}
    _check(outer, rest)
    for key, published in top.items():
        if key in rest:
            yield from _rules(outer, key, "", _tuple(published), operations)
            continue
        stack = key.partition(".")[0] if "." in key else "encoder" if spec.decoder is None else "decoder"
        names = encoder_layer if encoder_layer and stack == "encoder" else layer
        assert isinstance(published, str)
        for number, slots in enumerate(layers[stack]):
            _check(slots, names)
            for module, name in names.items():
                full = tuple(f"{published}.{part}".replace("{}", str(number)) for part in _tuple(name))
                yield from _rules(slots, module, f"{stack}.blocks.{number}.", full, operations)


def _slots(spec: ModelSpec) -> tuple[dict[str, Slot], dict[str, list[dict[str, Slot]]]]:
    """Return the tensors outside the layers by name, and those of every layer of the encoder and of the decoder."""
    with torch.device("meta"):
        model = Model(spec)
    outer: dict[str, Slot] = {}
    layers: dict[str, list[dict[str, Slot]]] = {
        "encoder": [{} for _ in spec.encoder.blocks] if spec.encoder else [],
        "decoder": [{} for _ in spec.decoder.blocks] if spec.decoder else [],
    }
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # a tied head's are the embedding's
            seen.add(id(tensor))
            found = LAYER.match(name)
            slots, key = (layers[found[1]][int(found[2])], found[3]) if found else (outer, name)
            module = model.get_submodule(name.rpartition(".")[0])
            slots[key] = Slot(getattr(module, "parts", ()), tensor.shape[0] if tensor.dim() == 3 else None)
    return outer, layers


def _check(slots: Mapping[str, Slot], names: Names) -> None:
    unnamed = slots.keys() - {key + kind for key in names for kind in KINDS}
    assert not unnamed, f"no published name for {', '.join(sorted(unnamed))}"


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _rules(
    slots: Mapping[str, Slot], module: str, prefix: str, names: tuple[str, ...], operations: Operations
) -> Iterator[Rule]:
    for kind in KINDS:
        if (slot := slots.get(module + kind)) is None:
            continue
        ops = operations.get(module, ())
        if kind == ".bias":
            ops = tuple(op for op in ops if not isinstance(op, Transpose))
        published = tuple(f"{name}{kind}" for name in names)
        if any("{expert}" in name for name in names):
            assert slot.experts is not None
            published = tuple(name.format(expert=e) for e in range(slot.experts) for name in published)
            ops = (StackExperts(slot.experts, slot.parts), *ops)
        elif len(names) > 1 and slot.parts:
            ops = (Concat(slot.parts), *ops)
        yield Rule(f"{prefix}{module}{kind}", published, ops)
