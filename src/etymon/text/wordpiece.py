"""WordPiece vocabularies (Wu et al. 2016, arXiv:1609.08144; Devlin et al. 2018, arXiv:1810.04805): `vocab.txt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etymon.errors import TokenizerError
from etymon.text.frame import template
from etymon.text.rules import Rules, added_token

_NAMES = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_CASED = 0.01  # share of tokens with a capital letter from which on a vocabulary was not made of lower-cased text


def parse(raw: bytes) -> dict[str, int]:
    """Read a `vocab.txt`: a token a line, its id the number of the line. Raises TokenizerError."""
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"it is not UTF-8 text ({error}).") from None
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocabulary = {token: id for id, token in enumerate(lines)}
    if _NAMES["unk"] not in vocabulary:
        raise TokenizerError(
            f"it is no WordPiece vocabulary: among its {len(lines)} lines there is no {_NAMES['unk']!r}."
        )
    return vocabulary


def convert(vocabulary: Mapping[str, int], settings: Mapping[str, Any]) -> Rules:
    """Return the rules of a vocabulary.

    Where `do_lower_case` is not said, the vocabulary tells: one that has capital letters is cased.
    """
    capital = sum(any(c.isupper() for c in token) for token in vocabulary if token not in _NAMES.values())
    lower = settings.get("do_lower_case", capital < _CASED * len(vocabulary))
    named = {name: str(settings.get(f"{name}_token") or text) for name, text in _NAMES.items()}
    named = {name: text for name, text in named.items() if text in vocabulary}
    ends = [{"SpecialToken": {"id": named[name], "type_id": 0}} for name in ("cls", "sep") if name in named]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted((added_token(vocabulary[t], t) for t in set(named.values())), key=lambda t: t["id"]),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _frame(vocabulary, named) if len(ends) == 2 else None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
        "model": {
            "type": "WordPiece",
            "unk_token": named["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": dict(vocabulary),
        },
    }
    return Rules(data, {f"{name}_token": text for name, text in named.items()} | {"do_lower_case": lower})


def _frame(vocabulary: Mapping[str, int], named: Mapping[str, str]) -> dict[str, Any] | None:
    cls, sep = named["cls"], named["sep"]
    return template(f"{cls} A {sep}", f"{cls} A {sep} B:1 {sep}:1", vocabulary)
