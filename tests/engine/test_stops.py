from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etymon.engine.stops import StopText

ALPHABET = "ab你😀"
words = st.text(ALPHABET, min_size=1, max_size=4)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def by_find(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: cut before the stop string whose end comes first, the longest if several end there."""
    ends = {stop: text.find(stop) + len(stop) for stop in stops if stop in text}
    if not ends:
        return text, False
    end = min(ends.values())
    longest = max(len(stop) for stop in ends if text[:end].endswith(stop))
    return text[: end - longest], True


def holdable(text: str, stops: list[str]) -> int:
    """How much of the end of `text` may still become a stop string."""
    return max((k for stop in stops for k in range(len(stop)) if text.endswith(stop[:k])), default=0)


@given(st.text(ALPHABET, max_size=40), st.lists(words, max_size=4), st.lists(st.integers(0, 99), max_size=12))
def test_any_cutting_gives_what_find_gives_and_holds_back_no_more_than_needed(
    text: str, stops: list[str], places: list[int]
) -> None:
    stream = StopText(stops)
    shown, fed = "", ""
    for piece in cut(text, places):
        fed += piece
        shown += stream.push(piece)
        if stream.stopped:
            break
        assert shown == fed[: len(fed) - holdable(fed, stops)]
    if not stream.stopped:
        shown += stream.flush()
    assert (shown, stream.stopped) == by_find(text, stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["\n\n"], ["one", "\n", "\ntwo"], "one"),
        (["END"], ["E", "N", "E", "N", "D"], "EN"),
        (["aab"], ["a", "a", "a", "b"], "a"),
        (["你好"], ["说你", "你", "好"], "说你"),
        (["b", "abc"], ["ab", "c"], "a"),
        (["bc", "abc"], ["a", "bc"], ""),
        ([], ["any", "thing"], "anything"),
    ],
)
def test_stop_strings_across_pieces(stops: list[str], pieces: list[str], shown: str) -> None:
    stream = StopText(stops)
    text = ""
    for piece in pieces:
        text += stream.push(piece)
        if stream.stopped:
            break
    assert text + ("" if stream.stopped else stream.flush()) == shown
