"""No field of a spec is decoration: change any one and what the model computes changes too.

Parity at 1e-5 says that a family's spec, with its weights, computes what the reference does. A spec with another value
in any field must then compute something else, or parity would say nothing about that field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from etymon import spec as specs
from etymon.errors import EtymonError
from etymon.families import Family, families
from etymon.nn import Model, build
from etymon.spec import ACTIVATIONS, ModelSpec

TIME = 40
# What a forward pass does not read, and why.
LABELS = {
    "name": "what people call the model",
    "family": "which file knows its published formats",
    "context": "how long an input may be, which the engine and the loaders keep",
}
# Dimensions that a family's tiny model leaves out, tried wherever its `build` has them. Original contexts are
# such that every number acts on an input of TIME tokens and rotated parts of two pairs.
EXTRA: dict[str, list[Any]] = {
    "window": [6],
    "rope_scaling": [
        specs.LinearScaling(factor=2.0),
        specs.Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16),
        specs.YarnScaling(factor=4.0, original_context=4096),
        specs.DynamicScaling(factor=2.0, original_context=16),
    ],
}


# Tiny models in which some field does not act on an input of TIME tokens.
SMALL: dict[str, dict[str, Any]] = {
    "longllama": {"window": 20, "last": 6},
    "retro": {"heads": 2, "head_dim": 8, "encoder_heads": 2, "encoder_head_dim": 8},  # or streams dwarf every eps
}


def variants(family: Family) -> Iterator[ModelSpec]:
    """Yield the family's tiny spec, and those with one more dimension of EXTRA."""
    tiny = family.tiny | SMALL.get(family.name, {})
    yield family.spec(**tiny)
    known = inspect.signature(family.build).parameters
    for name in EXTRA.keys() & known:
        for value in EXTRA[name]:
            yield family.spec(**tiny | {name: value})


