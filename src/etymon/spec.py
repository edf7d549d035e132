"""What a language model *is*, as a value.

A `ModelSpec` says everything that decides a model's function and nothing about how it is run: no dtype, device,
sharding, quantisation or adapter. The *type* of a field is the choice (`norm=RMSNorm(eps=1e-6)`), so there is no
flag whose parameters hang loose. Every sublayer of every transformer is one formula,

    y = post(alpha * x + beta * branch(op(pre(x))))

whose norm placements give pre-norm, post-norm, sandwich and DeepNorm blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import accumulate
from typing import Any, ClassVar

from etymon.errors import ConfigError, suggest

# -- norms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450) with a learned scale and, by default, a learned bias."""

    eps: float = 1e-5
    bias: bool = True

    def count(self, width: int) -> int:
        """Return the number of parameters at this width."""
        return width * (2 if self.bias else 1)


@dataclass(frozen=True, kw_only=True)
class RMSNorm:
    """Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    eps: float = 1e-6

    def count(self, width: int) -> int:
        """Return the number of parameters at this width."""
        return width


Norm = LayerNorm | RMSNorm

# -- positions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A table of `length` learned position vectors that are added to the token embeddings."""

    length: int


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): all frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling by wavelength (arXiv:2407.21783): long waves are slowed by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv:2309.00071): frequencies interpolated by ramp, attention scaled by temperature."""

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) on the first `dim` channels of each head.

    The rotated pairs are channels (i, i + dim/2): checkpoints that interleave them are permuted when they are read.
    """

    dim: int
    base: float = 10000.0
    scaling: RopeScaling | None = None


