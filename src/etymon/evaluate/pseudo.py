"""How well a masked language model predicts every token of a text from all the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from etymon.data.documents import Document
from etymon.engine import Engine, Text
from etymon.errors import ConfigError, DataError
from etymon.spec import LM


@dataclass(frozen=True)
class PseudoPerplexity:
    """exp of the mean negative log-probability of `tokens` tokens, each given the others of its window (Salazar et al.
    2019, arXiv:1910.14659). It compares masked models that share a tokenizer, and says nothing beside a perplexity."""

    perplexity: float
    documents: int
    tokens: int


def pseudo_perplexity(engine: Engine, documents: Iterable[Document], window: int = 128) -> PseudoPerplexity:
    """Score every token of `documents`, in windows of at most `window` tokens framed as the tokenizer says.

    Raises ConfigError for a model that does not predict hidden tokens or has no mask token, DataError where no document
    holds text.
    """
    model, tokenizer = engine.model, engine.tokenizer
    if model.decoder is not None or not isinstance(model.spec.head, LM):
        raise ConfigError(f"{model.spec.name} does not predict hidden tokens: it has no pseudo-perplexity.")
    if tokenizer is None or tokenizer.mask_id is None:
        raise ConfigError(f"{model.spec.name} has no tokenizer with a mask token: nothing can be hidden from it.")
    around = len(tokenizer.frame([]).ids)
    room = min(window, model.spec.context) - around
    nats, tokens, read = 0.0, 0, 0
    for document in documents:
        ids = tokenizer.encode(document.text)
        parts = [tokenizer.frame(ids[start : start + room]).ids for start in range(0, len(ids), room)]
        for score in engine.pseudo_score([Text(part) for part in parts]):
            nats -= score.logprob
            tokens += score.tokens
        read += bool(parts)
    if not tokens:
        raise DataError("there is no document that holds text to score")
    return PseudoPerplexity(math.exp(nats / tokens), read, tokens)
