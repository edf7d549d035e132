"""The command that names the first layer in which two models differ: it must name the one that was broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import etymon
from etymon.cli.main import app
from etymon.errors import CheckpointError, ConfigError, DataError
from etymon.evaluate.divergence import compare_traces, read_recording, trace, trace_transformers, write_recording
from etymon.families import family_named
from etymon.nn import Model, build
from etymon.quant import quantize_int8

FAMILIES = ["llama", "gpt2", "gpt_neox", "falcon", "opt", "bert", "albert", "t5", "bart"]
IDS = torch.randint(3, 97, (1, 20), generator=torch.Generator().manual_seed(0))


def randomised(name: str) -> Model:
    family = family_named(name)
    model = build(family.spec(**family.tiny)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1))
    return model


def saved(model: Model, directory: Path) -> Path:
    etymon.save(model, None, directory, format="hf")
    return directory


def compare(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["models", "compare", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_the_reference_is_found_and_agrees(name: str, tmp_path: Path) -> None:
    model = randomised(name)
    ours, theirs = trace(model, IDS), trace_transformers(saved(model, tmp_path / "hf"), model, IDS)
    found = compare_traces(ours, theirs, 1e-5)
    assert found.first is None
    inner = {place for place in ours if ".blocks." in place}
    assert inner <= {place.name for place in found.places}, "a layer of a block was not compared"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_broken_weight_is_named(name: str, tmp_path: Path) -> None:
    model = randomised(name)
    directory = saved(model, tmp_path / "hf")
    stack = "encoder" if model.spec.decoder is None else "decoder"
    layer = f"{stack}.blocks.{len(model.trunk.blocks) - 1}.attention.op.qkv"
    with torch.no_grad():
        model.get_submodule(layer).weight[3] += 0.1
    found = compare_traces(trace(model, IDS), trace_transformers(directory, model, IDS), 1e-5)
    assert found.first is not None
    assert found.first.name == f"{layer} output"


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("rms_norm_eps", 1e-2, "decoder.blocks.0.attention.pre output"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 500.0}, "decoder.blocks.0.attention.op.out input"),
        ("hidden_act", "gelu", "decoder.blocks.0.ffn.op.down input"),
    ],
)
def test_a_wrong_field_is_named_by_where_it_acts(key: str, value: Any, place: str, tmp_path: Path) -> None:
    right = saved(randomised("llama"), tmp_path / "right")
    wrong = saved(randomised("llama"), tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {key: value}))
    model, _ = etymon.load(wrong)
    first = compare_traces(trace(model, IDS), trace_transformers(right, model, IDS), 1e-5).first
    assert first is not None
    assert first.name == place


def test_the_command_beside_transformers(tmp_path: Path) -> None:
    model = randomised("llama")
    directory = saved(model, tmp_path / "hf")
    code, text = compare(directory)
    assert code == 0 and "The same as transformers" in text
    with torch.no_grad():
        model.decoder.blocks[1].ffn.op.down.weight[0] *= 3
    code, text = compare(saved(model, tmp_path / "broken"), directory)
    assert code == 1
    assert "first at decoder.blocks.1.ffn.op.down output." in text
    assert [line.split("│")[4].strip() for line in text.splitlines() if "decoder.blocks.0 " in line] == ["same"]


def test_the_command_beside_another_checkpoint(tmp_path: Path) -> None:
    model = randomised("gpt2")
    etymon.save(model, None, tmp_path / "own")
    small, _ = etymon.load(tmp_path / "own")
    etymon.save(quantize_int8(small), None, tmp_path / "int8")
    code, text = compare(tmp_path / "own", tmp_path / "int8")
    assert code == 1 and "first at decoder.blocks.0.attention.op.qkv output." in text
    assert compare(tmp_path / "own", tmp_path / "int8", "--tolerance", "0.1")[0] == 0


def test_recordings(tmp_path: Path) -> None:
    model = randomised("llama")
    etymon.save(model, None, tmp_path / "own")
    assert compare(tmp_path / "own", "--record", tmp_path / "trace.safetensors", "--length", "12")[0] == 0
    recorded, ids = read_recording(tmp_path / "trace.safetensors")
    assert ids.shape == (1, 12) and "decoder.blocks.1.ffn.op.down input" in recorded
    assert compare(tmp_path / "own", tmp_path / "trace.safetensors")[0] == 0
    # what another implementation can record without knowing our names
    output = model(IDS, output_hidden_states=True)
    stream = {f"hidden_states.{i}": x.detach().clone() for i, x in enumerate(output.hidden_states)}
    stream["hidden_states.1"][0, 3, 0] += 1.0
    save_file(stream | {"logits": output.logits.detach().clone(), "input_ids": IDS}, tmp_path / "stream.safetensors")
    code, text = compare(tmp_path / "own", tmp_path / "stream.safetensors")
    assert code == 1 and "first at hidden_states.1." in text


def test_what_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised("llama")
    write_recording(trace(model, IDS), IDS, tmp_path / "trace.safetensors")
    with pytest.raises(DataError, match="not the same architecture"):
        compare_traces(trace(model, IDS), trace(model, IDS[:, :5]), 1e-5)
    save_file({"logits": load_file(tmp_path / "trace.safetensors")["logits"]}, tmp_path / "no-ids.safetensors")
    with pytest.raises(DataError, match="needs input_ids"):
        read_recording(tmp_path / "no-ids.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(DataError, match="not a safetensors file"):
        read_recording(tmp_path / "junk.safetensors")
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        trace_transformers(tmp_path, model, IDS)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers"):
        trace_transformers(tmp_path, model, IDS)
