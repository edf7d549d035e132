"""What a language model *is*, as a value.

A `ModelSpec` says everything that decides a model's function and nothing about how it is run: no dtype, device,
sharding, quantisation or adapter. The *type* of a field is the choice (`norm=RMSNorm(eps=1e-6)`), so there is no
flag whose parameters hang loose. Every sublayer of every transformer is one formula,

    y = post(alpha * x + beta * branch(op(pre(x))))

whose norm placements give pre-norm, post-norm, sandwich and DeepNorm blocks. Blocks wire sublayers one after the
other or side by side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import accumulate
from typing import Any, ClassVar

from etymon.errors import ConfigError, suggest

# -- norms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """Layer normalisation (Ba et al. 2016, arXiv:1607.06450) with, by default, a learned scale and a learned bias."""

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        if self.bias and not self.scale:
            raise ConfigError("a LayerNorm without a scale has no bias either: set bias=False")


@dataclass(frozen=True, kw_only=True)
class RMSNorm:
    """Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), scaled by `offset` + weight."""

    eps: float = 1e-6
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CentredRMSNorm:
    """(x - mean(x)) / rms(x) with a learned scale and bias: a LayerNorm whose divisor does not leave out the mean."""

    eps: float = 1e-5


Norm = LayerNorm | RMSNorm | CentredRMSNorm

# -- positions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A table of learned vectors for positions 0..`length` - 1, added to the token embeddings.

    The first `offset` rows of the table stand for no position. With `from_padding`, positions count the real tokens
    of the attention mask, and padding has position -1, which needs an offset; with `padding`, those that are not this
    id, whatever the mask. With two `axes` a second table of `length` is added, for places within a blank (`Infill`).
    """

    length: int
    offset: int = 0
    from_padding: bool = False
    padding: int | None = None
    axes: int = 1

    def __post_init__(self) -> None:
        if (self.from_padding or self.padding is not None) and not self.offset:
            raise ConfigError("learned positions from padding need an offset of at least 1: padding has position -1")
        if self.from_padding and self.padding is not None:
            raise ConfigError("learned positions count from the mask (from_padding) or by an id (padding), not both")

    @property
    def rows(self) -> int:
        """The rows of the table."""
        return self.length + self.offset


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
    """YaRN (Peng et al. 2023, arXiv:2309.00071): frequencies interpolated by ramp, attention scaled by temperature.

    Unless `attention_factor` is given, cos and sin are multiplied by `temperature(mscale)` / `temperature(mscale_all)`,
    and latent attention's scores, of which only a part turns, by the square of the latter. `truncate` rounds the ends
    of the ramp to whole pairs.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 1.0
    mscale_all: float = 0.0
    truncate: bool = True

    def temperature(self, mscale: float) -> float:
        """Return 0.1 * mscale * log(factor) + 1."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware scaling (bloc97 2023): a base that grows with the input once that exceeds the original context."""

    factor: float
    original_context: int


@dataclass(frozen=True, kw_only=True)
class DoublingScaling:
    """NTK-aware scaling in steps: a base that grows whenever the input passes the original context once more doubled
    (Bai et al. 2023, arXiv:2309.16609)."""

    original_context: int


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): every frequency divided by a factor of its own, from `long` where
    the input exceeds the original context, else from `short`; scores scaled by `attention_factor`."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    attention_factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | DoublingScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class Sinusoidal:
    """Fixed positions (Vaswani et al. 2017, arXiv:1706.03762): the sines in the first half of the channels, the cosines
    in the second."""


@dataclass(frozen=True, kw_only=True)
class BucketBias:
    """A learned number per head and bucket of distances, added to the scores of every self-attention of a stack (Raffel
    et al. 2020, arXiv:1910.10683), or of one layer. Half of the buckets hold one distance each, the rest grow
    logarithmically up to `max_distance`; where a stack sees both ways, each direction has half of them."""

    buckets: int
    max_distance: int
    heads: int


