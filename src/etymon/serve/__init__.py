"""The HTTP service over the engine: OpenAI's API, metrics, health and a chat page; and the chat in a terminal."""

from etymon.serve.app import create_app
from etymon.serve.config import ServeConfig
from etymon.serve.server import run, running, wait_until_ready

__all__ = ["ServeConfig", "create_app", "run", "running", "wait_until_ready"]
