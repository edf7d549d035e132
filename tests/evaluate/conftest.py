from __future__ import annotations

import pytest
from tiny_models import random_model, train_tokenizer

from etymon.nn import Model
from etymon.text import Renderer, Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Model:
    return random_model(tokenizer.vocab_size)


@pytest.fixture(scope="session")
def renderer(tokenizer: Tokenizer) -> Renderer:
    return Renderer(tokenizer)