@dataclass(frozen=True, kw_only=True)
class RelativeTable:
    """A learned vector per distance, `span` on either side, shared by all attentions of a stack; what is farther has
    the last. With `max_distance`, half of the span hold one distance each, the rest grow logarithmically up to it."""

    span: int
    max_distance: int | None = None
    norm: Norm | None = None


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) on the first `dim` channels of each head.

    The rotated pairs are channels (i, i + dim/2): checkpoints that interleave them are permuted when they are read.
    With two `axes`, the second half of the pairs turns by the place within a blank (`Infill`), as fast as the first.
    """

    dim: int
    base: float = 10000.0
    scaling: RopeScaling | None = None
    axes: int = 1


@dataclass(frozen=True, kw_only=True)
class ALiBi:
    """Scores lowered in proportion to distance (Press et al. 2022, arXiv:2108.12409), by slopes that fall
    geometrically over the heads to 2 ** -`max_exponent`; all slopes are multiplied by `scale`."""

    max_exponent: float = 8.0
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RelativeSinusoids:
    """Scores of content and distance, (q + u) k + (q + v) W r, with the sinusoids r of the distance between query and
    key, no longer than `clamp` (Dai et al. 2019, arXiv:1901.02860). `segments` adds (q + s) e, where e is one of two
    vectors: the key is in the query's segment, or in another (Yang et al. 2019, arXiv:1906.08237)."""

    clamp: int | None = None
    segments: bool = False


@dataclass(frozen=True, kw_only=True)
class Own:
    """Vectors of distances pass through a projection of their own."""

    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class AsContents:
    """Vectors of distances pass through the projection of the stream's vectors."""


@dataclass(frozen=True, kw_only=True)
class Disentangled:
    """Contents and positions compared crosswise (He et al. 2020, arXiv:2006.03654): queries also meet the `keys`, and
    keys the `queries`, that are made of the distance's vector in the stack's table."""

    keys: Own | AsContents | None
    queries: Own | AsContents | None

    def __post_init__(self) -> None:
        if self.keys is None and self.queries is None:
            raise ConfigError("disentangled scores need keys or queries of positions, or both")


@dataclass(frozen=True, kw_only=True)
class Sinks:
    """A learned score per head that takes part in the softmax and mixes nothing: a head may attend to nothing at all
    (OpenAI 2025, arXiv:2508.10925)."""


@dataclass(frozen=True, kw_only=True)
class LogScale:
    """Scores of a query in place i > `context` (counted from 1) times log(i) / log(context), so that more keys do not
    mean more even shares (Chiang & Cholak 2022, arXiv:2202.12172)."""

    context: int


# -- operators --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class QKNorm:
    """Queries and keys normalised before they meet, each `over` one "head", with weights that all heads share or, as
    "each head", with weights of its own; or over the "width" of all heads together."""

    norm: Norm
    over: str = "head"

    def __post_init__(self) -> None:
        if self.over not in ("head", "each head", "width"):
            raise ConfigError(f"qk_norm: over={self.over!r} must be 'head', 'each head' or 'width'")
        if self.over == "each head" and self.norm != LayerNorm(eps=self.norm.eps, bias=False):
            raise ConfigError("qk_norm: weights of each head are those of a LayerNorm with a scale and no bias")


