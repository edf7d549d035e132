"""The layer behind DeepSeek-V3's last one is read as a sequential head: its numbers, drafting, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm
from typer.testing import CliRunner

import etymon
from etymon.cli.main import app
from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.errors import CheckpointError
from etymon.hub import holds_future_heads, read_future_heads
from etymon.nn.layout import Layout
from etymon.nn.mtp import SequentialHeads

LAYERS = 2


class Ahead(torch.nn.Module):
    """What a published layer behind the last one holds, by its names."""

    def __init__(self, config: DeepseekV3Config, number: int) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.layer = DeepseekV3DecoderLayer(config, number)
        self.enorm, self.hnorm, self.norm = (DeepseekV3RMSNorm(dim, eps) for _ in range(3))
        self.eh_proj = torch.nn.Linear(2 * dim, dim, bias=False)

    def published(self, model: DeepseekV3ForCausalLM, number: int) -> dict[str, torch.Tensor]:
        own = {name.removeprefix("layer."): tensor for name, tensor in self.state_dict().items()}
        own["shared_head.norm.weight"] = own.pop("norm.weight")
        own |= {"embed_tokens.weight": model.model.embed_tokens.weight, "shared_head.head.weight": model.lm_head.weight}
        return {f"model.layers.{number}.{name}": tensor.detach().clone() for name, tensor in own.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DeepseekV3ForCausalLM, list[Ahead]]:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=12,
        n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, n_shared_experts=2, n_group=4,
        topk_group=2, first_k_dense_replace=1, max_position_embeddings=96, attn_implementation="eager",
        experts_implementation="eager",
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    heads = [Ahead(config, LAYERS + k).eval() for k in range(2)]
    with torch.no_grad():
        for module in (model, *heads):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if "inv_freq" not in name:
                    tensor.copy_(torch.randn(tensor.shape) * 0.3 + (1.0 if name.endswith("norm.weight") else 0.0))
    path = tmp_path_factory.mktemp("published")
    model.save_pretrained(path)
    more = {name: tensor for k, head in enumerate(heads) for name, tensor in head.published(model, LAYERS + k).items()}
    for name, tensor in list(more.items()):  # experts are published apart, whatever transformers holds
        if ".experts." in name and tensor.dim() == 3:
            del more[name]
            mixture, _, kind = name.partition(".experts.")
            parts = ("gate_proj", "up_proj") if "gate_up" in kind else ("down_proj",)
            for expert, matrix in enumerate(tensor):
                for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                    more[f"{mixture}.experts.{expert}.{part}.weight"] = rows.contiguous()
    stored = load_file(path / "model.safetensors")
    assert {n.split(".", 3)[3] for n in stored if ".layers.1." in n} <= {n.split(".", 3)[3] for n in more}
    save_file(stored | more, path / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((path / "config.json").read_text()) | {"num_nextn_predict_layers": 2}
    (path / "config.json").write_text(json.dumps(values))
    return path, model, heads


def test_they_compute_what_the_published_modules_do(
    published: tuple[Path, DeepseekV3ForCausalLM, list[Ahead]], caplog: pytest.LogCaptureFixture
) -> None:
    """Against a composition of transformers' modules, by the report's formula; what loading leaves out is said."""
    path, reference, modules = published
    model, _ = etymon.load(path)
    assert "layers behind the last one" in caplog.text and f"heads:{path}" in caplog.text
    heads = read_future_heads(path)
    assert isinstance(heads, SequentialHeads) and heads.depth == 2 and holds_future_heads(path)
    ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(1))
    hidden, theirs = model(ids).last_hidden_state, reference.model(ids).last_hidden_state
    embedded = model.embed(ids, None, Layout((2, 20), ids.device), {})
    for k, module in enumerate(modules, 1):
        places = 20 - k
        hidden = heads(hidden[:, :places], embedded[:, k:], Layout((2, places), ids.device), k - 1)
        joined = torch.cat(
            (module.enorm(reference.model.embed_tokens(ids[:, k:])), module.hnorm(theirs[:, :places])), -1
        )
        positions = torch.arange(places)[None]
        mask = torch.full((places, places), -torch.inf).triu(1)[None, None]
        turn = reference.model.rotary_emb(joined, positions)
        made = module.layer(
            module.eh_proj(joined), attention_mask=mask, position_ids=positions, position_embeddings=turn
        )
        theirs = module.norm(made)
        said, expected = model.head(hidden), reference.lm_head(theirs)
        assert torch.allclose(said, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))


def test_the_engine_drafts_by_the_checkpoint_itself(
    published: tuple[Path, DeepseekV3ForCausalLM, list[Ahead]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etymon.engine.speculation.worth", lambda share, tokens, rows, cost, device: 2)
    path, _, _ = published
    model, _ = etymon.load(path)
    asked = [Request([5, 9, 3, 7], Sampling(temperature=0, max_tokens=12))]
    engine = Engine(model, None, EngineConfig(speculation=f"heads:{path}"))
    assert engine.generate(asked)[0].ids == Engine(model, None).generate(asked)[0].ids
    assert engine.metrics.drafted > 10 and not engine._speculator._rest
    result = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "ours"), "--format", "etymon"])
    assert result.exit_code == 0, result.output
    ours, theirs = read_future_heads(tmp_path / "ours").state_dict(), read_future_heads(path).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_heads_of_their_own_and_layers_in_part_are_refused(
    published: tuple[Path, DeepseekV3ForCausalLM, list[Ahead]], tmp_path: Path
) -> None:
    path, _, _ = published
    config, tensors = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = dict(tensors)
    other["model.layers.2.shared_head.head.weight"] = other["model.layers.2.shared_head.head.weight"] + 1
    save_file(other, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"shared_head.head.weight' differs"):
        read_future_heads(tmp_path)
    part = {name: tensor for name, tensor in tensors.items() if not name.endswith("2.eh_proj.weight")}
    save_file(part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="nobody consumes"):
        etymon.load(tmp_path)
    none = {name: tensor for name, tensor in tensors.items() if ".layers.2." not in name and ".layers.3." not in name}
    save_file(none, tmp_path / "model.safetensors", metadata={"format": "pt"})
    etymon.load(tmp_path)  # as transformers writes it
    assert not holds_future_heads(tmp_path)
    with pytest.raises(CheckpointError, match=r"future_heads.json: the file is missing"):
        read_future_heads(tmp_path)
