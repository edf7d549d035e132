"""LongLLaMA against recorded outputs of its authors' model file: windows, memory, what a state keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import consistency
import pytest
import torch
from consistency import TOLERANCE, randomised, relative, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

import etymon
from etymon.engine import Engine, EngineConfig, Request, Sampling
from etymon.errors import ConfigError, DataError
from etymon.families import family_named
from etymon.nn import Model
from etymon.spec import MemoryAttention

GOLDENS = Path(__file__).parent / "goldens"
TINY = family_named("longllama").tiny | {"window": 16, "last": 6}
# windows of 16, the end of a call in one of 6; the second has left padding and turns nothing in its memory layer
RECORDED = ["longllama-windows", "longllama-no-positions"]


def checkpoint(name: str, directory: Path, **changes: Any) -> dict[str, Tensor]:
    """Lay the recorded weights out as a checkpoint directory; return all that was recorded."""
    recorded = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.partition(".")[2]: value for key, value in recorded.items() if key.startswith("weights.")}
    weights = {key.removeprefix("LongLlamaForCausalLM0."): value for key, value in weights.items()}
    save_file(weights, directory / "model.safetensors")
    config = json.loads((GOLDENS / f"{name}.config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return recorded


def test_an_input_of_two_windows(tmp_path: Path) -> None:
    recorded = checkpoint("longllama", tmp_path)
    model, _ = etymon.load(tmp_path)
    ids, state = recorded["call0.kwargs.input_ids"], model.new_state(2, 40)
    assert relative(model(ids).logits, recorded["final_output"]) < TOLERANCE
    assert relative(model(ids, state=state).logits, recorded["final_output"]) < TOLERANCE
    # what the reference keeps in two places, the memory and the window, is one row of columns here
    for layer, cell in enumerate(state.cells):
        (keys, values), past = cell.tensors, f"call0.out.past_key_values.{layer}"
        local = slice(34, 40)
        if layer == 1:
            assert relative(keys[:, :, local], recorded[f"{past}.0"]) < TOLERANCE
            assert relative(keys[:, :, :34], recorded[f"{past}.3"]) < TOLERANCE
            assert relative(values[:, :, :34], recorded[f"{past}.4"]) < TOLERANCE
        assert relative(values[:, :, local], recorded[f"{past}.1"]) < TOLERANCE
    assert state.windows.tolist() == [34, 34]


@pytest.mark.parametrize("name", RECORDED)
def test_eight_calls_on_a_state(name: str, tmp_path: Path) -> None:
    recorded = checkpoint(name, tmp_path)
    model, _ = etymon.load(tmp_path)
    state, masks = model.new_state(2, 80), recorded.get("attention_mask")
    for call in range(8):
        ids = recorded[f"call{call}.input_ids"]
        held = int(state.lengths[0]) + ids.shape[1]
        mask = None if masks is None else masks[:, :held]
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, -ids.shape[1] :].bool()
        output = model(ids, mask, state=state, output_hidden_states=True)
        assert relative(output.logits[real], recorded[f"call{call}.logits"][real]) < TOLERANCE
        for i, hidden in enumerate(output.hidden_states):
            assert relative(hidden[real], recorded[f"call{call}.hidden.{i}"][real]) < TOLERANCE
    assert held == 76
    if masks is not None:  # which mattered
        state = model.new_state(2, 80)
        assert relative(model(recorded["call0.input_ids"], state=state).logits, recorded["call0.logits"]) > 1e-2


def test_loss_and_gradients_over_windows(tmp_path: Path) -> None:
    recorded = checkpoint("longllama-windows", tmp_path)
    model, _ = etymon.load(tmp_path)
    ids = recorded["call0.input_ids"]
    output = model(ids, labels=ids)
    assert relative(output.logits, recorded["alone.logits"]) < TOLERANCE
    assert relative(output.loss, recorded["loss"]) < TOLERANCE
    output.loss.backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    for rule in family_named("longllama").tensors.weights(model.spec):
        gradient = rule.read([recorded[f"gradients.{name}"] for name in rule.published])
        assert relative(own.pop(rule.ours), gradient) < TOLERANCE, rule.ours
    assert not own


@pytest.mark.parametrize("name", ["longllama", *RECORDED])
def test_saving_gives_the_same_tensors(name: str, tmp_path: Path) -> None:
    checkpoint(name, tmp_path)
    model, _ = etymon.load(tmp_path)
    etymon.save(model, None, tmp_path / "again", format="hf")
    weights, written = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
    assert etymon.load(tmp_path / "again")[0].spec.to_dict() == model.spec.to_dict()
    etymon.save(model, None, tmp_path / "own")
    assert etymon.load(tmp_path / "own")[0].spec == model.spec


@torch.no_grad()
def test_rows_in_different_windows_decode_together() -> None:
    model = randomised(family_named("longllama").spec(**TINY))
    rows, alone = model.new_state(3, 80), [model.new_state(1, 80) for _ in range(3)]
    for row, length in enumerate((3, 20, 37)):
        prompt = tokens(1, length, seed=row)
        model(prompt, state=alone[row])
        model(prompt, state=rows.rows(row, row + 1))
    assert rows.windows.tolist() == [0, 14, 31]
    for step in range(15):
        ids = tokens(3, 1 + step % 2, seed=10 + step)[:, : 1 + step % 2]
        together = model(ids, state=rows).logits
        for row in range(3):
            expected = model(ids[row : row + 1], state=alone[row]).logits
            assert relative(together[row], expected[0]) < TOLERANCE, (step, row)
    assert rows.windows.tolist() == [int(state.windows) for state in alone] == [16, 30, 47]
    rows.copy_row(2, 0)
    assert rows.windows[0] == 47
    ids = tokens(1, 2)
    assert relative(model(ids, state=rows.rows(0, 1)).logits, model(ids, state=alone[2]).logits) < TOLERANCE
    with pytest.raises(DataError, match="cannot go back"):
        rows.truncate(1, 5)
    rows.truncate(1, 0)
    assert rows.windows[1] == 0
    prompt = tokens(1, 20, seed=1)
    assert relative(model(prompt, state=rows.rows(1, 2)).logits, model(prompt).logits) < TOLERANCE


def test_within_a_window_it_is_llama() -> None:
    model = randomised(family_named("longllama").spec(**TINY | {"window": 64, "last": 32}))
    sizes = {key: TINY[key] for key in ("vocab", "dim", "layers", "heads", "hidden")}
    llama = Model(family_named("llama").spec(**sizes, context=64))
    llama.load_state_dict(model.state_dict())
    ids = tokens(2, 30)
    assert torch.equal(model(ids).logits, llama(ids).logits)
    consistency.check_decoding(model)
    consistency.check_padding(model)
    consistency.check_packing(model)
    consistency.check_half_precision(model.spec)


@torch.no_grad()
def test_the_engine_reads_prompts_of_several_windows() -> None:
    model = randomised(family_named("longllama").spec(**TINY))
    requests = [Request(tokens(1, n)[0].tolist(), Sampling(temperature=0.0, max_tokens=12)) for n in (3, 9, 30, 4, 41)]
    together = Engine(model, None, EngineConfig(slots=3, chunk=8)).generate(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = Engine(model, None, EngineConfig(slots=1, chunk=8)).generate([request])
        assert answer.ids == alone.ids and len(answer.ids) == 12


@torch.no_grad()
def test_documents_keep_to_themselves_beyond_a_window() -> None:
    model = randomised(family_named("longllama").spec(**TINY))
    ids, documents = tokens(1, 40), torch.arange(40).ge(25).long()[None]
    logits = model(ids, documents=documents).logits
    other = torch.cat((tokens(1, 25, seed=9), ids[:, 25:]), 1)
    assert relative(model(other, documents=documents).logits[:, 25:], logits[:, 25:]) < TOLERANCE
    assert relative(model(other).logits[:, 25:], model(ids).logits[:, 25:]) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    "change", [{"window": 12}, {"last": 5}, {"memory_layers": (0,)}, {"memory_positions": False}, {"rope_base": 500.0}]
)
def test_every_setting_counts(change: dict[str, Any]) -> None:
    family = family_named("longllama")
    model, ids = randomised(family.spec(**TINY)), tokens(2, 30)
    other = Model(family.spec(**(TINY | change)))
    other.load_state_dict(model.state_dict())
    assert relative(other(ids).logits, model(ids).logits) > 100 * TOLERANCE


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    family = family_named("longllama")
    with pytest.raises(ConfigError, match="there is no layer 3"):
        family.spec(**TINY | {"memory_layers": (1, 3)})
    with pytest.raises(ConfigError, match="last=20 must lie between 1 and size=16"):
        family.spec(**TINY | {"last": 20})
    with pytest.raises(ConfigError, match="softcap does not go together with a memory"):
        MemoryAttention(heads=1, kv_heads=1, head_dim=8, softcap=3.0)
    checkpoint("longllama", tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    with pytest.raises(ConfigError, match="rope_scaling"):
        etymon.load(tmp_path)