def mutations(value: Any, hint: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, changed value) with one field changed at a time, to a few values where one may hide; equal blocks
    change together."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for kind in kinds if hint != specs.Op else ():  # another operator has other tensors in any case
        if dataclasses.is_dataclass(kind) and not isinstance(value, kind):
            yield from ((path, made) for made in instances(kind, value))
    if dataclasses.is_dataclass(value):
        yield from of_dataclass(value, path)
    elif isinstance(value, tuple):
        yield from of_tuple(value, kinds, path)
    elif isinstance(value, bool):
        yield path, not value
    elif value is None:
        yield from ((path, other) for kind, other in ((int, 3), (float, 0.4), (str, "relu")) if kind in kinds)
    elif isinstance(value, float):
        others = (1.5 * value + 0.1, 8 * value, value / 8, value + 10.0)
        yield from ((path, other) for other in others if other != value)
    elif isinstance(value, int):
        yield from ((path, other) for other in {value + 1, 4 * value, 64 * value, max(1, value // 2)} - {value})
    elif isinstance(value, str):
        choices = ACTIVATIONS if value in ACTIVATIONS else ("", "o", "qkv", "qkvo", "head", "width", "sigmoid", "tanh")
        yield from ((path, other) for other in choices if other != value)


def of_dataclass(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        if isinstance(value, ModelSpec) and field.name in LABELS:
            continue
        for where, changed in mutations(getattr(value, field.name), hints[field.name], f"{path}.{field.name}"):
            try:
                yield where, dataclasses.replace(value, **{field.name: changed})
            except EtymonError:
                continue  # not a spec at all


def of_tuple(value: tuple[Any, ...], kinds: tuple[Any, ...], path: str) -> Iterator[tuple[str, Any]]:
    (hint,) = (kind for kind in kinds if typing.get_origin(kind) is tuple)
    same = len(set(value)) == 1 and dataclasses.is_dataclass(value[0])
    for i, item in enumerate(value[:1] if same else value):
        for where, changed in mutations(item, typing.get_args(hint)[0], f"{path}[{i}]"):
            yield where, tuple(changed if same or j == i else other for j, other in enumerate(value))


def instances(kind: Any, value: Any) -> Iterator[Any]:
    """Yield some of a `kind` in the place of `value`, with what both have in common, and elsewhere small numbers."""
    hints = typing.get_type_hints(kind)
    for first in (4, 2):
        given, number = {}, first
        for field in dataclasses.fields(kind):
            if hasattr(value, field.name):
                given[field.name] = getattr(value, field.name)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                if hints[field.name] not in (int, float, bool):
                    return  # it has no simple value
                given[field.name], number = hints[field.name](number), max(1, number // 2)
        with contextlib.suppress(EtymonError):
            yield kind(**given)


def acts(spec: ModelSpec, path: str) -> bool:
    """Whether a field can act at all in this model: wires connect at least two sublayers, who sees whom is a matter of
    attention (recurrences go through their rows from left to right by nature), and a norm behind the experts undoes
    what their weights add up to."""
    if path.endswith(".renormalise"):
        return eval(path.removesuffix(".op.router.renormalise"), {"spec": spec}).branch is None
    if path.endswith(".router.groups"):  # the best expert stands in the best group
        return eval(path.removesuffix(".groups"), {"spec": spec}).k > 1
    if path.endswith((".op.passages", ".op.length")):
        return False  # of RETRO, for which a state makes room
    if path.endswith((".positions.axes", ".op.rope.axes")) and ".op." in path.removesuffix(".op.rope.axes"):
        return False  # of its passages, which have no blanks
    if path.endswith(".beta"):  # an operator that only reads adds nothing
        return not isinstance(eval(path.removesuffix("beta") + "op", {"spec": spec}), specs.Neighbours)
    if path.endswith(".scores.segments"):
        return False  # of XLNet, whose calls give segments
    if path.endswith(".visibility"):
        stack = getattr(spec, path.split(".")[1])
        return any(isinstance(sub.op, specs.Attention) for sub in stack.subs())
    if path.endswith(".wiring"):
        return any(len(block.subs) > 1 for stack in spec.stacks for block in stack.blocks)
    return True


def randomised(spec: ModelSpec) -> Model:
    model = build(spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1))
        for buffer in model.buffers():  # corrections of choices, which must not decide them alone
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return model


def tensors(model: Model) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def outputs(model: Model) -> Tensor:
    """Logits (or what the model has in their place) of rows with padding on either side, and of tokens of all
    segments. A decoder behind an encoder begins as its spec says."""
    generator = torch.Generator().manual_seed(4)
    ids, target = (torch.randint(0, model.spec.vocab, (2, TIME), generator=generator) for _ in range(2))
    ids[0, 30:], ids[0, 20], target[0, 10] = 1, 3, 3  # ids that a model may take for padding
    mask = torch.arange(TIME).ge(torch.tensor([[0], [5]])).long()
    given: dict[str, Tensor] = {}
    if len(model.spec.stacks) == 2:
        own = "decoder_input_ids" if model.spec.start is None else "labels"
        given = {own: target[:, :30], "decoder_attention_mask": mask[:, :30]}
    if model.spec.embed.languages:
        given |= {"langs": ids % 2} | ({"decoder_langs": target[:, :30] % 2} if given else {})
    for op in (sub.op for sub in model.spec.trunk.subs()):
        if isinstance(op, specs.Neighbours):
            shape = (2, TIME // op.chunk, op.passages, op.length)
            given["retrieved"] = torch.randint(0, 12, shape, generator=generator)
    with torch.no_grad():
        output = model(ids, mask, **given)
    result = output.logits if output.logits is not None else output.pooler_output
    return output.last_hidden_state if result is None else result


def changes(changed: ModelSpec, state: dict[str, Tensor], shapes: dict[str, torch.Size], expected: Tensor) -> bool:
    """Whether a changed spec is another model: one of other tensors or outputs, or none that runs."""
    try:
        with torch.device("meta"):
            other = Model(changed)
        if tensors(other) != shapes:
            return True
        other.load_state_dict(state, strict=False, assign=True)
        other.tie()
        got = outputs(other.eval())
    except (EtymonError, RuntimeError, AssertionError):
        return True
    return got.shape != expected.shape or float((got - expected).abs().max()) > 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", families())
def test_every_field_counts(name: str) -> None:
    for number, spec in enumerate(variants(families()[name])):
        model = randomised(spec).eval()
        state, shapes, expected = dict(model.state_dict()), tensors(model), outputs(model)
        fields: dict[str, bool] = {}
        for path, changed in mutations(spec, ModelSpec, "spec"):
            if number and "scaling" not in path and "window" not in path:
                continue  # the tiny model had those already
            fields[path] = fields.get(path, False) or changes(changed, state, shapes, expected)
        decoration = [path for path, acted in fields.items() if not acted and acts(spec, path)]
        assert not decoration, decoration
        assert number or len(fields) > 15
