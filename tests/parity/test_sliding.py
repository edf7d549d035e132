"""Windows that span many blocks, and global tokens, against the reference; memory; what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_references import Reference, randomised
from encoder_references_deberta import _longformer, some
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import etymon
from etymon.errors import ConfigError, DataError
from etymon.families import ConfigReader, family_named
from etymon.nn import build
from etymon.spec import Causal

WINDOWS = {"short": [4, 12, 6], "long": [140, 4, 70]}


@pytest.fixture(scope="module", params=WINDOWS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    theirs = randomised(Reference("longformer", _longformer(attention_window=WINDOWS[request.param])))
    directory = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(directory)
    return theirs, etymon.load(directory)[0]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def ids_of(rows: int, time: int) -> Tensor:
    return torch.randint(3, 97, (rows, time), generator=torch.Generator().manual_seed(time))


@pytest.mark.parametrize("time", [1, 64, 65, 131, 200])
@pytest.mark.parametrize("padded", [False, True])
def test_every_length(pair: Any, time: int, padded: bool) -> None:
    theirs, ours = pair
    ids = ids_of(3, time)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, time - time // 3 :] = 0
        mask[2, : time // 4] = 0
        ids = ids.masked_fill(mask == 0, 1)
    for extra in ({}, some(ids)):
        expected = theirs(ids, mask.clone(), **extra).logits
        assert relative(ours(ids, mask, **extra).logits[mask.bool()], expected[mask.bool()]) < 1e-5
    assert relative(ours(ids, mask, **extra).logits, ours(ids, mask).logits) > 1e-3


def test_gradients_through_many_blocks(pair: Any) -> None:
    theirs, ours = pair
    ids = ids_of(3, 150)
    for model in pair:
        model.zero_grad()
        model(ids, labels=ids, **some(ids)).loss.backward()
    wanted = {name: p.grad for name, p in theirs.state_dict(keep_vars=True).items()}
    got = dict(ours.named_parameters())
    for rule in family_named("longformer").tensors.weights(ours.spec):
        if not rule.ours.endswith(("qkv.bias", "kv_global.bias")):  # of which a part is rounding alone
            published = rule.read([wanted[name] for name in rule.published])
            assert relative(got[rule.ours].grad, published) < 1e-5, rule.ours


def test_packed_documents_equal_documents_alone_across_blocks(pair: Any) -> None:
    _, ours = pair
    lengths = (30, 1, 90, 79)
    ids = ids_of(1, sum(lengths))
    chosen = some(ids)["global_attention_mask"]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = ours(ids, documents=documents, position_ids=positions, global_attention_mask=chosen).logits
    parts = zip(ids.split(lengths, 1), chosen.split(lengths, 1), strict=True)
    alone = torch.cat([ours(part, global_attention_mask=global_).logits for part, global_ in parts], 1)
    assert relative(packed, alone) < 1e-5


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor of any operation had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_memory_grows_linearly() -> None:
    model = build(family_named("longformer").spec(vocab=97, dim=16, layers=1, heads=2, context=4096, window=16))
    largest = []
    for time in (1024, 4096):
        chosen = torch.zeros(1, time, dtype=torch.int64)
        chosen[0, 5] = 1
        with Largest() as seen:
            model(ids_of(1, time), global_attention_mask=chosen, logits=False)
        largest.append(seen.elements)
    assert largest[1] < 4.5 * largest[0]
    assert largest[1] < 4096 * 4096 / 8


def test_what_is_refused(pair: Any, tmp_path: Path) -> None:
    _, ours = pair
    ids = ids_of(2, 9)
    with pytest.raises(DataError, match=r"global_attention_mask has shape \(2, 8\), expected \(2, 9\)"):
        ours(ids, global_attention_mask=torch.ones(2, 8))
    with pytest.raises(DataError, match=r"must be \[batch, time\]"):
        ours(ids, torch.ones(2, 9, 9))
    plain = build(family_named("roberta").spec(**family_named("roberta").tiny))
    with pytest.raises(DataError, match="no global tokens: leave out global_attention_mask"):
        plain(ids, global_attention_mask=torch.ones(2, 9))
    family = family_named("longformer")
    with pytest.raises(ConfigError, match="window=7 must be an even number"):
        family.spec(**family.tiny | {"window": 7})
    spec = ours.spec
    with pytest.raises(ConfigError, match="belongs to a Bidirectional stack"):
        build(dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, visibility=Causal())))
    with pytest.raises(ConfigError, match=r"attention_mode = 'n2' is not supported"):
        family.format.read(ConfigReader({"attention_mode": "n2"}, "config.json"))
