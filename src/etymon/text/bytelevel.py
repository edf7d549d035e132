"""Byte-pair vocabularies in two more published forms: `vocab.json` with `merges.txt`, and tiktoken's rank files."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etymon.errors import TokenizerError
from etymon.text.frame import template
from etymon.text.pieces import byte_alphabet
from etymon.text.rules import Rules, added_token, first_then

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    # openai/gpt-2 encoder.py; the other two are in openai/tiktoken, the third with one digit a token in QwenLM/Qwen
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_WORDS}|\p{{N}}{{1,3}}|{_TAIL}",
    "qwen": rf"{_WORDS}|\p{{N}}|{_TAIL}",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
_SPECIAL = (
    *("<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
    *("<|padding|>", "<|im_start|>", "<|im_end|>"),
)
_ROLES = {
    "bos": ("<s>", "[CLS]"),
    "eos": ("</s>", "<|endoftext|>", "[SEP]"),
    "unk": ("<unk>", "[UNK]"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
    "sep": ("</s>", "[SEP]"),
    "cls": ("<s>", "[CLS]"),
}


def _roles(tokens: Mapping[str, Any] | set[str]) -> dict[str, str]:
    found = {role: next((name for name in names if name in tokens), None) for role, names in _ROLES.items()}
    return {f"{role}_token": name for role, name in found.items() if name}


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[dict[str, Any]],
    pattern: str,
    *,
    prefix_space: bool = False,
    compose: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """Return the content of a tokenizer.json that cuts text by `pattern` and merges bytes.

    With `compose`, text is brought into NFC first; with `ignore_merges`, a piece that is a token is one at once.
    """
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    if prefix_space or pattern == PATTERNS["gpt2"]:
        steps = [{"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": True}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": {"type": "NFC"} if compose else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(vocabulary),
            "merges": [list(merge) for merge in merges],
        },
    }


# -- vocab.json and merges.txt ----------------------------------------------------------------------------------------


def parse_pair(vocab: bytes, merges: bytes) -> tuple[dict[str, int], list[list[str]]]:
    """Read `vocab.json` and `merges.txt`. Raises TokenizerError that names the file and line at fault."""
    try:
        vocabulary = json.loads(vocab)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"vocab.json is not valid JSON ({error}); copy it again.") from None
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    if not ids or any(type(id) is not int or id < 0 for id in ids) or len(set(ids)) != len(ids):
        raise TokenizerError("vocab.json must map tokens to ids, each id once.")
    try:
        lines = merges.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"merges.txt is not UTF-8 text ({error}); copy it again.") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise TokenizerError(f"merges.txt, line {number}: expected two tokens with a space between, got {line!r}.")
        if missing := [token for token in (*pair, "".join(pair)) if token not in vocabulary]:
            raise TokenizerError(f"merges.txt, line {number}: {missing[0]!r} is not in vocab.json; they do not match.")
        pairs.append(pair)
    return vocabulary, pairs


_FAIRSEQ = ("<s> A </s>", "<s> A </s> </s> B </s>")
# What stands around one text, and around two, by the tokenizer class that published the files.
_FRAMES = {
    "BartTokenizer": _FAIRSEQ,
    "DebertaTokenizer": ("[CLS] A [SEP]", "[CLS] A [SEP] B:1 [SEP]:1"),
    "LongformerTokenizer": _FAIRSEQ,
    "RobertaTokenizer": _FAIRSEQ,
}


def convert_pair(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], scheme: str, settings: Mapping[str, Any]
) -> Rules:
    """Return the rules of such a pair of files; `scheme` names the tokenizer class that published them.

    A vocabulary whose words end with `</w>` is GPT-1's: BERT's words, lower-cased, and no bytes.
    """
    if any(token.endswith("</w>") for token in vocabulary):
        return _end_of_word(vocabulary, merges)
    made = {left + right for left, right in merges}
    letters = byte_alphabet()
    if not all(letter in vocabulary for letter in letters):
        raise TokenizerError("vocab.json does not hold the 256 bytes: it is no byte-level vocabulary.")
    special = [token for token in _SPECIAL if token in vocabulary and token not in made]
    added = [added_token(vocabulary[t], t, lstrip=t in ("<mask>", "[MASK]")) for t in special]
    qwen = scheme == "Qwen2Tokenizer"
    data = byte_level(
        vocabulary,
        merges,
        added,
        PATTERNS["qwen" if qwen else "gpt2"],
        prefix_space=bool(settings.get("add_prefix_space", False)),
        compose=qwen,
    )
    if scheme in _FRAMES:
        data["post_processor"] = template(*_FRAMES[scheme], {token: vocabulary[token] for token in special})
    roles = _roles(set(special))
    return Rules(data, roles if "<s>" in special or "[CLS]" in special else {"bos_token": None} | roles)


def _end_of_word(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]) -> Rules:
    special = [token for token in ("<unk>", "<pad>", "<s>", "</s>") if token in vocabulary]
    if "<unk>" not in special:
        raise TokenizerError("vocab.json has words that end with '</w>' but no '<unk>'.")
    data = byte_level(vocabulary, merges, [added_token(vocabulary[t], t) for t in special], "")
    data["normalizer"] = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    }
    data["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    data["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}
    data["model"] |= {"unk_token": "<unk>", "end_of_word_suffix": "</w>"}
    return Rules(data, {"unk_token": "<unk>"})


# -- tiktoken ---------------------------------------------------------------------------------------------------------

_LLAMA3 = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|reserved_special_token_2|>", "<|reserved_special_token_3|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|reserved_special_token_4|>", "<|eot_id|>", *(f"<|reserved_special_token_{i}|>" for i in range(5, 251))),
)
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_PUBLISHED = {  # by the number of ranks, which no two published files share: the pattern and the tokens behind them
    50256: ("gpt2", ("<|endoftext|>",)),
    100256: ("cl100k", ()),
    128000: ("cl100k", _LLAMA3),
    151329: ("cl100k", ()),
    151643: ("qwen", _QWEN),
    199998: ("o200k", ()),
}


def looks_like_ranks(raw: bytes) -> bool:
    """Return whether a file is tiktoken's: each line a base64 token and its rank. Llama 3's `tokenizer.model` is."""
    first = raw[:4096].split(b"\n", 1)[0].split()
    return len(first) == 2 and first[0].isascii() and first[1].isdigit()


def parse_ranks(raw: bytes) -> dict[bytes, int]:
    """Read tiktoken's rank file. Raises TokenizerError that names the line at fault."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"line {number}: expected a token in base64 and its rank; the file is damaged or no rank file."
            ) from None
    lost = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if lost is not None:
        raise TokenizerError(f"the byte 0x{lost:02X} has no rank: the file is incomplete.")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError("the ranks are not 0, 1, 2, … without gaps: the file is damaged.")
    return ranks


