"""Parameter counts of Longformer, as the published class has them for masked tokens."""

PUBLISHED: dict[str, int | str] = {
    "longformer-base-4096": 148_711_257,
    "longformer-large-4096": 434_653_273,
}
