"""XLNet against its reference: both streams, orders, predictions, memories, segments, padding, gradients, saving."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import consistency
import pytest
import torch
import transformers
from consistency import TOLERANCE, relative, tokens
from references import Reference, randomised
from torch import Tensor

import etymon
from etymon.errors import ConfigError, DataError
from etymon.families import family_named
from etymon.nn import build


def _xlnet(model: str = "XLNetLMHeadModel", **changes: Any) -> Callable[[], Any]:
    sizes = {"vocab_size": 97, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "mem_len": None}
    return lambda: getattr(transformers, model)(transformers.XLNetConfig(**(sizes | changes)))


REFERENCES = [
    Reference("xlnet", _xlnet()),
    Reference("xlnet-uni", _xlnet(attn_type="uni")),
    Reference("xlnet-clamp", _xlnet(clamp_len=5)),
    Reference("xlnet-relu-eps", _xlnet(ff_activation="relu", layer_norm_eps=1e-3)),
    Reference("xlnet-hidden", _xlnet("XLNetModel")),
]


@pytest.fixture(scope="module", params=REFERENCES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    theirs = randomised(request.param)
    directory = tmp_path_factory.mktemp(request.param.name)
    theirs.save_pretrained(directory)
    return theirs, etymon.load(directory)[0]


def order(batch: int, time: int, targets: int, seed: int = 5) -> dict[str, Tensor]:
    """A random order of every row, and predictions of the tokens that come last in it, each at a place of its own. The
    very first token of an order sees nothing but itself, and a query for it would see nothing at all."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.stack([torch.randperm(time, generator=generator) for _ in range(batch)])
    hidden = (rank[:, :, None] <= rank[:, None, :]).float()
    places = rank.argsort(1)[:, -targets:]
    return {"perm_mask": hidden, "target_mapping": torch.nn.functional.one_hot(places, time).float()}


def segments(batch: int, time: int) -> Tensor:
    return torch.arange(time).ge(time // 3).long().expand(batch, time)


def given(kind: str, batch: int = 3, time: int = 20) -> dict[str, Tensor]:
    if kind == "plain":
        return {}
    if kind == "segments":
        return {"token_type_ids": segments(batch, time)}
    if kind == "order":
        return {"perm_mask": order(batch, time, 5)["perm_mask"]}
    if kind == "targets":
        return {"target_mapping": order(batch, time, 5)["target_mapping"]}
    return order(batch, time, time if kind == "everything" else 5) | {"token_type_ids": segments(batch, time)}


def outcome(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def reference_outcome(theirs: Any, ids: Tensor, **arguments: Tensor) -> Tensor:
    """Its outputs row by row: with a mask of any kind, its "uni" form takes one row only."""
    rows = range(len(ids))
    return torch.cat([outcome(theirs(ids[r : r + 1], **{k: x[r : r + 1] for k, x in arguments.items()})) for r in rows])


KINDS = ["plain", "segments", "order", "targets", "both", "everything"]


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_both_streams(pair: Any, kind: str) -> None:
    theirs, ours = pair
    ids, asked = tokens(3, 20), given(kind)
    got = ours(ids, **asked, output_hidden_states=True)
    assert relative(outcome(got), reference_outcome(theirs, ids, **asked)) < TOLERANCE
    for row in range(3):
        first = {name: x[row : row + 1] for name, x in asked.items()}
        expected = theirs(ids[row : row + 1], **first, output_hidden_states=True)
        assert outcome(got)[row].shape == outcome(expected)[0].shape
        assert len(got.hidden_states) == len(expected.hidden_states)
        for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
            assert relative(a[row], b[0]) < TOLERANCE


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "everything"])
def test_gradients(pair: Any, kind: str) -> None:
    theirs, ours = pair
    ids, asked = tokens(3, 20), given(kind)
    wanted = ids if "target_mapping" not in asked else tokens(3, asked["target_mapping"].shape[1], seed=2)
    expected = reference_outcome(theirs, ids, **asked)
    if ours.head.linear is None:
        losses = [x.square().sum() for x in (expected, outcome(ours(ids, **asked)))]
    else:
        labels = wanted.masked_fill(wanted < 20, -100)
        reference_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten())
        losses = [reference_loss, ours(ids, **asked, labels=labels).loss]
    assert relative(losses[1], losses[0]) < TOLERANCE
    for model, loss in zip((theirs, ours), losses, strict=True):
        model.zero_grad()
        loss.backward()
    published = {name: p.grad for name, p in theirs.state_dict(keep_vars=True).items()}
    own = {name: p.grad for name, p in ours.named_parameters()}
    for rule in family_named("xlnet").tensors.weights(ours.spec):
        parts = [published.get(name, published.get(name.removeprefix("transformer."))) for name in rule.published]
        mine = own.pop(rule.ours)
        if parts[0] is None or not parts[0].any():
            assert mine is None, rule.ours
        else:
            gradient = rule.read(parts)
            scale = max(float(gradient.abs().max()), 1e-3)  # of what changes no score, zero but for rounding
            assert float((mine - gradient).abs().max()) < 2 * TOLERANCE * scale, rule.ours
    assert not own