@dataclass(frozen=True, kw_only=True)
class Heads:
    """`heads` query heads over `kv_heads` shared key and value heads, each `head_dim` wide.

    `bias` names the projections that carry one: a subset of "qkvo" (q, k and v together or none; of self-attention
    also q and v). `scale` defaults to head_dim ** -0.5.
    """

    biases: ClassVar[tuple[str, ...]] = ("", "o", "qkv", "qkvo")
    heads: int
    head_dim: int
    kv_heads: int
    bias: str = ""
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.heads < 1 or self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(f"attention: heads={self.heads} must be a positive multiple of kv_heads={self.kv_heads}")
        if self.bias not in self.biases:
            raise ConfigError(f"attention: bias={self.bias!r} must be one of {', '.join(map(repr, self.biases))}")

    @property
    def query_width(self) -> int:
        """The width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """The width of all key heads together; values have the same."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class Attention(Heads):
    """Scaled dot-product attention of a stack's tokens to one another.

    `window` lets position i see j only when i - j < window. `clip` clamps queries, keys and values to [-clip, clip];
    `softcap` bounds the scores smoothly, softcap * tanh(score / softcap); `scores` is what is added to them, or
    multiplies them.
    """

    name: ClassVar[str] = "attention"
    biases: ClassVar[tuple[str, ...]] = (*Heads.biases, "qv", "qvo")
    rope: Rope | None = None
    scores: ALiBi | LogScale | BucketBias | RelativeSinusoids | Disentangled | Sinks | None = None
    qk_norm: QKNorm | None = None
    window: int | None = None
    clip: float | None = None
    softcap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.scores, Disentangled) and self.heads != self.kv_heads:
            raise ConfigError("attention: where positions have keys and queries, kv_heads must be heads")
        if self.rope is not None and (self.rope.dim % (2 * self.rope.axes) or self.rope.dim > self.head_dim):
            raise ConfigError(f"attention: rope.dim={self.rope.dim} must be even and at most head_dim={self.head_dim}")


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Keys and values of all heads are made of one vector of `rank` channels per token; beside it a state keeps only a
    key of `rope.dim` channels that turns and is the same for all heads (DeepSeek-AI 2024, arXiv:2405.04434).

    `head_dim` is the width of what does not turn of a query and its key, `value_dim` that of a value. Queries are made
    of a vector of `query_rank` channels, unless that is None. `norm` is that of these vectors; `bias` is that of the
    projections from and to the stream.
    """

    name: ClassVar[str] = "attention"
    heads: int
    head_dim: int
    value_dim: int
    rank: int
    rope: Rope
    query_rank: int | None = None
    norm: Norm = field(default_factory=RMSNorm)
    bias: bool = False

    def __post_init__(self) -> None:
        if min(self.heads, self.head_dim, self.value_dim, self.rank, self.query_rank or 1) < 1 or self.rope.dim % 2:
            raise ConfigError("attention: heads and widths must be at least 1, and rope.dim even")

    @property
    def scale(self) -> float:
        """What the scores are multiplied by."""
        scaling = self.rope.scaling
        temperature = scaling.temperature(scaling.mscale_all) if isinstance(scaling, YarnScaling) else 1.0
        return float((self.head_dim + self.rope.dim) ** -0.5 * temperature**2)


@dataclass(frozen=True, kw_only=True)
class MemoryAttention(Attention):
    """Attention that also sees all that lies before its window, in a stack of Windows: keys from there are not turned,
    as if they stood where the window begins (Tworkowski et al. 2023, arXiv:2307.03170)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("scores", "qk_norm", "window", "clip", "softcap"):
            if getattr(self, key) is not None:
                raise ConfigError(f"attention: {key} does not go together with a memory")


@dataclass(frozen=True, kw_only=True)
class CrossAttention(Heads):
    """Attention from the decoder's tokens to all that the encoder made. With several `languages`, each has an output
    projection of its own."""

    name: ClassVar[str] = "cross"
    languages: int = 1


