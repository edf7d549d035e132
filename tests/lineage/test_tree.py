"""The family tree: its nodes, and the differences that are computed from specs."""

from __future__ import annotations

import dataclasses

import pytest

from etymon.errors import ConfigError
from etymon.families import families, family_named
from etymon.lineage import Facts, changes, nearest, phrase, tree
from etymon.lineage.nodes import _descendants
from etymon.spec import ALiBi, LayerNorm, ModelSpec

NAMED = """
n-gram, NNLM, RNNLM, LSTM, GRU; BERT, RoBERTa, ALBERT, DeBERTa, XLNet, ELECTRA, XLM, XLM-R, UniLM, Longformer,
ERNIE; Transformer, T5, mT5, FLAN-T5, T0, UL2, BART, mBART, MASS, AlexaTM; GPT, GPT-2, GPT-3, Codex, GPT-Neo,
GPT-J, GPT-NeoX, Pythia, OPT, BLOOM, Galactica, Gopher, Chinchilla, LaMDA, PaLM, U-PaLM, Megatron-Turing NLG,
CodeGen, StarCoder, StarCoder2, Falcon, MPT, StableLM, MOSS, LLaMA, Llama 2, Llama 3, Code Llama, LongLLaMA,
LLaMA-Pro, TinyLlama, OpenLLaMA, Alpaca, Vicuna, Koala, Guanaco, Zephyr, Orca 2, FuseLLM, Chinese-LLaMA,
TigerBot, Baichuan, Aquila, Qwen, Qwen2, Qwen3, Mistral, Mixtral, GLaM, Grok-1, Phi, Gemma, Gemma 2, Gemma 3,
DeepSeek-Coder, DeepSeek-V2, DeepSeek-V3, OLMo 2, gpt-oss, GLM, ChatGLM-6B, GLM-130B, GLM-4, Mamba, Mamba-2,
RWKV-4, RETRO, InstructGPT, WebGPT, Sparrow, ChatGPT, GPT-4, Claude, PaLM 2, Med-PaLM, Flan-PaLM, Med-PaLM 2,
FLAN, Minerva, Gemini, Orca, Gorilla, Giraffe, Vigogne, Tülu, Stable Beluga 2, Dromedary, Palmyra, Camel,
YaLM, OPT-IML, MetaLM, PAL, CodeGen 2, Grok-0, DocLLM, KOSMOS-1, Flamingo, MiniGPT-4, Whisper, CLIP, DALL-E 2,
I-JEPA, Video-LLaMA, VisualGLM-6B, BELLE, Firefly, GPT4All, WizardLM, Chinese-Vicuna, SGPT, M3E,
Transformer-XL, ULMFiT, Toolformer, TALM, Atlas, Bard, Spark, ERNIE 3.0, ERNIE 4.0, Jurassic-1
"""


def test_every_model_that_the_lineage_names_is_a_node() -> None:
    titles = {node.title for node in tree().nodes.values()}
    named = {name.strip() for name in NAMED.replace("\n", " ").replace(";", ",").split(",")}
    assert named - titles == set()


def test_a_family_file_takes_the_place_of_an_entry_in_the_table() -> None:
    doubled = families().keys() & _descendants().keys()
    assert not doubled, f"descendants.yaml: these have a file in families/ now, remove them: {doubled}"
    titles = [node.title for node in tree().nodes.values()]
    assert len(titles) == len(set(titles)), "two nodes with one title"


def test_nobody_is_older_than_a_parent() -> None:
    nodes = tree().nodes
    late = [(node.name, p) for node in nodes.values() for p in node.parents if nodes[p].time > node.time]
    assert late == []


def test_everybody_descends_from_counting_words() -> None:
    nodes = tree()
    assert [root.name for root in nodes.roots] == ["ngram"]
    assert all(nodes.ancestors(node)[0].name == "ngram" for node in nodes.nodes.values())


def test_every_size_belongs_to_one_node() -> None:
    sizes = [size for node in tree().nodes.values() for size in node.sizes]
    assert sorted(sizes) == sorted((family.name, size) for family in families().values() for size in family.sizes)


def test_an_unknown_name_is_an_error_that_knows_a_near_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'llama'"):
        tree()["lama"]
    assert tree()["llama2-70b"].name == "llama2"
    assert tree()["Code Llama"].name == "codellama"


def difference(one: str, other: str) -> dict[str, tuple[str, str]]:
    nodes = tree()
    a, b = nearest(nodes[one].specs, nodes[other].specs)
    return {change.where: (change.before, change.after) for change in changes(a, b)}


