"""YAML as people expect it."""

from __future__ import annotations

import contextlib
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xreasoner.yaml_lines import YAMLProblemError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("On", "On"),
        ("True", True),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("-.inf", -math.inf),
        ("~", None),
        ("1.2.3", "1.2.3"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = read_yaml(f"a: {text}").value["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a:\n\tb: 1\n", "line 2: not YAML: a tab in the indentation; use spaces"),
        (b"a: 1\nb: 2\na: 3\nb: 4\n", "line 3: 'a' is already set on line 1"),
        (b"a: 1\nb: 2\na: 3\nb: 4\n", "line 4: 'b' is already set on line 2"),
        (b"a: {b: 1, b: 2}", "line 1: 'b' is already set on line 1"),
        (b"a: 1\n---\nb: 2\n", "a second document"),
        (b"a: &a [*a]\n", "an alias inside of what it stands for"),
        (b"a: *nowhere\n", "undefined alias"),
        (b"a: !!python/name:os.system x\n", "is not supported"),
        (b"? [a]\n: b\n", "a list or mapping as a key"),
        (b"a: [1\n", "line 2: not YAML"),
        (b"a: \xff\n", "line 1: not UTF-8"),
        (b"a: \x00\n", "not YAML"),
        (b"<<: 3\n", "<< takes a mapping"),
    ],
)
def test_problems_have_their_line(data: bytes, message: str) -> None:
    with pytest.raises(YAMLProblemError) as caught:
        read_yaml(data)
    found = [f"line {line}: {text}" for line, text in caught.value.problems]
    assert any(message in each for each in found), found


def test_aliases_are_copies_and_merges_keep_what_is_written() -> None:
    document = read_yaml("a: &a {x: 1, y: 2}\nb: *a\nc:\n  <<: *a\n  x: 3\nd: {<<: [{z: 0, x: 9}, *a]}\n")
    assert document.value["c"] == {"x": 3, "y": 2}
    assert document.value["d"] == {"z": 0, "x": 9, "y": 2}
    document.value["b"]["x"] = 7
    assert document.value["a"]["x"] == 1
    assert document.line(("c", "x")) == 5
    assert document.line(("b", "nothing", "here")) == 2


def test_aliases_that_multiply_are_refused() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 9))
    with pytest.raises(YAMLProblemError, match="aliases multiply too much"):
        read_yaml(text)


def test_a_byte_order_mark_and_windows_lines_are_read() -> None:
    document = read_yaml(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: 2\r\n")
    assert document.value == {"a": 1, "b": {"c": 2}}
    assert document.line(("b", "c")) == 3


# PyYAML writes these line breaks so that it does not read them back itself
TEXT = st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(TEXT, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(TEXT, max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(PLAIN)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    assert read_yaml(yaml.safe_dump({"a": value}, allow_unicode=True)).value == {"a": value}


@given(st.binary(max_size=80) | st.text(max_size=80))
def test_anything_is_read_or_refused(data: bytes | str) -> None:
    with contextlib.suppress(YAMLProblemError):
        read_yaml(data)