@dataclass(frozen=True, kw_only=True)
class SourceAttention(Heads):
    """Attention to a source of `source` channels, which may know where its tokens stand; with `nothing`, a learned key
    and value stand before them."""

    name: ClassVar[str] = "cross"
    source: int
    positions: Rope | RelativeSinusoids | None = None
    nothing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads != self.kv_heads:
            raise ConfigError("attention to a source has as many kv_heads as heads")


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Encodes the `passages` of `length` tokens that were retrieved for every chunk of `chunk` tokens, by an encoder
    `dim` wide whose SourceAttention sees that chunk; `padding` is no token. It adds nothing to the stream: passages are
    seen by ChunkedCrossAttention (Borgeaud et al. 2021, arXiv:2112.04426)."""

    name: ClassVar[str] = "neighbours"
    chunk: int
    dim: int
    encoder: Stack
    output: Projection | None
    passages: int
    length: int
    padding: int = 0


@dataclass(frozen=True, kw_only=True)
class ChunkedCrossAttention:
    """Attention from the last token of every chunk and from those after it, but the last of the next chunk, to the
    passages of that chunk. These tokens stand at `places` (default: chunk - 1, chunk, …), passages at 0, 1, …"""

    name: ClassVar[str] = "chunked_cross"
    chunk: int
    cross: SourceAttention
    places: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class GlobalLocalAttention:
    """Every token sees those at most `reach` places away on either side and all global ones, which a call chooses;
    these see every token, by queries, keys and values of their own (Beltagy et al. 2020, arXiv:2004.05150)."""

    name: ClassVar[str] = "attention"
    heads: int
    head_dim: int
    reach: int

    def __post_init__(self) -> None:
        if min(self.heads, self.head_dim, self.reach) < 1:
            raise ConfigError(f"attention: heads, head_dim and reach={self.reach} must be at least 1")


ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "tanh")


class Activated:
    """What has an activation, which must be one of those `known`."""

    known: ClassVar[tuple[str, ...]] = ACTIVATIONS
    activation: str

    def __post_init__(self) -> None:
        _check_name("activation", self.activation, self.known)


@dataclass(frozen=True, kw_only=True)
class Dense(Activated):
    """The plain feed-forward layer, down(act(up(x)))."""

    name: ClassVar[str] = "ffn"
    hidden: int
    activation: str
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Gated(Activated):
    """The gated feed-forward layer (Shazeer 2020, arXiv:2002.05202), down(act(gate(x)) * (offset + up(x))). `limit`
    bounds the gate from above and the other factor, before the offset, on both sides."""

    name: ClassVar[str] = "ffn"
    hidden: int
    activation: str
    bias: bool = False
    limit: float | None = None
    offset: float = 0.0


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}; known: {', '.join(known)}.{suggest(name, known)}")


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Experts stand in `count` equal groups; a token may choose in the `keep` best of them only, each as good as the
    sum of its `best` highest scores (DeepSeek-AI 2024, arXiv:2405.04434, arXiv:2412.19437)."""

    count: int
    keep: int
    best: int = 1


@dataclass(frozen=True, kw_only=True)
class Seats:
    """An expert takes `tokens` of each sequence at most; whoever comes later is dropped, first choices coming first."""

    tokens: int


@dataclass(frozen=True, kw_only=True)
class CapacityFactor:
    """An expert takes at most `factor` times what it would of each sequence if all took the same (Lepikhin et al. 2020,
    arXiv:2006.16668)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Each token goes to the `k` experts of highest score, weighted by `scale` times these scores, which `renormalise`
    makes sum to one (Shazeer et al. 2017, arXiv:1701.06538).

    `scores` are a "softmax" over all experts or the "sigmoid" of each. A `bias` is added to the router's product; a
    `correction` per expert to the scores where experts are chosen, not where they are weighted (Wang et al. 2024,
    arXiv:2408.15664). Without a `capacity` no token is dropped.
    """

    k: int
    renormalise: bool = True
    scores: str = "softmax"
    scale: float = 1.0
    bias: bool = False
    correction: bool = False
    groups: Groups | None = None
    capacity: Seats | CapacityFactor | None = None

    def __post_init__(self) -> None:
        _check_name("scores", self.scores, ("softmax", "sigmoid"))


@dataclass(frozen=True, kw_only=True)
class ExpertChoice:
    """Each expert takes the tokens of each sequence whose softmax scores for it are highest, as many as give a token
    `k` experts on average (Zhou et al. 2022, arXiv:2202.09368). A token's experts depend on those after it."""

    k: int
    bias: ClassVar[bool] = False
    correction: ClassVar[bool] = False


Router = TopK | ExpertChoice


@dataclass(frozen=True, kw_only=True)
class Shared:
    """An expert that sees every token; `gated` multiplies its output by sigmoid of a learned product with the input."""

    op: Dense | Gated
    gated: bool = False


