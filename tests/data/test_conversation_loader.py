from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etymon.data import ConversationLoader
from etymon.data.packing import best_fit
from etymon.errors import ConfigError, DataError


@dataclass
class Rendered:
    ids: list[int]
    trained: list[bool]


def conversation(number: int, length: int, prompt: int) -> Rendered:
    """Ids that tell the conversation and the place; the first `prompt` are not trained."""
    return Rendered([number * 1000 + i for i in range(length)], [i >= prompt for i in range(length)])


def some(count: int, longest: int, seed: int = 0) -> list[Rendered]:
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(3.0, 0.6, count).astype(int), 2, longest)
    return [conversation(i + 1, int(n), int(rng.integers(1, n))) for i, n in enumerate(lengths)]


def pieces(batch) -> list[tuple[list[int], list[int], list[int]]]:
    """Inputs, targets and positions of each document of a batch that is not padding."""
    found = []
    for row in range(len(batch.input_ids)):
        for document in range(int(batch.documents[row].max()) + 1):
            here = batch.documents[row] == document
            piece = tuple(t[row][here].tolist() for t in (batch.input_ids, batch.targets, batch.position_ids))
            if any(piece[0]):
                found.append(piece)
            else:
                assert set(piece[1]) == {-100}
    return found


def test_an_epoch_holds_every_conversation_whole_and_once() -> None:
    samples = some(300, 60)
    loader = ConversationLoader(samples, 1, 60, seed=2)
    for epoch in range(2):
        found = [p for row in range(loader.report.rows) for p in pieces(loader.batch(epoch * loader.report.rows + row))]
        assert len(found) == len(samples)
        for inputs, targets, positions in found:
            sample = samples[inputs[0] // 1000 - 1]
            assert inputs == sample.ids[:-1]
            assert targets == [i if t else -100 for i, t in zip(sample.ids[1:], sample.trained[1:], strict=True)]
            assert positions == list(range(len(inputs)))
        assert len({inputs[0] for inputs, _, _ in found}) == len(samples)
    assert loader.report.samples == 300
    assert loader.report.tokens == loader.n_tokens == sum(len(s.ids) - 1 for s in samples)
    assert loader.report.trained_tokens == sum(sum(s.trained[1:]) for s in samples)


def test_documents_are_numbered_in_a_row_and_padding_is_apart() -> None:
    loader = ConversationLoader([conversation(1, 5, 2), conversation(2, 4, 2)], 1, 10)
    batch = loader.batch(0)
    assert batch.input_ids.tolist() == [[1000, 1001, 1002, 1003, 2000, 2001, 2002, 0, 0, 0]]
    assert batch.targets.tolist() == [[-100, 1002, 1003, 1004, -100, 2002, 2003, -100, -100, -100]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]]
    assert batch.trained == 5 == loader.report.trained_tokens
    assert loader.report.efficiency == 0.7


def test_pure_function_of_samples_settings_and_step() -> None:
    samples = some(200, 64)
    loaders = [ConversationLoader(samples, 4, 64, seed=1) for _ in range(2)]
    backwards = {step: loaders[1].batch(step) for step in reversed(range(40))}
    for step in range(40):
        assert torch.equal(loaders[0].batch(step).targets, backwards[step].targets)
    assert loaders[0].fingerprint == loaders[1].fingerprint
    others = [
        ConversationLoader(samples, 4, 64, seed=2),
        ConversationLoader(samples, 3, 64, seed=1),
        ConversationLoader(samples, 4, 65, seed=1),
        ConversationLoader(samples[::-1], 4, 64, seed=1),
        ConversationLoader(samples, 4, 64, seed=1, overlength="drop"),
    ]
    assert len({loaders[0].fingerprint, *(loader.fingerprint for loader in others)}) == 6
    assert not torch.equal(loaders[0].batch(0).input_ids, others[0].batch(0).input_ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), st.integers(0, 3))
def test_best_fit_against_the_plain_definition(lengths: list[int], seed: int) -> None:
    rows = best_fit(np.array(lengths), 32, seed)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 32 for row in rows)
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):  # the slow way: the fullest row that has room
        fitting = [r for r, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda r: rooms[r])] -= length
        else:
            rooms.append(32 - length)
    assert sorted(rooms) == sorted(32 - sum(lengths[i] for i in row) for row in rows)


@pytest.mark.parametrize("seed", range(3))
def test_efficiency_on_lognormal_lengths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(4.0, 1.0, 3000).astype(int), 3, 512)
    loader = ConversationLoader([conversation(0, int(n), 1) for n in lengths], 4, 512)
    assert loader.report.efficiency > 0.95


def test_over_long_conversations_by_policy() -> None:
    samples = [conversation(1, 8, 2), conversation(2, 30, 2), conversation(3, 30, 25), conversation(4, 11, 3)]
    with pytest.raises(DataError, match=r"Conversation 1 \(counted from 0\) has 30 tokens.*at most 11.*overlength"):
        ConversationLoader(samples, 1, 10)
    dropped = ConversationLoader(samples, 1, 10, overlength="drop").report
    assert (dropped.samples, dropped.dropped, dropped.rows) == (4, 2, 2)  # eleven ids are ten inputs: they fit
    truncated = ConversationLoader(samples, 1, 10, overlength="truncate")
    assert (truncated.report.truncated, truncated.report.dropped) == (1, 1)  # what is left of one trains nothing
    found = [p for row in range(truncated.report.rows) for p in pieces(truncated.batch(row))]
    assert [2000 + i for i in range(10)] in [p[0] for p in found]
    split = ConversationLoader(samples, 1, 10, overlength="split")
    assert (split.report.split, split.report.pieces_without_targets) == (2, 2)
    targets = Counter(t for row in range(split.report.rows) for t in split.batch(row).targets.flatten().tolist())
    del targets[-100]
    expected = Counter(i for s in samples for i, t in zip(s.ids, s.trained, strict=True) if t)
    assert targets == expected  # each trained token just once
    with pytest.raises(ConfigError, match="overlength is 'cut'"):
        ConversationLoader(samples, 1, 10, overlength="cut")  # type: ignore[arg-type]


def test_what_cannot_be_trained_is_an_error() -> None:
    with pytest.raises(DataError, match=r"Conversation 1 .* trains no token"):
        ConversationLoader([conversation(1, 5, 2), conversation(2, 5, 5)], 1, 10)
    with pytest.raises(DataError, match="No conversation is left"):
        ConversationLoader([], 1, 10)
    with pytest.raises(DataError, match=r"\(1 read, 1 dropped\)"):
        ConversationLoader([conversation(1, 50, 2)], 1, 10, overlength="drop")
    with pytest.raises(DataError, match=r"pack into 1 rows .* batch size is 4\. Lower the batch size to 1"):
        ConversationLoader(some(2, 8), 4, 64)


def test_batches_go_on_into_the_next_epoch() -> None:
    loader = ConversationLoader([conversation(i + 1, 9, 2) for i in range(5)], 2, 8, seed=3)
    assert (loader.report.rows, loader.steps_per_epoch) == (5, 3)
    ids = torch.cat([loader.batch(step).input_ids[:, 0] for step in range(5)]).tolist()
    assert sorted(ids[:5]) == sorted(ids[5:]) == [1000, 2000, 3000, 4000, 5000]