# -- operators --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Scaled dot-product attention with `heads` query heads over `kv_heads` shared key and value heads.

    `bias` names the projections that carry one: a subset of "qkvo" (q, k and v together or none). `window` lets
    position i see j only when i - j < window. `scale` defaults to head_dim ** -0.5.
    """

    name: ClassVar[str] = "attention"
    heads: int
    head_dim: int
    kv_heads: int
    bias: str = ""
    rope: Rope | None = None
    qk_norm: Norm | None = None
    scale: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(f"attention: heads={self.heads} must be a positive multiple of kv_heads={self.kv_heads}")
        if self.bias not in ("", "o", "qkv", "qkvo"):
            raise ConfigError(f"attention: bias={self.bias!r} must be one of '', 'o', 'qkv', 'qkvo'")
        if self.rope is not None and (self.rope.dim % 2 or self.rope.dim > self.head_dim):
            raise ConfigError(f"attention: rope.dim={self.rope.dim} must be even and at most head_dim={self.head_dim}")

    @property
    def query_width(self) -> int:
        """The width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """The width of all key heads together; values have the same."""
        return self.kv_heads * self.head_dim

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        qkv = self.query_width + 2 * self.kv_width
        total = dim * qkv + self.query_width * dim
        total += (qkv if "q" in self.bias else 0) + (dim if "o" in self.bias else 0)
        return total + (2 * self.qk_norm.count(self.head_dim) if self.qk_norm else 0)


ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The plain feed-forward layer, down(act(up(x)))."""

    name: ClassVar[str] = "ffn"
    hidden: int
    activation: str
    bias: bool = True

    def __post_init__(self) -> None:
        _check_activation(self.activation)

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        return 2 * dim * self.hidden + (self.hidden + dim if self.bias else 0)


@dataclass(frozen=True, kw_only=True)
class Gated:
    """The gated feed-forward layer (Shazeer 2020, arXiv:2002.05202), down(act(gate(x)) * up(x))."""

    name: ClassVar[str] = "ffn"
    hidden: int
    activation: str
    bias: bool = False

    def __post_init__(self) -> None:
        _check_activation(self.activation)

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        return 3 * dim * self.hidden + (2 * self.hidden + dim if self.bias else 0)


def _check_activation(name: str, known: tuple[str, ...] = ACTIVATIONS) -> None:
    if name not in known:
        raise ConfigError(f"unknown activation {name!r}; known: {', '.join(known)}.{suggest(name, known)}")


@dataclass(frozen=True, kw_only=True)
class Elman:
    """The simple recurrent layer (Elman 1990), h = act(W x + U h'); it replaces the stream by `width` channels."""

    name: ClassVar[str] = "recurrence"
    gates: ClassVar[int] = 1
    width: int
    activation: str = "tanh"
    bias: bool = True

    def __post_init__(self) -> None:
        _check_activation(self.activation, ("tanh", "sigmoid", "relu"))

    def count(self, dim: int) -> int:
        """Return the number of parameters on a stream of width `dim`."""
        return _count_gates(self, dim)


@dataclass(frozen=True, kw_only=True)
class LSTM:
    """Long short-term memory (Hochreiter & Schmidhuber 1997), with forget gates (Gers et al. 2000)."""

    name: ClassVar[str] = "recurrence"
    gates: ClassVar[int] = 4
    width: int
    bias: bool = True

    def count(self, dim: int) -> int:
        """Return the number of parameters on a stream of width `dim`."""
        return _count_gates(self, dim)


@dataclass(frozen=True, kw_only=True)
class GRU:
    """Gated recurrent units (Cho et al. 2014, arXiv:1406.1078); the reset gate acts on the product U h' + b."""

    name: ClassVar[str] = "recurrence"
    gates: ClassVar[int] = 3
    width: int
    bias: bool = True

    def count(self, dim: int) -> int:
        """Return the number of parameters on a stream of width `dim`."""
        return _count_gates(self, dim)


def _count_gates(op: Elman | LSTM | GRU, dim: int) -> int:
    return op.gates * op.width * (dim + op.width + (2 if op.bias else 0))


@dataclass(frozen=True, kw_only=True)
class Window:
    """act(W [x, x', x'', …] + b) of the last `size` positions, the latest first (Bengio et al. 2003); a learned vector
    stands before the beginning. It replaces the stream by `width` channels."""

    name: ClassVar[str] = "window"
    size: int
    width: int
    activation: str = "tanh"

    def __post_init__(self) -> None:
        _check_activation(self.activation, ("tanh", "sigmoid", "relu"))

    def count(self, dim: int) -> int:
        """Return the number of parameters on a stream of width `dim`."""
        return self.width * (self.size * dim + 1) + dim


@dataclass(frozen=True, kw_only=True)
class SelectiveSSM:
    """A state space whose step, input and output depend on the token (Gu & Dao 2023, arXiv:2312.00752).

    `inner` channels, each with `state` numbers of memory, behind a causal convolution over `kernel` positions; `rank`
    is the width of the step's projection. `bias` is that of the projections from and to the stream.
    """

    name: ClassVar[str] = "ssm"
    inner: int
    state: int
    rank: int
    kernel: int = 4
    activation: str = "silu"
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self) -> None:
        _check_activation(self.activation)

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        conv = self.inner * (self.kernel + (1 if self.conv_bias else 0))
        step = self.inner * (self.rank + 2 * self.state) + self.rank * self.inner + self.inner
        ends = 3 * dim * self.inner + (2 * self.inner + dim if self.bias else 0)
        return conv + step + ends + self.inner * (self.state + 1)


@dataclass(frozen=True, kw_only=True)
class DualSSM:
    """A state space with one decay per head, which is also a masked product (Dao & Gu 2024, arXiv:2405.21060).

    `heads` of `head_dim` channels with a memory of `state` numbers per channel; input and output projections of the
    memory are shared within each of `groups`. The result is gated and normalised per group.
    """

    name: ClassVar[str] = "ssm"
    heads: int
    head_dim: int
    state: int
    groups: int = 1
    kernel: int = 4
    activation: str = "silu"
    bias: bool = False
    conv_bias: bool = True
    eps: float = 1e-5
    step_limit: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_activation(self.activation)
        if self.heads < 1 or self.groups < 1 or self.heads % self.groups:
            raise ConfigError(f"ssm: heads={self.heads} must be a positive multiple of groups={self.groups}")

    @property
    def inner(self) -> int:
        """The channels of all heads together."""
        return self.heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """The channels that the convolution sees: those of the heads, and both projections of the memory."""
        return self.inner + 2 * self.groups * self.state

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        conv = self.conv_width * (self.kernel + (1 if self.conv_bias else 0))
        into = self.inner + self.conv_width + self.heads
        ends = dim * (into + self.inner) + (into + dim if self.bias else 0)
        return conv + ends + 3 * self.heads + self.inner