@dataclass(frozen=True, kw_only=True)
class MoE:
    """A mixture of `experts` equal feed-forward layers, among which a linear `router` divides the tokens."""

    name: ClassVar[str] = "ffn"
    experts: int
    expert: Dense | Gated
    router: Router
    shared: Shared | None = None

    def __post_init__(self) -> None:
        open_to_a_token = self.experts
        if isinstance(self.router, TopK) and (groups := self.router.groups) is not None:
            if not 1 <= groups.keep <= groups.count or self.experts % groups.count:
                raise ConfigError(f"mixture: experts={self.experts} cannot stand in {groups}")
            open_to_a_token = self.experts // groups.count * groups.keep
            if not 1 <= groups.best <= self.experts // groups.count:
                raise ConfigError(f"mixture: a group of experts={self.experts} in {groups} has no {groups.best} best")
        if not 1 <= self.router.k <= open_to_a_token:
            raise ConfigError(f"mixture: k={self.router.k} must lie between 1 and experts={open_to_a_token}")


@dataclass(frozen=True, kw_only=True)
class Convolution(Activated):
    """act(W x + b) of the `kernel` positions around each; beyond the ends and at padding there are zeros."""

    name: ClassVar[str] = "convolution"
    kernel: int
    activation: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise ConfigError(f"convolution: kernel={self.kernel} must be odd, so that it has a middle")


@dataclass(frozen=True, kw_only=True)
class Elman(Activated):
    """The simple recurrent layer (Elman 1990), h = act(W x + U h'); it replaces the stream by `width` channels."""

    name: ClassVar[str] = "recurrence"
    known: ClassVar[tuple[str, ...]] = ("tanh", "sigmoid", "relu")
    gates: ClassVar[int] = 1
    width: int
    activation: str = "tanh"
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class LSTM:
    """Long short-term memory (Hochreiter & Schmidhuber 1997), with forget gates (Gers et al. 2000)."""

    name: ClassVar[str] = "recurrence"
    gates: ClassVar[int] = 4
    width: int
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class GRU:
    """Gated recurrent units (Cho et al. 2014, arXiv:1406.1078); the reset gate acts on the product U h' + b."""

    name: ClassVar[str] = "recurrence"
    gates: ClassVar[int] = 3
    width: int
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Window(Activated):
    """act(W [x, x', x'', …] + b) of the last `size` positions, the latest first (Bengio et al. 2003); a learned vector
    stands before the beginning. It replaces the stream by `width` channels."""

    name: ClassVar[str] = "window"
    known: ClassVar[tuple[str, ...]] = ("tanh", "sigmoid", "relu")
    size: int
    width: int
    activation: str = "tanh"


@dataclass(frozen=True, kw_only=True)
class SelectiveSSM(Activated):
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


@dataclass(frozen=True, kw_only=True)
class DualSSM(Activated):
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
        super().__post_init__()
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


@dataclass(frozen=True, kw_only=True)
class TimeMix:
    """Attention without queries, whose weights decay with distance at a rate per channel (arXiv:2305.13048)."""

    name: ClassVar[str] = "time_mix"
    hidden: int


@dataclass(frozen=True, kw_only=True)
class ChannelMix:
    """A gated feed-forward layer over each position mixed with the one before it (arXiv:2305.13048)."""

    name: ClassVar[str] = "channel_mix"
    hidden: int


Mixing = Attention | LatentAttention | CrossAttention | GlobalLocalAttention
Retrieving = SourceAttention | Neighbours | ChunkedCrossAttention
FeedForward = Dense | Gated | MoE
Walking = Elman | LSTM | GRU | Window | SelectiveSSM | DualSSM | TimeMix | ChannelMix
Op = Mixing | Retrieving | FeedForward | Walking | Convolution

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


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """Each sublayer reads what the one before it wrote."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """All sublayers read the block's input, after the norm `pre` that they share, and their results are added to it
    (Wang & Komatsuzaki 2021, GPT-J)."""

    pre: Norm | None = None


@dataclass(frozen=True, kw_only=True)
class Rejoined:
    """Each sublayer reads what the one before it wrote, but the last reads the block's input, and its result is added
    to what the others wrote."""


Wiring = Sequential | Parallel | Rejoined


@dataclass(frozen=True, kw_only=True)
class Block:
    """Sublayers and how they are wired."""

    subs: tuple[Sub, ...]
    wiring: Wiring = field(default_factory=Sequential)

    def __post_init__(self) -> None:
        if isinstance(self.wiring, Parallel) and any(sub.post or sub.alpha != 1.0 for sub in self.subs):
            raise ConfigError("parallel sublayers have no stream of their own: post must be None and alpha 1")

    def width(self, dim: int) -> int:
        """The width of the stream behind it."""
        return reduce(lambda width, sub: sub.width(width), self.subs, dim)


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Position i sees positions j <= i."""


