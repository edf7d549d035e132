"""The weight table of a decoder, read off its spec.

A family says how its checkpoints call each slot (`"attention.op.out": "self_attn.o_proj"`); which slots there are, and
which of them have weights or biases, follows from the spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from etymon.families.weights import Concat, Operation, Rule, StackExperts, Transpose
from etymon.spec import Attention, Block, Dense, Gated, LayerNorm, ModelSpec, MoE, Norm, Parallel

Names = Mapping[str, str | tuple[str, ...]]
Operations = Mapping[str, tuple[Operation, ...]]
Slot = tuple[tuple[str, ...], tuple[int, ...]]  # what it holds ("weight", "bias"; "" is the tensor itself), its parts


def table(spec: ModelSpec, layer: Names, top: Names, operations: Operations | None = None) -> Iterator[Rule]:
    """Yield the rules of all tensors: those of `top` in its order, with all layers where it says "layers".

    `layer` and `top` map our slots to published names. A tuple of names is one slot whose parts are published apart;
    `{expert}` in a name stands for each expert in turn. `operations` are what else is done to a slot's tensors.
    Raises AssertionError when a slot of the spec has no name.
    """
    operations = operations or {}
    outer = _outer(spec)
    assert outer.keys() <= top.keys(), f"no published name for {outer.keys() - top.keys()}"
    for slot, names in top.items():
        if slot == "layers":
            assert isinstance(names, str)
            for i, block in enumerate(spec.trunk.blocks):
                inner = _inner(block)
                assert inner.keys() <= layer.keys(), f"no published name for {inner.keys() - layer.keys()}"
                for slot_of_layer, published in layer.items():
                    if slot_of_layer in inner:
                        full = tuple(f"{names.format(i)}.{name}" for name in _tuple(published))
                        ops = operations.get(slot_of_layer, ())
                        yield from _rules(f"decoder.blocks.{i}.{slot_of_layer}", full, inner[slot_of_layer], ops, block)
        elif slot in outer:
            yield from _rules(slot, _tuple(names), outer[slot], operations.get(slot, ()), None)


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _rules(
    ours: str, names: tuple[str, ...], slot: Slot, ops: tuple[Operation, ...], block: Block | None
) -> Iterator[Rule]:
    kinds, parts = slot
    if any("{expert}" in name for name in names):
        assert block is not None
        (count,) = (sub.op.experts for sub in block.subs if isinstance(sub.op, MoE))
        names = tuple(name.format(expert=e) for e in range(count) for name in names)
        ops = (StackExperts(count, parts), *ops)
    elif len(names) > 1:
        ops = (Concat(parts), *ops)
    for kind in kinds:
        used = ops if kind == "weight" else tuple(op for op in ops if not isinstance(op, Transpose))
        dot = f".{kind}" if kind else ""
        yield Rule(f"{ours}{dot}", tuple(f"{name}{dot}" for name in names), used)


def _norm(slot: str, norm: Norm | None) -> dict[str, Slot]:
    if norm is None or (isinstance(norm, LayerNorm) and not norm.scale):
        return {}
    return {slot: (("weight", "bias") if isinstance(norm, LayerNorm) and norm.bias else ("weight",), ())}


def _affine(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _outer(spec: ModelSpec) -> dict[str, Slot]:
    embed, head = spec.embed, spec.lm
    slots: dict[str, Slot] = {"embed.tokens": (("weight",), ())}
    if embed.projection is not None:
        slots["embed.projection"] = (_affine(embed.projection.bias), ())
    if embed.position is not None:
        slots["embed.positions"] = (("weight",), ())
    slots |= _norm("embed.norm", embed.norm) | _norm("decoder.final_norm", spec.trunk.final_norm)
    if head.projection is not None:
        slots["head.projection"] = (_affine(head.projection.bias), ())
    kinds = (() if head.tied else ("weight",)) + (("bias",) if head.bias else ())
    return slots | ({"head.linear": (kinds, ())} if kinds else {})


def _inner(block: Block) -> dict[str, Slot]:
    slots = _norm("pre", block.wiring.pre) if isinstance(block.wiring, Parallel) else {}
    for sub in block.subs:
        for place in ("pre", "branch", "post"):
            slots |= _norm(f"{sub.op.name}.{place}", getattr(sub, place))
        op = sub.op
        match op:
            case Attention():
                slots["attention.op.qkv"] = (_affine("q" in op.bias), (op.query_width, op.kv_width, op.kv_width))
                slots["attention.op.out"] = (_affine("o" in op.bias), ())
                if op.qk_norm is not None:
                    slots |= _norm("attention.op.q_norm", op.qk_norm.norm) | _norm(
                        "attention.op.k_norm", op.qk_norm.norm
                    )
            case Dense() | Gated():
                slots |= _feed_forward("ffn.op", op)
            case MoE():
                slots["ffn.op.router"] = (_affine(op.router.bias), ())
                if op.router.correction:
                    slots["ffn.op.router.correction"] = (("",), ())
                parts = (op.expert.hidden,) * (2 if isinstance(op.expert, Gated) else 1)
                slots["ffn.op.experts.up"] = (_affine(op.expert.bias), parts)
                slots["ffn.op.experts.down"] = (_affine(op.expert.bias), ())
                if op.shared is not None:
                    slots |= _feed_forward("ffn.op.shared", op.shared.op)
                    if op.shared.gated:
                        slots["ffn.op.shared_gate"] = (("weight",), ())
    return slots


def _feed_forward(slot: str, op: Dense | Gated) -> dict[str, Slot]:
    if isinstance(op, Gated):
        up: dict[str, Slot] = {f"{slot}.gate_up": (_affine(op.bias), (op.hidden, op.hidden))}
    else:
        up = {f"{slot}.up": (_affine(op.bias), ())}
    return up | {f"{slot}.down": (_affine(op.bias), ())}
