"""The tokenizer that a GGUF file carries in its metadata, in both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etymon.errors import TokenizerError
from etymon.text.bytelevel import PATTERNS, byte_level
from etymon.text.rules import Rules, added_token
from etymon.text.sentencepiece import Kind, Piece, SentencePiece, convert
from etymon.text.tokenizer import Tokenizer

_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep", "mask": "mask"}
# How llama.cpp names the patterns by which text is cut; it has no name for other ones and refuses what it cannot name.
_CUTS = {
    "default": "gpt2",
    "gpt-2": "gpt2",
    "gpt2": "gpt2",
    "llama-bpe": "cl100k",
    "llama3": "cl100k",
    "llama-v3": "cl100k",
    "qwen2": "qwen",
    "gpt-4o": "o200k",
}
_WRITTEN = {"gpt2": "gpt-2", "cl100k": "llama-bpe", "qwen": "qwen2", "o200k": "gpt-4o"}


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """Return the tokenizer that the metadata of a GGUF file hold, None where they hold none.

    Raises TokenizerError when they are of an unknown kind or do not fit together.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or kind == "no_vocab":
        return None
    try:
        whole = metadata.get("tokenizer.huggingface.json")
        tokens = _listed(metadata, "tokens", str)
        if whole is not None:
            rules = Rules(_object(whole))
        elif kind == "llama":
            rules = _sentencepiece(metadata, tokens)
        elif kind == "gpt2":
            rules = _byte_level(metadata, tokens)
        else:
            raise TokenizerError(f"tokenizer.ggml.model = {kind!r} is not read here (llama and gpt2 are).")
        settings = rules.settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
        for theirs, ours in _ROLES.items():
            id = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
            if isinstance(id, int) and 0 <= id < len(tokens):
                settings[f"{ours}_token"] = tokens[id]
        template = metadata.get("tokenizer.chat_template")
        ends = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom")]
        return Tokenizer(
            rules.data,
            settings,
            templates={"default": template} if isinstance(template, str) else None,
            ends=[id for id in ends if isinstance(id, int) and 0 <= id < len(tokens)],
        )
    except TokenizerError as error:
        raise TokenizerError(f"The tokenizer in the GGUF file: {error}") from None


def _object(text: Any) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.huggingface.json is not valid JSON ({error}).") from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise TokenizerError("tokenizer.huggingface.json is no tokenizer.json: it has no 'model'.")
    return data


def _listed(metadata: Mapping[str, Any], key: str, kind: type, size: int | None = None) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise TokenizerError(f"tokenizer.ggml.{key} is missing or no list of {kind.__name__}.")
    if size is not None and len(values) != size:
        raise TokenizerError(f"tokenizer.ggml.{key} has {len(values)} entries for {size} tokens.")
    return values


def _kinds(metadata: Mapping[str, Any], size: int) -> list[Kind]:
    if "tokenizer.ggml.token_type" not in metadata:
        return [Kind.NORMAL] * size
    try:
        return [Kind(value) for value in _listed(metadata, "token_type", int, size)]
    except ValueError as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"tokenizer.ggml.token_type: {error}.") from None


