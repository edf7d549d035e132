from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_models import random_model

from etymon.engine import Engine, EngineConfig
from etymon.nn import Model
from etymon.text import Tokenizer

TEXT = (
    "The quick brown fox jumps over the lazy dog. A language model is a value, a module and one life.\n"
    "敏捷的棕色狐狸跳过懒狗。语言模型从文档到服务,一个字也不能被切开。😀👍🏽🎉 naïve café\n"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 3, 300)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Model:
    return random_model(vocab=tokenizer.vocab_size, context=128)


@pytest.fixture
def make_engine(model: Model, tokenizer: Tokenizer) -> Callable[..., Engine]:
    def make(model: Model = model, **limits: int) -> Engine:
        return Engine(model, tokenizer, EngineConfig(**limits))

    return make
