"""The text model of a checkpoint that also sees images equals the reference on text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import etymon
from etymon.errors import EtymonError
from etymon.families import family_named
from etymon.families.reader import ConfigReader

TEXT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 5,
    "sliding_window_pattern": 3,
    "max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@torch.no_grad()
def test_gemma3(tmp_path: Path) -> None:
    config = transformers.Gemma3Config(
        text_config=TEXT,
        vision_config=VISION | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=96,
    )
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForConditionalGeneration(config).eval()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.2)
    theirs.save_pretrained(tmp_path)
    ours, _ = etymon.load(tmp_path)
    ids = torch.arange(60).view(3, 20)
    expected = theirs(ids).logits
    assert float((ours(ids).logits - expected).abs().max() / expected.abs().max()) < 1e-5
    etymon.save(ours, None, tmp_path / "text", format="hf")
    again = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path / "text")
    assert float((again(ids).logits - expected).abs().max() / expected.abs().max()) < 1e-5
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"audio_config": {}}))
    with pytest.raises(EtymonError, match="nobody reads the key 'audio_config'"):
        etymon.load(tmp_path)


def test_what_the_published_config_of_gemma3_4b_leaves_out() -> None:
    text: dict[str, Any] = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    text |= {
        "model_type": "gemma3_text",
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    read = family_named("gemma3").format.read
    assert read is not None
    spec = read(ConfigReader({"model_type": "gemma3", "text_config": text, "vision_config": {}}, "config.json"))
    published = family_named("gemma3").spec("gemma3-4b")
    assert spec.decoder == published.decoder
    assert (spec.vocab, spec.context, spec.embed, spec.head) == (262208, 131072, published.embed, published.head)
