"""Checkpoints in and out: directories, hub ids and GGUF files, in the Hugging Face format and in our own."""

from etymon.hub.adapters import apply_delta, merge_lora
from etymon.hub.checkpoint import load_model, locate, read_gguf_metadata, save_gguf, save_model

__all__ = ["apply_delta", "load_model", "locate", "merge_lora", "read_gguf_metadata", "save_gguf", "save_model"]