@dataclass(frozen=True, kw_only=True)
class TimeMix:
    """Attention without queries, whose weights decay with distance at a rate per channel (arXiv:2305.13048)."""

    name: ClassVar[str] = "time_mix"
    hidden: int

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        return 4 * dim * self.hidden + 3 * dim + 2 * self.hidden


@dataclass(frozen=True, kw_only=True)
class ChannelMix:
    """A gated feed-forward layer over each position mixed with the one before it (arXiv:2305.13048)."""

    name: ClassVar[str] = "channel_mix"
    hidden: int

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        return 2 * dim * self.hidden + dim * dim + 2 * dim


Op = Attention | Dense | Gated | Elman | LSTM | GRU | Window | SelectiveSSM | DualSSM | TimeMix | ChannelMix

# -- blocks, stacks, the model ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sub:
    """One sublayer: y = post(alpha * x + beta * branch(op(pre(x)))); an absent norm is the identity.

    alpha=0 means no residual: the operator replaces the stream.
    """

    op: Op
    pre: Norm | None = None
    branch: Norm | None = None
    post: Norm | None = None
    alpha: float = 1.0
    beta: float = 1.0

    def width(self, dim: int) -> int:
        """The width of the stream behind it. Raises ConfigError where the operator's own cannot be added to `dim`."""
        width: int = getattr(self.op, "width", dim)
        if width != dim and self.alpha:
            raise ConfigError(f"{self.op.name}: its {width} channels cannot be added to a stream of {dim}; use alpha=0")
        return width

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        width = self.width(dim)
        norms = ((self.pre, dim), (self.branch, width), (self.post, width))
        return self.op.count(dim) + sum(norm.count(n) for norm, n in norms if norm)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Sublayers applied one after the other."""

    subs: tuple[Sub, ...]

    def width(self, dim: int) -> int:
        """The width of the stream behind it."""
        return reduce(lambda width, sub: sub.width(width), self.subs, dim)

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        widths = accumulate(self.subs, lambda width, sub: sub.width(width), initial=dim)
        return sum(sub.count(width) for sub, width in zip(self.subs, widths, strict=False))


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Position i sees positions j <= i."""


@dataclass(frozen=True, kw_only=True)
class Bidirectional:
    """Every position sees every other."""


Visibility = Causal | Bidirectional


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Blocks on one residual stream, who sees whom in them, and the norm that ends them."""

    blocks: tuple[Block, ...]
    final_norm: Norm | None
    visibility: Visibility = field(default_factory=Causal)

    def widths(self, dim: int) -> list[int]:
        """The widths of the stream before every block and at the end."""
        return list(accumulate(self.blocks, lambda width, block: block.width(width), initial=dim))

    def count(self, dim: int) -> int:
        """Return the number of parameters on a residual stream of width `dim`."""
        *before, end = self.widths(dim)
        counts = {(block, width): block.count(width) for block, width in set(zip(self.blocks, before, strict=True))}
        total = sum(counts[key] for key in zip(self.blocks, before, strict=True))
        return total + (self.final_norm.count(end) if self.final_norm else 0)


@dataclass(frozen=True, kw_only=True)
class Embed:
    """norm(scale * token + position)."""

    position: Learned | None = None
    scale: float = 1.0
    norm: Norm | None = None

    def count(self, vocab: int, dim: int) -> int:
        """Return the number of parameters."""
        added = (self.position.length * dim if self.position else 0) + (self.norm.count(dim) if self.norm else 0)
        return vocab * dim + added


@dataclass(frozen=True, kw_only=True)
class LM:
    """Logits over the vocabulary; `tied` heads share the token embedding."""

    tied: bool
    bias: bool = False

    def count(self, vocab: int, dim: int) -> int:
        """Return the number of parameters that are not shared with the embedding."""
        return (0 if self.tied else vocab * dim) + (vocab if self.bias else 0)


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameter counts: all of them, those outside embeddings and head, and those that one token's pass uses."""

    total: int
    non_embedding: int
    active: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A language model. `family` names the file that knows its published formats; `context` is its longest input."""

    name: str
    family: str
    vocab: int
    dim: int
    context: int
    embed: Embed
    decoder: Stack
    head: LM

    def __post_init__(self) -> None:
        for key in ("vocab", "dim", "context"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{self.name}: {key}={getattr(self, key)} must be at least 1")
        if not self.decoder.blocks:
            raise ConfigError(f"{self.name}: a stack needs at least one block")
        if self.width != self.dim and self.head.tied:
            raise ConfigError(f"{self.name}: a tied head needs a stream of {self.dim} channels, not {self.width}")

    @property
    def width(self) -> int:
        """The width of the stream that the head reads, which recurrent layers may have changed."""
        return self.decoder.widths(self.dim)[-1]

    def count(self) -> Count:
        """Return the exact numbers of parameters, without building anything."""
        embed, head = self.embed.count(self.vocab, self.dim), self.head.count(self.vocab, self.width)
        body = self.decoder.count(self.dim)
        total = embed + head + body
        return Count(total=total, non_embedding=body, active=total)

    def flops_per_token(self, context: int) -> int:
        """Return forward + backward model FLOPs per token at this context: 6 per weight used in a matmul, plus
        12 * query_width * context / 2 per causal attention layer for scores and mixing (PaLM, arXiv:2204.02311, B)."""
        weights = self.decoder.count(self.dim) + self.vocab * self.width
        attention = sum(
            6 * sub.op.query_width * min(context, sub.op.window or context)
            for block in self.decoder.blocks
            for sub in block.subs
            if isinstance(sub.op, Attention)
        )
        return 6 * weights + attention

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; runs of equal blocks are stored once, with their length."""
        result = _encode(self)
        assert isinstance(result, dict)
        return result

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ModelSpec:
        """Read what `to_dict` wrote. Raises ConfigError that names an unknown type or field."""
        spec = _decode(value, "spec")
        if not isinstance(spec, ModelSpec):
            raise ConfigError("spec: expected a ModelSpec")
        return spec


