"""What optimizers remember, as tensors by name; and their rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etymon.errors import CheckpointError
from etymon.train.optimizers.optimizer import Optimizer, State, counter


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> float:
    """Set every group to `factor` times its base rate; return the rate of the first group."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = group["base_lr"] * factor
    return float(groups[0]["lr"])


def set_momentum(optimizers: Iterable[torch.optim.Optimizer], momentum: float) -> None:
    """Set the momentum of every group, which Adam and its kin call the first beta."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif group.get("momentum") is not None:
            group["momentum"] = momentum


def optimizer_tensors(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' state as `parameter name/entry` → tensor: all that they remember between steps."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[p]}/{key}": value
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Give the optimizers back what `optimizer_tensors` took.

    Raises CheckpointError for a parameter or an entry that the optimizers do not have or whose shape differs.
    """
    params = dict(model.named_parameters())
    owner = {p: (o, group) for o in optimizers for group in o.param_groups for p in group["params"]}
    states: dict[str, State] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        p = params.get(name)
        if p is None or p not in owner:
            raise CheckpointError(f"optimizer.safetensors: state for {name!r}, which this run does not train")
        states.setdefault(name, {})[entry] = value
    for name, state in states.items():
        p = params[name]
        optimizer, group = owner[p]
        expected = new_state(optimizer, p, group)
        for entry, value in state.items():
            wanted = expected.get(entry)
            if wanted is None or (wanted.shape, wanted.dtype) != (value.shape, value.dtype):
                shape = "absent" if wanted is None else f"of shape {tuple(wanted.shape)}, {wanted.dtype}"
                raise CheckpointError(
                    f"optimizer.safetensors: {name}/{entry} has shape {tuple(value.shape)}, {value.dtype}; in this run "
                    f"it is {shape}"
                )
        if expected.keys() != state.keys():
            missing = ", ".join(sorted(expected.keys() - state.keys()))
            raise CheckpointError(f"optimizer.safetensors: {name} lacks {missing}")
        # a step counter stays where torch keeps it; moments live beside their parameter
        optimizer.state[p] = {entry: v.to(expected[entry].device) for entry, v in state.items()}


def new_state(optimizer: torch.optim.Optimizer, p: Tensor, group: dict[str, Any]) -> State:
    """Return what `optimizer` remembers of `p` before its first update."""
    if isinstance(optimizer, Optimizer):
        return optimizer.new_state(p, group)
    assert isinstance(optimizer, torch.optim.AdamW)
    return {"step": counter(), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return how many bytes the optimizers remember from the first step on; the model may lie on the meta device."""
    return sum(
        tensor.nbytes
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
        for tensor in new_state(optimizer, p, group).values()
    )
