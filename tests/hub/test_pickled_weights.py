"""Checkpoints that torch.save wrote: read, but nothing of them is run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import etymon
from etymon.errors import CheckpointError
from etymon.families import family_named


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    family = family_named("llama")
    etymon.save(etymon.build(family.spec(**family.tiny), seed=3), None, tmp_path / "model", format="hf")
    return tmp_path / "model"


def pickled(directory: Path, shards: int = 1, **how: Any) -> None:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names, mapping = sorted(tensors), {}
    for i in range(shards):
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = {name: tensors[name] for name in names[i::shards]}
        torch.save(part, directory / file, **how)
        mapping |= dict.fromkeys(part, file)
    if shards > 1:
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": mapping}))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_single_and_sharded(checkpoint: Path, shards: int, zipped: bool) -> None:
    expected = etymon.load(checkpoint)[0].state_dict()
    pickled(checkpoint, shards, _use_new_zipfile_serialization=zipped)
    found = etymon.load(checkpoint)[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_safetensors_come_first(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"not looked at")
    etymon.load(checkpoint)


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_more_is_refused(
    checkpoint: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    torch.save({"a": Hostile()}, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: this pickle asks for posix.mkdir; nothing but"):
        etymon.load(checkpoint)
    assert not (checkpoint / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected tensors by name, found list"),
        ({"a": 3}, "'a' is int, not a plain tensor"),
        ({"state_dict": {}}, "'state_dict' is dict"),
        ({1: torch.zeros(1)}, "expected tensors by name"),
        ({"model.norm.weight": torch.zeros(2).to_sparse()}, "not a plain tensor"),
    ],
)
def test_other_contents_are_refused(checkpoint: Path, content: Any, message: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save(content, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        etymon.load(checkpoint)


@pytest.mark.parametrize("keep", [0, 2, 100, 2000, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(checkpoint: Path, keep: int, zipped: bool) -> None:
    pickled(checkpoint, _use_new_zipfile_serialization=zipped)
    path = checkpoint / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        etymon.load(checkpoint)


def test_an_index_that_lies(checkpoint: Path) -> None:
    pickled(checkpoint, 2)
    index = checkpoint / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))
    with pytest.raises(CheckpointError, match="not the name of a file in this directory"):
        etymon.load(checkpoint)
    index.write_text(json.dumps({"weight_map": {"a": "absent.bin"}}))
    with pytest.raises(CheckpointError, match=r"absent\.bin: the file is missing"):
        etymon.load(checkpoint)
