"""Parameter counts of published decoders: exact ones of checkpoints, rounded ones of papers and model cards."""

PUBLISHED: dict[str, int | str] = {
    "baichuan-7b": "7.001B",
    "baichuan-13b": "13.265B",
    "baichuan2-7b": "7.506B",
    "baichuan2-13b": "13.897B",  # 13.265B and 2 * 5120 * 61696 for the larger vocabulary
    "aquila-7b": "7.296B",  # called 7B
}
