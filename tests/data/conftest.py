from __future__ import annotations

from pathlib import Path

import pytest

from etymon.data import Document, TokenShards, write_shards


class ByteEncoder:
    """A tokenizer reduced to what shards need: a token for each byte, after EOS = 1."""

    eos_id = 1
    fingerprint = "bytes"

    def __init__(self, vocab_size: int = 258) -> None:
        self.vocab_size = vocab_size

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[2 + byte for byte in text.encode()] for text in texts]


@pytest.fixture
def encoder() -> ByteEncoder:
    return ByteEncoder()


@pytest.fixture
def make_shards(tmp_path: Path, encoder: ByteEncoder):
    """Write texts as shards of at most about `shard_tokens`."""

    def make(texts: list[str], shard_tokens: int = 1 << 20, name: str = "shards") -> TokenShards:
        documents = [Document(str(i), text, "test") for i, text in enumerate(texts)]
        return write_shards(documents, encoder, tmp_path / name, shard_tokens=shard_tokens)

    return make
