"""The documents agree with the code. Run as a program (`make docs`) it writes docs/cli.md."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from xreasoner import cli
from xreasoner.prompts import PROMPTS
from xreasoner.recipe import shipped
from xreasoner.registry import BENCHMARKS, MODELS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def command_page() -> str:
    """docs/cli.md: every command with its arguments and options, and the names that they take."""
    parts = ["# The commands\n\nWritten by `make docs` from the code. `xreasoner COMMAND --help` shows the same.\n"]
    group: Any = typer.main.get_command(cli.app)
    parts.append(f"{group.help}\n\n{_table(group)}")
    for name, command in group.commands.items():
        arguments = "".join(f" {_name(p)}" for p in command.params if p.param_type_name == "argument")
        parts.append(f"## xreasoner {name}{arguments} [OPTIONS]\n\n{command.help}\n\n{_table(command)}")
    parts.append("## Names\n")
    for title, names in (
        ("models", MODELS),
        ("recipes", shipped()),
        ("benchmarks", BENCHMARKS),
        ("prompts", PROMPTS),
    ):
        parts.append(f"- {title}: {', '.join(f'`{name}`' for name in sorted(names))}")
    return "\n".join(parts) + "\n"


def _name(parameter: Any) -> str:
    return str(parameter.name).upper() if parameter.param_type_name == "argument" else ", ".join(parameter.opts)


def _table(command: Any) -> str:
    lines = ["| name | default | what it is |", "|---|---|---|"]
    for parameter in command.params:
        empty = parameter.default is None or parameter.default is False or parameter.required
        default = "" if empty else f"`{parameter.default}`"
        lines.append(f"| `{_name(parameter)}` | {default} | {parameter.help} |")
    return "\n".join(lines) + "\n"


def test_the_commands_page_is_the_code() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == command_page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for named in re.findall(r"`((?:src|recipes|tests|docs)/[\w./*+-]+)`", page.read_text()):
        assert list(ROOT.glob(named)), f"{page.name} names {named}"


def test_six_files_to_read_first() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(re.findall(r"^\d\. `[\w./-]+`", text, flags=re.MULTILINE)) == 6


def test_the_map_shows_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for room in (ROOT / "src" / "xreasoner").iterdir():
        if (room / "__init__.py").exists():
            assert f"`{room.name}/`" in text, f"CONTRIBUTING.md does not show {room.name}/"


def test_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = dict(re.fullmatch(r"([\w-]+)(.*)", each).groups() for each in project["dependencies"])  # type: ignore[union-attr]
    rows = re.findall(r"^\| ([\w-]+) \| ([<>=].*?) \|", (ROOT / "docs" / "versions.md").read_text(), re.MULTILINE)
    assert dict(rows) == wanted
    for name in wanted:
        assert version(name)


def test_every_notice_has_the_version() -> None:
    from xreasoner import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_examples_of_the_reasoner_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "reasoner.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    out = capsys.readouterr().out
    assert "natural" in out
    assert "\nthought " in out
    assert "\nanswer " in out
    assert out.splitlines()[-1].startswith("one ")


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(command_page())
