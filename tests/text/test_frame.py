"""What stands around texts, against the tokenizers library's own post-processors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizer_setups import trained
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from etymon.errors import TokenizerError
from etymon.text import Tokenizer
from etymon.text.frame import template

PROCESSORS: dict[str, Any] = {
    "bert": processors.BertProcessing(("<|system|>", 2), ("<|end|>", 5)),
    "roberta": processors.RobertaProcessing(("<|end|>", 5), ("<|system|>", 2), trim_offsets=False),
    "bytes": processors.ByteLevel(trim_offsets=False),
    "sequence": processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 5)])]
    ),
    "xlnet": processors.TemplateProcessing(
        single="$A <|user|> <|end|>:2",
        pair="$A:0 <|user|>:0 $B:1 <|user|>:1 <|end|>:2",
        special_tokens=[("<|user|>", 3), ("<|end|>", 5)],
    ),
}


def with_processor(processor: dict[str, Any] | None) -> tuple[Tokenizer, Backend]:
    data = dict(trained().data) | {"post_processor": processor}
    return Tokenizer(data, {}), Backend.from_str(json.dumps(data))


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_frame_is_what_the_library_puts_around_texts(name: str) -> None:
    ours, theirs = with_processor(json.loads(PROCESSORS[name].__getstate__()))
    first, second = "a first text", "第二篇"
    framed, expected = ours.frame(ours.encode(first)), theirs.encode(first)
    assert (framed.ids, framed.segments) == (expected.ids, expected.type_ids)
    if name != "bytes":
        framed, expected = ours.frame(ours.encode(first), ours.encode(second)), theirs.encode(first, second)
        assert (framed.ids, framed.segments) == (expected.ids, expected.type_ids)


def test_a_template_is_what_the_library_reads() -> None:
    ids = {"<|user|>": 3, "<|end|>": 5}
    made = template("A <|end|>", "<|user|> A <|end|> B:1 <|end|>:1", ids)
    ours, theirs = with_processor(made)
    expected = theirs.encode("one", "two")
    framed = ours.frame(ours.encode("one"), ours.encode("two"))
    assert (framed.ids, framed.segments) == (expected.ids, expected.type_ids)
    assert framed.ids[0] == 3 and framed.segments[-1] == 1
    assert template("A <|end|>", "A <|gone|>", ids) is None


def test_no_frame_and_unknown_ones() -> None:
    plain, _ = with_processor(None)
    assert plain.frame([7, 8]).ids == [7, 8]
    with pytest.raises(TokenizerError, match="how two texts stand together"):
        plain.frame([7], [8])
    with pytest.raises(TokenizerError, match="'Odd' is not known"):
        Tokenizer(dict(trained().data) | {"post_processor": {"type": "Odd"}}).frame([7])


def test_control_tokens_are_written_only_on_request() -> None:
    tokenizer = trained()
    end = tokenizer.special["<|end|>"]
    assert end not in tokenizer.encode("a<|end|>b")
    assert tokenizer.encode_control("a<|end|>b") == [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
