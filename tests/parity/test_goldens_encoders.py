"""UniLM, AlexaTM, MASS and the original Transformer against recorded outputs of other people's implementations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import consistency
import pytest
import torch
from encoder_references import TOLERANCE, relative, tokens
from safetensors.torch import load_file, save_file
from torch import Tensor

import etymon
from etymon.errors import ConfigError, DataError
from etymon.families import family_named
from etymon.families.weights import Rule, affine
from etymon.nn import Model, build
from etymon.spec import Embed, LayerNorm

GOLDENS = Path(__file__).parent / "goldens"


def golden(name: str, prefixes: dict[str, str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights under their published names, and what went in and came out; `prefixes` stand for modules' names."""
    recorded = load_file(GOLDENS / f"{name}.safetensors")
    weights = {}
    for key, value in recorded.items():
        if key.startswith("weights."):
            _, module, parameter = key.split(".", 2)
            weights[(prefixes or {}).get(module, "") + parameter] = value
    return weights, {key: value for key, value in recorded.items() if not key.startswith("weights.")}


def loaded(directory: Path, name: str, weights: dict[str, Tensor], **config: Any) -> Model:
    """The model as a user loads it from a directory with these tensors and the golden's config."""
    save_file({key: value.clone() for key, value in weights.items()}, directory / "model.safetensors")
    values = json.loads((GOLDENS / f"{name}.config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | config))
    model, _ = etymon.load(directory)
    return model


def assert_saved_alike(model: Model, weights: dict[str, Tensor], directory: Path, *, without: tuple[str, ...]) -> None:
    """Saving gives the published tensors back, except buffers and copies of the embedding."""
    etymon.save(model, None, directory / "again", format="hf")
    written = load_file(directory / "again" / "model.safetensors")
    kept = {key for key in weights if not any(part in key for part in without)}
    assert written.keys() == kept
    assert all(torch.equal(written[key], weights[key]) for key in kept)
    again, _ = etymon.load(directory / "again")
    assert dataclasses.replace(again.spec, name="") == dataclasses.replace(model.spec, name="")


def test_unilm(tmp_path: Path) -> None:
    weights, io = golden("unilm_v1")
    model = loaded(tmp_path, "unilm_v1", weights)  # whose config names no model type
    given = {"token_type_ids": io["call0.kwargs.token_type_ids"]}
    got = model(io["call0.args.0"], io["call0.kwargs.attention_mask"], **given)
    assert relative(got.last_hidden_state, io["call0.out.0"]) < TOLERANCE
    assert relative(got.pooler_output, io["call0.out.1"]) < TOLERANCE
    unmasked = model(io["call0.args.0"], **given)
    assert relative(unmasked.last_hidden_state, io["call0.out.0"]) > 1e-3
    etymon.save(model, None, tmp_path / "again", format="hf")
    written = load_file(tmp_path / "again" / "model.safetensors")  # the published file leaves out "bert."
    assert {key.removeprefix("bert."): value.tolist() for key, value in written.items()} == {
        key: value.tolist() for key, value in weights.items()
    }
    with pytest.raises(ConfigError, match="relax_projection = 1 is not supported"):
        loaded(tmp_path, "unilm_v1", weights, relax_projection=1)


def test_alexatm(tmp_path: Path) -> None:
    weights, io = golden("alexatm")
    model = loaded(tmp_path, "alexatm", weights)
    source, target = io["call0.kwargs.input_ids"], io["call0.kwargs.decoder_input_ids"]
    got = model(source, decoder_input_ids=target)
    assert relative(got.logits, io["call0.out.logits"]) < TOLERANCE
    assert relative(got.encoder_last_hidden_state, io["call0.out.encoder_last_hidden_state"]) < TOLERANCE
    state, given, parts = model.new_state(2, 8, source_capacity=12), {"input_ids": source}, []
    for chunk in target.split((3, 1, 3), 1):
        parts.append(model(**given, decoder_input_ids=chunk, state=state).logits)
        given = {}
    assert relative(torch.cat(parts, 1), io["call0.out.logits"]) < TOLERANCE
    own = [cell.tensors for cell in state.cells if cell.tensors[0].shape[2] == 8]
    for layer, (keys, values) in enumerate(own):
        assert relative(keys[:, :, :7], io[f"call0.out.past_key_values.{layer}.0"]) < TOLERANCE
        assert relative(values[:, :, :7], io[f"call0.out.past_key_values.{layer}.1"]) < TOLERANCE
    copies = ("token_embeddings", "decoder.embed_tokens", "lm_head", "position_ids")
    assert_saved_alike(model, weights, tmp_path, without=copies)


def mass(directory: Path) -> tuple[Model, dict[str, Tensor], dict[str, Tensor]]:
    weights, io = golden("mass", {"TransformerModel0": "encoder.", "TransformerModel1": "decoder."})
    return loaded(directory, "mass", weights), weights, io


def mass_inputs(io: dict[str, Tensor]) -> dict[str, Tensor]:
    """Theirs are [time, batch]."""
    source = {"input_ids": io["call0.kwargs.x"].T, "langs": io["call0.kwargs.langs"].T}
    return source | {"decoder_input_ids": io["call1.kwargs.x"].T, "decoder_langs": io["call1.kwargs.langs"].T}


def test_mass(tmp_path: Path) -> None:
    model, weights, io = mass(tmp_path)
    got = model(**mass_inputs(io))
    assert relative(got.encoder_last_hidden_state.transpose(0, 1), io["call0.out"]) < TOLERANCE
    assert relative(got.last_hidden_state.transpose(0, 1), io["call1.out"]) < TOLERANCE
    table, bias = weights["decoder.pred_layer.proj.weight"], weights["decoder.pred_layer.proj.bias"]
    assert relative(got.logits, io["call1.out"].transpose(0, 1) @ table.T + bias) < TOLERANCE
    assert_saved_alike(model, weights, tmp_path, without=("encoder.pred_layer", "pred_layer.proj.weight"))


def test_mass_languages(tmp_path: Path) -> None:
    model, _, io = mass(tmp_path)
    given = mass_inputs(io)
    both = given["decoder_langs"].clone()
    both[0] = 0  # rows of a batch may be in different languages: each is as it is alone
    mixed = model(**given | {"decoder_langs": both}).logits
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in (given | {"decoder_langs": both}).items()}
        assert relative(mixed[row : row + 1], model(**alone).logits) < TOLERANCE
    assert relative(mixed[:1], model(**given).logits[:1]) > 1e-3
    del given["decoder_langs"]
    with pytest.raises(DataError, match="pass decoder_langs"):
        model(**given)


def test_mass_decodes_and_trains(tmp_path: Path) -> None:
    model, _, io = mass(tmp_path)
    given = mass_inputs(io)
    full = model(**given).logits
    state, parts = model.new_state(2, 8, source_capacity=12), []
    source = {name: given.pop(name) for name in ("input_ids", "langs")}
    for ids, langs in zip(*(given[f"decoder_{x}"].split((4, 1, 2), 1) for x in ("input_ids", "langs")), strict=True):
        parts.append(model(**source, decoder_input_ids=ids, decoder_langs=langs, state=state).logits)
        source = {}
    assert relative(torch.cat(parts, 1), full) < TOLERANCE
    model(**mass_inputs(io), labels=tokens(2, 7) % 96).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.decoder.blocks[0].cross.op.out.weight.grad[:32].abs().max() == 0  # of the language that nobody spoke


def transformer_rules(layers: int) -> list[Rule]:
    """How torch.nn.Transformer names the tensors of the original Transformer."""
    rules: list[Rule] = []
    for side in ("encoder", "decoder"):
        for i in range(layers):
            ours, theirs = f"{side}.blocks.{i}", f"{side}.layers.{i}"
            for kind in ("weight", "bias"):
                name = (f"{theirs}.self_attn.in_proj_{kind}",)
                rules.append(Rule(f"{ours}.attention.op.qkv.{kind}", name))
            rules += affine(f"{ours}.attention.op.out", f"{theirs}.self_attn.out_proj", bias=True)
            rules += affine(f"{ours}.attention.post", f"{theirs}.norm1", bias=True)
            rules += affine(f"{ours}.ffn.op.up", f"{theirs}.linear1", bias=True)
            rules += affine(f"{ours}.ffn.op.down", f"{theirs}.linear2", bias=True)
            rules += affine(f"{ours}.ffn.post", f"{theirs}.norm{3 if side == 'decoder' else 2}", bias=True)
            if side == "decoder":
                rules += affine(f"{ours}.cross.op.out", f"{theirs}.multihead_attn.out_proj", bias=True)
                rules += affine(f"{ours}.cross.post", f"{theirs}.norm2", bias=True)
        rules += affine(f"{side}.final_norm", f"{side}.norm", bias=True)
    return rules


def test_the_original_transformer_is_torch_s() -> None:
    """torch adds a norm at the end of both stacks, and leaves embeddings and positions to its caller."""
    weights, io = golden("nn_transformer")
    spec = family_named("marian").spec(vocab=1, dim=32, layers=2, heads=4, hidden=64)
    norm = LayerNorm(eps=1e-5)
    stacks = {side: dataclasses.replace(getattr(spec, side), final_norm=norm) for side in ("encoder", "decoder")}
    model = build(dataclasses.replace(spec, embed=Embed(), encoder_embed=Embed(), **stacks))
    state = {rule.ours: rule.read([weights[name] for name in rule.published]) for rule in transformer_rules(2)}
    used = {name for rule in transformer_rules(2) for name in rule.published}
    for i in range(2):  # one published matrix makes both of ours: queries, and keys with values
        for kind in ("weight", "bias"):
            name = f"decoder.layers.{i}.multihead_attn.in_proj_{kind}"
            q, kv = weights[name].split((32, 64))
            ours = f"decoder.blocks.{i}.cross.op"
            state |= {f"{ours}.q.{kind}": q, f"{ours}.kv.{kind}": kv}
            used.add(name)
    assert used == weights.keys()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(("embed.", "head.")) for name in missing)
    source, target = io["call0.args.0"], io["call0.args.1"]
    got = model(inputs_embeds=source, decoder_inputs_embeds=target, logits=False)
    assert relative(got.last_hidden_state, io["call0.out"]) < TOLERANCE


