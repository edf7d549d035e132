"""Parameter counts of mixtures of experts: exact ones of checkpoints, rounded ones of papers and model cards."""

PUBLISHED: dict[str, int | str] = {
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-57b-a14b": 57_408_658_944,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "olmoe-1b-7b": 6_919_161_856,
    "deepseek-moe-16b": 16_375_728_128,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": "671.03B",  # without the layer that predicts a second token, which brings the files to 685 billion
    "deepseek-r1": "671.03B",
    "gpt-oss-20b": "20.91B",
    "gpt-oss-120b": "116.83B",
    "switch-base-8": "619M",
    "switch-base-16": "1.07B",
    "switch-base-32": "1.98B",
    "switch-base-64": "3.79B",
    "switch-base-128": "7.4B",
    "switch-base-256": "14.7B",
    "switch-large-128": "26.3B",
    "switch-xxl-128": "395B",
    "switch-c-2048": "1571B",
}
# What one token's pass uses, as the papers and model cards round it.
ACTIVE: dict[str, str] = {
    "mixtral-8x7b": "12.9B",
    "mixtral-8x22b": "39B",
    "qwen1.5-moe-a2.7b": "2.7B",
    "qwen2-57b-a14b": "14B",
    "qwen3-30b-a3b": "3.4B",  # "3.3B" on the card, of 3.353 billion
    "qwen3-235b-a22b": "22B",
    "olmoe-1b-7b": "1.3B",
    "deepseek-moe-16b": "2.8B",
    "deepseek-v2-lite": "2.7B",  # "2.4B" in the paper, which leaves out the token embedding (0.21 billion)
    "deepseek-v2": "21B",
    "deepseek-v3": "38B",  # "37B" in the paper: 37.55 billion with the token embedding, 36.6 without
    "deepseek-r1": "38B",
    "gpt-oss-20b": "4.2B",  # "3.61B" in the paper, which leaves out the token embedding (0.579 billion)
    "gpt-oss-120b": "5.7B",  # "5.13B" in the paper, likewise
}
