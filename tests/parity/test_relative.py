"""Attention that knows distances: Transformer-XL against recorded outputs, Gopher and Chinchilla against their
equations."""

from __future__ import annotations

import dataclasses
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
from etymon.errors import ConfigError
from etymon.families import family_named
from etymon.families.descent import with_attention, with_blocks
from etymon.nn import Model, count
from etymon.spec import Bidirectional

GOLDENS = Path(__file__).parent / "goldens"
# recorded from TransfoXLLMHeadModel of transformers 4.36.2, which is gone from later versions
RECORDED = ["transfo-xl-memory", "transfo-xl-prenorm"]


def checkpoint(name: str, directory: Path, **changes: Any) -> dict[str, Tensor]:
    """Lay the recorded weights out as a checkpoint directory; return all that was recorded."""
    recorded = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.partition(".")[2]: value for key, value in recorded.items() if key.startswith("weights.")}
    weights = {key.removeprefix("TransfoXLLMHeadModel0."): value for key, value in weights.items()}
    save_file(weights, directory / "model.safetensors")
    config = json.loads((GOLDENS / f"{name}.config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return recorded


def remembering(model: Model) -> Any:
    """A state as the reference begins: with as many zero vectors as it remembers."""
    state = model.new_state(2, 40)
    state.lengths.fill_(model.spec.trunk.blocks[0].subs[0].op.window or 0)
    return state


@pytest.fixture(params=RECORDED)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, dict[str, Tensor]]:
    recorded = checkpoint(request.param, tmp_path)
    return etymon.load(tmp_path)[0], recorded


def test_three_segments_with_memory(loaded: Any) -> None:
    model, recorded = loaded
    state = remembering(model)
    for call in range(3):
        output = model(recorded[f"call{call}.input_ids"], state=state, output_hidden_states=True)
        # (the reference returns logarithms of probabilities)
        assert relative(output.logits.log_softmax(-1), recorded[f"call{call}.logits"]) < TOLERANCE
        assert len(output.hidden_states) == 4
        for i, hidden in enumerate(output.hidden_states):
            assert relative(hidden, recorded[f"call{call}.hidden.{i}"]) < TOLERANCE


def test_loss_and_gradients(loaded: Any) -> None:
    model, recorded = loaded
    ids = recorded["call0.input_ids"]
    model.zero_grad()
    loss = model(ids, labels=ids, state=remembering(model)).loss
    assert relative(loss, recorded["loss"]) < TOLERANCE
    loss.backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    for rule in family_named("transformer_xl").tensors.weights(model.spec):
        gradient = rule.read([recorded[f"gradients.{name}"] for name in rule.published])
        assert relative(own.pop(rule.ours), gradient) < TOLERANCE, rule.ours
    assert not own


def test_saving_gives_the_same_tensors(loaded: Any, tmp_path: Path) -> None:
    model, recorded = loaded
    etymon.save(model, None, tmp_path / "again", format="hf")
    written = load_file(tmp_path / "again" / "model.safetensors")
    left_out = ("weights.transformer.pos_emb.inv_freq", "weights.crit.out_layers.0.weight")
    expected = {key[8:]: x for key, x in recorded.items() if key.startswith("weights.") and key not in left_out}
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in written.items())
    assert etymon.load(tmp_path / "again")[0].spec.to_dict() == model.spec.to_dict()


