"""Checkpoints in and out: directories and hub ids, in the Hugging Face format and in our own."""

from etymon.hub.checkpoint import load_model, locate, save_model

__all__ = ["load_model", "locate", "save_model"]