@dataclass(frozen=True, kw_only=True)
class Prefix(Causal):
    """The tokens of a prefix, which is given before anything is written, see one another too (Liu et al. 2018,
    arXiv:1801.10198; Raffel et al. 2019, arXiv:1910.10683). Each call says which they are; a row without a prefix is
    read from left to right."""


@dataclass(frozen=True, kw_only=True)
class Infill(Causal):
    """A text with a blank, then what fills it (Du et al. 2021, arXiv:2103.10360): the tokens of the text see one
    another too. A row that fills nothing is read from left to right.

    The filling begins with the id `begin` (None: each call says where). It stands at the position of the text's blank,
    the first of the first of `blanks` that is there, or where there is none goes on; its places are 1, 2, …, others 0.
    """

    begin: int | None = None
    blanks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bidirectional:
    """Every position sees every other."""


@dataclass(frozen=True, kw_only=True)
class Permuted:
    """A position sees those `within` its reach that the call's order lets it see (default: all), itself, and all that a
    state remembers. Where a call asks for predictions, a second stream of queries, which begin as one learned vector,
    sees what its positions see, but not what stands there (Yang et al. 2019, arXiv:1906.08237)."""

    within: Causal | Bidirectional = field(default_factory=Bidirectional)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Position i sees j <= i of its own window, in which positions count from 0. Windows have at most `size` positions;
    the end of what a call brings is a piece by itself, of at most `last`, which begins a new window where it does not
    fit into a state's, or nothing was held before (Tworkowski et al. 2023, arXiv:2307.03170)."""

    within: ClassVar[Causal] = Causal()
    size: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.last <= self.size:
            raise ConfigError(f"windows: last={self.last} must lie between 1 and size={self.size}")


Visibility = Causal | Bidirectional | Permuted | Windows


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Blocks on one residual stream, who sees whom in them, and the norm that ends them.

    `repeats` applies the whole row of blocks so many times, each time with the same weights. `relative` is shared by
    all self-attentions.
    """

    blocks: tuple[Block, ...]
    final_norm: Norm | None
    visibility: Visibility = field(default_factory=Causal)
    repeats: int = 1
    relative: BucketBias | RelativeTable | None = None

    def __post_init__(self) -> None:
        ops = {sub.op for block in set(self.blocks) for sub in block.subs}
        crosswise = any(isinstance(op, Attention) and isinstance(op.scores, Disentangled) for op in ops)
        if crosswise != isinstance(self.relative, RelativeTable):
            raise ConfigError("a stack has a RelativeTable where its attentions are Disentangled, and only there")
        if isinstance(self.visibility, Prefix) and not self.attends:
            raise ConfigError("a stack that reads token after token has no prefix that sees itself")

    @property
    def attends(self) -> bool:
        """Whether positions meet in plain attention only, which may see in either direction."""
        plain = (Attention, LatentAttention, Dense, Gated, MoE)
        return all(type(sub.op) in plain for block in set(self.blocks) for sub in block.subs)

    @property
    def depth(self) -> int:
        """How many blocks a token passes through."""
        return len(self.blocks) * self.repeats

    def subs(self) -> Iterator[Sub]:
        """Yield the sublayers in the order in which a token passes through them."""
        for _ in range(self.repeats):
            for block in self.blocks:
                yield from block.subs

    def widths(self, dim: int) -> list[int]:
        """The widths of the stream before every block and at the end."""
        return list(accumulate(self.blocks, lambda width, block: block.width(width), initial=dim))


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A linear map between token vectors of a `width` of their own and the residual stream."""

    width: int
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Factorised:
    """Token, position and segment vectors of a `width` of their own, whose sum is normalised and then brought to the
    stream by a linear map (Lan et al. 2019, arXiv:1909.11942)."""

    width: int
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class Embed:
    """norm(scale * token + position + segment). Token vectors of a width of their own are projected before anything is
    added (`Projection`), or the whole sum is (`Factorised`).

    `segments` is the number of segment vectors, one of which is added to every token (0: none); `tasks` of vectors that
    are likewise added for a task, `languages` of vectors added only to tokens whose language is given. A `vocab` gives
    an encoder token vectors of its own (None: the decoder's).
    """

    position: Learned | Sinusoidal | None = None
    scale: float = 1.0
    segments: int = 0
    tasks: int = 0
    languages: int = 0
    norm: Norm | None = None
    projection: Projection | Factorised | None = None
    vocab: int | None = None

    def width(self, dim: int) -> int:
        """Return the width of the token vectors on a residual stream of width `dim`."""
        return self.projection.width if self.projection else dim


