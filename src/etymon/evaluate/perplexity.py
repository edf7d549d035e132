"""How well a model predicts documents it has not seen: bits per byte, which no tokenizer can flatter.

Bits per byte is the total negative log-likelihood of the documents in bits over their length in UTF-8 bytes, so that
models with different tokenizers compare. What is counted, exactly:

- Every token of a document and the end-of-document token after it is scored once; the bytes are the text's alone.
- A document longer than the context is read through a sliding window: after the first window, every token is scored
  with at least `context - stride` tokens before it.
- The first token follows BOS where the tokenizer has one. Where it has none, nothing precedes it in training either,
  and it costs what a uniform guess over the vocabulary costs, log2(vocabulary) bits: the same for every model.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from etymon.config import Config
from etymon.data import Document
from etymon.engine.score import score
from etymon.errors import ConfigError, DataError
from etymon.evaluate.record import result_file
from etymon.evaluate.statistics import Z95, ratio_standard_error
from etymon.files import atomic_path, write_json
from etymon.nn import Model
from etymon.text import Tokenizer

_READ_AHEAD = 512  # windows that are sorted by length together, so that little of a batch is padding
_ENCODE = 256  # documents that are encoded together


class PerplexityConfig(Config):
    """How held-out documents are scored."""

    context: int | None = Field(default=None, ge=2, description="Tokens of a window; the model's context if not set")
    stride: int | None = Field(default=None, ge=1, description="Tokens it moves by; half the context if not set")
    batch_size: int = Field(default=16, ge=1, description="Full windows at a time; the result does not depend on it")
    max_documents: int | None = Field(default=None, ge=1, description="Score only the first so many documents")


@dataclass(frozen=True)
class DocumentScore:
    """One document's cost: `nats` over `tokens` scored tokens (the end of document included) and `bytes` of text."""

    id: str
    source: str
    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Score:
    """The cost of a set of documents."""

    bits_per_byte: float
    standard_error: float | None
    perplexity: float
    documents: int
    tokens: int
    bytes: int
    nats: float

    @classmethod
    def of(cls, documents: Sequence[DocumentScore]) -> Score:
        """Add documents up; perplexity is per token and compares only models that share a tokenizer."""
        nats = math.fsum(document.nats for document in documents)
        tokens = sum(document.tokens for document in documents)
        length = sum(document.bytes for document in documents)
        error = ratio_standard_error([d.nats for d in documents], [d.bytes for d in documents])
        return cls(
            bits_per_byte=nats / math.log(2) / length,
            standard_error=None if error is None else error / math.log(2),
            perplexity=math.exp(min(700.0, nats / tokens)),
            documents=len(documents),
            tokens=tokens,
            bytes=length,
            nats=nats,
        )


