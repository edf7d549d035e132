"""GLM, ChatGLM-6B and GLM-130B: recorded outputs of their published implementations, and filling in blanks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import consistency
import pytest
import torch
from encoder_references import TOLERANCE, relative, tokens
from safetensors.torch import load_file
from test_goldens_encoders import GOLDENS, assert_saved_alike, golden, loaded
from torch import Tensor

from etymon.errors import ConfigError, DataError
from etymon.families import ConfigReader, family_named, family_of_model_type
from etymon.families.descent import with_attention
from etymon.nn import Model, build
from etymon.spec import Causal, Infill, Rope


def test_glm(tmp_path: Path) -> None:
    weights, io = golden("glm")
    model = loaded(tmp_path, "glm", weights)
    ids, positions, separators = (io[f"call0.args.{i}"] for i in range(3))
    assert relative(model(ids, separators, positions).logits, io["call0.out.0"]) < TOLERANCE
    sight = torch.ones(2, 12, 12).tril()
    sight[:, :, :8] = 1
    assert relative(model(ids, sight, positions).logits, io["call0.out.0"]) < TOLERANCE
    assert relative(model(ids, None, positions).logits, io["call0.out.0"]) < TOLERANCE  # places say where it begins
    assert relative(model(ids, separators).logits, io["call0.out.0"]) > 1e-3
    assert_saved_alike(model, weights, tmp_path, without=())


def test_chatglm(tmp_path: Path) -> None:
    weights, io = golden("chatglm")
    # its config says that the head is tied, which only happens when such a model is loaded; this one was not
    model = loaded(tmp_path, "chatglm", weights, tie_word_embeddings=False)
    ids, positions = io["call0.kwargs.input_ids"], io["call0.kwargs.position_ids"]
    sight = ~io["call0.kwargs.attention_mask"][:, 0]  # theirs marks what is hidden
    assert relative(model(ids, sight, positions).logits, io["final_output"]) < TOLERANCE
    assert relative(model(ids, None, positions).logits, io["final_output"]) < TOLERANCE
    assert relative(model(ids).logits, io["final_output"]) > 1e-3
    assert model.spec.trunk.visibility.begin == 90 and model.spec.trunk.visibility.blanks == (92, 93)
    assert_saved_alike(model, weights, tmp_path, without=("inv_freq",))


def test_glm_130b(tmp_path: Path) -> None:
    recorded = load_file(GOLDENS / "glm-130b.safetensors")
    weights = {key.removeprefix("weights."): t for key, t in recorded.items() if key.startswith("weights.")}
    model = loaded(tmp_path, "glm-130b", weights)
    assert relative(model(recorded["inputs.ids"]).logits, recorded["final_output"]) < TOLERANCE
    assert_saved_alike(model, weights, tmp_path, without=("inv_freq",))


# -- by default, all follows from the ids: `begin` is at column 8, the blank at 7 or 5 --


def chatglm(directory: Path) -> tuple[Model, dict[str, Tensor]]:
    """The recorded ChatGLM, for which two ids of the recorded text are [gMASK] and `begin`."""
    weights, io = golden("chatglm")
    special = {"gmask_token_id": 35, "bos_token_id": 29, "tie_word_embeddings": False}
    return loaded(directory, "chatglm", weights, **special), io


def glm(directory: Path, row: int) -> tuple[Model, Tensor, Tensor]:
    """The recorded GLM, for which two ids of a recorded row are [MASK] and `begin`; that row and its logits."""
    weights, io = golden("glm")
    ids = io["call0.args.0"][row : row + 1]
    special = {"sop_token_id": int(ids[0, 8]), "blank_token_ids": [int(ids[0, 5])]}
    return loaded(directory, "glm", weights, **special), ids, io["call0.out.0"][row : row + 1]


def test_positions_and_sight_follow_from_the_ids(tmp_path: Path) -> None:
    model, io = chatglm(tmp_path)
    assert relative(model(io["call0.kwargs.input_ids"]).logits, io["final_output"]) < TOLERANCE
    for row in range(2):
        other, ids, expected = glm(tmp_path, row)
        assert relative(other(ids).logits, expected) < TOLERANCE


@pytest.mark.parametrize("family", ["chatglm", "glm"])
@pytest.mark.parametrize("chunks", [[9, 1, 1, 1], [11, 1], [10, 2], [9, 3]])
def test_decoding_goes_on_in_the_blank(tmp_path: Path, family: str, chunks: list[int]) -> None:
    if family == "chatglm":
        model, io = chatglm(tmp_path)
        ids, expected = io["call0.kwargs.input_ids"], io["final_output"]
    else:
        model, ids, expected = glm(tmp_path, 0)
    state = model.new_state(1, 16)
    logits = torch.cat([model(chunk, state=state).logits for chunk in ids.split(chunks, 1)], 1)
    assert relative(logits, expected) < TOLERANCE
    state.truncate(0, 9)  # back into the filling, and once more
    again = model(ids[:, 9:], state=state).logits
    assert relative(again, expected[:, 9:]) < TOLERANCE
    state.truncate(0, 0)  # another text, without a blank: from left to right
    plain = ids[:, :7].flip(1)
    parts = torch.cat([model(chunk, state=state).logits for chunk in plain.split((3, 4), 1)], 1)
    assert relative(parts, model(plain).logits) < TOLERANCE


def test_decoding_goes_on_behind_given_positions(tmp_path: Path) -> None:
    """Given once, with the prompt, positions need not be given again."""
    weights, io = golden("glm")
    model = loaded(tmp_path, "glm", weights)
    ids, positions, separators = (io[f"call0.args.{i}"] for i in range(3))
    expected = io["call0.out.0"]
    for mask in (separators, None):
        state = model.new_state(2, 16)
        parts = [model(ids[:, :10], mask, positions[:, :, :10], state=state).logits]
        parts += [model(ids[:, i : i + 1], state=state).logits for i in (10, 11)]
        assert relative(torch.cat(parts, 1), expected) < TOLERANCE


def test_rows_of_different_lengths_decode_together(tmp_path: Path) -> None:
    model, io = chatglm(tmp_path)
    long = io["call0.kwargs.input_ids"]
    short = long[:, 4:]
    full = [model(ids).logits for ids in (long, short)]
    state = model.new_state(3, 16)
    model(long[:, :10], state=state.rows(0, 1))
    model(torch.cat([short[:, :6], long[:, :3]], 1), state=state.rows(1, 2))  # padded at the end, as the engine does
    state.truncate(1, 6)
    for step in range(2):
        ids = torch.stack([long[0, 10 + step], short[0, 6 + step]])[:, None]
        logits = model(ids, state=state.rows(0, 2)).logits
        assert relative(logits[0, 0], full[0][0, 10 + step]) < TOLERANCE
        assert relative(logits[1, 0], full[1][0, 6 + step]) < TOLERANCE
    state.truncate(0, 10)
    state.copy_row(0, 2)
    assert relative(model(long[:, 10:], state=state.rows(2, 3)).logits, full[0][:, 10:]) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(tmp_path: Path, side: str) -> None:
    """Rotary positions are relative, so that padding on either side changes nothing, given positions or not."""
    model, io = chatglm(tmp_path)
    ids, pads = io["call0.kwargs.input_ids"], torch.full((1, 5), 3)
    row = torch.cat([pads, ids] if side == "left" else [ids, pads], 1)
    mask = torch.ones(1, 17)
    real = slice(5, 17) if side == "left" else slice(0, 12)
    mask[:, : real.start] = mask[:, real.stop :] = 0
    positions = torch.zeros(1, 2, 17, dtype=torch.int64)
    positions[:, :, real] = io["call0.kwargs.position_ids"]
    for given in (None, positions):
        logits = model(row, mask, given).logits
        assert relative(logits[:, real], io["final_output"]) < TOLERANCE
    assert relative(model(row).logits[:, real], io["final_output"]) > 1e-3 or side == "right"


def test_the_text_sees_itself_and_a_filling_what_came_before(tmp_path: Path) -> None:
    model, io = chatglm(tmp_path)
    ids = io["call0.kwargs.input_ids"]
    for changed in range(12):
        other = ids.clone()
        other[0, changed] = 50
        if changed in (7, 8):  # the blank and `begin` say where all stands: both are said instead
            given = {"attention_mask": torch.tensor([8]), "position_ids": io["call0.kwargs.position_ids"]}
        else:
            given = {}
        difference = (model(other, **given).logits - io["final_output"])[0].abs().amax(-1)
        assert (difference > 1e-5).tolist() == [place >= changed or changed < 8 for place in range(12)]


def test_glm_130b_stands_still_at_a_mask_and_goes_on_after_the_other(tmp_path: Path) -> None:
    recorded = load_file(GOLDENS / "glm-130b.safetensors")
    weights = {key.removeprefix("weights."): t for key, t in recorded.items() if key.startswith("weights.")}
    model = loaded(tmp_path, "glm-130b", weights, sop_token_id=90, mask_token_id=91)
    text = torch.tensor([[5, 91, 6, 7, 90, 8, 9]])
    sight = torch.ones(1, 7, 7).tril()
    sight[:, :, :4] = 1
    still = torch.tensor([[0, 1, 2, 3, 1, 1, 1]])
    assert relative(model(text).logits, model(text, sight, still).logits) < TOLERANCE
    onward = text.masked_fill(text == 91, 92)
    expected = model(onward, sight, torch.arange(7)[None]).logits
    assert relative(model(onward).logits, expected) < TOLERANCE
    state = model.new_state(1, 8)
    parts = [model(chunk, state=state).logits for chunk in text.split((5, 1, 1), 1)]
    assert relative(torch.cat(parts, 1), model(text).logits) < TOLERANCE


@pytest.mark.parametrize(("vocab", "first"), [(130528, 130000), (150528, 150000)])
def test_either_release_of_chatglm_knows_its_special_ids(vocab: int, first: int) -> None:
    values = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "inner_hidden_size": 48}
    reader = ConfigReader(values | {"vocab_size": vocab, "position_encoding_2d": True}, "config.json")
    spec = family_named("chatglm").format.read(reader)
    reader.finish()
    assert spec.trunk.visibility == Infill(begin=first + 4, blanks=(first + 1, first))
    assert spec.tied and spec.context == 2048


def test_glm_4_is_another_family_of_the_same_model_type() -> None:
    keys = {"block_position_encoding": True}
    assert family_of_model_type("glm", "config.json", keys.keys()).name == "glm"
    assert family_of_model_type("glm", "config.json").name == "glm4"


@pytest.mark.parametrize("axes", [2, 3])
def test_positions_of_two_axes_need_blanks(axes: int) -> None:
    spec = infilling("chatglm" if axes == 3 else "glm").spec
    assert spec.decoder is not None
    (block, *_), rule = spec.decoder.blocks, Causal() if axes == 2 else spec.decoder.visibility
    if axes == 3:
        block = with_attention(block, rope=Rope(dim=6, axes=3))
    with pytest.raises(ConfigError, match="positions have one axis, or two where a decoder fills in blanks"):
        dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, blocks=(block,), visibility=rule))


def test_what_is_refused(tmp_path: Path) -> None:
    model, io = chatglm(tmp_path)
    ids = io["call0.kwargs.input_ids"]
    with pytest.raises(DataError, match=r"pass attention_mask \[batch, time, time\]"):
        model(ids, documents=torch.zeros_like(ids))
    llama = build(family_named("llama").spec(**family_named("llama").tiny))
    with pytest.raises(DataError, match=r"position_ids are \[batch, time\]"):
        llama(ids, position_ids=io["call0.kwargs.position_ids"])
    model, ids, _ = glm(tmp_path, 0)
    with pytest.raises(DataError, match="place 65 in a blank lies beyond the 65 learned ones"):
        model(ids, position_ids=torch.tensor([[[0] * 12, [65] * 12]]))
    with pytest.raises(DataError, match="position 65 lies beyond the 65 learned positions"):
        model(ids, position_ids=torch.tensor([[[65] * 12, [0] * 12]]))


@pytest.mark.parametrize("family", ["glm", "chatglm", "glm130b"])
def test_a_training_step_reaches_every_parameter(family: str) -> None:
    chosen = family_named(family)
    model = build(chosen.spec(**chosen.tiny, begin=90, blanks=(91,)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.dim() == 1))
    ids = tokens(2, 12) % 90
    ids[:, 3], ids[:, 6] = 91, 90
    labels = ids.masked_fill(torch.arange(12) <= 6, -100)
    loss = model(ids, labels=labels).loss
    loss.backward()
    logits: Any = model(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, 6:-1].flatten(0, 1), ids[:, 7:].flatten())
    assert relative(loss, expected) < TOLERANCE
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


def infilling(family: str = "glm") -> Model:
    chosen = family_named(family)
    model = build(chosen.spec(**chosen.tiny, begin=90, blanks=(91, 92)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1))
    return model


def test_which_blank_is_filled() -> None:
    """The first of the first kind that is there; what fills it may contain the ids of blanks and of beginnings."""
    model = infilling()
    for text, place in (
        ([1, 92, 91, 2, 91, 90, 5, 6, 91, 90, 7], 2),
        ([1, 92, 3, 2, 92, 90, 5, 91, 91, 90, 7], 1),
        ([92, 91, 3, 2, 4, 90, 5, 91, 91, 90, 7], 1),
    ):
        ids = torch.tensor([text])
        places = torch.tensor([[0] * 5 + [1, 2, 3, 4, 5, 6]])
        positions = torch.tensor([[0, 1, 2, 3, 4] + [place] * 6])
        expected = model(ids, None, torch.stack((positions, places), 1)).logits
        assert relative(model(ids).logits, expected) < TOLERANCE
        state = model.new_state(1, 16)
        parts = [model(chunk, state=state).logits for chunk in ids.split((6, 1, 2, 1, 1), 1)]
        assert relative(torch.cat(parts, 1), expected) < TOLERANCE


@pytest.mark.parametrize("rest", [[2, 92, 90, 6], [2, 3, 90, 6]])
def test_a_row_that_goes_back_into_its_text_forgets_its_blank(rest: list[int]) -> None:
    model = infilling()
    sight = torch.ones(1, 5, 5).tril()  # of the left only: what is kept has not seen what is forgotten
    state = model.new_state(1, 8)
    model(torch.tensor([[1, 91, 90, 5]]), sight[:, :4, :4], state=state)
    state.truncate(0, 1)
    got = model(torch.tensor([rest]), sight[:, 1:], state=state).logits
    expected = model(torch.tensor([[1, *rest]]), sight).logits[:, 1:]
    assert relative(got, expected) < TOLERANCE


@pytest.mark.parametrize("family", ["glm", "chatglm", "glm130b"])
def test_plain_text_decodes_packs_and_rounds_as_any_decoder_s(family: str) -> None:
    chosen = family_named(family)
    model = consistency.randomised(spec := chosen.spec(**chosen.tiny, begin=0))
    consistency.check_decoding(model)
    consistency.check_rows(model)
    consistency.check_half_precision(spec)
    consistency.check_packing(model)
    if family != "glm":  # whose positions count from a row's first column
        consistency.check_padding(model)