def test_from_gpt3_to_llama() -> None:
    assert difference("gpt3", "llama") == {
        "embed.position": ("Learned", "–"),
        "head.tied": ("yes", "no"),
        "norm": ("LayerNorm", "RMSNorm"),
        "attention.bias": ("qkvo", "–"),
        "attention.rope": ("–", "Rope(base 10,000)"),
        "attention.window": ("all and 256 in turn", "all"),
        "ffn": ("Dense(gelu_tanh)", "Gated(silu)"),
    }


def test_what_an_encoder_and_its_decoder_share_is_told_once() -> None:
    assert difference("t5", "t5-v1_1") == {
        "head.tied": ("yes", "no"),
        "head.scale": ("1/√width", "1"),
        "ffn": ("Dense(relu, no bias)", "Gated(gelu_tanh)"),
    }
    assert difference("gpt1", "gpt2") == {"norm place": ("after the sum", "before"), "final norm": ("no", "yes")}
    assert difference("marian", "bert")["stacks"] == ("encoder and decoder", "encoder")
    assert "cross" not in difference("marian", "bert")


@pytest.mark.parametrize("family", families().values(), ids=lambda f: f.name)
def test_designs_do_not_depend_on_size(family) -> None:
    tiny = family.spec(**family.tiny)
    assert changes(tiny, dataclasses.replace(tiny, name="other", vocab=tiny.vocab * 2)) == []
    assert changes(tiny, tiny, sizes=True) == []
    wider = dataclasses.replace(tiny, vocab=tiny.vocab * 2)
    assert [c.where for c in changes(tiny, wider, sizes=True)] == ["vocab"]


def test_a_change_of_any_field_is_seen() -> None:
    spec = family_named("llama").spec("llama-7b")
    block = spec.trunk.blocks[0]
    attention, ffn = block.subs

    def with_blocks(*blocks) -> ModelSpec:
        return dataclasses.replace(spec, decoder=dataclasses.replace(spec.trunk, blocks=blocks * (32 // len(blocks))))

    def of(sub, **fields):
        return dataclasses.replace(sub, op=dataclasses.replace(sub.op, **fields))

    windowed = dataclasses.replace(block, subs=(of(attention, window=64), ffn))
    cases = {
        "attention.window": with_blocks(windowed, block),
        "attention.keys": with_blocks(dataclasses.replace(block, subs=(of(attention, kv_heads=8), ffn))),
        "attention.scores": with_blocks(dataclasses.replace(block, subs=(of(attention, scores=ALiBi()), ffn))),
        "ffn.activation": with_blocks(dataclasses.replace(block, subs=(attention, of(ffn, activation="relu")))),
        "ffn.beta": with_blocks(
            dataclasses.replace(block, subs=(attention, dataclasses.replace(ffn, beta=0.5)))
        ),
        "embed.norm": dataclasses.replace(spec, embed=dataclasses.replace(spec.embed, norm=LayerNorm())),
        "visibility": dataclasses.replace(
            spec, decoder=dataclasses.replace(spec.trunk, visibility=family_named("bert").spec(
                **family_named("bert").tiny).trunk.visibility)
        ),
    }  # fmt: skip
    for where, changed in cases.items():
        assert [change.where for change in changes(spec, changed)] == [where]
    assert changes(spec, cases["attention.window"])[0].after == "64 and all in turn"


def test_rows_that_take_turns() -> None:
    gemma3 = difference("gemma2", "gemma3")
    assert gemma3["attention.window"][0] == "4,096 and all in turn"
    assert gemma3["attention.window"][1].startswith("5 × ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama", "rotary positions, gated silu, RMSNorm, no windows, untied head, no biases"),
        ("gpt2", "norms before sublayers"),
        ("gpt_bigcode", "multi-query attention"),
        ("bloom", "ALiBi, no windows, embeddings normalised"),
        ("mixtral", "8 experts, 2 for each token, no windows, rotary base 1,000,000"),
        ("longllama", "memory attention in 3 of 32 layers"),
        ("codegen", "the same design"),
    ],
)
def test_differences_in_a_few_words(name: str, words: str) -> None:
    nodes = tree()
    facts = Facts(nodes, nodes[name])
    assert facts.phrase == words == phrase(facts.changes)


def test_what_has_no_spec_is_compared_with_nothing() -> None:
    nodes = tree()
    facts = Facts(nodes, nodes["gpt4"])
    assert facts.compared is None and facts.phrase == "" and facts.relative is not None
    assert facts.relative.name == "gpt3"
