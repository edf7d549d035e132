"""GGUF files against the `gguf` package, transformers' reader, and files made to harm."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import etymon
from etymon.errors import CheckpointError, ConfigError, EtymonError
from etymon.families import family_named
from etymon.hub import ggml
from etymon.hub.gguf import open_gguf, write_gguf
from etymon.spec import LinearScaling, Llama3Scaling, YarnScaling
from etymon.text import Tokenizer

TYPES = {storage.name: getattr(gguf.GGMLQuantizationType, storage.name) for storage in ggml.STORAGES.values()}
LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)


def model(dim: int = 64, **changes: Any) -> Any:
    family = family_named("llama")
    sizes = {"vocab": 300, "dim": dim, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 2 * dim, "context": 64}
    built = etymon.build(family.spec(**(sizes | changes)), seed=3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return built


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "F16", "BF16", "F32"])
def test_written_bytes_are_the_reference_s(name: str) -> None:
    numbers = torch.randn(16, 512, generator=torch.Generator().manual_seed(0)) * 3
    numbers[0] = 0
    numbers[1, :32] = torch.arange(32) / 2 - 8
    storage = next(storage for storage in ggml.STORAGES.values() if storage.name == name)
    expected = gguf.quants.quantize(numbers.numpy(), TYPES[name]).view(np.uint8)
    assert np.array_equal(storage.write(numbers).numpy(), expected.reshape(-1))


@pytest.mark.parametrize("name", TYPES)
def test_numbers_read_are_the_reference_s(name: str) -> None:
    storage = next(storage for storage in ggml.STORAGES.values() if storage.name == name)
    raw = torch.randint(0, 256, (64 * storage.nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    if name.startswith("Q"):  # scales that are numbers
        halves = {"Q8_0": (0,), "Q4_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}[name]
        for at in halves:
            raw.view(64, -1)[:, at + 1] &= 0x3F
    got = storage.read(raw.clone(), (64, storage.values)).float().numpy()
    expected = gguf.quants.dequantize(raw.numpy().reshape(64, -1), TYPES[name])
    assert np.array_equal(got, expected.reshape(got.shape), equal_nan=True)


# -- files ------------------------------------------------------------------------------------------------------------

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True, "kv_heads": 4, "eps": 1e-6, "rope_base": 5e5},
    "linear": {"rope_scaling": LinearScaling(factor=2.0)},
    "llama3": {"rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YarnScaling(factor=4.0, original_context=16)},
    "wide-heads": {"head_dim": 32},
    "biases": {"attention_bias": True, "ffn_bias": True},
}


@pytest.mark.parametrize("variation", VARIATIONS)
def test_a_model_survives(variation: str, tmp_path: Path) -> None:
    ours = model(**VARIATIONS[variation])
    etymon.save(ours, None, tmp_path / "m.gguf", format="gguf", quantization="f32")
    again, tokenizer = etymon.load(tmp_path / "m.gguf")
    assert tokenizer is None
    assert again.spec.decoder == ours.spec.decoder
    assert again.spec.to_dict() | {"name": ""} == ours.spec.to_dict() | {"name": ""}
    for (name, a), b in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("quantization", ["f32", "f16", "q8_0", "q4_0"])
def test_the_reference_reads_what_we_write(quantization: str, tmp_path: Path) -> None:
    ours = model()
    etymon.save(ours, None, tmp_path / "m.gguf", format="gguf", quantization=quantization)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == quantization.upper()
    assert types["output.weight"] == {"q4_0": "Q8_0"}.get(quantization, quantization.upper())
    assert types["output_norm.weight"] == "F32"
    with open_gguf(tmp_path / "m.gguf") as file:
        for tensor in reader.tensors:
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            got = file.read(tensor.name).float().numpy()
            assert np.array_equal(got, expected.reshape(got.shape)), tensor.name


@pytest.mark.parametrize("quantization", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("variation", ["plain", "tied"])
def test_transformers_computes_the_same(quantization: str, variation: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["hello world"] * 5, 280)
    etymon.save(
        model(**VARIATIONS[variation]), tokenizer, tmp_path / "m.gguf", format="gguf", quantization=quantization
    )
    ours, _ = etymon.load(tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.randint(0, 280, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = theirs(ids).logits
    assert float((ours(ids).logits - expected).abs().max() / expected.abs().max()) < 1e-5


def test_precision(tmp_path: Path) -> None:
    ours, ids = model(dim=256), torch.arange(40)[None]
    error = {}
    for quantization in ("f16", "q8_0", "q4_0"):
        etymon.save(ours, None, tmp_path / "m.gguf", format="gguf", quantization=quantization)
        logits = etymon.load(tmp_path / "m.gguf", dtype=torch.float32)[0](ids).logits
        error[quantization] = float((logits - ours(ids).logits).norm() / ours(ids).logits.norm())
    assert error["f16"] < 0.004 < error["q8_0"] < 0.1 < error["q4_0"] < 1
    assert etymon.load(tmp_path / "m.gguf")[0].dtype == torch.float32


def test_rows_that_are_no_whole_blocks_stay_halves(tmp_path: Path) -> None:
    etymon.save(model(dim=48), None, tmp_path / "m.gguf", format="gguf", quantization="q8_0")
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.entries["blk.0.attn_q.weight"].storage.name == "F16"
        assert file.entries["blk.0.ffn_down.weight"].storage.name == "Q8_0"


def test_what_the_format_cannot_hold(tmp_path: Path) -> None:
    family = family_named("gpt2")
    with pytest.raises(ConfigError, match="written for models of the family 'llama', not 'gpt2'"):
        etymon.save(etymon.build(family.spec(**family.tiny)), None, tmp_path / "m.gguf", format="gguf")
    with pytest.raises(ConfigError, match="no place for the activation 'relu'"):
        etymon.save(model(activation="relu"), None, tmp_path / "m.gguf", format="gguf")
    with pytest.raises(ConfigError, match="unknown quantization 'q5_1'; known: f32, f16, q8_0, q4_0"):
        etymon.save(model(), None, tmp_path / "m.gguf", format="gguf", quantization="q5_1")
    assert not list(tmp_path.iterdir())


# -- untrusted files --------------------------------------------------------------------------------------------------


def written(path: Path, metadata: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **tensors: Tensor) -> Path:
    etymon.save(model(), None, path, format="gguf", quantization="q8_0")
    with open_gguf(path) as file:
        changed = file.metadata | (metadata or {})
        kept = {name: file.read(name) for name in file.names() - set(drop)} | tensors
    write_gguf(path, {k: v for k, v in changed.items() if v != "remove"}, [(n, t, ggml.F32) for n, t in kept.items()])
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "bloom"}, "general.architecture is 'bloom'; read here is 'llama' only"),
        ({"llama.expert_count": 8}, "expert_count = 8 is not supported"),
        ({"llama.rope.scaling.attn_factor": 2.0}, "nobody reads the key 'llama.rope.scaling.attn_factor'"),
        ({"llama.block_count": "remove"}, "the key 'llama.block_count' is missing"),
        ({"llama.block_count": 3}, "9 tensors are missing"),
        ({"llama.feed_forward_length": "many"}, "should be int"),
        ({"llama.attention.head_count": 0}, "are no model"),
        ({"llama.vocab_size": 301}, "vocab_size = 301 is not supported"),
        ({"split.count": 2}, "one of 2 parts"),
    ],
)
def test_metadata_are_all_understood(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EtymonError, match=message):
        etymon.load(written(tmp_path / "m.gguf", change))


def test_tensors_are_all_consumed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nobody consumes 1 tensors: blk.0.extra.weight"):
        etymon.load(written(tmp_path / "m.gguf", **{"blk.0.extra.weight": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=r"missing: model.layers.1.mlp.up_proj.weight"):
        etymon.load(written(tmp_path / "m.gguf", drop=("blk.1.ffn_up.weight",)))
    with pytest.raises(CheckpointError, match="scales frequencies by no formula"):
        etymon.load(written(tmp_path / "m.gguf", **{"rope_freqs.weight": torch.rand(8) + 1}))


def test_other_storage_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    numbers = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    writer.add_tensor(
        "token_embd.weight",
        gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q5_0),
        raw_dtype=gguf.GGMLQuantizationType.Q5_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is stored as Q5_0; read are F32, F16"):
        etymon.load(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [0, 3, 4, 12, 24, 100, 1000, -1])
def test_truncated(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    etymon.save(model(), None, path, format="gguf", quantization="q4_0")
    end = path.read_bytes().rstrip(b"\0")
    path.write_bytes(end[:keep])
    with pytest.raises(CheckpointError, match=r"m\.gguf: .*(truncated|empty)"):
        etymon.load(path)


def test_hostile_headers_never_crash(tmp_path: Path) -> None:
    path, chosen = tmp_path / "m.gguf", random.Random(0)
    etymon.save(model(), Tokenizer.train(["hello world"] * 5, 280), path, format="gguf", quantization="q8_0")
    raw = path.read_bytes()
    with open_gguf(path) as file:
        body = min(entry.start for entry in file.entries.values())
    refused = 0
    for _ in range(400):
        damaged = bytearray(raw)
        for _ in range(chosen.choice([1, 1, 3])):
            at = chosen.choice([chosen.randrange(64), chosen.randrange(body)])
            damaged[at : at + 8] = chosen.choice(
                [
                    bytes([chosen.randrange(256)]) + damaged[at + 1 : at + 8],
                    b"\xff" * 8,
                    bytes(8),
                    b"\xff" * 7 + b"\x7f",
                ]
            )
        path.write_bytes(damaged)
        try:
            etymon.load(path)
        except EtymonError:
            refused += 1
    assert refused > 200


# -- tokenizers -------------------------------------------------------------------------------------------------------

TEXT = "Hello  world, 你好世界! 👩‍👩‍👧 def f(x):\n\treturn x  # 12345 <|end|> \x00\x7f"


def test_a_trained_tokenizer_travels_along(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train([TEXT] * 5, 290)
    etymon.save(model(), tokenizer, tmp_path / "m.gguf", format="gguf")
    _, again = etymon.load(tmp_path / "m.gguf")
    assert again is not None
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert (again.bos_id, again.eos_id, again.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert again.chat_template == tokenizer.chat_template
    assert again.stop_ids == tokenizer.stop_ids
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 300
    assert fields["tokenizer.ggml.pre"].contents() == "etymon"


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_the_lists_alone_say_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "sentencepiece":
        tokenizer = _sentencepiece(tmp_path)
    else:
        tokenizer = Tokenizer.load(_pair(tmp_path))
    path = tmp_path / "m.gguf"
    etymon.save(model(vocab=tokenizer.vocab_size), tokenizer, path, format="gguf")
    with open_gguf(path) as file:
        metadata = {k: v for k, v in file.metadata.items() if k != "tokenizer.huggingface.json"}
        tensors = [(name, file.read(name).float(), ggml.F32) for name in file.names()]
    write_gguf(path, metadata, tensors)
    _, again = etymon.load(path)
    assert again is not None
    for text in (TEXT, " leading", "", "a" * 30, "</s><|endoftext|>"):
        assert again.encode(text) == tokenizer.encode(text), text
        assert again.decode(again.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert again.eos_id == tokenizer.eos_id
    assert again.special.items() >= {name: id for name, id in tokenizer.special.items() if name != "<unk>"}.items()
    for key, value, message in (
        ("tokens", metadata["tokenizer.ggml.tokens"][:-1], "entries for|no merge of"),
        ("model", "t5", "'t5' is not read here"),
        ("tokens", "none", "missing or no list"),
        ("token_type", [99] * tokenizer.vocab_size, "99 is not a valid Kind"),
    ):
        write_gguf(path, metadata | {f"tokenizer.ggml.{key}": value}, tensors)
        with pytest.raises(EtymonError, match=message):
            etymon.load(path)


def _pair(directory: Path) -> Path:
    from tokenizers import ByteLevelBPETokenizer

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator([TEXT] * 5, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    trainer.save_model(str(directory))
    return directory


def _sentencepiece(directory: Path) -> Tokenizer:
    import io

    spm = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    lines = [
        line for line in (TEXT.replace("\x00", ""), "the quick brown fox jumps over it", "aaaa aaa aa") for _ in "xy"
    ]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        minloglevel=2,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    (directory / "tokenizer.model").write_bytes(out.getvalue())
    return Tokenizer.load(directory)
