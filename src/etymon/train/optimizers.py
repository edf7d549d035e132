"""AdamW and Muon, and which of a model's parameters goes to which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from etymon.config import Config
from etymon.errors import CheckpointError
from etymon.nn import ExpertLinear, Model
from etymon.train.together import Together

Coefficients = Sequence[tuple[float, float, float]]

KELLER_JORDAN: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""The fixed quintic of https://kellerjordan.github.io/posts/muon/: singular values end within 0.5 … 1.2."""

_POLAR_EXPRESS: Coefficients = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
POLAR_EXPRESS: Coefficients = (
    *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS[:-1]),
    _POLAR_EXPRESS[-1],
)
"""The minimax quintics of Amsel et al. 2025 (Polar Express, arXiv:2505.16932) for singular values in [0.001, 1].

At the price of Keller Jordan's five iterations, values from 0.001 up end within 0.88 … 1.12. Each but the last reads
its argument 1% smaller, as the paper advises for bf16: past the end of its interval a polynomial shoots up, and the
next one more so. Without it singular values of 300 matrices in bf16 came out as high as 1.84, with it at 1.13.
"""


class AdamWConfig(Config):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101). Weight decay acts on matrices only, never on embeddings,
    norms or biases."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class MuonConfig(Config):
    """Muon (Jordan et al. 2024) for the matrices of the stack; AdamW, at its own rate, for everything else."""

    kind: Literal["muon"] = "muon"
    lr: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    adamw: AdamWConfig = AdamWConfig(lr=3e-3, weight_decay=0.0)


OptimizerConfig = Annotated[AdamWConfig | MuonConfig, Field(discriminator="kind")]


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is replaced by its nearest orthogonal matrix.

    `matrices` pairs each parameter [..., rows, columns] with the row counts of the separate projections fused in it
    (q, k, v), which are orthogonalised apart, as are the matrices of a stack (experts). An update of a part with r rows
    and c columns is scaled by max(1, r / c) ** 0.5: it moves the layer's output by about lr whatever the shape, so that
    one rate serves every width (Bernstein 2025, https://jeremybernste.in/writing/deriving-muon). `dtype` is that of the
    Newton-Schulz products: bf16 where it is fast.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[nn.Parameter, tuple[int, ...]]],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        coefficients: Coefficients = POLAR_EXPRESS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        matrices = list(matrices)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": [p for p, _ in matrices]}], defaults)
        for p, parts in matrices:
            assert p.ndim >= 2, "Muon is for matrices"
            assert sum(parts) == p.shape[-2], "the parts must cover the rows"
        self.parts: dict[Tensor, tuple[int, ...]] = dict(matrices)
        self.coefficients = coefficients
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "Muon evaluates no closure"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step(params, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum)  # Nesterov: look one step ahead
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        # products of stacked equal shapes keep the cores busy where those of single small matrices do not
        stacks: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p, update in zip(params, updates, strict=True):
            for target, part in zip(p.split(self.parts[p], -2), update.split(self.parts[p], -2), strict=True):
                stacks.setdefault(tuple(part.shape[-2:]), []).append((target, part))
        for (rows, columns), pairs in stacks.items():
            stacked = torch.cat([part.reshape(-1, rows, columns) for _, part in pairs])
            moved = orthogonalize(stacked, self.coefficients, self.dtype).to(params[0].dtype)
            scale = -lr * max(1.0, rows / columns) ** 0.5
            each = moved.split([part.numel() // (rows * columns) for _, part in pairs])
            targets = [target for target, _ in pairs]
            torch._foreach_add_(targets, [m.view(t.shape) for t, m in zip(targets, each, strict=True)], alpha=scale)


def orthogonalize(matrices: Tensor, coefficients: Coefficients, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return near-polar factors: every [rows, columns] slice of `matrices` with its singular values moved close to 1.

    One odd polynomial a x + b x^3 + c x^5 of the singular values per triple of `coefficients`, by matrix products in
    `dtype` only. A zero matrix stays zero.
    """
    # the Frobenius norm bounds the largest singular value; the margin keeps rounding from leaving [0, 1]
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = (matrices / (1.01 * norm + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the Gram matrix of the smaller side is cheaper
        x = x.mT
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def build_optimizers(
    model: Model | Together, config: AdamWConfig | MuonConfig, *, muon_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together update every parameter of `model` once; each group knows its `base_lr`."""
    hidden = {linear.weight: linear.parts for _, linear in model.matrices()}
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    rest = [p for p in model.parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if isinstance(config, MuonConfig):
        chosen = [(p, hidden[p]) for p in rest if p in hidden]
        rest = [p for p in rest if p not in hidden]
        if chosen:
            muon = Muon(
                chosen, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, dtype=muon_dtype
            )
            optimizers.append(muon)
        config = config.adamw
    matrices = {m.weight for m in model.modules() if isinstance(m, nn.Linear | ExpertLinear)} - embeddings
    decayed = [p for p in rest if p in matrices]
    plain = [p for p in rest if p not in matrices]
    groups = [
        {"params": params, "weight_decay": weight_decay}
        for params, weight_decay in ((decayed, config.weight_decay), (plain, 0.0))
        if params
    ]
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> float:
    """Set every group to `factor` times its base rate; return the rate of the first group."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["lr"] = group["base_lr"] * factor
    return float(groups[0]["lr"])


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

    Raises CheckpointError for a parameter that the optimizers do not have or whose shape differs.
    """
    params = dict(model.named_parameters())
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    states: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        p = params.get(name)
        if p is None or p not in owner:
            raise CheckpointError(f"optimizer.safetensors: state for {name!r}, which this run does not train")
        if value.ndim and value.shape != p.shape:
            raise CheckpointError(
                f"optimizer.safetensors: {key} has shape {tuple(value.shape)}, the parameter {tuple(p.shape)}"
            )
        # a step counter stays where torch keeps it; moments live beside their parameter
        states.setdefault(name, {})[entry] = value.to(p.device) if value.ndim else value
    for name, state in states.items():
        owner[params[name]].state[params[name]] = state