def convert_ranks(ranks: Mapping[bytes, int], settings: Mapping[str, Any]) -> Rules:
    """Return the rules of a rank file. Where the text is cut is not in it: the size says it for published files,
    `"tiktoken_pattern"` in tokenizer_config.json (a regex, or gpt2, cl100k, qwen, o200k) for others.

    Raises TokenizerError where neither does.
    """
    known, special = _PUBLISHED.get(len(ranks), (None, ()))
    name = settings.get("tiktoken_pattern", known)
    if not isinstance(name, str):
        raise TokenizerError(
            f"it holds {len(ranks)} ranks, which is no published file, and does not say how text is cut into words. "
            'Say it in tokenizer_config.json: "tiktoken_pattern", '
            f"a regular expression or one of {', '.join(PATTERNS)}."
        )
    letters = {byte: letter for letter, byte in byte_alphabet().items()}

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    # Two neighbours merge when together they have a rank, the lowest first: every way to split a token is a merge.
    best_first = sorted(ranks, key=ranks.__getitem__)
    merges = [[spelt(left), spelt(right)] for token in best_first for left, right in first_then(token, ranks)]
    declared = {int(id): item for id, item in (settings.get("added_tokens_decoder") or {}).items()}
    added = [] if declared else [added_token(len(ranks) + i, text) for i, text in enumerate(special)]
    data = byte_level(
        {spelt(token): rank for token, rank in ranks.items()},
        merges,
        added,
        PATTERNS.get(name, name),
        compose=name == "qwen",
        ignore_merges=True,
    )
    roles = {"<|begin_of_text|>": "bos_token", "<|end_of_text|>": "eos_token", "<|endoftext|>": "eos_token"}
    return Rules(data, {roles[token["content"]]: token["content"] for token in added if token["content"] in roles})