def diff(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value in a, value in b) for every field in which two specs differ."""
    if type(a) is type(b) and dataclasses.is_dataclass(a):
        for f in fields(a):
            yield from diff(getattr(a, f.name), getattr(b, f.name), f"{path}.{f.name}" if path else f.name)
    elif isinstance(a, tuple) and isinstance(b, tuple):
        runs_a, runs_b = _runs(a), _runs(b)
        if len(runs_a) == len(runs_b):
            for i, ((x, n), (y, m)) in enumerate(zip(runs_a, runs_b, strict=True)):
                if n != m:
                    yield f"{path}[{i}] repeats", n, m
                yield from diff(x, y, f"{path}[{i}]")
        else:
            yield path, a, b
    elif a != b:
        yield path, a, b


_TYPES = {
    cls.__name__: cls
    for cls in (
        *(LayerNorm, RMSNorm, Learned, LinearScaling, Llama3Scaling, YarnScaling, Rope),
        *(Attention, Dense, Gated, Elman, LSTM, GRU, Window, SelectiveSSM, DualSSM, TimeMix, ChannelMix),
        *(Sub, Block, Causal, Bidirectional, Stack, Embed, LM, ModelSpec),
    )
}


def _runs(items: tuple[Any, ...]) -> list[tuple[Any, int]]:
    runs: list[tuple[Any, int]] = []
    for item in items:
        if runs and runs[-1][0] == item:
            runs[-1] = (item, runs[-1][1] + 1)
        else:
            runs.append((item, 1))
    return runs


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {"type": type(value).__name__} | {f.name: _encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [{"repeat": n, "item": _encode(item)} for item, n in _runs(value)]
    return value


def _decode(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        known = _TYPES.get(value.get("type", ""))
        if known is None:
            raise ConfigError(f"{path}: unknown type {value.get('type')!r}")
        names = {f.name for f in fields(known)}
        for key in value.keys() - names - {"type"}:
            raise ConfigError(f"{path}: {known.__name__} has no field {key!r}.{suggest(key, names)}")
        try:
            return known(**{k: _decode(v, f"{path}.{k}") for k, v in value.items() if k != "type"})
        except TypeError as error:
            raise ConfigError(f"{path}: {known.__name__}: {error}") from None
    if isinstance(value, list):
        try:
            runs = [(_decode(run["item"], f"{path}[{i}]"), run["repeat"]) for i, run in enumerate(value)]
        except (KeyError, TypeError):
            raise ConfigError(f"{path}: expected a list of {{repeat, item}}") from None
        return tuple(item for item, n in runs for _ in range(n))
    return value
