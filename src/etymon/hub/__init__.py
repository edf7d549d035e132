"""Checkpoints in and out: directories, hub ids and GGUF files, in the Hugging Face format and in our own."""

from etymon.hub.checkpoint import load_model, locate, read_gguf_metadata, save_gguf, save_model

__all__ = ["load_model", "locate", "read_gguf_metadata", "save_gguf", "save_model"]
