"""What each token id stands for: its raw bytes, for every decoder that `tokenizer.json` files use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers.decoders import Decoder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters by which byte-level tokenizers write bytes (GPT-2's table), each with its byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(shown)]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _steps(node: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a decoder, pre-tokenizer or normalizer, with nested sequences laid flat."""
    if node is None:
        return
    if node.get("type") == "Sequence":
        for child in node[inner]:
            yield from _steps(child, inner)
    else:
        yield node


class Pieces:
    """The bytes of every token; `strip_space` says that one leading space of a decoded text is an artefact."""

    def __init__(self, names: Sequence[str | None], added: Mapping[int, str], data: dict[str, Any], hf: Decoder | None):
        steps = {step["type"]: step for step in _steps(data.get("decoder"), "decoders")}
        before = {step["type"] for step in _steps(data.get("pre_tokenizer"), "pretokenizers")}
        self._added = added
        self._hf = hf
        self.strip_space = False
        if "ByteLevel" in steps or (not steps and "ByteLevel" in before):
            self._alphabet = byte_alphabet()
            encode = self._byte_level
        elif "Metaspace" in steps:
            self._space = steps["Metaspace"].get("replacement", "▁")
            self.strip_space = steps["Metaspace"].get("prepend_scheme", "always") != "never"
            encode = self._sentencepiece
        elif "ByteFallback" in steps or "Fuse" in steps:
            self._space = steps.get("Replace", {}).get("pattern", {}).get("String", "▁")
            self.strip_space = steps.get("Strip", {}).get("start", 0) > 0
            encode = self._sentencepiece
        elif "BPEDecoder" in steps:
            self._suffix = steps["BPEDecoder"].get("suffix", "</w>")
            encode = self._end_of_word
        else:
            self.strip_space = True
            encode = self._probed
        # A token that is found behind the normalizer is written as that leaves it.
        rewritten = {token["content"] for token in data.get("added_tokens", []) if token.get("normalized")}
        as_is = {i: text for i, text in added.items() if text not in rewritten or encode != self._sentencepiece}
        self.bytes = [
            as_is[i].encode() if i in as_is else b"" if name is None else encode(added.get(i, name))
            for i, name in enumerate(names)
        ]

    def _byte_level(self, name: str) -> bytes:
        try:
            return bytes(self._alphabet[c] for c in name)
        except KeyError:
            return name.encode()

    def _sentencepiece(self, name: str) -> bytes:
        if byte := _BYTE_TOKEN.match(name):
            return bytes([int(byte[1], 16)])
        return name.replace(self._space, " ").encode()

    def _end_of_word(self, name: str) -> bytes:
        return name.replace(self._suffix, " ").encode()

    def _probed(self, name: str) -> bytes:
        # WordPiece and its like: what a token adds behind another one.
        if self._hf is None:
            return f" {name}".encode()
        return self._hf.decode(["a", name])[1:].encode()