@dataclass(frozen=True)
class BitsPerByte:
    """The scores of one model on held-out documents: all of them, each source, and each document."""

    model: str
    total: Score
    sources: dict[str, Score]
    documents: list[DocumentScore]
    context: int
    stride: int
    first_token: str
    end_of_document: bool

    def to_dict(self) -> dict[str, Any]:
        """Return this model's entry of `bits_per_byte.json`; the documents are in a file of their own."""
        return {
            "model": self.model,
            **asdict(self.total),
            "context": self.context,
            "stride": self.stride,
            "first_token": self.first_token,
            "end_of_document_counted": self.end_of_document,
            "sources": {source: asdict(score) for source, score in self.sources.items()},
        }

    def save(self, run: Path) -> None:
        """Put this model's entry into `evaluate/bits_per_byte.json` and write `evaluate/documents-<model>.jsonl`."""
        path = run / "evaluate" / "bits_per_byte.json"
        others = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
        with (
            atomic_path(result_file(run, "documents", self.model, "jsonl")) as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for document in self.documents:
                file.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")
        write_json(path, {"models": [entry for entry in others if entry["model"] != self.model] + [self.to_dict()]})


@dataclass(frozen=True)
class Difference:
    """The change in bits per byte from one model to another on the same documents, with its paired standard error."""

    before: str
    after: str
    change: float
    standard_error: float | None
    documents: int

    def to_dict(self) -> dict[str, Any]:
        """Return the difference with its 95% interval."""
        error = self.standard_error
        interval = None if error is None else [self.change - Z95 * error, self.change + Z95 * error]
        return asdict(self) | {"interval": interval}


def bits_per_byte(
    model: Model,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    config: PerplexityConfig | None = None,
    *,
    name: str = "model",
) -> BitsPerByte:
    """Score `documents` under `model`, in the dtype of its weights; `name` is what reports call the model.

    The documents are streamed. The result does not depend on the batch size, beyond the rounding of the model's own
    arithmetic: a window is only ever padded behind its end, which a causal model does not see.
    Raises DataError where no document holds text, ConfigError for a context that the model does not have.
    """
    config = config or PerplexityConfig()
    context, stride = _lengths(config, model)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    guess = math.log(tokenizer.vocab_size) if tokenizer.bos_id is None else 0.0
    scored: list[DocumentScore] = []
    nats: list[float] = []
    pending: list[_Window] = []

    def score_pending() -> None:
        scores = score(
            model,
            [w.ids for w in pending],
            [w.start for w in pending],
            prefix=[0] * len(pending),  # nothing of a document is given
            batch_tokens=config.batch_size * context,
        )
        for window, result in zip(pending, scores, strict=True):
            nats[window.place] -= result.logprob
        pending.clear()

    training = model.training
    model.eval()
    try:
        for document, ids in _encoded(documents, tokenizer, config.max_documents):
            scored.append(DocumentScore(document.id, document.source, 0.0, len(ids), len(document.text.encode())))
            nats.append(guess)
            for window in _windows(begin + ids, context, stride, len(nats) - 1):
                pending.append(window)
                if len(pending) >= _READ_AHEAD:
                    score_pending()
        score_pending()
    finally:
        model.train(training)
    if not scored:
        raise DataError(
            "there is no held-out document to score: none was given, or all are empty. Give documents that hold text, "
            "or raise the share that is held out."
        )
    scored = [replace(document, nats=value) for document, value in zip(scored, nats, strict=True)]
    return BitsPerByte(
        model=name,
        total=Score.of(scored),
        sources={
            source: Score.of([document for document in scored if document.source == source])
            for source in sorted({document.source for document in scored})
        },
        documents=scored,
        context=context,
        stride=stride,
        first_token="after BOS" if begin else "uniform",
        end_of_document=tokenizer.eos_id is not None,
    )


def _lengths(config: PerplexityConfig, model: Model) -> tuple[int, int]:
    """Return context and stride, in tokens."""
    context = config.context or model.spec.context
    if context > model.spec.context:
        raise ConfigError(f"perplexity.context={context} is beyond the model's context of {model.spec.context}.")
    stride = config.stride or max(1, context // 2)
    if stride >= context:
        raise ConfigError(
            f"perplexity.stride={stride} must be below the context of {context}: the first token of a window is only "
            "read, so with a longer stride some tokens would never be scored."
        )
    return context, stride


def difference(before: BitsPerByte, after: BitsPerByte) -> Difference:
    """Compare two models on the same documents; pairing removes what makes a document hard for both.

    Raises DataError where the two did not score the same documents.
    """
    pairs = list(zip(before.documents, after.documents, strict=False))
    if len(before.documents) != len(after.documents) or any(a.id != b.id for a, b in pairs):
        raise DataError(
            f"{before.model!r} and {after.model!r} were scored on different documents. Score both on the same ones, in "
            "the same order."
        )
    change = [b.nats - a.nats for a, b in pairs]
    length = [a.bytes for a, _ in pairs]
    error = ratio_standard_error(change, length)
    return Difference(
        before=before.model,
        after=after.model,
        change=math.fsum(change) / math.log(2) / sum(length),
        standard_error=None if error is None else error / math.log(2),
        documents=len(pairs),
    )


@dataclass(frozen=True)
class _Window:
    """Tokens `ids` of document number `place`, of which `ids[start:]` are scored."""

    place: int
    ids: list[int]
    start: int


def _encoded(
    documents: Iterable[Document], tokenizer: Tokenizer, limit: int | None
) -> Iterator[tuple[Document, list[int]]]:
    """Yield documents that hold text with their ids, closed by the end-of-document token where there is one."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    stream = itertools.islice((document for document in documents if document.text), limit)
    while batch := list(itertools.islice(stream, _ENCODE)):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            yield document, ids + end


def _windows(ids: list[int], context: int, stride: int, place: int) -> Iterator[_Window]:
    """Cut `ids` into windows of at most `context` tokens that together score every token but the first exactly once."""
    done = 1
    while done < len(ids):
        stop = min(len(ids), context if done == 1 else done + stride)
        first = max(0, stop - context)
        yield _Window(place, ids[first:stop], done - first)
        done = stop
