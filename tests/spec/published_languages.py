"""Parameter counts of XLM and ERNIE, those of ERNIE as its cards round them."""

PUBLISHED: dict[str, int | str] = {
    # The published classes at these sizes. The paper says 665M, 250M and 570M of the first, fourth and fifth.
    "xlm-mlm-en-2048": 667_119_041,
    "xlm-mlm-ende-1024": 142_422_203,
    "xlm-clm-ende-1024": 142_422_203,
    "xlm-mlm-xnli15-1024": 249_071_384,
    "xlm-mlm-100-1280": 571_696_960,
    "ernie-1.0-base-zh": 99_885_648,
    "ernie-2.0-base-en": 109_515_834,
    "ernie-2.0-large-en": 335_176_506,
    "ernie-3.0-xbase-zh": "296M",
    "ernie-3.0-base-zh": "118M",
    "ernie-3.0-medium-zh": "75M",
    "ernie-3.0-mini-zh": "27M",
    "ernie-3.0-micro-zh": "23M",
    "ernie-3.0-nano-zh": "18M",
    "all-minilm-l6-v2": 22_713_216,
}
