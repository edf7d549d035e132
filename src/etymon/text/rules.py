"""What a foreign tokenizer file becomes: the content of a `tokenizer.json`, and the settings that go with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

S = TypeVar("S", str, bytes)


@dataclass(frozen=True)
class Rules:
    """`data` as in tokenizer.json; `settings` as in tokenizer_config.json, where that file does not say otherwise."""

    data: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


def added_token(id: int, text: str, *, special: bool = True, normalized: bool = False, **more: bool) -> dict[str, Any]:
    """Return an entry of `added_tokens`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
    return {"id": id, "content": text} | flags | more


def first_then(text: S, known: Collection[S]) -> Iterator[list[S]]:
    """Yield the ways to split `text` into two known parts, the longest first part first."""
    for cut in range(len(text) - 1, 0, -1):
        if text[:cut] in known and text[cut:] in known:
            yield [text[:cut], text[cut:]]
