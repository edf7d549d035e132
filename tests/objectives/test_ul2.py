"""UL2's seven denoisers and UL2R's four: how often, how much, how long, and that nothing is lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from etymon.data import IGNORED, Batch, PairBatch
from etymon.data.batch import make_batch
from etymon.errors import ConfigError, DataError
from etymon.families import family_named
from etymon.objectives import UL2, ObjectiveConfig, PrefixDenoiser, SpanDenoiser, UL2Config, choose_objective
from etymon.objectives.clm import prefixes
from etymon.objectives.ul2 import MIXTURES, MODES
from etymon.text import DEFAULT_SPECIAL, Tokenizer

START, END = 0, 1
PROMPTS = {"R": (300,), "S": (301,), "X": (302,)}
SENTINELS = tuple(range(400, 700))


def random_batch(rows: int, time: int) -> Batch:
    ids = np.random.default_rng(1).integers(4, 200, size=(rows, time))
    return make_batch(ids, ids, np.zeros(ids.shape, dtype=np.bool_))


def sides(batch: Batch, config: UL2Config, decoder: bool = False) -> list[tuple[list[int], list[int]]]:
    """Collate; return what is given and what is wanted of each row, the latter without its end."""
    objective = UL2(PROMPTS, SENTINELS, None if decoder else START, END, config)
    got = objective.collate(batch, np.random.default_rng(0))
    found, shown = [], None if isinstance(got, PairBatch) else prefixes(got)
    for i in range(len(batch.input_ids)):
        wanted = got.targets[i][got.targets[i] != IGNORED].tolist()
        if isinstance(got, PairBatch):
            given = got.input_ids[i][got.attention_mask[i].bool()].tolist()
            assert given.pop() == END and len(given) < batch.input_ids.shape[1]
            assert got.decoder_input_ids[i, : len(wanted)].tolist() == [START, *wanted[:-1]]
        else:
            place = int((got.targets[i] != IGNORED).nonzero()[0])
            given = got.input_ids[i, : place + 1].tolist()
            assert got.input_ids[i, place + 1 : place + len(wanted)].tolist() == wanted[:-1]
            assert got.input_ids.shape == batch.input_ids.shape
            assert shown[i].tolist() == [at <= place for at in range(batch.input_ids.shape[1])]
        assert wanted.pop() == END
        found.append((given, wanted))
    return found


def parts(given: list[int], wanted: list[int]) -> tuple[list[int], list[list[int]]]:
    """Return the text that both sides make together, and the hidden spans."""
    if wanted[0] not in SENTINELS:
        assert given[0] == PROMPTS["S"][0] and given[-1] == SENTINELS[0]
        return given[1:-1] + wanted, [wanted]
    spans: dict[int, list[int]] = {}
    for token in wanted:
        if token in SENTINELS:
            last = spans.setdefault(token, [])
        else:
            last.append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])
    assert [token for token in given if token in SENTINELS] == list(spans)
    return [t for token in given[1:] for t in spans.get(token, [token])], list(spans.values())


def test_all_seven_are_drawn_as_often() -> None:
    """Two are R, one S and four X."""
    given = sides(random_batch(1400, 130), UL2Config())
    modes = Counter(prefix[0] for prefix, _ in given)
    for mode, expected in (("R", 2 / 7), ("S", 1 / 7), ("X", 4 / 7)):
        assert abs(modes[PROMPTS[mode][0]] / 1400 - expected) < 4 * (expected * (1 - expected) / 1400) ** 0.5


def test_a_causal_decoder_goes_on_with_half_of_prefixes_and_a_quarter_of_each_kind_of_spans() -> None:
    """UL2R: S half of the time; R with spans of 3; X with 15% in spans of 32, or 50% in spans of 3."""
    given = sides(random_batch(1200, 330), UL2Config(mixture=MIXTURES["ul2r"]), decoder=True)
    modes = Counter(prefix[0] for prefix, _ in given)
    for mode, expected in (("R", 0.25), ("S", 0.5), ("X", 0.25)):
        assert abs(modes[PROMPTS[mode][0]] / 1200 - expected) < 4 * (expected * (1 - expected) / 1200) ** 0.5
    many = sum(len(parts(*side)[1]) > 10 for side in given if side[0][0] == PROMPTS["X"][0])
    assert UL2Config.model_validate({"mixture": "ul2r"}).mixture == MIXTURES["ul2r"]
    assert abs(many / modes[PROMPTS["X"][0]] - 0.5) < 4 * (0.25 / 300) ** 0.5


@pytest.mark.parametrize("decoder", [False, True], ids=["seq2seq", "decoder"])
@pytest.mark.parametrize(("rate", "span"), [(0.15, 3), (0.15, 8), (0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64)])
def test_spans_are_as_many_and_as_long_as_the_paper_says(rate: float, span: float, decoder: bool) -> None:
    config = UL2Config(mixture=(SpanDenoiser(mode="X", rate=rate, span=span),))
    batch = random_batch(60, 514)
    ends = 0
    for row, side in zip(batch.input_ids.tolist(), sides(batch, config, decoder), strict=True):
        text, hidden = parts(*side)
        assert text == row[: len(text)]
        count = sum(map(len, hidden))
        assert abs(count / len(text) - rate) < 0.005
        assert len(hidden) == max(1, round(count / span))
        assert abs(count / len(hidden) - span) < max(0.2, span / 5) or len(hidden) == 1
        if decoder:  # as much as fits: two tokens more would add up to two spans more
            assert 514 - 4 <= len(side[0]) + len(side[1]) <= 514
        ends += side[0][-1] not in SENTINELS
    assert ends > 5  # spans are anywhere: with T5's own placing, a single one is always the end


def test_the_rest_of_a_text_is_a_quarter_of_it() -> None:
    batch = random_batch(400, 203)
    config = UL2Config(mixture=(PrefixDenoiser(rate=0.25),))
    lengths = []
    for row, side in zip(batch.input_ids.tolist(), sides(batch, config), strict=True):
        text, (hidden,) = parts(*side)
        assert text == row[:200]
        lengths.append(len(hidden))
    assert abs(np.mean(lengths) / 200 - 0.25) < 4 * (0.5 / 12**0.5) / 400**0.5
    assert min(lengths) < 10 and 90 < max(lengths) <= 100


def test_both_sides_fit_into_the_row_that_they_were_made_of() -> None:
    for time in (8, 33, 100):
        for decoder in (False, True):
            for side in sides(random_batch(200, time), UL2Config(), decoder):
                assert len(side[1]) < time + decoder
    with pytest.raises(DataError, match="a row of 4 tokens is too short"):
        sides(random_batch(1, 4), UL2Config(mixture=(PrefixDenoiser(rate=0.25),)))
    many = UL2Config(mixture=(SpanDenoiser(mode="X", rate=0.5, span=1),))
    with pytest.raises(DataError, match="spans, but there are 300 sentinels"):
        sides(random_batch(1, 1000), many)


def trained(*special: str) -> Tokenizer:
    return Tokenizer.train(["one two three [NLU]"], 420, special_tokens=(*DEFAULT_SPECIAL, *special))


def test_modes_are_tokens_or_text_or_nothing() -> None:
    family = family_named("llama")
    spec = family.spec(**family.tiny)

    def prompts(tokenizer: Tokenizer, **config: Any) -> dict[str, tuple[int, ...]]:
        objective = choose_objective(spec, tokenizer, UL2Config(**config))
        assert isinstance(objective, UL2)
        return objective.prompts

    ours = trained(*UL2.control(UL2Config()))
    assert prompts(ours) == {mode: (ours.special[name],) for mode, name in MODES.items()}
    papers = trained("[R]", "[S]", "[X]", "<extra_id_0>")
    assert prompts(papers) == {mode: (papers.special[f"[{mode}]"],) for mode in "RSX"}
    plain = trained("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    assert prompts(plain, modes="none") == {"R": (), "S": (), "X": ()}
    assert plain.decode(prompts(plain, modes="text")["X"]) == "[NLG]"
    with pytest.raises(ConfigError, match=r"no control token \[NLU\], \[S2S\], \[NLG\]. Set `modes: none`"):
        prompts(plain)
    with pytest.raises(ConfigError, match="no sentinels"):
        prompts(trained("[R]", "[S]", "[X]"))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("bert", UL2Config(), "writes no text behind a prefix"),
        ("rwkv", UL2Config(sight="full"), "Set `sight: causal`"),
        ("glm", UL2Config(sight="causal"), "take {kind: infilling, documents: 1}"),
    ],
)
def test_what_does_not_fit_is_refused(family: str, config: ObjectiveConfig, message: str) -> None:
    named = family_named(family)
    with pytest.raises(ConfigError, match=message):
        choose_objective(named.spec(**named.tiny), trained(), config)
