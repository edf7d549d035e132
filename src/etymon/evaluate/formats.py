"""The files of a run that the report reads, as types: what must be in each for it to be shown.

Further keys are allowed and left out. A file that does not fit its type is named in the report and not used.
"""

from __future__ import annotations

from typing import (
    Any,
    NotRequired,  # pydantic asks for this TypedDict before Python 3.12
)

from typing_extensions import TypedDict


class Score(TypedDict):
    """The cost of a set of documents."""

    bits_per_byte: float
    standard_error: float | None
    perplexity: float
    documents: int
    tokens: int
    bytes: int


class Bits(Score):
    """A model in `evaluate/bits_per_byte.json`."""

    model: str
    context: int
    stride: int
    first_token: str
    end_of_document_counted: bool
    sources: dict[str, Score]


class BitsFile(TypedDict):
    """`evaluate/bits_per_byte.json`."""

    models: list[Bits]


class Measure(TypedDict):
    """A number of a model that does not write."""

    name: str
    value: float
    unit: str
    interval: tuple[float, float] | None
    count: int


class HeldOut(TypedDict):
    """A model in `evaluate/held_out.json`."""

    model: str
    objective: str | None
    measures: list[Measure]
    note: str | None


class HeldOutFile(TypedDict):
    """`evaluate/held_out.json`."""

    models: list[HeldOut]


class Split(TypedDict):
    """The right answers of one split."""

    split: str
    correct: int
    count: int
    accuracy: float
    interval: tuple[float, float]


class Kind(Split):
    """The right answers of one kind and split."""

    kind: str


class Tasks(TypedDict):
    """`evaluate/tasks-<model>.json`."""

    model: str
    check: str
    overlap: int
    unfinished: int
    failed: int
    splits: list[Split]
    kinds: list[Kind]


class Item(TypedDict):
    """A line of `evaluate/items-<model>.jsonl`."""

    id: str
    kind: str
    split: str
    messages: list[dict[str, Any]]
    prompt_ids: list[int]
    expected: str
    output: str
    correct: bool


class Written(TypedDict):
    """One continuation in `evaluate/samples-<model>.json`."""

    text: str
    finish: str


class Sample(TypedDict):
    """A prompt, a text or messages, and what the model made of it."""

    prompt: str | list[dict[str, Any]]
    greedy: Written
    sampled: Written


class Samples(TypedDict):
    """`evaluate/samples-<model>.json`."""

    model: str
    temperature: float
    top_p: float
    seed: int
    samples: list[Sample]


class DriftMeasures(TypedDict):
    """What `etymon.evaluate.drift` measures."""

    positions: int
    max_logit: float
    mean_logit: float
    kl_bits: float
    agreement: float


class Int8(TypedDict):
    """`evaluate/int8.json`; `original` is the name of the model that was quantised."""

    bytes_before: int
    bytes_after: int
    original: NotRequired[str]
    drift: NotRequired[DriftMeasures]


class Service(TypedDict):
    """`evaluate/service.json`: one conversation with the running service."""

    ok: bool
    error: NotRequired[str | None]
    model: NotRequired[str]
    messages: NotRequired[list[dict[str, Any]]]
    answer: NotRequired[str]
    openai_client: NotRequired[str | None]
    seconds_to_ready: NotRequired[float]
    seconds_to_first_token: NotRequired[float]
    seconds: NotRequired[float]
    tokens_per_second: NotRequired[float]


class Timing(TypedDict):
    """How long one stage took."""

    name: str
    seconds: float


class Timings(TypedDict):
    """`evaluate/timings.json`."""

    stages: list[Timing]


class Parameters(TypedDict):
    """Parameter counts."""

    total: int
    non_embedding: int
    active: int


class ModelSizes(TypedDict, total=False):
    """`evaluate/model.json`."""

    name: str
    family: str
    parameters: Parameters
    layers: int
    dim: int
    vocab: int
    context: int
    dtype: str
    bytes: int


class Environment(TypedDict, total=False):
    """`environment.json`."""

    created: str
    system: str
    python: str
    cpu: str
    cores_usable: int
    threads: int
    memory_bytes: int
    cpu_capability: str
    accelerators: list[str]
    packages: dict[str, str]
    commit: str | None
    matmul_flops: dict[str, float] | None


class SplitSize(TypedDict):
    """The documents of one side of the split."""

    documents: int
    bytes: int


class Manifest(TypedDict):
    """`data/manifest.json`: documents by source and reason."""

    sources: dict[str, dict[str, int]]
    splits: dict[str, SplitSize]


class ConversationCounts(TypedDict):
    """`data/conversations.json`."""

    conversations: int


class Shards(TypedDict):
    """The `manifest.json` of token shards."""

    documents: int
    tokens: int
    bytes: int
    vocab_size: int


class Packing(TypedDict, total=False):
    """`packing.json` in a stage's directory: the loader's report."""

    samples: int
    dropped: int
    truncated: int
    split: int
    efficiency: float
