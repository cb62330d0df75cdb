"""YAML as people expect it: numbers such as 1e-5, each key once, and the line of every value.

PyYAML reads YAML 1.1, where `1e-5` is text, `010` is 8, `1:30` is 90, `no` is false even where a name is wanted, and
the later of two equal keys wins in silence. Here scalars follow YAML 1.2: `yes`, `no`, `on` and `off` stay text, which
a typed field that wants a boolean still accepts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""Keys and positions from the document's root to a value."""

MAX_VALUES = 100_000
"""Values of one document, each use of an anchor counted: more is an alias bomb, not a recipe."""


class YAMLProblemError(ValueError):
    """The document cannot be read: `problems` as (line or None, message)."""

    def __init__(self, problems: Sequence[tuple[int | None, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = tuple(problems)


@dataclass(slots=True)
class Document:
    """A document's value, and the line (from 1) on which each of its parts is written."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int | None:
        """The line of a value, or of the nearest part around it; None for the root."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_PREFIXED = re.compile(r"0(x[0-9a-fA-F]+|o[0-7]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = (".nan", ".NaN", ".NAN")
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "bool", "int", "float", "null", "timestamp", "value", "merge")}


def scalar(text: str) -> Any:
    """What a plain scalar stands for in YAML 1.2's core schema; digits may be grouped by underscores."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return _whole(text)
    if _PREFIXED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if infinite := _INFINITE.fullmatch(text):
        return float(f"{infinite[1]}inf")
    return float("nan") if text in _NAN else text


def _whole(text: str) -> int | str:
    try:
        return int(text.replace("_", ""))
    except ValueError:  # thousands of digits
        return text


def read_yaml(data: bytes | str) -> Document:
    """Read one document. Raises `YAMLProblemError` with every duplicate key, or with the first syntax error."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1 if isinstance(data, bytes) else None
        raise YAMLProblemError([(line, "not UTF-8 text; save the file as UTF-8")]) from None
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        reader = _Reader()
        value = None if root is None else reader.value(root, ())
    except yaml.MarkedYAMLError as error:
        raise YAMLProblemError([_complaint(error, text)]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise YAMLProblemError([(None, f"not YAML: {_first_line(error)}")]) from None
    if reader.problems:
        raise YAMLProblemError(reader.problems)
    return Document(value, reader.document.lines)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _complaint(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    if line <= len(lines) and "\t" in re.match(r"\s*", lines[line - 1])[0]:  # type: ignore[index]
        return line, "not YAML: a tab in the indentation; use spaces"
    if "single document" in str(error.context or error.problem):
        return line, "a second document (after ---); expected one document a file"
    return line, f"not YAML: {error.problem or error.context}"


class _Reader:
    """Nodes to values. Aliases become copies, so that a change of one use leaves the others as they are."""

    def __init__(self) -> None:
        self.document = Document()
        self.problems: list[tuple[int | None, str]] = []
        self.count = 0
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise YAMLProblemError([(None, f"more than {MAX_VALUES:,} values; aliases multiply too much")])
        if any(node is other for other in self._open):
            raise YAMLProblemError([(_line(node), "not YAML: an alias inside of what it stands for")])
        self._open.append(node)
        try:
            return self._value(node, path)
        finally:
            self._open.pop()

    def _value(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*path, k)) for k, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _TAGS:
            self.problems.append((_line(node), f"the tag {node.tag} is not supported; write a plain value"))
            return None
        quoted = node.style in ("'", '"', "|", ">")
        return node.value if quoted else scalar(node.value)

    def _item(self, node: yaml.Node, path: Path) -> Any:
        self.document.lines[path] = _line(node)
        return self.value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge" and key.value == "<<":
                found = {**self._merged(value, path), **found}
                continue
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append((_line(key), "a list or mapping as a key; expected a name"))
                continue
            name, line = str(key.value), _line(key)
            if name in own:
                self.problems.append((line, f"{name!r} is already set on line {own[name]}; keep one of the two"))
                continue
            own[name] = self.document.lines[(*path, name)] = line
            found[name] = self.value(value, (*path, name))
        return found

    def _merged(self, node: yaml.Node, path: Path) -> Mapping[str, Any]:
        """The fields that `<<: *anchor` (or a list of aliases, the first of which wins) brings in."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                self.problems.append((_line(part), "<< takes a mapping, or a list of mappings"))
                continue
            lines = dict(self.document.lines)
            value = self.value(part, path)
            self.document.lines = {**self.document.lines, **lines}  # what is written here itself keeps its line
            found = {**value, **found}
        return found


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