@dataclass(frozen=True, kw_only=True)
class Transform(Activated):
    """norm(act(x W + b)) to `width` channels, before the vocabulary."""

    width: int
    activation: str
    norm: Norm | None
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """Rows of the head are brought to length 1 wherever they are used, so that logits are cosines times the length of
    the hidden state (Yang et al. 2023, arXiv:2309.10305)."""


@dataclass(frozen=True, kw_only=True)
class LM:
    """Logits over the vocabulary; `tied` heads share the token embedding. `projection` brings the stream to the width
    of the head, `rows` says how the matrix is used, `scale` multiplies the logits, `softcap` bounds them smoothly."""

    tied: bool
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    rows: UnitRows | None = None
    projection: Projection | Transform | None = None


@dataclass(frozen=True, kw_only=True)
class Discriminator(Activated):
    """One logit per token, of act(dense(x)): was this token replaced? (Clark et al. 2020, arXiv:2003.10555)

    With `context`, of that norm of x plus the first token's vector (He et al. 2021, arXiv:2111.09543).
    """

    activation: str
    context: Norm | None = None


@dataclass(frozen=True)
class First:
    """The state of a text's first token stands for the text."""


@dataclass(frozen=True)
class Last:
    """The state of its last token does, which in a decoder has seen all of it."""


@dataclass(frozen=True)
class Mean:
    """The mean of the states of its tokens does."""


@dataclass(frozen=True)
class WeightedMean:
    """A mean does in which the i-th of n tokens weighs i / (1 + 2 + … + n): a decoder's later states have seen more
    (Muennighoff 2022, arXiv:2202.08904)."""


Pooling = First | Last | Mean | WeightedMean
POOLINGS: dict[str, Pooling] = {"first": First(), "last": Last(), "mean": Mean(), "weighted_mean": WeightedMean()}
"""What recipes and requests call them."""


@dataclass(frozen=True, kw_only=True)
class Classify(Activated):
    """Logits over `classes` of act(dense(x)), where x is the state that stands for the text."""

    classes: int
    activation: str = "tanh"
    pooling: Pooling = field(default_factory=First)


@dataclass(frozen=True, kw_only=True)
class Pretraining(LM):
    """Logits over the vocabulary, and beside them those of `pair`: do two segments follow one another (Devlin et al.
    2018, arXiv:1810.04805), or in which order (Lan et al. 2019, arXiv:1909.11942)?"""

    pair: Classify


@dataclass(frozen=True, kw_only=True)
class Tag:
    """Logits over `classes` of every token."""

    classes: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """Two logits of every token: is it the first of the answer, is it the last?"""


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """No head: the last hidden states are what is wanted, with act(dense(first token)) beside them where it is set."""

    pooler: str | None = None


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """No logits: one vector for each text, the state that stands for it, brought to length 1 where they are compared by
    their angle (Reimers & Gurevych 2019, arXiv:1908.10084)."""

    pooling: Pooling
    normalise: bool = True


