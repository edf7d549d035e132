"""etymon: one system for the whole life of a language model."""

from __future__ import annotations

__version__ = "0.1.0"
