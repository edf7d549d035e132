"""What a checkpoint says of generating: how a decoder begins, what ends it, and what it must never write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etymon.errors import CheckpointError
from etymon.hub.tensors import read_json


@dataclass(frozen=True)
class Generation:
    """`begin` are the ids before the first one of a decoder behind an encoder, `ends` end every answer, `never` are
    ids that no answer may hold."""

    begin: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    never: tuple[int, ...] = ()


def read_generation(directory: Path) -> Generation:
    """Read `generation_config.json`, or where there is none the same keys of `config.json`.

    `decoder_start_token_id` and `forced_bos_token_id` begin, `eos_token_id` ends; bad words of one token and
    `suppress_tokens` are never written. Raises CheckpointError for ids that are none.
    """
    paths = [directory / name for name in ("generation_config.json", "config.json")]
    values: dict[str, Any] = {}
    for path in reversed(paths):
        if path.is_file():
            values |= {key: value for key, value in read_json(path).items() if value is not None}
    begin = [*_ids(values, "decoder_start_token_id", directory), *_ids(values, "forced_bos_token_id", directory)]
    words = values.get("bad_words_ids", [])
    never = [word[0] for word in words if isinstance(word, list) and len(word) == 1]
    never += _ids(values, "suppress_tokens", directory)
    if not _ids(values, "decoder_start_token_id", directory):
        begin = []
    return Generation(tuple(begin), tuple(_ids(values, "eos_token_id", directory)), tuple(never))


def _ids(values: dict[str, Any], key: str, directory: Path) -> list[int]:
    value = values.get(key, [])
    found = value if isinstance(value, list) else [value]
    if not all(type(id) is int for id in found):
        raise CheckpointError(f"{directory}: {key} = {value!r} should be an id, or a list of ids")
    return [id for id in found if id >= 0]  # -1 is how some say "none"
