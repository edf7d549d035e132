"""Published models of LLaMA's form: Meta's own, and those that others made of them or like them."""

from __future__ import annotations

import dataclasses
from typing import Any

from etymon.spec import LinearScaling, Llama3Scaling

_7B = {"dim": 4096, "layers": 32, "heads": 32, "hidden": 11008}
_13B = {"dim": 5120, "layers": 40, "heads": 40, "hidden": 13824}
_33B = {"dim": 6656, "layers": 60, "heads": 52, "hidden": 17920}
_65B = {"dim": 8192, "layers": 80, "heads": 64, "hidden": 22016}
_8B = {"dim": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "hidden": 14336}
_70B = {"dim": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 28672}
_405B = {"dim": 16384, "layers": 126, "heads": 128, "kv_heads": 8, "hidden": 53248}

_V1 = {"vocab": 32000, "context": 2048, "eps": 1e-6}
_V2 = {"vocab": 32000, "context": 4096, "eps": 1e-5}
_V3 = {"vocab": 128256, "context": 8192, "eps": 1e-5, "rope_base": 500000.0}
_SLOWED = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)
_V31 = _V3 | {"context": 131072, "rope_scaling": _SLOWED}
_V32 = _V31 | {"rope_scaling": dataclasses.replace(_SLOWED, factor=32.0), "tied": True, "kv_heads": 8, "hidden": 8192}

META: dict[str, dict[str, Any]] = {
    "llama-7b": _V1 | _7B,
    "llama-13b": _V1 | _13B,
    "llama-33b": _V1 | _33B,
    "llama-65b": _V1 | _65B,
    "llama2-7b": _V2 | _7B,
    "llama2-13b": _V2 | _13B,
    "llama2-70b": _V2 | _70B,
    "llama3-8b": _V3 | _8B,
    "llama3-70b": _V3 | _70B,
    "llama3.1-8b": _V31 | _8B,
    "llama3.1-70b": _V31 | _70B,
    "llama3.1-405b": _V31 | _405B,
    "llama3.2-1b": _V32 | {"dim": 2048, "layers": 16, "heads": 32},
    "llama3.2-3b": _V32 | {"dim": 3072, "layers": 28, "heads": 24},
}

# Code Llama (arXiv:2308.12950) goes on from Llama 2; the models with 16 more tokens can fill in the middle.
_CODE = _V2 | {"context": 16384, "rope_base": 1e6}
CODE: dict[str, dict[str, Any]] = {
    "codellama-7b": _CODE | _7B | {"vocab": 32016},
    "codellama-7b-python": _CODE | _7B,
    "codellama-13b": _CODE | _13B | {"vocab": 32016},
    "codellama-34b": _CODE | {"dim": 8192, "layers": 48, "heads": 64, "kv_heads": 8, "hidden": 22016},
    "codellama-70b": _CODE | _70B | {"vocab": 32016},
}

# TinyLlama (arXiv:2401.02385), OpenLLaMA (github.com/openlm-research/open_llama) and DeepSeek-Coder (arXiv:2401.14196,
# whose frequencies are divided by 4 for its context of 16384) were trained from the start.
_CODER = {"vocab": 32256, "context": 16384, "eps": 1e-6, "rope_base": 100000.0, "rope_scaling": LinearScaling(factor=4)}
ANEW: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": _V1 | {"dim": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "hidden": 5632, "eps": 1e-5},
    "openllama-3b": _V1 | {"dim": 3200, "layers": 26, "heads": 32, "hidden": 8640},
    "openllama-7b": _V1 | _7B,
    "openllama-13b": _V1 | _13B,
    "deepseek-coder-1.3b": _CODER | {"dim": 2048, "layers": 24, "heads": 16, "hidden": 5504},
    "deepseek-coder-6.7b": _CODER | _7B,
    "deepseek-coder-33b": _CODER | {"dim": 7168, "layers": 62, "heads": 56, "kv_heads": 8, "hidden": 19200},
}

# Alpaca's padding token, Orca 2 (arXiv:2311.11045) with its turns, Chinese-LLaMA and -Alpaca (arXiv:2304.08177) with
# more tokens, LLaMA Pro (arXiv:2401.02415) with eight blocks more, which begin as the identity.
TUNED: dict[str, dict[str, Any]] = {
    "alpaca-7b": _V1 | _7B | {"vocab": 32001},
    "orca-2-7b": _V2 | _7B | {"vocab": 32003},
    "orca-2-13b": _V2 | _13B | {"vocab": 32003},
    "chinese-llama-7b": _V1 | _7B | {"vocab": 49953},
    "chinese-llama-13b": _V1 | _13B | {"vocab": 49953},
    "chinese-alpaca-7b": _V1 | _7B | {"vocab": 49954},
    "chinese-alpaca-13b": _V1 | _13B | {"vocab": 49954},
    "chinese-llama2-7b": _V2 | _7B | {"vocab": 55296},
    "chinese-llama2-13b": _V2 | _13B | {"vocab": 55296},
    "llama-pro-8b": _V2 | _7B | {"layers": 40},
}
SIZES = META | CODE | ANEW | TUNED

# Numbers of parameters: exact ones of checkpoints, rounded ones of papers and model cards.
COUNTS: dict[str, int | str] = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "codellama-7b": 6_738_546_688,
    "codellama-7b-python": 6_738_415_616,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": "68.977B",
    "tinyllama-1.1b": 1_100_048_384,
    "openllama-3b": 3_426_473_600,
    "openllama-7b": 6_738_415_616,
    "openllama-13b": 13_015_864_320,
    "deepseek-coder-1.3b": "1.346B",
    "deepseek-coder-6.7b": "6.741B",
    "deepseek-coder-33b": "33.343B",
    "alpaca-7b": 6_738_423_808,
    "orca-2-7b": 6_738_440_192,
    "orca-2-13b": 13_015_895_040,
    "chinese-llama-7b": "6.885B",
    "chinese-llama-13b": 13_199_703_040,
    "chinese-alpaca-7b": "6.885B",
    "chinese-alpaca-13b": 13_199_713_280,
    "chinese-llama2-7b": "6.929B",
    "chinese-llama2-13b": 13_254_415_360,
    "llama-pro-8b": "8.357B",
}
