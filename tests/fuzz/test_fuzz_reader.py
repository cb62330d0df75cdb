"""The data reader and the recipe loader on damaged and random files: rows, or the project's own error."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fuzz.budget import fuzz
from helpers.memory import assert_memory_is_flat
from hypothesis import strategies as st

from xreasoner.data.readers import FORMATS, BadRow, read_records
from xreasoner.errors import XReasonerError
from xreasoner.recipe import load_recipe, shipped

ROWS = (
    b'{"question": "What is 1 + 1?", "answer": "2", "options": ["1", "2"]}\n',
    b'[{"messages": [{"role": "user", "content": "a"}]}, {"problem": "x", "answer": 1e999}]',
    b'question,answer,A,B\n"What, then?",2,1,2\n',
    b'\xef\xbb\xbf{"a": "\\ud800", "a": NaN}\r\n\r\n{"b": 123456789}\n',
    '{"q": "日本"}\n'.encode("utf-16"),
)
RECIPES = tuple(path.read_bytes() for path in shipped().values())


def mutated(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A seed with a few bytes cut out, put in or exchanged for others, or random bytes."""

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data)))
            cut = draw(st.integers(0, 8))
            data[at : at + cut] = draw(st.one_of(st.binary(max_size=8), st.sampled_from(TOKENS)))
        return bytes(data)

    return st.one_of(damaged(), st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode()))


TOKENS = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\u",
    b"NaN",
    b"\x00",
    b"\n",
    b"\r",
    b"&a",
    b"*a",
    b"- ",
    b"1e",
    b"|",
)


@pytest.mark.parametrize("suffix", [*FORMATS, ".jsonl.gz"])
def test_the_reader_reads_or_refuses(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"

    def fuzz_reader(data: bytes) -> None:
        path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
        refusal = path.name
        try:
            for row in read_records(path):
                if isinstance(row, BadRow):
                    assert row.where
        except XReasonerError as error:
            refusal = str(error)
        assert path.name in refusal

    assert fuzz(fuzz_reader, mutated(ROWS), share=1 / 8) > 0


def test_the_recipe_loader_reads_or_refuses(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"

    def fuzz_recipe(data: bytes) -> None:
        path.write_bytes(data)
        refusal = "none"
        try:
            load_recipe(str(path))
        except XReasonerError as error:
            refusal = str(error).strip()
        assert refusal

    with assert_memory_is_flat():
        assert fuzz(fuzz_recipe, mutated(RECIPES)) > 0
