from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etymon.data import held_out, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffa\r\nb\rc", "a\nb\nc"),
        ("one\u2028two\x85three\ffour", "one\ntwo\nthree\nfour"),
        ("bell\x07 nul\x00 del\x7f c1\x9b", "bell nul del c1"),
        ("trailing  \t\nspaces   ", "trailing\nspaces"),
        ("cafe\u0301", "caf\u00e9"),
        ("\n\n    indented\n\n\tdeep\n\n", "    indented\n\n\tdeep"),
        ("你好，世界！（全角）“引号”…", "你好，世界！（全角）“引号”…"),
        ("\u3000\u3000段首缩进　空格", "\u3000\u3000段首缩进　空格"),
        ("👩‍👩‍👧 🇨🇳 ❤️", "👩‍👩‍👧 🇨🇳 ❤️"),
        ("ＡＢＣ　①²", "ＡＢＣ　①²"),
        ("", ""),
        (" \t \n\r\n ", ""),
    ],
)
def test_forms(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_code_keeps_its_shape() -> None:
    code = "def f(x):\n    if x:\n\n        return 'a  b'\n\treturn\t1"
    assert normalise(code) == code


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_is_stable_and_normal(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert all(line == line.rstrip(" \t") for line in once.split("\n"))


def test_held_out_share_and_nesting() -> None:
    keys = [f"document {i}" for i in range(20_000)]
    share = sum(held_out(key, 0.1) for key in keys) / len(keys)
    assert abs(share - 0.1) < 0.01
    assert all(held_out(key, 0.2) for key in keys if held_out(key, 0.1))  # a larger share only adds
    assert not any(held_out(key, 0.0) for key in keys)