Head = LM | Embedding | Discriminator | Classify | Tag | Span | Hidden


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A language model. `family` names the file that knows its published formats; `context` is its longest input.

    At least one of `encoder` and `decoder` is there. With both, the decoder's cross-attention sees what the encoder
    made; `encoder_embed` then says how the source enters (through the same token vectors), and `start` is the id with
    which the decoder begins.
    """

    name: str
    family: str
    vocab: int
    dim: int
    context: int
    embed: Embed
    head: Head
    encoder: Stack | None = None
    decoder: Stack | None = None
    encoder_embed: Embed | None = None
    start: int | None = None

    def __post_init__(self) -> None:
        for key in ("vocab", "dim", "context"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{self.name}: {key}={getattr(self, key)} must be at least 1")
        if not self.stacks:
            raise ConfigError(f"{self.name}: neither an encoder nor a decoder is there")
        if not all(stack.blocks for stack in self.stacks):
            raise ConfigError(f"{self.name}: a stack needs at least one block")
        if (self.encoder_embed is not None) != (len(self.stacks) == 2):
            raise ConfigError(f"{self.name}: encoder_embed belongs to models with an encoder and a decoder")
        if self.start is not None and len(self.stacks) < 2:
            raise ConfigError(f"{self.name}: start={self.start} belongs to a decoder behind an encoder")
        if isinstance(self.trunk.visibility, Prefix) and (len(self.stacks) == 2 or self.decoder is None):
            raise ConfigError(f"{self.name}: a prefix that sees itself belongs to a decoder alone")
        if self.embed.vocab is not None:
            raise ConfigError(f"{self.name}: a vocabulary of its own belongs to encoder_embed, not to embed")
        crosses = any(isinstance(sub.op, CrossAttention) for block in set(self.trunk.blocks) for sub in block.subs)
        if crosses != (len(self.stacks) == 2):
            raise ConfigError(f"{self.name}: cross-attention belongs to the decoder of models with an encoder")
        subs = [sub for stack in self.stacks for block in set(stack.blocks) for sub in block.subs]
        if len(self.stacks) == 2 and any(sub.width(self.dim) != self.dim for sub in subs):
            raise ConfigError(f"{self.name}: the streams of an encoder and its decoder keep {self.dim} channels")
        if any(stack.repeats > 1 and stack.widths(self.dim)[-1] != self.dim for stack in self.stacks):
            raise ConfigError(f"{self.name}: a stack that repeats must end as wide as it begins, {self.dim}")
        embeds = (self.embed, self.encoder_embed) if self.encoder_embed else (self.embed,)
        placed = [*(embed.position for embed in embeds), *(getattr(sub.op, "rope", None) for sub in subs)]
        fills = isinstance(self.trunk.visibility, Infill) and len(self.stacks) == 1
        if not {getattr(position, "axes", 1) for position in placed} <= ({1, 2} if fills else {1}):
            raise ConfigError(f"{self.name}: positions have one axis, or two where a decoder fills in blanks")
        embedded, read = self.embed.width(self.dim), self.width
        if isinstance(self.head, LM) and self.head.projection:
            read = self.head.projection.width
        if self.tied and embedded != read:
            raise ConfigError(f"{self.name}: a tied head needs a stream of {embedded} channels, not {read}")

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The encoder and the decoder, those that are there."""
        return tuple(stack for stack in (self.encoder, self.decoder) if stack is not None)

    @property
    def trunk(self) -> Stack:
        """The stack whose result the head reads: the decoder, or the encoder where there is none."""
        return self.stacks[-1]

    @property
    def width(self) -> int:
        """The width of the stream that the head reads, which recurrent layers may have changed."""
        return self.trunk.widths(self.dim)[-1]

    @property
    def tied(self) -> bool:
        """Whether the head shares the token embedding."""
        return isinstance(self.head, LM) and self.head.tied

    @property
    def lm(self) -> LM:
        """The head of a model that has logits over the vocabulary."""
        assert isinstance(self.head, LM), f"{self.name} has no language-model head"
        return self.head

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


_TYPES = {n: cls for n, cls in list(globals().items()) if isinstance(cls, type) and dataclasses.is_dataclass(cls)}


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
