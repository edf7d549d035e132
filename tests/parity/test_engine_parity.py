"""The engine against the reference's `generate`: the same ids for sources of several lengths, and the same ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_references import ENCODERS, SEQ2SEQ, Reference, randomised

import etymon
from etymon.engine import Engine, EngineConfig, Request, Sampling, Text
from etymon.errors import CheckpointError
from etymon.hub import Generation, read_generation

SIZES = (12, 5, 20, 1, 9)


def sources() -> list[list[int]]:
    ids = torch.randint(3, 97, (len(SIZES), max(SIZES)), generator=torch.Generator().manual_seed(1))
    return [row[:n].tolist() for row, n in zip(ids, SIZES, strict=True)]


@pytest.fixture(scope="module", params=SEQ2SEQ, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    reference: Reference = request.param
    theirs = randomised(reference)
    config = theirs.generation_config
    config.decoder_start_token_id = config.decoder_start_token_id or 0
    config.eos_token_id, config.pad_token_id, config.forced_eos_token_id = 7, 1, None
    directory = tmp_path_factory.mktemp(reference.name)
    return theirs, directory


@pytest.mark.parametrize("forced", [None, 11])
def test_greedy_ids_are_those_of_generate(pair: Any, forced: int | None) -> None:
    theirs, directory = pair
    theirs.generation_config.forced_bos_token_id = forced
    theirs.generation_config.bad_words_ids = None if forced is None else [[13]]
    theirs.save_pretrained(directory)
    ours, _ = etymon.load(directory)
    said = read_generation(directory)
    assert said.begin == (theirs.generation_config.decoder_start_token_id, *([] if forced is None else [forced]))
    engine = Engine(ours, None, EngineConfig(slots=3, begin=said.begin, ends=said.ends, never=said.never))
    answers = engine.generate([Request(ids, Sampling(temperature=0, max_tokens=24)) for ids in sources()])
    for ids, answer in zip(sources(), answers, strict=True):
        expected = theirs.generate(torch.tensor([ids]), max_new_tokens=24 + len(said.begin) - 1, do_sample=False)
        assert [*said.begin, *answer.ids] == expected[0].tolist()
        assert answer.finish == ("stop" if expected[0, -1] == 7 else "length")


@pytest.mark.parametrize("reference", ENCODERS, ids=str)
def test_embeddings_are_the_reference_s_hidden_states(reference: Reference, tmp_path: Path) -> None:
    theirs = randomised(reference)
    theirs.save_pretrained(tmp_path)
    ours, _ = etymon.load(tmp_path)
    asked = [Text(ids, pooling="tokens") for ids in sources()]
    for ids, found in zip(sources(), Engine(ours, None).embed(asked), strict=True):
        with torch.no_grad():
            out = theirs(torch.tensor([ids]), output_hidden_states=True)
        expected = out.hidden_states[-1][0]
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", Generation()),
        ('{"decoder_start_token_id": 0, "eos_token_id": 1}', Generation((0,), (1,))),
        ('{"forced_bos_token_id": 5, "eos_token_id": [1, 2]}', Generation((), (1, 2))),
        ('{"bad_words_ids": [[3], [4, 5]], "suppress_tokens": [6]}', Generation((), (), (3, 6))),
        ('{"decoder_start_token_id": 2, "forced_bos_token_id": 0}', Generation((2, 0))),
    ],
)
def test_what_a_checkpoint_says_of_generating(text: str, expected: Generation, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert read_generation(tmp_path) == expected
    (tmp_path / "generation_config.json").rename(tmp_path / "config.json")
    assert read_generation(tmp_path) == expected


def test_ids_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CheckpointError, match="eos_token_id = '</s>'"):
        read_generation(tmp_path)
