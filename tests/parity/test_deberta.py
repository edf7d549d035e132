"""What DeBERTa's published files hold beyond the rows of `encoder_references_deberta`, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from encoder_references import Reference, randomised, relative, tokens
from encoder_references_deberta import _deberta, _deberta_v2
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

import etymon
from etymon.errors import CheckpointError, ConfigError, DataError
from etymon.families import ConfigReader, family_named
from etymon.nn import build
from etymon.nn.scores import RelativeTable as Table
from etymon.spec import AsContents, Attention, Causal, Convolution, Discriminator, Disentangled, Hidden, RelativeTable


def saved(name: str, make: Any, directory: Path, config: dict[str, Any] | None = None, **tensors: Tensor) -> Any:
    """Save a random reference, with keys of its config changed and tensors added; return the reference."""
    theirs = randomised(Reference(name, make))
    theirs.save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text()) | (config or {})
    (directory / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    file = directory / "model.safetensors"
    save_file(load_file(file) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}, file)
    return theirs


def detector_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"dense__weight": (32, 32), "dense__bias": (32,), "LayerNorm__weight": (32,), "LayerNorm__bias": (32,)}
    shapes |= {"classifer__weight": (1, 32), "classifer__bias": (1,)}  # as the published code spells it
    return {f"mask_predictions__{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_files_of_v3_hold_both_heads(tmp_path: Path) -> None:
    extra = detector_tensors() | {"deberta__embeddings__position_embeddings__weight": torch.zeros(64, 32)}
    theirs = saved("v3", _deberta_v2(), tmp_path, {"architectures": None}, **extra)
    ours, _ = etymon.load(tmp_path)
    ids = tokens(2, 30)
    assert ours.spec.head == Hidden()
    assert relative(ours(ids).last_hidden_state, theirs.deberta(ids).last_hidden_state) < 1e-5
    saved("v3", _deberta_v2(), tmp_path, {"architectures": ["DebertaV2ForMaskedLM"]}, **extra)
    assert relative(etymon.load(tmp_path)[0](ids).logits, theirs(ids).logits) < 1e-5


def test_the_detector_of_replaced_tokens(tmp_path: Path) -> None:
    extra = detector_tensors()
    theirs = saved("v3", _deberta_v2(), tmp_path, {"architectures": ["ReplacedTokenDetectionModel"]}, **extra)
    ours, _ = etymon.load(tmp_path)
    assert isinstance(ours.spec.head, Discriminator)
    ids, replaced = tokens(2, 30), tokens(2, 30, seed=2) % 2
    hidden = theirs.deberta(ids).last_hidden_state
    p = {name.removeprefix("mask_predictions__"): tensor for name, tensor in extra.items()}
    x = F.layer_norm(hidden[:, :1] + hidden, (32,), p["LayerNorm__weight"], p["LayerNorm__bias"], 1e-7)
    x = F.gelu(x @ p["dense__weight"].T + p["dense__bias"])
    logits = (x @ p["classifer__weight"].T + p["classifer__bias"]).squeeze(-1)
    output = ours(ids, labels=replaced)
    assert relative(output.logits, logits) < 1e-5
    assert relative(output.loss, F.binary_cross_entropy_with_logits(logits, replaced.float())) < 1e-5
    etymon.save(ours, None, tmp_path / "again", format="hf")
    again, _ = etymon.load(tmp_path / "again")
    assert dataclasses.replace(again.spec, name="") == dataclasses.replace(ours.spec, name="")
    assert torch.equal(again(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("make", [_deberta, _deberta_v2])
def test_the_old_and_the_new_form_of_the_head_are_one(make: Any, tmp_path: Path) -> None:
    theirs = saved("old", make(legacy=True), tmp_path)
    ours, _ = etymon.load(tmp_path)
    etymon.save(ours, None, tmp_path / "new", format="hf")
    assert not json.loads((tmp_path / "new" / "config.json").read_text())["legacy"]
    again, ids = type(theirs).from_pretrained(tmp_path / "new"), tokens(2, 30)
    assert not hasattr(again, "cls")
    assert relative(again(ids).logits, theirs(ids).logits) < 1e-6
    # the published files have the new form, and a config that does not say so
    values = json.loads((tmp_path / "new" / "config.json").read_text())
    (tmp_path / "new" / "config.json").write_text(json.dumps(values | {"legacy": True}))
    assert torch.equal(etymon.load(tmp_path / "new")[0](ids).logits, ours(ids).logits)


def test_two_tensors_for_one_place_are_refused(tmp_path: Path) -> None:
    saved("both", _deberta(), tmp_path, None, cls__predictions__bias=torch.zeros(97))
    with pytest.raises(CheckpointError, match=r"both 'cls.predictions.bias' and 'lm_predictions.lm_head.bias'"):
        etymon.load(tmp_path)


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (8, 30), (32, 512)])
def test_far_distances_share_vectors_in_logarithmic_steps(buckets: int, farthest: int) -> None:
    distance = torch.arange(-1200, 1201)
    expected = make_log_bucket_position(distance, buckets, farthest).long() + buckets
    table = Table(RelativeTable(span=buckets, max_distance=farthest), 8)
    assert torch.equal(table._row(distance), expected.clamp(0, 2 * buckets - 1))


@pytest.mark.parametrize("make", [_deberta(), _deberta_v2(), _deberta_v2(conv_kernel_size=3, conv_act="gelu")])
@pytest.mark.parametrize("time", [1, 2, 13, 64])
def test_every_length(make: Any, time: int, tmp_path: Path) -> None:
    theirs = saved("lengths", make, tmp_path)
    ours, _ = etymon.load(tmp_path)
    assert relative(ours(tokens(2, time)).logits, theirs(tokens(2, time)).logits) < 1e-5


def test_nothing_is_computed_for_distances_that_do_not_occur() -> None:
    model = build(family_named("deberta").spec(vocab=97, dim=32, layers=1, heads=4, context=512))
    seen = []
    scores = model.encoder.blocks[0]["attention"].op.scores
    scores.keys.register_forward_hook(lambda module, given, made: seen.append(len(made)))
    model(tokens(1, 9))
    assert seen == [17]


def test_a_mask_of_pairs_confines_as_documents_do() -> None:
    model = build(family_named("deberta").spec(**family_named("deberta").tiny))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    documents = torch.tensor([[0] * 9 + [1] * 4 + [2] * 7])
    seen = documents[:, :, None] == documents[:, None, :]
    ids = tokens(1, 20)
    assert relative(model(ids, seen).logits, model(ids, documents=documents).logits) < 1e-5
    assert relative(model(ids, seen).logits, model(ids).logits) > 1e-3


def test_what_is_refused() -> None:
    family, second = family_named("deberta"), family_named("deberta-v2")
    tiny = family.spec(**family.tiny)
    with pytest.raises(ConfigError, match=r"terms of the scores are .*p2p"):
        family.spec(**family.tiny | {"terms": ("c2p", "p2p")})
    with pytest.raises(ConfigError, match="RelativeTable where its attentions are Disentangled"):
        dataclasses.replace(tiny.encoder, relative=None)
    with pytest.raises(ConfigError, match="need keys or queries of positions"):
        Disentangled(keys=None, queries=None)
    with pytest.raises(ConfigError, match="kv_heads must be heads"):
        Attention(heads=4, kv_heads=2, head_dim=8, scores=Disentangled(keys=AsContents(), queries=None))
    with pytest.raises(ConfigError, match="kernel=4 must be odd"):
        Convolution(kernel=4, activation="gelu")
    spec = second.spec(**second.tiny)
    with pytest.raises(ConfigError, match="sees both sides: it belongs to a Bidirectional stack"):
        build(dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, visibility=Causal())))
    with pytest.raises(DataError, match="a convolution sees its neighbours"):
        build(spec)(tokens(1, 5), torch.ones(1, 5, 5))
    known = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    known |= {"intermediate_size": 48, "max_position_embeddings": 64, "pos_att_type": "c2p"}
    for key, value in {"relative_attention": False, "embedding_size": 16, "talking_head": True}.items():
        with pytest.raises(ConfigError, match=f"{key} = {value} is not supported"):
            family.format.read(ConfigReader(known | {key: value}, "config.json"))
    with pytest.raises(ConfigError, match="conv_groups = 2 is not supported"):
        second.format.read(ConfigReader(known | {"conv_groups": 2}, "config.json"))


_BASE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
_FIRST = _BASE | {"model_type": "deberta", "max_position_embeddings": 512, "relative_attention": True}
_FIRST |= {"pos_att_type": "c2p|p2c", "layer_norm_eps": 1e-7, "max_relative_positions": -1, "type_vocab_size": 0}
_FIRST |= {"position_biased_input": False, "padding_idx": 0, "vocab_size": 50265}
_SECOND = _FIRST | {"model_type": "deberta-v2", "position_buckets": 256, "norm_rel_ebd": "layer_norm"}
_SECOND |= {"share_att_key": True, "pos_att_type": "p2c|c2p", "vocab_size": 128100, "attention_head_size": 64}
_LONG = _BASE | {"model_type": "longformer", "attention_mode": "longformer", "ignore_attention_mask": False}
_LONG |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "sep_token_id": 2, "gradient_checkpointing": False}
_LONG |= {"layer_norm_eps": 1e-5, "max_position_embeddings": 4098, "type_vocab_size": 1, "vocab_size": 50265}


@pytest.mark.parametrize(
    ("size", "config", "width", "layers", "heads", "more"),
    [
        ("deberta-large", _FIRST, 1024, 24, 16, {}),
        ("deberta-v2-xxlarge", _SECOND, 1536, 48, 24, {"conv_act": "gelu", "conv_kernel_size": 3}),
        ("deberta-v3-small", _SECOND, 768, 6, 12, {}),
        ("deberta-v3-large", _SECOND, 1024, 24, 16, {"pooler_dropout": 0, "pooler_hidden_size": 1024}),
        ("longformer-base-4096", _LONG, 768, 12, 12, {"attention_window": [512] * 12}),
    ],
)
def test_published_configs_are_the_sizes(
    size: str, config: dict[str, Any], width: int, layers: int, heads: int, more: dict[str, Any]
) -> None:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    reader = ConfigReader(config | sizes | {"intermediate_size": 4 * width} | more, "config.json")
    family = family_named(config["model_type"])
    assert family.format.read is not None
    read = family.format.read(reader)
    reader.finish()
    assert dataclasses.replace(read, name=size) == family.spec(size, head=read.head)
