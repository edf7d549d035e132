"""Conversations from the user's files, in the forms that are about: messages, ShareGPT, Alpaca."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from etymon.config import Config
from etymon.data.conversation import Conversation
from etymon.data.documents import Split, held_out
from etymon.data.questions import BuiltinConversations, builtin_conversations
from etymon.data.rows import ROW_SUFFIXES, BadInput, Counts, find_files, read_each
from etymon.errors import DataError


class ConversationFiles(Config):
    """The user's conversations: a file, folder or glob of `.jsonl .json .parquet` (`.gz` too).

    Rows are recognised by their fields: `messages`; ShareGPT's `conversations` (`from`, `value`); Alpaca's
    `instruction`, `input`, `output`.
    """

    kind: Literal["files"] = "files"
    path: str = Field(min_length=1, description="A file, a folder or a glob")
    include: tuple[str, ...] = Field(default=(), description="Patterns for files of a folder")
    errors: BadInput = Field(default="error", description="Rows that are not conversations: error, or skip (counted)")
    held_out: float = Field(default=0.02, ge=0, lt=1, description="Share of the rows kept for evaluation")


ConversationSource = Annotated[ConversationFiles | BuiltinConversations, Field(discriminator="kind")]


def read_conversations(
    sources: Iterable[ConversationFiles | BuiltinConversations | str | Path], counts: Counts | None = None
) -> Iterator[Conversation]:
    """Yield the conversations of `sources`; a string is a path, or `"builtin"`.

    Raises `DataError` with file and line for a row that is no conversation, unless its source says to skip those;
    they are counted in `counts` then.
    """
    counts = Counts() if counts is None else counts
    for source in sources:
        if isinstance(source, str | Path):
            source = BuiltinConversations() if source == "builtin" else ConversationFiles(path=str(source))
        if isinstance(source, BuiltinConversations):
            yield from builtin_conversations(source)
        else:
            yield from _read_files(source, counts)


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
         "observation": "tool"}  # fmt: skip


def _read_files(source: ConversationFiles, counts: Counts) -> Iterator[Conversation]:
    files, _ = find_files(source.path, source.include, ROW_SUFFIXES)
    yield from read_each(
        files,
        lambda row, place: _conversation(row, place, source.held_out),
        errors=source.errors,
        counts=counts,
        source=source.path,
        noun="conversation",
    )


def _conversation(row: Any, place: str, fraction: float) -> Conversation:
    if not isinstance(row, dict):
        raise DataError(f"{place} is a JSON {type(row).__name__}; expected an object with messages.")
    messages = _messages(row, place)
    key = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    split: Split = "held_out" if held_out(key, fraction) else "train"
    if row.get("split") in ("train", "held_out"):  # a row that `write_conversations` wrote
        split = row["split"]
    answer = row.get("answer")
    return Conversation(
        str(row.get("id") or place),
        messages,
        str(row.get("kind") or "user"),
        split,
        answer if isinstance(answer, str) else None,
    )


def _messages(row: dict[str, Any], place: str) -> list[dict[str, Any]]:
    if "messages" in row:
        messages = _turns(row["messages"], place, "messages", "role", "content")
    elif "conversations" in row:
        turns = row["conversations"]
        by_from = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]
        names = ("from", "value") if by_from else ("role", "content")
        messages = _turns(turns, place, "conversations", *names)
        if isinstance(row.get("system"), str) and row["system"] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": row["system"]})
    elif "instruction" in row and "output" in row:
        messages = _alpaca(row, place)
    else:
        raise DataError(
            f"{place} is no conversation: its fields are {', '.join(map(repr, row)) or 'none'}; expected `messages`, "
            "`conversations` (ShareGPT), or `instruction` and `output` (Alpaca)."
        )
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{place} ends with the {messages[-1]['role']}'s message; the assistant's must be last.")
    return messages


def _turns(value: Any, place: str, field: str, role_name: str, content_name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: `{field}` is not a list of messages with at least one in it.")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(value):
        if not isinstance(turn, dict) or role_name not in turn or content_name not in turn:
            raise DataError(f"{place}: {field}[{number}] lacks `{role_name}` or `{content_name}`.")
        role, content = turn[role_name], turn[content_name]
        if not isinstance(role, str) or role not in ROLES:
            raise DataError(f"{place}: {field}[{number}] has the role {role!r}; expected one of {', '.join(ROLES)}.")
        if turn.get("tool_calls"):
            raise DataError(f"{place}: {field}[{number}] has `tool_calls`, which are not read. Leave such rows out.")
        messages.append({"role": ROLES[role], "content": _text(content, f"{place}: {field}[{number}].{content_name}")})
    return messages


def _alpaca(row: dict[str, Any], place: str) -> list[dict[str, Any]]:
    question, extra = _text(row["instruction"], f"{place}: instruction"), row.get("input") or ""
    if extra:
        question = f"{question}\n\n{_text(extra, f'{place}: input')}"
    messages: list[dict[str, Any]] = []
    if isinstance(row.get("system"), str) and row["system"]:
        messages.append({"role": "system", "content": row["system"]})
    for turn in row.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise DataError(f"{place}: `history` is not a list of [question, reply] pairs.")
        messages.append({"role": "user", "content": _text(turn[0], f"{place}: history")})
        messages.append({"role": "assistant", "content": _text(turn[1], f"{place}: history")})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _text(row["output"], f"{place}: output")})
    return messages


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} is a {type(value).__name__}; expected a string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{place} spells half of a surrogate pair, which is not a character.") from None
    return value
