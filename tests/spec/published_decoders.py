"""Parameter counts of published decoders: exact ones of checkpoints, rounded ones of papers and model cards."""

PUBLISHED: dict[str, int | str] = {
    "baichuan-7b": "7.001B",
    "baichuan-13b": "13.265B",
    "baichuan2-7b": "7.506B",
    "baichuan2-13b": "13.897B",  # 13.265B and 2 * 5120 * 61696 for the larger vocabulary
    "aquila-7b": "7.296B",  # called 7B
    "moss-moon-003": "16.7B",
    "codegen2-1b": "1.015B",  # called 1B
    "codegen2-3.7b": "3.641B",
    "codegen2-7b": "6.863B",
    "codegen2-16b": "16.032B",
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
    "chinese-llama-13b": 13_015_864_320 + 2 * 5120 * (49953 - 32000),
    "chinese-alpaca-7b": "6.885B",
    "chinese-alpaca-13b": 13_015_864_320 + 2 * 5120 * (49954 - 32000),
    "chinese-llama2-7b": "6.929B",
    "chinese-llama2-13b": 13_015_864_320 + 2 * 5120 * (55296 - 32000),
    "llama-pro-8b": "8.357B",
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 3_880_263_168,  # of the text model, as are those below
    "gemma3-12b": 11_766_034_176,
    "gemma3-27b": 27_009_346_304,
    "chatglm2-6b": 6_243_584_000,
    "chatglm3-6b": 6_243_584_000,
    "glm-4-9b": 9_399_951_360,
    "glm-4-9b-chat": 9_399_951_360,
    "glm-4-9b-0414": 9_400_279_040,
    "glm-4-32b-0414": "32.566B",
    # called by what lies outside the embeddings (50281 tokens and 2048 positions): 85M, 302M, 679M, 2.5B, 12.6B
    "codex-85m": "125.2M",
    "codex-300m": "355.9M",
    "codex-679m": "760.3M",
    "codex-2.5b": "2.652B",
    "codex-12b": "12.854B",
    "palm-8b": "8.63B",
    "palm-62b": "62.50B",
    "palm-540b": "540.36B",  # 540.35B in the paper, as without the norms of its 118 layers
    "u-palm-8b": "8.63B",
    "u-palm-62b": "62.50B",
    "u-palm-540b": "540.36B",
    "mt-nlg-530b": "530B",
    # 2B, 8B and 137B in the paper, which leaves out the embeddings: 82M, 131M and 262M
    "lamda-2b": "2.18B",
    "lamda-8b": "8.72B",
    "lamda-137b": "137.7B",
    "glam-1.7b-64e": "27B",
    "glam-8b-64e": "143.9B",  # 143B in the paper
    "glam-64b-64e": "1162B",  # 1.2T in the paper
    "grok-1": "315.7B",  # 314B in the announcement
    "stablelm-2-12b": "12.143B",
}
