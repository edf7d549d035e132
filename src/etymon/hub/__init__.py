"""Checkpoints in and out: directories, hub ids and GGUF files, in the Hugging Face format and in our own."""

from etymon.hub.adapters import apply_delta, merge_lora
from etymon.hub.average import average_models
from etymon.hub.checkpoint import load_model, locate, read_gguf_metadata, save_gguf, save_model
from etymon.hub.future import copy_future_heads, holds_future_heads, read_future_heads, write_future_heads
from etymon.hub.generation import Generation, read_generation
from etymon.hub.lora import read_lora, write_lora

__all__ = [
    "Generation",
    "apply_delta",
    "average_models",
    "copy_future_heads",
    "holds_future_heads",
    "load_model",
    "locate",
    "merge_lora",
    "read_future_heads",
    "read_generation",
    "read_gguf_metadata",
    "read_lora",
    "save_gguf",
    "save_model",
    "write_future_heads",
    "write_lora",
]
