"""The tag splitter on any reply in any chunks: what is streamed is what the whole reply says."""

from __future__ import annotations

from fuzz.budget import fuzz
from helpers.memory import assert_memory_is_flat
from hypothesis import strategies as st

from xreasoner.trace import Splitter, split

PARTS = ("<think>", "</think>", "<answer>", "</answer>", "<", "</", "think", ">", " ", "\n", "7", "a", "é", "")


def test_stream_and_whole_agree() -> None:
    def fuzz_tags(data: bytes) -> None:
        text = "".join(PARTS[byte % len(PARTS)] for byte in data[1:])
        opened, size = bool(data and data[0] % 2), 1 + (data[0] if data else 0) % 7
        splitter = Splitter(opened)
        pieces = [piece for at in range(0, len(text), size) for piece in splitter.feed(text[at : at + size])]
        rest, trace = splitter.close()
        thought = "".join(part for label, part in [*pieces, *rest] if label == "thought")
        content = "".join(part for label, part in [*pieces, *rest] if label != "thought")
        assert (thought, content) == (trace.thought, trace.content)
        assert trace == split(text, opened)

    with assert_memory_is_flat():
        assert fuzz(fuzz_tags, st.binary(max_size=40)) > 0
