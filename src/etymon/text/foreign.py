"""Which file of a directory is the tokenizer, and reading those that are not `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etymon.errors import TokenizerError
from etymon.text import bytelevel, sentencepiece, wordpiece
from etymon.text.rules import Rules

_NAMES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_LAST = ("*.tiktoken", "*.model", "vocab.txt")
EXPECTED = "tokenizer.json, tokenizer.model, spiece.model, vocab.json with merges.txt, vocab.txt or *.tiktoken"
_REFUSED = {
    "XLMTokenizer": "prepares text by the Moses scripts, which no tokenizer.json can say",
    "MarianTokenizer": "has two SentencePiece models for two languages",
}


def find_tokenizer_file(directory: Path) -> Path | None:
    """Return the file that holds the tokenizer of a checkpoint directory, or None."""
    for name in _NAMES:
        if (directory / name).is_file() and (name != "vocab.json" or (directory / "merges.txt").is_file()):
            return directory / name
    return next((file for pattern in _LAST for file in sorted(directory.glob(pattern)) if file.is_file()), None)


def read_foreign(file: Path, settings: Mapping[str, Any], model_type: str | None) -> Rules:
    """Read any tokenizer file but a `tokenizer.json`. Raises TokenizerError, which does not name the file.

    `settings` are those of tokenizer_config.json, `model_type` is that of config.json.
    """
    scheme = str(settings.get("tokenizer_class") or _class_of(model_type)).removesuffix("Fast")
    if scheme in _REFUSED:
        raise TokenizerError(f"it is for a {scheme}, which {_REFUSED[scheme]}; convert it to a tokenizer.json first.")
    raw = file.read_bytes()
    if file.name == "vocab.txt":
        rules = wordpiece.convert(wordpiece.parse(raw), settings)
    elif file.name in ("vocab.json", "merges.txt"):
        other = file.with_name("merges.txt" if file.name == "vocab.json" else "vocab.json")
        if not other.is_file():
            raise TokenizerError(f"{other.name}, which belongs to it, is missing.")
        vocab, merges = (raw, other.read_bytes()) if file.name == "vocab.json" else (other.read_bytes(), raw)
        rules = bytelevel.convert_pair(*bytelevel.parse_pair(vocab, merges), scheme, settings)
    elif file.suffix == ".tiktoken" or bytelevel.looks_like_ranks(raw):
        rules = bytelevel.convert_ranks(bytelevel.parse_ranks(raw), settings)
    else:
        if not scheme and file.name == "sentencepiece.bpe.model":  # fairseq's name for it
            scheme = "XLMRobertaTokenizer"
        rules = sentencepiece.convert(sentencepiece.parse(raw), scheme, settings)
    return Rules(rules.data, rules.settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def _class_of(model_type: str | None) -> str:
    """Return the class that reads the files of this family's models, "" where these tell by themselves."""
    from etymon.families import families  # which needs torch

    named = (family for family in families().values() if family.format.tokenizer)
    return next((family.format.tokenizer for family in named if family.format.model_type == model_type), "")


def read_added(directory: Path) -> dict[str, dict[str, Any]]:
    """Return what `added_tokens.json` (token to id) adds, in the form of `added_tokens_decoder`."""
    file = directory / "added_tokens.json"
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return {str(int(id)): {"content": str(text), "special": False} for text, id in values.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{file} must map tokens to ids ({error}).") from None
