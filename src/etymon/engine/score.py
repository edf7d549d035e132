"""Log-likelihoods of given continuations: the forward pass of training, without its gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from etymon.engine.request import Score, TokenLogprob
from etymon.engine.source import padded, spoken
from etymon.errors import RequestError
from etymon.nn import Model

HEAD_ELEMENTS = 1 << 22  # logits held at once: 16 MB in fp32


@torch.inference_mode()
def score(
    model: Model,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    *,
    sources: Sequence[Sequence[int]] | None = None,
    languages: tuple[int, int] | None = None,
    prefix: Sequence[int] | None = None,
    batch_tokens: int = 4096,
) -> list[Score]:
    """Score `ids[start:]` given `ids[:start]` for every pair of `sequences` and `starts`, in their order; of a decoder
    behind an encoder, given one of `sources` too, in `languages` where the model knows some. Where it has prefixes that
    see themselves, `prefix` says how many ids of each are one: those before `start` by default.

    Sequences of similar length run together, at most `batch_tokens` padded tokens at a time (or one sequence).
    Raises RequestError for a sequence that is longer than the context, or of which nothing remains to be scored, and
    for a model that does not write from left to right.
    """
    check(model, sequences, starts, sources, prefix)
    results: list[Score | None] = [None] * len(sequences)
    sizes = [len(ids) for ids in sequences]
    if sources is not None:
        sizes = [max(n, len(source)) for n, source in zip(sizes, sources, strict=True)]
    for batch in batches(sizes, batch_tokens):
        given = None if sources is None else [sources[i] for i in batch]
        shown = [(starts if prefix is None else prefix)[i] for i in batch]
        scores = _score_batch(model, [sequences[i] for i in batch], [starts[i] for i in batch], given, languages, shown)
        for i, result in zip(batch, scores, strict=True):
            results[i] = result
    return [result for result in results if result is not None]


def check(
    model: Model,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    sources: Sequence[Sequence[int]] | None,
    prefix: Sequence[int] | None,
) -> None:
    """Raise RequestError for what cannot be scored, as `score` does."""
    _check_kind(model, sources)
    for name, others in (("starts", starts), ("sources", sources), ("prefix", prefix)):
        if others is not None and len(sequences) != len(others):
            raise RequestError(f"{len(sequences)} sequences need as many {name}, got {len(others)}.", param=name)
    for number, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        _check(model, number, ids, start)
        if prefix is not None and not 0 <= prefix[number] <= start:
            raise RequestError(
                f"sequence {number}: a prefix of {prefix[number]} ids must end before what is scored, at {start}.",
                param="prefix",
            )
        if sources is not None and not 1 <= len(sources[number]) <= model.spec.context:
            raise RequestError(
                f"source {number} has {len(sources[number])} tokens; 1 to {model.spec.context} can be read.",
                param="sources",
            )


def _check_kind(model: Model, sources: Sequence[Sequence[int]] | None) -> None:
    if model.decoder is None:
        raise RequestError(
            f"{model.spec.name} is an encoder: no token's probability follows from those before it alone. Its "
            "pseudo-likelihood is `engine.pseudo_score`."
        )
    if (model.encoder is not None) != (sources is not None):
        wanted = "reads sources: pass one for every sequence" if sources is None else "has no encoder to read sources"
        raise RequestError(f"{model.spec.name} {wanted}.", param="sources")


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


def batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield groups of indices, longest first, so that memory is at its peak at once and padding is small."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _score_batch(
    model: Model,
    sequences: list[Sequence[int]],
    starts: list[int],
    sources: list[Sequence[int]] | None,
    languages: tuple[int, int] | None,
    shown: list[int],
) -> list[Score]:
    # padding at the end is seen by nothing that is scored; the last token predicts nothing
    ids, _ = padded([tokens[:-1] for tokens in sequences], model.device)
    if sources is None:
        told = {"prefix": prefixes(shown, ids)} if getattr(model, "prefixed", False) else {}
        hidden = model(ids, logits=False, **told).last_hidden_state
    else:
        source, real = padded(sources, model.device)
        langs = {"langs": spoken(languages[0], source), "decoder_langs": spoken(languages[1], ids)} if languages else {}
        hidden = model(source, real, decoder_input_ids=ids, logits=False, **langs).last_hidden_state
    spans = list(zip(sequences, starts, strict=True))
    scored = torch.cat([hidden[row, start - 1 : len(ids) - 1] for row, (ids, start) in enumerate(spans)])
    entries = iter(report(model, scored, [token for ids, start in spans for token in ids[start:]]))
    return [Score.of([next(entries) for _ in ids[start:]]) for ids, start in spans]


def prefixes(lengths: Sequence[int], ids: Tensor) -> Tensor:
    """Return which places of `ids` [rows, time] belong to prefixes of so many of their first ids."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return places < torch.tensor(lengths, device=ids.device)[:, None]


def report(model: Model, hidden: Tensor, targets: Sequence[int], best: int = 1) -> list[TokenLogprob]:
    """Return log p(target), and the `best` ids at its place, for every row of `hidden` [targets, dim], a block of
    logits at a time."""
    rows = max(16, HEAD_ELEMENTS // model.spec.vocab)
    found: list[TokenLogprob] = []
    for start in range(0, len(targets), rows):
        logits = model.head(hidden[start : start + rows]).float()
        found += logprobs(logits, targets[start : start + rows], best)
    return found


def logprobs(logits: Tensor, ids: Sequence[int], best: int) -> list[TokenLogprob]:
    """Return log p(id), and the `best` ids at its place, for every row of `logits` [ids, vocab]."""
    total = logits.logsumexp(-1, keepdim=True).double()
    chosen = logits.gather(1, torch.tensor(ids, device=logits.device)[:, None]).double() - total
    values, places = logits.topk(min(best, logits.shape[1]))
    tops = zip(places.tolist(), (values.double() - total).tolist(), strict=True)
    return [
        TokenLogprob(id, value, tuple(zip(*top, strict=True)))
        for id, value, top in zip(ids, chosen[:, 0].tolist(), tops, strict=True)
    ]
