"""The HTTP service: OpenAI's interface, option probabilities, metrics and a page, in front of any engine."""