def test_a_reference_that_hides_everything_mixes_all_evenly(tmp_path: Path) -> None:
    """Without a memory, `same_length` hides every token from every other; the reference's softmax over nothing is even,
    and sees the future. So this golden says nothing about distances (those above do), and its form is refused here; but
    even scores, which a scale of 0 makes, give its outputs."""
    recorded = checkpoint("transfo-xl", tmp_path)
    with pytest.raises(ConfigError, match="hides all tokens from one another"):
        etymon.load(tmp_path)
    checkpoint("transfo-xl", tmp_path, same_length=False)
    model, _ = etymon.load(tmp_path)
    spec = with_blocks(model.spec, "transformer_xl", lambda block: with_attention(block, scale=0.0))
    stack = dataclasses.replace(spec.trunk, visibility=Bidirectional())
    even = Model(dataclasses.replace(spec, decoder=stack))
    even.load_state_dict(model.state_dict())
    ids, expected = recorded["call0.args.0"], recorded["final_output"]
    assert relative(even(ids).logits.log_softmax(-1), expected) < TOLERANCE
    assert relative(model(ids).logits.log_softmax(-1), expected) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"div_val": 4}, "adaptive vocabulary"),
        ({"cutoffs": [10]}, "adaptive vocabulary"),
        ({"untie_r": False}, "untie_r"),
        ({"d_embed": 16}, "d_embed"),
        ({"memory": 3}, "nobody reads the key 'memory'"),
    ],
)
def test_other_forms_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint("transfo-xl-memory", tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        etymon.load(tmp_path)


def relative_attention(weights: dict[str, Tensor], x: Tensor, heads: int, clamp: int | None) -> Tensor:
    """The four terms of Dai et al. 2019, section 3.3, one pair of tokens and one head at a time."""
    dim = x.shape[1]
    q, k, v = (x @ part.T for part in weights["qkv.weight"].split(dim))
    u, w = weights["scores.u.weight"], weights["scores.v.weight"]
    mixed = torch.zeros_like(x)
    frequencies = 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    for head in range(heads):
        own = slice(head * dim // heads, (head + 1) * dim // heads)
        for i in range(len(x)):
            scores = []
            for j in range(i + 1):
                distance = i - j if clamp is None else min(i - j, clamp)
                r = torch.cat([(distance * frequencies).sin(), (distance * frequencies).cos()])
                far = (weights["scores.distances.weight"] @ r)[own]
                scores.append(q[i, own] @ k[j, own] + q[i, own] @ far + u[head] @ k[j, own] + w[head] @ far)
            share = (torch.stack(scores) * (dim // heads) ** -0.5).softmax(0)
            mixed[i, own] = sum(p * v[j, own] for j, p in enumerate(share))
    return mixed @ weights["out.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("name", ["gopher", "chinchilla"])
def test_gopher_is_its_equations(name: str) -> None:
    family = family_named(name)
    model = randomised(family.spec(**family.tiny))
    state = model.state_dict()

    def norm(x: Tensor, slot: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * state[f"decoder.{slot}.weight"]

    ids = tokens(1, 11)
    x = state["embed.tokens.weight"][ids[0]]
    for i in range(2):
        prefix = f"decoder.blocks.{i}.attention.op."
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        x = x + relative_attention(weights, norm(x, f"blocks.{i}.attention.pre"), 4, None)
        up, down = (state[f"decoder.blocks.{i}.ffn.op.{part}.weight"] for part in ("up", "down"))
        x = x + torch.nn.functional.gelu(norm(x, f"blocks.{i}.ffn.pre") @ up.T) @ down.T
    logits = norm(x, "final_norm") @ state["embed.tokens.weight"].T
    assert relative(model(ids).logits[0], logits) < TOLERANCE


@pytest.mark.parametrize("family", ["gopher", "chinchilla"])
def test_counts_are_thirteen_squares_a_layer(family: str) -> None:
    for size in family_named(family).sizes:
        spec = family_named(family).spec(size)
        d, layers = spec.dim, len(spec.trunk.blocks)
        norms_and_biases = (2 * layers + 1) * d + 2 * layers * d
        assert count(spec).total == 13 * d * d * layers + 32000 * d + norms_and_biases


@pytest.mark.parametrize("name", ["transformer_xl", "gopher"])
def test_decoding_padding_and_packing(name: str) -> None:
    family = family_named(name)
    model = randomised(family.spec(**family.tiny))
    consistency.check_decoding(model)
    consistency.check_rows(model)
    consistency.check_padding(model)
    consistency.check_packing(model)
    consistency.check_half_precision(model.spec)


@torch.no_grad()
@pytest.mark.parametrize("change", [{"clamp": 8}, {"clamp": None}, {"window": 10}, {"window": None}])
def test_every_setting_counts(change: dict[str, Any]) -> None:
    family = family_named("transformer_xl")
    model, ids = randomised(family.spec(**family.tiny)), tokens(2, 30)
    other = Model(family.spec(**(family.tiny | change)))
    other.load_state_dict(model.state_dict())
    assert relative(other(ids).logits, model(ids).logits) > 100 * TOLERANCE