@pytest.mark.parametrize("family", ["mass", "alexatm"])
def test_padding_packing_and_half_precision_of_translators(family: str) -> None:
    chosen = family_named(family)
    model = consistency.randomised(spec := chosen.spec(**chosen.tiny))
    source, target = tokens(2, 12), tokens(2, 7, seed=2)

    def run(model: Model, source: Tensor, target: Tensor, **given: Any) -> Tensor:
        langs = {"langs": source % 2, "decoder_langs": target % 2} if spec.embed.languages else {}
        logits = model(source, decoder_input_ids=target, **langs, **given).logits
        assert logits is not None
        return logits

    expected = run(model, source, target)
    for side in (slice(0, 12), slice(4, 16)):
        padded, mask = torch.full((2, 16), 5), torch.zeros(2, 16)
        padded[:, side], mask[:, side] = source, 1
        positions = (torch.arange(16) - side.start).clamp(min=0)[None]
        assert relative(run(model, padded, target, attention_mask=mask, position_ids=positions), expected) < TOLERANCE
        assert relative(run(model, padded, target, position_ids=positions), expected) > 1e-3
    packed = run(
        model,
        source.view(1, 24),
        target.view(1, 14),
        documents=torch.arange(2).repeat_interleave(12)[None],
        position_ids=torch.arange(12).repeat(2)[None],
        decoder_documents=torch.arange(2).repeat_interleave(7)[None],
        decoder_position_ids=torch.arange(7).repeat(2)[None],
    )
    assert relative(packed.view(2, 7, -1), expected) < TOLERANCE
    for dtype in (torch.bfloat16, torch.float16):
        logits = run(consistency.randomised(spec).to(dtype), source, target)
        assert logits.dtype == dtype
        assert relative(logits.float(), expected) < 20 * torch.finfo(dtype).eps
