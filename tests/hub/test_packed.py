"""Checkpoints whose weights were published in four or eight bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import etymon
from etymon.errors import CheckpointError, ConfigError
from etymon.families import family_named
from etymon.hub.packed import MXFP4, BlockFP8
from etymon.nn import Model, build

MX: dict[str, Any] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
FP8: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [16, 12],
}


def random_model(family: str, **dimensions: object) -> Model:
    named = family_named(family)
    model = build(named.spec(**(named.tiny | dimensions)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1))
    return model.eval()


def packed_checkpoint(model: Model, directory: Path, settings: dict[str, Any], pack: Any) -> tuple[Path, Path]:
    """Save `model` twice: packed, and with what the packed tensors stand for."""
    etymon.save(model, None, directory / "plain", format="hf")
    etymon.save(model, None, directory / "packed", format="hf")
    tensors, packed = load_file(directory / "plain" / "model.safetensors"), {}
    for name, tensor in dict(tensors).items():
        for suffix, part in pack(name, tensor).items():
            if suffix is None:
                tensors[name] = part.contiguous()
            else:
                packed[name + suffix] = part.contiguous()
    save_file(tensors, directory / "plain" / "model.safetensors", {"format": "pt"})
    save_file(packed, directory / "packed" / "model.safetensors", {"format": "pt"})
    path = directory / "packed" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return directory / "plain", directory / "packed"


def mxfp4(name: str, tensor: Tensor) -> dict[str | None, Tensor]:
    if not name.endswith(("gate_up_proj", "down_proj")):
        return {"": tensor}
    convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
    generator = torch.Generator().manual_seed(len(name))
    experts, width, rows = tensor.shape
    blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(120, 128, (experts, rows, width // 32), generator=generator, dtype=torch.uint8)
    return {"_blocks": blocks, "_scales": scales, None: convert(blocks, scales, dtype=torch.float32)}


def fp8(name: str, tensor: Tensor) -> dict[str | None, Tensor]:
    if "proj" not in name:
        return {"": tensor}
    rows, columns = tensor.shape
    factors = torch.rand(-(-rows // 16), -(-columns // 12), generator=torch.Generator().manual_seed(rows))
    small = (tensor * 100).to(torch.float8_e4m3fn)
    meant = small.float()
    for i in range(rows):
        for j in range(columns):
            meant[i, j] *= factors[i // 16, j // 12]
    return {"": small, "_scale_inv": factors, None: meant.bfloat16().float()}


@pytest.mark.parametrize("kind", ["mxfp4", "fp8"])
def test_packed_weights_are_what_they_stand_for(kind: str, tmp_path: Path) -> None:
    if kind == "mxfp4":
        model, pack, settings = random_model("gpt_oss", hidden=64), mxfp4, MX
    else:
        model, pack, settings = random_model("deepseek_v3"), fp8, FP8
    plain, packed = packed_checkpoint(model, tmp_path, settings, pack)
    (ours, _), (expected, _) = (etymon.load(path, dtype=torch.float32) for path in (packed, plain))
    assert ours.spec == expected.spec
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    ids = torch.arange(20)[None]
    assert torch.equal(ours(ids).logits, expected(ids).logits)
    assert not torch.equal(ours(ids).logits, model(ids).logits)
    etymon.save(ours, None, tmp_path / "again", format="hf")  # in full precision, without the section
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert torch.equal(etymon.load(tmp_path / "again")[0](ids).logits, expected(ids).logits)


def test_every_number_of_four_bits() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    scales = torch.full((1, 1, 16), 128, dtype=torch.uint8)
    got = MXFP4().unpack(blocks, scales)[0, :, 0]
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    values += [-v for v in values]
    assert got.tolist() == [2 * values[half] for byte in range(256) for half in (byte % 16, byte // 16)]


def test_faults_of_packed_checkpoints_are_named(tmp_path: Path) -> None:
    _, packed = packed_checkpoint(random_model("gpt_oss", hidden=64), tmp_path, MX, mxfp4)
    file, config = packed / "model.safetensors", packed / "config.json"
    tensors, values = load_file(file), json.loads(config.read_text())
    name = "model.layers.0.mlp.experts.down_proj"
    save_file({n: t for n, t in tensors.items() if n != name + "_blocks"}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="down_proj_blocks' is missing"):
        etymon.load(packed)
    save_file({n: t for n, t in tensors.items() if n != name + "_scales"}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.0\.mlp\.experts\.down_proj"):
        etymon.load(packed)
    save_file(tensors | {name + "_scales": torch.zeros(3, 5, dtype=torch.uint8)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="do not fit together"):
        etymon.load(packed)
    for section, message in (
        ({"quant_method": "gptq"}, "quant_method 'gptq' is not supported"),
        (FP8 | {"fmt": "e5m2"}, "fmt = 'e5m2'"),
        (MX | {"bits": 3}, "nobody reads the key 'bits'"),
    ):
        config.write_text(json.dumps(values | {"quantization_config": section}))
        with pytest.raises(ConfigError, match=message):
            etymon.load(packed)


def test_blocks_at_the_edge_are_smaller() -> None:
    weight = torch.ones(5, 7).to(torch.float8_e4m3fn)
    got = BlockFP8(rows=4, columns=4).unpack(weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert got[3, 3] == 1 and got[3, 4] == 2 and got[4, 0] == 3 and got[4, 6] == 4
