"""What /metrics says, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from xreasoner.completion import Completion

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "xreasoner_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter("xreasoner_prompt_tokens", "Tokens of prompts", registry=registry)
        self.tokens = Counter("xreasoner_completion_tokens", "Tokens written", ["part"], registry=registry)
        self.exits = Counter("xreasoner_exits", "How replies ended", ["exit"], registry=registry)
        self.first = Histogram(
            "xreasoner_time_to_first_token_seconds",
            "From a streamed request to its first text",
            buckets=SECONDS,
            registry=registry,
        )
        self.rate = Histogram(
            "xreasoner_tokens_per_second", "Tokens a second of a request", buckets=RATES, registry=registry
        )
        self.running = Gauge("xreasoner_running_requests", "Requests with the engine", registry=registry)
        self.waiting = Gauge("xreasoner_waiting_requests", "Requests in the queue", registry=registry)

    def count(self, completions: Sequence[Completion], seconds: float) -> None:
        """A finished request."""
        self.prompt_tokens.inc(completions[0].prompt_tokens)
        for completion in completions:
            self.tokens.labels("thought").inc(completion.thought_tokens)
            self.tokens.labels("answer").inc(completion.answer_tokens)
            self.exits.labels(completion.exit).inc()
        written = sum(completion.thought_tokens + completion.answer_tokens for completion in completions)
        self.rate.observe(written / max(seconds, 1e-6))

    def text(self) -> bytes:
        return generate_latest(self.registry)
