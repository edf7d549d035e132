from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_setups import TEXTS, like_llama2, like_llama3, trained, unigram

from etymon.text import StreamDecoder, Tokenizer

KINDS = [trained, like_llama3, like_llama2, unigram]


def pushed(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*map(stream.push, ids), stream.flush()]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.booleans())
def test_pieces_of_any_ids_join_to_decode(data: st.DataObject, kind: object, skip: bool) -> None:
    tokenizer = kind()  # type: ignore[operator]
    # Single bytes are the hard part: take many of them.
    single = [id for id in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(id)) == 1]
    ids = data.draw(st.lists(st.sampled_from(single) | st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert "".join(pushed(tokenizer, ids, skip_special=skip)) == tokenizer.decode(ids, skip_special=skip)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("👩👧‍️🏽🇨🇳🇺é你a1→\U000e0067❤") | st.characters(exclude_categories=["Cs"])))
def test_text_fed_byte_by_byte_never_shows_a_replacement(text: str) -> None:
    text = text.replace("�", "")
    stream = StreamDecoder(lambda b: bytes([b]))
    pieces = [*map(stream.push, text.encode()), stream.flush()]
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize("emoji", ["👩‍👩‍👧‍👦", "🇨🇳", "👍🏽", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👩🏽‍🚀", "🏳️‍🌈"])
def test_an_emoji_of_several_code_points_comes_whole(emoji: str) -> None:
    stream = StreamDecoder(lambda b: bytes([b]))
    pieces = [*map(stream.push, f"a{emoji}{emoji} b".encode()), stream.flush()]
    assert [piece for piece in pieces if piece and piece not in "a b"] == [emoji, emoji] or [
        piece.strip() for piece in pieces if piece.strip() and piece not in "ab"
    ] == [emoji, emoji]


def test_ordinary_text_is_not_delayed() -> None:
    stream = StreamDecoder(lambda c: chr(c).encode())
    for character in "Hello, 你好! x → y 1é\n":
        assert stream.push(ord(character)) == character


def test_invalid_bytes_show_as_soon_as_they_are_certain() -> None:
    stream = StreamDecoder(lambda b: bytes([b]))
    assert stream.push(0xE4) == ""
    assert stream.push(0xBD) == ""  # still the beginning of 你
    assert stream.push(0x41) == "�A"
    assert stream.push(0xFF) == "�"
    assert stream.push(0xF0) == ""
    assert stream.flush() == "�"
    assert stream.push(0x41) == "A"


def test_a_replacement_character_that_was_written_is_kept() -> None:
    tokenizer = trained()
    assert "".join(pushed(tokenizer, tokenizer.encode("a�b"))) == "a�b"


def test_a_loop_of_joiners_does_not_stall_the_stream() -> None:
    stream = StreamDecoder(lambda c: chr(c).encode())
    out = [stream.push(ord(c)) for c in "👩\u200d" * 200]
    assert len("".join(out)) > 300
    assert max(map(len, out)) <= 66


def test_leading_space_of_sentencepiece_texts() -> None:
    tokenizer = like_llama2()
    ids = tokenizer.encode("hello world")
    assert "".join(pushed(tokenizer, ids)) == "hello world"
    assert "".join(pushed(tokenizer, ids, continues=True)) == " hello world"


@pytest.mark.parametrize("kind", KINDS)
def test_real_texts(kind: object) -> None:
    tokenizer = kind()  # type: ignore[operator]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        pieces = pushed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        if "�" not in tokenizer.decode(ids):
            assert not any("�" in piece for piece in pieces)
