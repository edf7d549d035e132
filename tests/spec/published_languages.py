"""Parameter counts of encoders and of models with one: XLM, ERNIE as its cards round them, UniLM, AlexaTM, MASS;
and of the GLMs."""

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
    "unilm1-base-cased": 108_343_876,
    "unilm1-large-cased": 333_614_404,  # the paper says 340M, as BERT's did
    # The paper says 19.75B; its layers and widths give this, with one table of tokens for both sides and the head.
    # Three tables (the published class has as many before it ties them) are 19.71B.
    "alexatm-20b": 18_478_868_976,
    "mass-unsup-ende-1024": 306_651_744,  # the paper gives no number
    "glm-base": 109_338_624,  # published: 110M
    "glm-large": 334_688_256,  # 335M
    "glm-515m": "515M",
    "glm-2b": 1_920_122_880,  # 2B, by name
    "glm-10b": 9_880_682_496,  # 10B, by name
    "glm-130b": 128_697_794_560,  # 130B, which the paper gets by counting the head apart: 130.5B
    "chatglm-6b": "6.173B",
}
