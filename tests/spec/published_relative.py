"""Parameter counts of models with relative positions or memories: of the papers' tables, rounded as there, or of the
published classes."""

PUBLISHED: dict[str, int | str] = {
    # 41M and 277M in the paper (table 2)
    "transformer-xl-enwik8-12l": "41.1M",
    "transformer-xl-enwik8-24l": "277.3M",
    # 13 d^2 per layer, 32000 d for the embedding, norms and the two biases of the queries
    "gopher-44m": "44M",
    "gopher-117m": "117M",
    "gopher-417m": "417M",
    "gopher-1.4b": "1.4B",
    "gopher-7.1b": "7.1B",
    "gopher-280b": "280B",
    "chinchilla-70b": "70B",
    # what the published class has; the paper says 110M and 340M
    "xlnet-base-cased": 116_750_336,
    "xlnet-large-cased": 360_300_800,
    # those of OpenLLaMA 3B and Code Llama 7B
    "longllama-3b": 3_426_473_600,
    "longllama-code-7b": 6_738_546_688,
    # the paper's 172M, 425M, 1.451B and 7.532B leave out the embeddings: see test_retro.py
    "retro-172m": 401_934_080,
    "retro-425m": 738_234_112,
    "retro-1.5b": 1_830_282_496,
    "retro-7.5b": 8_174_828_800,
}
