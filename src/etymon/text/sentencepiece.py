"""SentencePiece models (Kudo & Richardson 2018, arXiv:1808.06226): the protobuf file, read as untrusted input, and the
rules of a `tokenizer.json` that give the same ids.

Fields are those of sentencepiece's public schema, `sentencepiece_model.proto`.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from tokenizers import Tokenizer as Backend

from etymon.errors import TokenizerError
from etymon.text.frame import template
from etymon.text.rules import Rules, added_token, first_then

SPACE = "▁"


class Kind(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """A piece of the vocabulary, with its log-probability (Unigram) or minus its rank (BPE)."""

    text: str
    score: float = 0.0
    kind: Kind = Kind.NORMAL


@dataclass(frozen=True)
class SentencePiece:
    """What a `.model` file says. `algorithm` is "unigram", "bpe" or "char"; `named` has bos, eos, unk and pad."""

    pieces: Sequence[Piece]
    algorithm: str
    byte_fallback: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    collapse_spaces: bool = True
    named: Mapping[str, str] = field(default_factory=dict)


# -- the file ---------------------------------------------------------------------------------------------------------


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise TokenizerError("the file ends in the middle of a number")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise TokenizerError("a number has more than ten bytes")


def _fields(raw: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protobuf message: int for varints, float for 32 bits, bytes for the rest."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire not in (1, 2, 5):
            raise TokenizerError(f"there is no wire type {wire}")
        size, at = _varint(raw, at) if wire == 2 else (8 if wire == 1 else 4, at)
        if size > len(raw) - at:
            raise TokenizerError(f"field {number} has {size} bytes, but only {len(raw) - at} are left")
        chunk = raw[at : at + size]
        at += size
        yield number, struct.unpack("<f", chunk)[0] if wire == 5 else chunk


def _text(value: Any) -> str:
    if not isinstance(value, memoryview):
        raise TokenizerError("a text field holds a number")
    return bytes(value).decode("utf-8")


def _message(value: Any) -> dict[int, Any]:
    if not isinstance(value, memoryview):
        raise TokenizerError("a message field holds a number")
    return dict(_fields(value))


def _id(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def parse(raw: bytes) -> SentencePiece:
    """Read a `.model` file. Raises TokenizerError when it is damaged, no SentencePiece model, or of an odd kind."""
    try:
        pieces, trainer, normalizer = [], dict[int, Any](), dict[int, Any]()
        for number, value in _fields(memoryview(raw)):
            match number:
                case 1:
                    item = _message(value)
                    pieces.append(Piece(_text(item[1]), float(item.get(2, 0.0)), Kind(item.get(3, 1))))
                case 2:
                    trainer = _message(value)
                case 3:
                    normalizer = _message(value)
        algorithm = {1: "unigram", 2: "bpe", 4: "char"}.get(trainer.get(3, 1))
        ids = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
        named = {name: _id(trainer.get(number, default)) for name, (number, default) in ids.items()}
        charsmap = bytes(normalizer.get(2, b""))
    except (TokenizerError, KeyError, ValueError, TypeError) as error:
        reason = error if isinstance(error, (TokenizerError, UnicodeDecodeError)) else "a piece is malformed"
        raise TokenizerError(f"it is no SentencePiece model, or a damaged one ({reason}); copy it again.") from None
    if not pieces or not any(piece.kind is Kind.NORMAL for piece in pieces):
        raise TokenizerError("it is no SentencePiece model, or a damaged one (it has no pieces); copy it again.")
    if len({piece.text for piece in pieces}) != len(pieces):
        raise TokenizerError("it is no valid SentencePiece model: two pieces are the same.")
    if any(not math.isfinite(piece.score) for piece in pieces):
        raise TokenizerError("it is no valid SentencePiece model: a piece has a score that is no number.")
    if algorithm is None:
        raise TokenizerError("its model type is 'word', which splits by spaces alone; unigram, bpe and char are read.")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise TokenizerError(
            "it keeps spaces behind words or unescaped (treat_whitespace_as_suffix, escape_whitespaces=false), "
            "which no tokenizer.json can say."
        )
    if any(piece.kind is Kind.UNUSED for piece in pieces):
        raise TokenizerError("it holds pieces marked as unused, which no tokenizer.json can say.")
    return SentencePiece(
        pieces=pieces,
        algorithm=algorithm,
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=charsmap,
        dummy_prefix=bool(normalizer.get(3, 1)),
        collapse_spaces=bool(normalizer.get(4, 1)),
        named={name: pieces[id].text for name, id in named.items() if 0 <= id < len(pieces)},
    )


# -- layouts: how a code base numbers the pieces ----------------------------------------------------------------------

_MBART25 = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MBART50 = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN "
    "te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)


def _fairseq(model: SentencePiece, codes: str = "") -> SentencePiece:
    """fairseq's numbers: its own four control tokens, the pieces behind SentencePiece's three, languages, the mask."""
    control = [Piece(text, 0.0, Kind.CONTROL) for text in ("<s>", "<pad>", "</s>")]
    last = [Piece(text, 0.0, Kind.CONTROL) for text in (*codes.split(), "<mask>")]
    pieces = [*control, Piece("<unk>", 0.0, Kind.UNKNOWN), *model.pieces[3:], *last]
    named = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "sep": "</s>", "cls": "<s>", "mask": "<mask>"}
    return replace(model, pieces=pieces, named=named)


def _appended(*texts: str) -> Callable[[SentencePiece], SentencePiece]:
    def layout(model: SentencePiece) -> SentencePiece:
        known = {piece.text for piece in model.pieces}
        new = [Piece(text, 0.0, Kind.CONTROL) for text in texts if text not in known]
        return replace(model, pieces=[*model.pieces, *new])

    return layout


def _layout(scheme: str, settings: Mapping[str, Any]) -> Callable[[SentencePiece], SentencePiece]:
    match scheme:
        case "XLMRobertaTokenizer":
            return _fairseq
        case "MBartTokenizer":
            return lambda model: _fairseq(model, _MBART25)
        case "MBart50Tokenizer":
            return lambda model: _fairseq(model, f"{_MBART25} {_MBART50}")
        case "T5Tokenizer":
            count = int(settings.get("extra_ids", 100))
            return _appended(*(f"<extra_id_{i}>" for i in reversed(range(count))))
        case "DebertaV2Tokenizer":
            return _appended("[MASK]")
    return lambda model: model


# -- the rules --------------------------------------------------------------------------------------------------------


def convert(model: SentencePiece, scheme: str = "", settings: Mapping[str, Any] | None = None) -> Rules:
    """Return the rules of `model`. `scheme` names the tokenizer class of the code base that published it, which may
    number the pieces and prepare the text in ways of its own; `settings` are those of its tokenizer_config.json.

    Raises TokenizerError when the model needs a piece that it does not have.
    """
    settings = settings or {}
    if settings.get("split_by_punct"):
        raise TokenizerError("its settings cut text at punctuation (split_by_punct), which is not supported here.")
    model = _layout(scheme, settings)(model)
    user = [piece.text for piece in model.pieces if piece.kind is Kind.USER_DEFINED]
    unknown = next((piece.text for piece in model.pieces if piece.kind is Kind.UNKNOWN), None)
    if unknown is None:
        raise TokenizerError("it is no valid SentencePiece model: there is no unknown piece.")
    if model.byte_fallback and sum(piece.kind is Kind.BYTE for piece in model.pieces) != 256:
        raise TokenizerError("it is no valid SentencePiece model: it falls back to bytes but lacks some of the 256.")
    added = [
        added_token(id, piece.text, special=piece.kind is not Kind.USER_DEFINED, normalized=_normalized(piece))
        for id, piece in enumerate(model.pieces)
        if piece.kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    ]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(model, scheme, settings, user))},
        "pre_tokenizer": None,
        "post_processor": _frame(model, scheme),
        "decoder": _decoder(model),
        "model": _unigram(model) if model.algorithm == "unigram" else _bpe(model, unknown),
    }
    control = {piece.text for piece in model.pieces if piece.kind is Kind.CONTROL}
    forms = ((name, form) for name in ("cls", "sep", "mask") for form in (f"[{name.upper()}]", f"<{name}>"))
    named = {name: form for name, form in forms if form in control}
    return Rules(data, {f"{name}_token": text for name, text in {**named, **model.named}.items()})


_BERT = ("[CLS] A [SEP]", "[CLS] A [SEP] B:1 [SEP]:1")
# What stands around one text, and around two, by the tokenizer class that published the files.
_FRAMES = {
    "AlbertTokenizer": _BERT,
    "DebertaV2Tokenizer": _BERT,
    "T5Tokenizer": ("A </s>", "A </s> B </s>"),
    "XLMRobertaTokenizer": ("<s> A </s>", "<s> A </s> </s> B </s>"),
    "XLNetTokenizer": ("A <sep> <cls>:2", "A <sep> B:1 <sep>:1 <cls>:2"),
}


def _frame(model: SentencePiece, scheme: str) -> dict[str, Any] | None:
    ids = {piece.text: id for id, piece in enumerate(model.pieces) if piece.kind is Kind.CONTROL}
    return template(*_FRAMES[scheme], ids) if scheme in _FRAMES else None


def _normalized(piece: Piece) -> bool:
    # Looked for behind the normalizer, where spaces are written as in the piece; the prefix then comes once only.
    return piece.kind is Kind.USER_DEFINED


def _decoder(model: SentencePiece) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.dummy_prefix else []
    return {"type": "Sequence", "decoders": steps}


def _normalizers(
    model: SentencePiece, scheme: str, settings: Mapping[str, Any], user: Sequence[str]
) -> Iterator[dict[str, Any]]:
    def regex(pattern: str, content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}

    if scheme in ("AlbertTokenizer", "XLNetTokenizer"):  # google-research/albert, zihangdai/xlnet: prepro_utils.py
        for quotes in ("``", "''"):
            yield {"type": "Replace", "pattern": {"String": quotes}, "content": '"'}
        if settings.get("remove_space", True):
            yield {"type": "Strip", "strip_left": True, "strip_right": True}
            yield regex(r"\s+", " ")
        if not settings.get("keep_accents", False):
            yield from ({"type": "NFKD"}, {"type": "StripAccents"})
    if settings.get("do_lower_case", scheme == "AlbertTokenizer"):
        yield {"type": "Lowercase"}
    if model.charsmap:
        encoded = base64.b64encode(model.charsmap).decode()
        # The library maps a cluster of characters by its first one, which loses a mark that stands on a mapped
        # character: a character that parts clusters, and that nobody writes, is put between and taken out again.
        yield regex(rf"(?<=[{_mapped(encoded)}])(?=[\p{{M}}\u200c\u200d])", _PART)
        yield _precompiled(encoded)
        yield {"type": "Replace", "pattern": {"String": _PART}, "content": ""}
    if model.collapse_spaces:
        yield regex(rf"\A +|[ {SPACE}]+\z", "")
        yield regex(r" {2,}", " ")
    if model.dummy_prefix:
        if user:
            names = "|".join(re.escape(text).replace(SPACE, f"[ {SPACE}]") for text in sorted(user, key=len)[::-1])
            yield regex(rf"\A(?!(?:{names})\z)(?=.|\n)", SPACE)
        else:
            yield {"type": "Prepend", "prepend": SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


_PART = "\U000e0fff"
_MAPPABLE = [*range(1, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x10000), *range(0x1D100, 0x1D200)]


def _precompiled(charsmap: str) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": charsmap}


def _mapped(charsmap: str) -> str:
    """Return the characters that a map of characters changes, as the inside of a regex class."""
    empty = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": _precompiled(charsmap)}
    try:
        normalize = Backend.from_str(json.dumps(empty)).normalizer.normalize_str
        changed = [code for code in _MAPPABLE if normalize(chr(code)) != chr(code)]
    except BaseException as error:  # the library panics on a map that is damaged
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise TokenizerError("its map of characters is damaged; copy it again.") from None
    runs: list[list[int]] = []
    for code in changed:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in runs) or _PART


def _unigram(model: SentencePiece) -> dict[str, Any]:
    scores = [piece.score for piece in model.pieces if piece.kind is Kind.NORMAL]
    # Bytes are found by the fallback alone: a text that spells the name of one must not be it.
    never = 100 * min(*scores, -1.0) - 100
    vocabulary = [[piece.text, never if piece.kind is Kind.BYTE else piece.score] for piece in model.pieces]
    unknown = next(id for id, piece in enumerate(model.pieces) if piece.kind is Kind.UNKNOWN)
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": model.byte_fallback}


def _bpe(model: SentencePiece, unknown: str) -> dict[str, Any]:
    merges = [] if model.algorithm == "char" else list(bpe_merges(model.pieces))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: id for id, piece in enumerate(model.pieces)},
        "merges": merges,
    }


def bpe_merges(pieces: Sequence[Piece]) -> Iterator[list[str]]:
    """Yield every pair of pieces that makes a piece, the best one first.

    SentencePiece merges the pair whose result has the best score, wherever the result was split in training.
    """
    known = {piece.text for piece in pieces if piece.kind is Kind.NORMAL}
    for piece in sorted((piece for piece in pieces if piece.text in known), key=lambda piece: -piece.score):
        yield from first_then(piece.text, known)
