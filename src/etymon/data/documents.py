"""A document, and what normal text is."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]

_NEWLINES = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
_TRAILING = re.compile("[ \t]+$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """A text of the corpus: `id` says where it is from (`notes/a.txt`, `data.jsonl:17`), `source` which source read it.

    `split` is set by a source that decides by itself what is held out; otherwise a hash of the text decides.
    """

    id: str
    text: str
    source: str
    split: Split | None = None


def normalise(text: str) -> str:
    """Return `text` in the one form that is stored, compared and tokenised.

    Unicode NFC; line ends of every kind become "\\n"; byte-order marks and control characters other than tab and
    newline go, and so do spaces and tabs at line ends and empty lines around the text. Everything that carries
    meaning stays: indentation, blank lines, full-width punctuation, joiners inside emoji.
    """
    text = _NEWLINES.sub("\n", text)
    text = _CONTROLS.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _TRAILING.sub("", text).strip("\n")


def text_hash(text: str) -> bytes:
    """Return the 128-bit hash by which documents are compared."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def held_out(key: str | bytes, fraction: float) -> bool:
    """Say whether `key` belongs to the held-out `fraction`: by its hash alone, so that it never changes sides."""
    data = key.encode("utf-8") if isinstance(key, str) else key
    number = int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"held-out").digest(), "big")
    return number < fraction * 2**64
