"""The HTTP service: OpenAI's interface, option probabilities, metrics and a page, in front of any engine."""

from xreasoner.serving.run import serve

__all__ = ["serve"]