def _distinct(tokens: Sequence[str]) -> Sequence[str]:
    if len(set(tokens)) != len(tokens):
        raise TokenizerError("two tokens are the same.")
    return tokens


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Rules:
    scores = _listed(metadata, "scores", float, len(tokens))
    kinds = _kinds(metadata, len(tokens))
    # Fillers of a padded vocabulary are marked as unused; no text becomes one.
    kinds = [Kind.CONTROL if kind is Kind.UNUSED else kind for kind in kinds]
    pieces = [Piece(*parts) for parts in zip(_distinct(tokens), scores, kinds, strict=True)]
    if all(kind is not Kind.UNKNOWN for kind in kinds):
        id = metadata.get("tokenizer.ggml.unknown_token_id", 0)
        if not isinstance(id, int) or not 0 <= id < len(pieces):
            raise TokenizerError("there is no unknown token.")
        pieces[id] = Piece(pieces[id].text, 0.0, Kind.UNKNOWN)
    return convert(
        SentencePiece(
            pieces=pieces,
            algorithm="bpe",
            byte_fallback=Kind.BYTE in kinds,
            dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
            collapse_spaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
        )
    )


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Rules:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _CUTS:
        raise TokenizerError(f"tokenizer.ggml.pre = {pre!r} is not known here; known: {', '.join(_CUTS)}.")
    merges = [merge.split(" ") for merge in _listed(metadata, "merges", str)]
    known = set(_distinct(tokens))
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= known:
            raise TokenizerError(f"tokenizer.ggml.merges: {' '.join(merge)!r} is no merge of two known tokens.")
    kinds = _kinds(metadata, len(tokens))
    added = [
        added_token(id, token, special=kinds[id] is not Kind.USER_DEFINED)
        for id, token in enumerate(tokens)
        if kinds[id] in (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNUSED)
    ]
    cut = _CUTS[pre]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    return Rules(
        byte_level(
            vocabulary, merges, added, PATTERNS[cut], compose=cut == "qwen", ignore_merges=cut in ("cl100k", "o200k")
        )
    )


# -- writing ----------------------------------------------------------------------------------------------------------


def write_tokenizer(tokenizer: Tokenizer, vocab: int) -> dict[str, Any]:
    """Return the metadata that carry a tokenizer for a model of `vocab` ids (more than the tokenizer has are unused).

    The whole tokenizer.json goes along, so that nothing is lost here; other programs read the lists. Text that is cut
    in a way for which llama.cpp has no name gets one that it refuses, rather than a wrong one. Raises TokenizerError
    for tokenizers that are no byte-pair encoding.
    """
    data = tokenizer.data
    model = data["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(
            f"GGUF files hold byte-pair vocabularies only, not {model.get('type')}; save as hf instead."
        )
    names = {id: name for name, id in model["vocab"].items()} | {
        token["id"]: token["content"] for token in data["added_tokens"]
    }
    user = {token["content"] for token in data["added_tokens"]} - tokenizer.special.keys()
    pieces = bool(model.get("byte_fallback"))

    def kind(id: int) -> Kind:
        name = names.get(id)
        if name is None:
            return Kind.UNUSED
        if pieces and name == model.get("unk_token"):
            return Kind.UNKNOWN
        if name in tokenizer.special:
            return Kind.CONTROL
        if name in user:
            return Kind.USER_DEFINED
        return Kind.BYTE if pieces and len(name) == 6 and name.startswith("<0x") else Kind.NORMAL

    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    values: dict[str, Any] = {
        "model": "llama" if pieces else "gpt2",
        "pre": "default" if pieces else _cut_of(data),
        "tokens": [names.get(id, f"[unused{id}]") for id in range(vocab)],
        "token_type": [int(kind(id)) for id in range(vocab)],
        "merges": [" ".join(merge) for merge in merges],
        "add_bos_token": False,
        "add_eos_token": False,
    }
    if pieces:
        rank = {"".join(merge): -float(i) for i, merge in reversed(list(enumerate(merges)))}
        values["scores"] = [
            rank.get(names.get(id, ""), -1e9 if kind(id) is Kind.NORMAL else 0.0) for id in range(vocab)
        ]
        values["add_space_prefix"] = tokenizer.token_bytes(tokenizer.encode("a")[0]).startswith(b" ")
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    ids["unknown"] = model["vocab"].get(model["unk_token"]) if pieces else None
    values |= {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    found = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    found["tokenizer.huggingface.json"] = json.dumps(data, ensure_ascii=False)
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _cut_of(data: Mapping[str, Any]) -> str:
    text = json.dumps(data["pre_tokenizer"], ensure_ascii=False)
    if '"use_regex": true' in text and "Split" not in text:
        return "gpt-2"
    for name, pattern in PATTERNS.items():
        if json.dumps({"Regex": pattern}, ensure_ascii=False) in text:
            return _WRITTEN[name]
    return "etymon"
