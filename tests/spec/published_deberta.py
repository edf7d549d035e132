"""Parameter counts of DeBERTa and Longformer, as the published classes have them for masked tokens; DeBERTa v3 is
counted with the head that detects replaced tokens (the published count leaves all heads out)."""

PUBLISHED: dict[str, int | str] = {
    "deberta-base": 139_244_121,
    "deberta-large": 406_264_921,
    "deberta-xlarge": 758_905_945,
    "deberta-v2-xlarge": 887_085_156,
    "deberta-v2-xxlarge": 1_567_041_636,
    "deberta-v3-xsmall": 70_682_112 + 384 * (384 + 1) + 3 * 384 + 1,
    "deberta-v3-small": 141_304_320 + 768 * (768 + 1) + 3 * 768 + 1,
    "deberta-v3-base": 183_831_552 + 768 * (768 + 1) + 3 * 768 + 1,
    "deberta-v3-large": 434_012_160 + 1024 * (1024 + 1) + 3 * 1024 + 1,
    "longformer-base-4096": 148_711_257,
    "longformer-large-4096": 434_653_273,
}
