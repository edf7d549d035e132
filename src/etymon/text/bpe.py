"""Training of a byte-level BPE vocabulary on a bounded, deterministic sample."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from etymon.errors import TokenizerError

_HAN = r"\p{Han}\p{Hiragana}\p{Katakana}"
# The text is cut by this pattern before any merge; merges never cross a cut. Chosen for code, Chinese and small models:
# - Chinese and Japanese runs stand apart from Latin words, so that "用Python写" reuses the token "Python", and
#   punctuation does not stick to the character behind it.
# - Letters take one sign before them (" word", "_name", ".join", "'t"), which serves prose and code alike. English
#   contractions need no rule of their own; the usual one would tear 'self' and 'data' in quoted code apart.
# - Each digit is a token: place values line up, and no vocabulary is spent on a thousand three-digit numbers.
# - A newline is never merged with what follows it. A prompt that ends with a newline is then tokenised alike whatever
#   comes next, so the ids that training sees begin with the ids that serving sees.
# - Runs of spaces before a word stay one token, which is what indentation needs.
PATTERN = (
    rf"[{_HAN}]+"
    rf"|[^\r\n\p{{L}}\p{{M}}\p{{N}}]?(?:(?![{_HAN}])[\p{{L}}\p{{M}}])+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|[^\S\r\n]*\r?\n"
    r"|\s+(?!\S)"
    r"|\s"
)
_LONGEST_TOKEN = (
    32  # bytes: ten Chinese characters, eight levels of indentation; keeps rulers like ===== from piling up
)
_PIECE = 1 << 16  # characters: long documents are sampled and fed in pieces of about this size

Progress = Callable[[Literal["read", "count", "merge"], int, int], None]
"""Called as (stage, done, total): bytes read (total 0: unknown), bytes counted, tokens in the vocabulary."""


@dataclass(frozen=True)
class TrainedOn:
    """What a vocabulary was made from, for reports. Sizes in UTF-8 bytes."""

    documents: int
    bytes_seen: int
    bytes_used: int
    vocab_requested: int
    vocab_size: int


def _cut(text: str) -> Iterator[str]:
    """Pieces of about `_PIECE` characters, cut behind a newline or space where there is one."""
    start = 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        cut = max(text.rfind("\n", start, end), text.rfind(" ", start, end)) + 1
        end = cut if cut > start else end
        yield text[start:end]
        start = end
    yield text[start:]


def _check(text: object, position: int) -> str:
    if not isinstance(text, str):
        raise TokenizerError(f"Text {position} for the tokenizer is {type(text).__name__}, not str.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"Text {position} for the tokenizer holds a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; it is not valid Unicode text. Clean it first."
        ) from None
    return text


class _Sample:
    """At most `max_bytes` of pieces: those with the smallest hashes, so the choice is fair and repeatable.

    Which pieces stay depends on the texts alone, not on the order or number of those that are dropped.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.seen = self.used = self.documents = 0
        self._heap: list[tuple[int, int, str]] = []

    def add(self, text: str) -> None:
        self.documents += 1
        for piece in _cut(text):
            raw = piece.encode()
            rank = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
            self.seen += len(raw)
            self.used += len(raw)
            heapq.heappush(self._heap, (-rank, self.documents, piece))
            while self.used > self.max_bytes and len(self._heap) > 1:
                self.used -= len(heapq.heappop(self._heap)[2].encode())

    def pieces(self) -> list[str]:
        return [piece for _, _, piece in sorted(self._heap, reverse=True)]


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str],
    progress: Progress | None,
    max_bytes: int,
) -> tuple[dict[str, Any], TrainedOn]:
    """Return the content of `tokenizer.json` and what it was made from; `Tokenizer.train` says the rest."""
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: {len(special_tokens)} special tokens and 256 bytes need {least}."
        )
    if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
        raise TokenizerError(f"The special tokens must be distinct and not empty: {list(special_tokens)}.")
    report = progress or (lambda stage, done, total: None)
    sample = _Sample(max_bytes)
    for position, text in enumerate(texts):
        sample.add(_check(text, position))
        report("read", sample.seen, 0)
    pieces = sample.pieces()
    if not any(piece.strip() for piece in pieces):
        raise TokenizerError(
            f"No text to train a tokenizer on: {sample.documents} documents, {sample.seen} bytes, nothing but white "
            "space. Check the data source."
        )

    def feed() -> Iterator[str]:
        done = 0
        for piece in pieces:
            done += len(piece.encode())
            yield piece
            report("count", done, sample.used)
        report("merge", 0, vocab_size)

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    backend.train_from_iterator(feed(), trainer=trainer)
    size = backend.get_vocab_size()
    report("merge", size, size)
    return json.loads(backend.to_str()), TrainedOn(sample.documents, sample.seen, sample.used, vocab_size, size)
