"""A conversation of the training or examination set, and what it means to answer it rightly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etymon.data.documents import Split
from etymon.files import atomic_path


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's, and where they are from.

    `answer` is the only right reply to the last question, None where only a person can tell. `kind` groups results: the
    task, the sort of question, or `user`.
    """

    id: str
    messages: list[dict[str, Any]]
    kind: str
    split: Split
    answer: str | None = None

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """The messages before the last reply of the assistant."""
        return self.messages[:-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the row that `write_conversations` writes and `read_conversations` reads."""
        return asdict(self)


def write_conversations(conversations: Iterable[Conversation], path: str | Path) -> int:
    """Write one JSON object per line, atomically; return how many."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as f:
        for conversation in conversations:
            f.write(json.dumps(conversation.to_dict(), ensure_ascii=False) + "\n")
            count += 1
    return count


def sample(conversations: Iterable[Conversation], split: Split, per_kind: int, seed: int = 0) -> list[Conversation]:
    """Return up to `per_kind` checkable conversations of each kind of one split: the same for the same seed.

    A sample of `train` measures what was memorised, one of `held_out` what was learned.
    """
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        if conversation.split == split and conversation.answer is not None:
            groups.setdefault(conversation.kind, []).append(conversation)
    chosen: list[Conversation] = []
    for kind in sorted(groups):
        ranked = sorted(groups[kind], key=lambda c: hashlib.sha256(f"{seed}:{c.id}".encode()).digest())
        chosen.extend(ranked[:per_kind])
    return chosen
