"""DeepSeekMoE against transformers' LLaMA, whose feed-forward layers are the mixtures of its DeepSeek-V2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import etymon
from etymon.families import family_named
from etymon.nn import Model, build

transformers = pytest.importorskip("transformers")
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe  # noqa: E402


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model, Path]:
    family = family_named("deepseek_moe")
    ours = build(family.spec(**(family.tiny | {"layers": 3})))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (p.dim() == 1))
    directory = tmp_path_factory.mktemp("deepseek_moe")
    etymon.save(ours, None, directory / "hf", format="hf")
    ours, _ = etymon.load(directory / "hf")
    return composed(load_file(directory / "hf" / "model.safetensors"), ours), ours, directory


def composed(tensors: dict[str, Tensor], ours: Model) -> Any:
    """The reference's parts with the tensors under their published names."""
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    mixture = {"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 2}
    for i in (1, 2):
        theirs.model.layers[i].mlp = DeepseekV2Moe(transformers.DeepseekV2Config(**(sizes | mixture))).eval()
        prefix = f"model.layers.{i}.mlp.experts"
        parts = {x: [tensors.pop(f"{prefix}.{e}.{x}_proj.weight") for e in range(6)] for x in ("gate", "up", "down")}
        gate_up = [torch.cat(both) for both in zip(parts["gate"], parts["up"], strict=True)]
        tensors |= {f"{prefix}.gate_up_proj": torch.stack(gate_up), f"{prefix}.down_proj": torch.stack(parts["down"])}
    theirs.load_state_dict(tensors)
    return theirs


def test_logits_and_gradients(pair: tuple[Any, Model, Path]) -> None:
    theirs, ours, _ = pair
    ids = torch.randint(0, 97, (3, 30), generator=torch.Generator().manual_seed(1))
    expected, got = theirs(ids, labels=ids), ours(ids, labels=ids)
    assert relative(got.logits, expected.logits) < 1e-5
    expected.loss.backward()
    got.loss.backward()
    for i in (1, 2):
        own, reference = ours.decoder.blocks[i]["ffn"].op, theirs.model.layers[i].mlp
        assert relative(own.router.weight.grad, reference.gate.weight.grad) < 1e-5
        assert relative(own.experts.up.weight.grad, reference.experts.gate_up_proj.grad) < 1e-5
        assert relative(own.shared.down.weight.grad, reference.shared_experts.down_proj.weight.grad) < 1e-5


def test_cached_decoding_and_saving(pair: tuple[Any, Model, Path]) -> None:
    theirs, ours, directory = pair
    ids = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(2))
    state = ours.new_state(2, 20)
    with torch.no_grad():
        cached = torch.cat([ours(part, state=state).logits for part in ids.split([7, 1, 1, 11], 1)], 1)
        assert relative(cached, theirs(ids).logits) < 1e-5
    etymon.save(ours, None, directory / "again", format="hf")
    first, again = (load_file(directory / name / "model.safetensors") for name in ("hf", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
