"""RETRO against recorded outputs of lucidrains' code, its paper's counts and its chunked cross-attention by hand."""

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
from etymon.nn import Model, build, count
from etymon.nn.layout import Layout, Passages
from etymon.nn.retrieval import ChunkedCrossAttention
from etymon.spec import ChunkedCrossAttention as ChunkedSpec
from etymon.spec import RelativeSinusoids, SourceAttention

GOLDENS = Path(__file__).parent / "goldens"
FAMILY = family_named("retro")
PAPER = FAMILY.tiny | {"rotary": False, "heads": 4, "head_dim": 8}


def checkpoint(name: str, directory: Path, **changes: Any) -> dict[str, Tensor]:
    """Lay the recorded weights out as a checkpoint directory; return all that was recorded."""
    recorded = load_file(GOLDENS / f"{name}.safetensors")
    weights = {key.partition(".")[2]: value for key, value in recorded.items() if key.startswith("weights.")}
    weights = {key.removeprefix("RETRO0."): value for key, value in weights.items()}
    save_file(weights, directory / "model.safetensors")
    config = json.loads((GOLDENS / f"{name}.config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return recorded


@pytest.fixture
def narrow(tmp_path: Path) -> tuple[Model, dict[str, Tensor]]:
    """A model whose encoder is narrower and sees chunks in its second layer; passages of 7 tokens, some of padding."""
    recorded = checkpoint("retro-narrow", tmp_path, neighbor_length=7)
    return etymon.load(tmp_path)[0], recorded


def test_recorded_logits(tmp_path: Path) -> None:
    recorded = checkpoint("retro", tmp_path)
    model, _ = etymon.load(tmp_path)
    logits = model(recorded["call0.args.0"], retrieved=recorded["call0.args.1"]).logits
    assert relative(logits, recorded["final_output"]) < TOLERANCE


def test_a_narrower_encoder_and_padding(narrow: Any) -> None:
    model, recorded = narrow
    ids, retrieved = recorded["input_ids"], recorded["retrieved"]
    assert relative(model(ids, retrieved=retrieved).logits, recorded["logits"]) < TOLERANCE
    assert relative(model(ids).logits, recorded["without.logits"]) < TOLERANCE
    one = recorded["one.retrieved"]
    for passages in (one, one[:, :, None]):
        assert relative(model(ids, retrieved=passages).logits, recorded["one.logits"]) < TOLERANCE
    assert relative(model(ids, retrieved=retrieved.clamp(min=1)).logits, recorded["logits"]) > 1e-3


def test_loss_and_gradients(narrow: Any) -> None:
    model, recorded = narrow
    output = model(recorded["input_ids"], retrieved=recorded["retrieved"], labels=recorded["input_ids"])
    assert relative(output.loss, recorded["loss"]) < TOLERANCE
    output.loss.backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    for rule in FAMILY.tensors.weights(model.spec):
        gradient = rule.read([recorded[f"gradients.{name}"] for name in rule.published])
        assert relative(own.pop(rule.ours), gradient) < TOLERANCE, rule.ours
    assert not own


def test_saving_gives_the_same_tensors(tmp_path: Path) -> None:
    for name in ("retro", "retro-narrow"):
        (directory := tmp_path / name).mkdir()
        checkpoint(name, directory)
        model, _ = etymon.load(directory)
        etymon.save(model, None, directory / "again", format="hf")
        weights, written = (load_file(d / "model.safetensors") for d in (directory, directory / "again"))
        assert written.keys() == {key for key in weights if not key.endswith("inv_freq")}
        assert all(torch.equal(tensor, weights[key]) for key, tensor in written.items())
        assert etymon.load(directory / "again")[0].spec.to_dict() == model.spec.to_dict()
        etymon.save(model, None, directory / "own")
        assert etymon.load(directory / "own")[0].spec == model.spec


def check_decoding(model: Model, ids: Tensor, retrieved: Tensor, full: Tensor) -> None:
    """Logits do not depend on how tokens are cut into calls, which bring the passages of the chunks they complete."""
    for cuts in ([1] * 18, [4, 4, 4, 4, 2], [5, 1, 3, 9], [3, 15], [17, 1], [18]):
        state, parts, held = model.new_state(2, 20), [], 0
        for part in ids.split(cuts, 1):
            done = slice(held // 4, (held + part.shape[1]) // 4)
            given = {"retrieved": retrieved[:, done]} if done.start < done.stop else {}
            parts.append(model(part, state=state, **given).logits)
            held += part.shape[1]
        assert relative(torch.cat(parts, 1), full) < TOLERANCE, cuts


@torch.no_grad()
def test_cached_decoding_equals_the_full_pass(narrow: Any) -> None:
    model, recorded = narrow
    check_decoding(model, recorded["input_ids"], recorded["retrieved"], recorded["logits"])
    paper = randomised(FAMILY.spec(**PAPER))
    ids, retrieved = tokens(2, 18), tokens(2, 4, 2, 8, seed=2)
    retrieved[0, 1, 1, 3:] = retrieved[1, 2] = 0
    full = paper(ids, retrieved=retrieved).logits
    assert torch.isfinite(full).all()
    check_decoding(paper, ids, retrieved, full)


@torch.no_grad()
def test_rows_of_a_state_are_copied_and_begin_anew(narrow: Any) -> None:
    model, recorded = narrow
    ids, retrieved, full = recorded["input_ids"], recorded["retrieved"], recorded["logits"]
    state = model.new_state(3, 20)
    model(ids, retrieved=retrieved[:, :4], state=state.rows(0, 2))
    with pytest.raises(DataError, match="cannot go back"):
        state.truncate(0, 5)
    state.truncate(0, 0)
    model(ids[:1, :10], retrieved=retrieved[:1, :2], state=state.rows(0, 1))
    state.copy_row(0, 2)
    logits = model(ids[:1, 10:], retrieved=retrieved[:1, 2:], state=state.rows(2, 3)).logits
    assert relative(logits, full[:1, 10:]) < TOLERANCE
    # one row has passages, the other read the same tokens without
    state = model.new_state(2, 20)
    model(ids[:1, :10], retrieved=retrieved[:1, :2], state=state.rows(0, 1))
    model(ids[1:, :10], state=state.rows(1, 2))
    logits = model(ids[:, 10:11], state=state).logits
    assert relative(logits[0], full[0, 10:11]) < TOLERANCE
    assert relative(logits[1], recorded["without.logits"][1, 10:11]) < TOLERANCE


@torch.no_grad()
def test_passages_are_seen_from_the_last_token_of_their_chunk_on(narrow: Any) -> None:
    model, recorded = narrow
    ids, retrieved = recorded["input_ids"], recorded["retrieved"]
    for chunk in range(4):
        other = retrieved.clone()
        other[:, chunk] = retrieved[:, chunk] % 90 + 3
        changed = (model(ids, retrieved=other).logits - recorded["logits"]).abs().amax(2)
        assert float(changed[:, : 4 * chunk + 3].max()) < 1e-5
        assert float(changed[:, 4 * chunk + 3 : 4 * chunk + 7].min()) > 1e-4
    for place in range(18):
        other = ids.clone()
        other[:, place] = ids[:, place] % 90 + 3
        changed = (model(other, retrieved=retrieved).logits - recorded["logits"]).abs().amax(2)
        assert place == 0 or float(changed[:, :place].max()) < 1e-5


@torch.no_grad()
def test_chunked_cross_attention_is_the_paper_s() -> None:
    """Equation by equation: the token at i sees the passages of chunk u = (i + 1) // m - 1, and stands at i - u m."""
    m, length, passages, dim, width, heads = 4, 5, 2, 12, 8, 3
    cross = SourceAttention(heads=heads, kv_heads=heads, head_dim=4, source=width, positions=RelativeSinusoids())
    op = ChunkedCrossAttention(ChunkedSpec(chunk=m, cross=cross), dim)
    generator = torch.Generator().manual_seed(0)
    for parameter in op.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    x, hidden = (torch.randn(shape, generator=generator) for shape in ((1, 14, dim), (1, 4, passages * length, width)))
    real = torch.rand(1, 4, passages * length, generator=generator) < 0.7
    layout = Layout((1, 14), x.device, attention_mask=None, position_ids=None, documents=None, state=None)
    reached = torch.tensor([[False, True, True, True]])
    layout.passages = Passages(hidden, real, reached, torch.arange(passages * length)[None] % length, 1)
    got = op(x, layout, None)[0]
    inner, frequencies = op.cross, 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    expected = torch.zeros(14, dim)
    for i in range(m - 1, 14):
        chunk = (i + 1) // m - 1
        keys, values = (hidden[0, chunk + 1] @ part.T for part in inner.kv.weight.split(12))
        query, mixed = inner.q.weight @ x[0, i], []
        for head in range(heads):
            own = slice(4 * head, 4 * head + 4)
            scores = []
            for j in range(passages * length):
                distance = i - chunk * m - j % length
                r = torch.cat([(distance * frequencies).sin(), (distance * frequencies).cos()])
                far = (inner.scores.distances.weight @ r)[own]
                u, v = inner.scores.u.weight[head], inner.scores.v.weight[head]
                score = (query[own] + u) @ keys[j, own] + (query[own] + v) @ far
                scores.append(score / 2 if real[0, chunk + 1, j] else torch.tensor(-torch.inf))
            mixed.append(torch.stack(scores).softmax(0) @ values[:, own])
        expected[i] = inner.out.weight @ torch.cat(mixed)
    assert relative(got, expected) < TOLERANCE
    assert not got[: m - 1].any()


def test_counts_are_the_paper_s() -> None:
    """Table 1, which leaves out the embeddings, and its baselines without retrieval."""
    published = {"retro-172m": 172e6, "retro-425m": 425e6, "retro-1.5b": 1.451e9, "retro-7.5b": 7.532e9}
    baselines = {"retro-172m": 132e6, "retro-425m": 368e6, "retro-1.5b": 1.309e9, "retro-7.5b": 6.982e9}
    assert published.keys() == FAMILY.sizes.keys()
    for size in published:
        assert abs(count(FAMILY.spec(size)).non_embedding / published[size] - 1) < 0.005
        assert abs(count(FAMILY.spec(size, cross_layers=())).non_embedding / baselines[size] - 1) < 0.005


@pytest.mark.parametrize("dimensions", [FAMILY.tiny, PAPER], ids=["published", "paper"])
def test_without_passages_it_is_a_decoder(dimensions: dict[str, Any]) -> None:
    model = randomised(FAMILY.spec(**dimensions))
    consistency.check_decoding(model)
    if not dimensions["rotary"]:
        consistency.check_padding(model)
        consistency.check_packing(model)
    requests = [Request(tokens(1, n)[0].tolist(), Sampling(temperature=0.0, max_tokens=6)) for n in (3, 9, 14)]
    for request, answer in zip(requests, Engine(model, None, EngineConfig(slots=2)).generate(requests), strict=True):
        ids = torch.tensor([request.prompt])
        for _ in range(6):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
        assert list(answer.ids) == ids[0, len(request.prompt) :].tolist()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    for dimensions in (FAMILY.tiny, PAPER):
        spec = FAMILY.spec(**dimensions)
        ids, retrieved = tokens(2, 18), tokens(2, 4, 2, 8, seed=2)
        exact = randomised(spec)(ids, retrieved=retrieved).logits
        logits = randomised(spec).to(dtype)(ids, retrieved=retrieved).logits
        assert logits.dtype == dtype and relative(logits.float(), exact) < 30 * torch.finfo(dtype).eps


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    model, ids = build(FAMILY.spec(**FAMILY.tiny)), tokens(2, 10)
    for given, message in (
        ({"retrieved": tokens(2, 3, 2, 8)}, "completes 2 chunks of 4 tokens, but retrieved is of 3"),
        ({"retrieved": tokens(2, 2)}, r"retrieved has shape \(2, 2\), expected \(2, chunks, passages, length\)"),
        ({"retrieved": tokens(2, 2, 2, 8) + 97}, "is not in the vocabulary of 97"),
        ({"retrieved": tokens(2, 2, 2, 8), "documents": torch.zeros_like(ids)}, "without documents"),
    ):
        with pytest.raises(DataError, match=message):
            model(ids, **given)
    state = model.new_state(2, 20)
    with pytest.raises(DataError, match="a state holds 2 passages of 8 tokens"):
        model(ids, retrieved=tokens(2, 2, 2, 9), state=state)
    state = model.new_state(2, 20)
    model(ids, retrieved=tokens(2, 2, 2, 8), state=state)
    with pytest.raises(DataError, match="completes 1 chunks of 4 tokens, but retrieved is of 0"):
        model(tokens(2, 4), state=state)
    other = family_named("gopher")
    with pytest.raises(DataError, match="sees no passages"):
        build(other.spec(**other.tiny))(ids, retrieved=tokens(2, 2, 2, 8))
    with pytest.raises(ConfigError, match="rotary positions and 8 heads"):
        etymon.save(build(FAMILY.spec(**PAPER)), None, tmp_path / "hf", format="hf")
    with pytest.raises(ConfigError, match="the decoder has layers 1 to 3"):
        FAMILY.spec(**FAMILY.tiny | {"cross_layers": (4,)})
    checkpoint("retro", tmp_path, heads=4)
    with pytest.raises(ConfigError, match="heads = 4 is not supported here"):
        etymon.load(tmp_path)
