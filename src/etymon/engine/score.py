"""Log-likelihoods of given continuations: the forward pass of training, without its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from etymon.engine.request import Score
from etymon.errors import RequestError
from etymon.nn import Model

HEAD_ELEMENTS = 1 << 22  # logits held at once: 16 MB in fp32


@torch.inference_mode()
def score(
    model: Model, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, batch_tokens: int = 4096
) -> list[Score]:
    """Score `ids[start:]` given `ids[:start]` for every pair of `sequences` and `starts`, in their order.

    Sequences of similar length run together, at most `batch_tokens` padded tokens at a time (or one sequence).
    Raises RequestError for a sequence that is longer than the context, or of which nothing remains to be scored.
    """
    if len(sequences) != len(starts):
        raise RequestError(f"{len(sequences)} sequences need as many starts, got {len(starts)}.", param="starts")
    for number, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        _check(model, number, ids, start)
    results: list[Score | None] = [None] * len(sequences)
    for batch in _batches([len(ids) for ids in sequences], batch_tokens):
        scores = _score_batch(model, [sequences[i] for i in batch], [starts[i] for i in batch])
        for i, result in zip(batch, scores, strict=True):
            results[i] = result
    return [result for result in results if result is not None]


def _check(model: Model, number: int, ids: Sequence[int], start: int) -> None:
    context, vocab = model.spec.context, model.spec.vocab
    if not 1 <= start < len(ids):
        raise RequestError(
            f"sequence {number}: start {start} must be at least 1 (the first token follows nothing) "
            f"and below its length {len(ids)}.",
            param="starts",
        )
    if len(ids) > context:
        raise RequestError(
            f"sequence {number} has {len(ids)} tokens, but the context is {context}: score it in windows.",
            param="sequences",
            code="context_length_exceeded",
        )
    if min(ids) < 0 or max(ids) >= vocab:
        raise RequestError(f"sequence {number} has an id outside 0..{vocab - 1}.", param="sequences")


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield groups of indices, longest first, so that memory is at its peak at once and padding is small."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _score_batch(model: Model, sequences: list[Sequence[int]], starts: list[int]) -> list[Score]:
    longest = len(sequences[0])
    # padding at the end is seen by nothing that is scored; the last token predicts nothing
    padded = torch.tensor([[*ids[:-1], *[0] * (longest - len(ids))] for ids in sequences], device=model.device)
    hidden = model(padded, logits=False).last_hidden_state
    spans = list(zip(sequences, starts, strict=True))
    scored = torch.cat([hidden[row, start - 1 : len(ids) - 1] for row, (ids, start) in enumerate(spans)])
    targets = torch.tensor([token for ids, start in spans for token in ids[start:]], device=model.device)
    logprobs, best = _logprobs(model, scored, targets)
    results = []
    position = 0
    for ids, start in spans:
        stop = position + len(ids) - start
        values = logprobs[position:stop]
        results.append(Score(float(sum(values)), values, all(best[position:stop])))
        position = stop
    return results


def _logprobs(model: Model, hidden: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """Return log p(target) and whether it is the most probable token, a block of logits at a time."""
    rows = max(16, HEAD_ELEMENTS // model.spec.vocab)
    values: list[float] = []
    best: list[bool] = []
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = model.head(h).float()
        values += (logits.gather(1, t[:, None])[:, 0].double() - logits.logsumexp(-1).double()).tolist()
        best += (logits.argmax(-1) == t).tolist()
    return values, best
