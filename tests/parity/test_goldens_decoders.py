"""Decoders whose reference is not in transformers, against recorded outputs of their published model files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import etymon
from etymon.errors import EtymonError
from etymon.families import family_named
from etymon.families.reader import ConfigReader
from etymon.nn import Model
from etymon.quant import quantize_int8

GOLDENS = Path(__file__).parent / "goldens"
# What a published config does not say: the tiny vocabulary is neither generation's.
SAID: dict[str, dict[str, Any]] = {
    "baichuan-7b": {},
    "baichuan-13b": {"norm_head": False},
    "baichuan2-13b": {"norm_head": True},
    "aquila": {},
    "codegen1": {"tie_word_embeddings": False},  # the original code does not tie, whatever its config says
    "codegen2": {"auto_map": {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}},
    "moss": {},
    "chatglm3": {},
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def checkpoint(name: str, directory: Path, **changes: Any) -> dict[str, Tensor]:
    """Lay the recorded weights out as a checkpoint directory; return all that was recorded."""
    recorded = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.split(".", 2)[2]: value for key, value in recorded.items() if key.startswith("weights.")}
    if name == "baichuan2-13b":  # whose code replaced the head by its rows of length 1 when it was first called
        weights["lm_head.weight"] = weights["lm_head.weight"] * torch.linspace(0.3, 3, 96)[:, None]
    save_file(weights, directory / "model.safetensors")
    config = json.loads((GOLDENS / f"{name}.config.json").read_text()) | SAID[name] | changes
    (directory / "config.json").write_text(json.dumps(config))
    return recorded


@pytest.fixture(params=SAID)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Model, dict[str, Tensor]]:
    recorded = checkpoint(request.param, tmp_path)
    model, _ = etymon.load(tmp_path)
    return request.param, model, recorded


def test_recorded_logits(loaded: Any) -> None:
    _, model, recorded = loaded
    ids, expected = recorded["call0.kwargs.input_ids"], recorded["final_output"]
    assert relative(model(ids).logits, expected) < 1e-5


def test_decoding_and_padding(loaded: Any) -> None:
    _, model, recorded = loaded
    ids, expected = recorded["call0.kwargs.input_ids"], recorded["final_output"]
    state, parts = model.new_state(2, 12), []
    for chunk in ids.split([5, 1, 1, 4, 1], 1):
        parts.append(model(chunk, state=state).logits)
    assert relative(torch.cat(parts, 1), expected) < 1e-5
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 12)], 1)
    padded, positions = torch.cat([ids[:, :3], ids], 1), (mask.cumsum(1) - 1).clamp(min=0).long()
    assert relative(model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:], expected) < 1e-5
    documents = torch.arange(2).repeat_interleave(12)[None]
    packed = model(ids.view(1, 24), documents=documents, position_ids=torch.arange(12).repeat(2)[None]).logits
    assert relative(packed.view_as(expected), expected) < 1e-5


def test_the_loss_and_its_gradients_are_those_of_the_logits(loaded: Any) -> None:
    _, model, recorded = loaded
    ids, expected = recorded["call0.kwargs.input_ids"], recorded["final_output"]
    logits = model(ids).logits
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    recorded_loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss = model(ids, labels=ids).loss
    assert relative(loss, recorded_loss) < 1e-5
    named = dict(model.named_parameters())
    pairs = zip(*(torch.autograd.grad(value, list(named.values())) for value in (loss, plain)), strict=True)
    for name, (ours, theirs) in zip(named, pairs, strict=True):
        assert relative(ours, theirs) < 1e-5, name


def test_saving_gives_the_same_tensors(loaded: Any, tmp_path: Path) -> None:
    _, model, _ = loaded
    etymon.save(model, None, tmp_path / "again", format="hf")
    weights, written = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    buffers = ("inv_freq", "causal_mask", "attn.bias", "masked_bias")
    assert written.keys() == {key for key in weights if not key.endswith(buffers)}
    assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
    assert etymon.load(tmp_path / "again")[0].spec.to_dict() == model.spec.to_dict()


@torch.no_grad()
def test_int8_keeps_rows_of_length_one(tmp_path: Path) -> None:
    recorded = checkpoint("baichuan2-13b", tmp_path)
    model, _ = etymon.load(tmp_path)
    ids, expected = recorded["call0.kwargs.input_ids"], recorded["final_output"]
    etymon.save(quantize_int8(model), None, tmp_path / "int8")
    again, _ = etymon.load(tmp_path / "int8")
    for quantized in (model, again):
        head = quantized.head.linear
        lengths = (head.weight * head.scale[:, None]).norm(dim=1)
        assert relative(lengths, torch.ones(96)) < 0.01
        assert relative(quantized(ids).logits, expected) < 0.05
        targets = ids.roll(-1, 1)
        by_logits = torch.nn.functional.cross_entropy(
            quantized(ids).logits.flatten(0, 1), targets.flatten(), reduction="sum"
        )
        assert relative(quantized.head.loss(quantized(ids).last_hidden_state, targets), by_logits) < 0.01


def test_which_baichuan_is_said_or_refused() -> None:
    def spec(**changes: Any) -> Any:
        sizes = {"vocab_size": 64000, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
        read = family_named("baichuan").format.read
        assert read is not None
        return read(ConfigReader(sizes | {"intermediate_size": 48, "rms_norm_eps": 1e-6} | changes, "config.json"))

    first, second = spec(max_position_embeddings=64), spec(model_max_length=64, vocab_size=125696)
    assert (first.lm.rows, second.lm.rows is None) == (None, False)
    assert first.decoder.blocks[0].subs[0].op.rope and second.decoder.blocks[0].subs[0].op.scores
    assert spec(max_position_embeddings=64, model_max_length=64).decoder.blocks[0].subs[0].op.rope
    with pytest.raises(EtymonError, match="add norm_head"):
        spec(max_position_embeddings=64, vocab_size=64001)
    with pytest.raises(EtymonError, match="positions of this Baichuan are not known"):
        spec()


def test_shards_of_codegen_are_said_or_refused(tmp_path: Path) -> None:
    def family(**changes: Any) -> str:
        read = family_named("codegen").format.read
        assert read is not None
        sizes = {"vocab_size": 96, "n_embd": 32, "n_head": 8, "n_layer": 2, "rotary_dim": 4}
        return read(ConfigReader(sizes | changes, "config.json")).family

    assert [family(), family(auto_map={}), family(mp_num=4, auto_map={}), family(mp_num=8)] == [
        *("codegen", "codegen2", "codegen", "codegen2"),
    ]
    assert family(n_layer=34, n_embd=6144) == "codegen"
    for changes in ({"mp_num": 3}, {"n_layer": 16, "n_embd": 2048}, {"n_layer": 20, "n_embd": 1024, "auto_map": {}}):
        with pytest.raises(EtymonError, match="set mp_num to 4"):
            family(**changes)
    recorded = checkpoint("codegen2", tmp_path, mp_num=4)
    model, _ = etymon.load(tmp_path)
    assert relative(model(recorded["call0.kwargs.input_ids"]).logits, recorded["final_output"]) > 0.1


def test_a_head_that_the_config_ties_but_the_file_does_not(tmp_path: Path) -> None:
    checkpoint("codegen1", tmp_path, tie_word_embeddings=True)
    with pytest.raises(EtymonError, match="set tie_word_embeddings to false"):
        etymon.load(tmp_path)