def test_who_sees_nothing_has_no_gradient_of_scores() -> None:
    """The first token of an order mixes all keys evenly, whatever its query says."""
    family = family_named("xlnet")
    model = consistency.randomised(family.spec(**family.tiny | {"layers": 1}))
    ids, asked = tokens(1, 12), order(1, 12, 12)
    queries = model(ids, **asked).logits[0]
    gradient = torch.autograd.grad(queries[0].square().sum(), model.encoder.blocks[0].attention.op.scores.u.weight)[0]
    assert torch.isfinite(gradient).all() and not gradient.any()
    gradient = torch.autograd.grad(
        model(ids, **asked).logits[0, 1:].square().sum(), model.encoder.blocks[0].attention.op.scores.u.weight
    )[0]
    assert gradient.any()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["segments", "both"])
def test_memory_of_earlier_segments(pair: Any, kind: str) -> None:
    theirs, ours = pair
    state, mems = ours.new_state(3, 64), None
    rows = 1 if theirs.config.attn_type == "uni" else 3
    state = state.rows(0, rows)
    for call, time in enumerate((20, 7, 12)):
        ids, asked = tokens(rows, time, seed=call), given(kind, rows, time)
        expected = theirs(ids, mems=mems, use_mems=True, **asked)
        got = ours(ids, state=state, **asked)
        assert relative(outcome(got), outcome(expected)) < TOLERANCE
        mems = expected.mems
    assert state.lengths.tolist() == [39] * rows
    alone = ours(ids, **asked)
    assert relative(outcome(alone), outcome(got)) > 1e-3


@torch.no_grad()
def test_rows_with_memories_of_different_lengths(pair: Any) -> None:
    _, ours = pair
    ids, state = tokens(2, 12), ours.new_state(2, 40)
    for row, time in enumerate((3, 9)):
        ours(tokens(1, time, seed=row), state=state.rows(row, row + 1), token_type_ids=segments(1, time))
    together = outcome(ours(ids, state=state, **given("both", 2, 12)))
    for row, time in enumerate((3, 9)):
        alone = ours.new_state(1, 40)
        ours(tokens(1, time, seed=row), state=alone, token_type_ids=segments(1, time))
        kinds = {name: x[row : row + 1] for name, x in given("both", 2, 12).items()}
        assert relative(together[row], outcome(ours(ids[row : row + 1], state=alone, **kinds))[0]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding(pair: Any, kind: str, side: str) -> None:
    theirs, ours = pair
    ids, mask = tokens(3, 20), torch.ones(3, 20)
    for row, pads in enumerate((0, 5, 11)):
        mask[row, :pads] = 0
    mask = mask.flip(1) if side == "right" else mask
    # (a query at a place of padding, or in sight of nothing but padding, mixes all keys evenly there and here)
    expected = reference_outcome(theirs, ids, attention_mask=mask, **given(kind))
    assert relative(outcome(ours(ids, attention_mask=mask, **given(kind))), expected) < TOLERANCE
    assert relative(outcome(ours(ids, **given(kind))), expected) > 1e-3


def test_padding_and_packing_change_nothing(pair: Any) -> None:
    _, ours = pair
    if ours.head.linear is not None:
        consistency.check_padding(ours)
        consistency.check_packing(ours)


@torch.no_grad()
def test_saved_for_the_reference(pair: Any, tmp_path: Path) -> None:
    theirs, ours = pair
    etymon.save(ours, None, tmp_path / "hf", format="hf", max_shard_bytes=20_000)
    again, ids = type(theirs).from_pretrained(tmp_path / "hf"), tokens(3, 20)
    assert torch.equal(reference_outcome(again, ids, **given("both")), reference_outcome(theirs, ids, **given("both")))
    etymon.save(ours, None, tmp_path / "own")
    for directory in ("hf", "own"):
        reloaded, _ = etymon.load(tmp_path / directory)
        assert reloaded.spec.to_dict() | {"name": ""} == ours.spec.to_dict() | {"name": ""}
        assert torch.equal(outcome(reloaded(ids, **given("both"))), outcome(ours(ids, **given("both"))))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pair: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs, exact = pair
    theirs.save_pretrained(tmp_path)
    half = copy.deepcopy(theirs).to(dtype)  # (loading leaves some of its parameters in fp32, and then it stumbles)
    ours, _ = etymon.load(tmp_path, dtype=dtype)
    ids = tokens(3, 20)
    expected = [outcome(exact(ids, **given(kind))) for kind in ("segments", "both")]
    their_error = relative(outcome(half(ids, **given("segments"))).float(), expected[0])
    for kind, wanted in zip(("segments", "both"), expected, strict=True):  # (its second stream takes fp32 alone)
        assert relative(outcome(ours(ids, **given(kind))).float(), wanted) < 2 * their_error + torch.finfo(dtype).eps


def test_bad_orders_are_refused() -> None:
    family = family_named("xlnet")
    model, ids = build(family.spec(**family.tiny)), tokens(2, 6)
    for wrong, message in (
        ({"perm_mask": torch.zeros(2, 6)}, r"perm_mask has shape \(2, 6\), expected \(2, 6, 6\)"),
        ({"target_mapping": torch.zeros(2, 3, 5)}, r"target_mapping has shape \(2, 3, 5\)"),
        ({"target_mapping": torch.ones(2, 3, 6)}, "a target several places"),
    ):
        with pytest.raises(DataError, match=message):
            model(ids, **wrong)
    other = family_named("bert")
    with pytest.raises(DataError, match="has one order"):
        build(other.spec(**other.tiny))(ids, perm_mask=torch.zeros(2, 6, 6))
    with pytest.raises(ConfigError, match="'bi' or 'uni'"):
        family.spec(**family.tiny, attention="both")
