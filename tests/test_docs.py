"""The documents agree with the code. Run as a program (`make docs`) it writes the generated pages."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xreasoner import cli, recipe
from xreasoner.data import rows
from xreasoner.prompts import PROMPTS
from xreasoner.recipe import shipped
from xreasoner.registry import BENCHMARKS, MODELS, SOURCES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def command_page() -> str:
    """docs/cli.md: every command with its arguments and options, and the names that they take."""
    parts = ["# The commands\n\nWritten by `make docs` from the code. `xreasoner COMMAND --help` shows the same.\n"]
    group: Any = typer.main.get_command(cli.app)
    parts.append(f"{group.help}\n\n{_table(group)}")
    for name, command in _commands(group):
        arguments = "".join(f" {_name(p)}" for p in command.params if p.param_type_name == "argument")
        parts.append(f"## xreasoner {name}{arguments} [OPTIONS]\n\n{command.help}\n\n{_table(command)}")
    parts.append("## Names\n")
    for title, names in (
        ("models", MODELS),
        ("recipes", shipped()),
        ("data sources", SOURCES),
        ("benchmarks", BENCHMARKS),
        ("prompts", PROMPTS),
    ):
        parts.append(f"- {title}: {', '.join(f'`{name}`' for name in sorted(names))}")
    return "\n".join(parts) + "\n"


def _commands(group: Any) -> list[tuple[str, Any]]:
    """Every command by its whole name, those of a group behind one another."""
    found: list[tuple[str, Any]] = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found += [(f"{name} {sub}", each) for sub, each in inner.items()] if inner else [(name, command)]
    return found


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
    assert out.splitlines()[0].startswith("Ana ")  # 14 is closest to 12
    assert "\nthought " in out
    assert "".join(re.findall(r"^answer (.*)$", out, re.MULTILINE)).strip() == "43"
    assert out.splitlines()[-1] == "one 43"


def recipe_page() -> str:
    """docs/recipe.md: every field of a recipe with its type, default and meaning."""
    parts = [
        "# Recipe fields\n\nWritten by `make docs` from the code. A recipe is YAML; `xreasoner train RECIPE --set "
        "key=value` changes a field, with stages addressed by name, as in `stages.sft.optimizer.lr=1e-5`. Numbers "
        "follow YAML 1.2 (`1e-5` is a number), and all problems of a recipe are reported at once. `optimiser` and "
        "`normalise_std` are accepted as spellings of `optimizer` and `normalize_std`.\n"
    ]
    for title, part in SECTIONS:
        parts.append(f"## {title}\n\n{inspect.getdoc(part)}\n\n{_field_table(part)}")
    return "\n".join(parts)


SECTIONS: list[tuple[str, type[BaseModel]]] = [
    ("Recipe", recipe.Recipe),
    ("Stages with `kind: sft`", recipe.SFTStage),
    ("Stages with `kind: rl`", recipe.RLStage),
    ("`data` (a list)", recipe.DataEntry),
    ("`optimizer`", recipe.AdamW),
    ("`lora`", recipe.LoRA),
    ("`rollouts`", recipe.Servers),
    ("`evaluation`", recipe.Evaluation),
]


def _field_table(part: type[BaseModel]) -> str:
    lines = ["| field | type | default | what it is |", "|---|---|---|---|"]
    for name, field in part.model_fields.items():
        default = "required" if field.is_required() else f"`{_default(field)}`"
        kind = _type_name(part.model_json_schema()["properties"][field.alias or name])
        meaning = (field.description or "").replace("\n", " ").replace("|", "\\|")
        lines.append(f"| `{field.alias or name}` | {kind} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "{…}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _type_name(schema: dict[str, Any]) -> str:
    """A field's type in YAML's words, with its bounds."""
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    kind = kinds[0]
    if "enum" in kind:
        return ", ".join(f"`{each}`" for each in kind["enum"])
    if "const" in kind:
        return f"`{kind['const']}`"
    words = {"integer": "integer", "number": "number", "boolean": "boolean", "string": "text", "array": "list"}
    name = words.get(kind.get("type", ""), "mapping")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {kind[key]}" for key, sign in bounds.items() if key in kind]
    return " ".join([name, " and ".join(limits)]).strip()


def test_the_recipe_page_is_the_code() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == recipe_page(), "run `make docs`"


def test_every_field_of_a_recipe_is_described() -> None:
    for _, part in SECTIONS:
        for name, field in part.model_fields.items():
            assert field.description, f"{part.__name__}.{name}"


def test_the_data_page_names_every_field_that_is_read() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    for name in sorted(rows._QUESTION | rows._MESSAGES):
        assert f"`{name}`" in text, f"docs/data.md does not name {name}"


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page, text) of the code blocks of a kind on all pages."""
    pattern = rf"^```{kind}\n(.*?)^```"
    return [(page.name, found) for page in PAGES for found in re.findall(pattern, page.read_text(), re.M | re.S)]


def shell_lines() -> list[tuple[str, str]]:
    """(page, command) of every shell example outside the README, whose commands test_readme.py runs."""
    found = []
    for kind in ("console", "bash", "sh", ""):
        for page, text in blocks(kind):
            lines = text.replace("\\\n", " ").splitlines()
            is_command = kind != "" or lines[0].startswith("xreasoner ")
            shown = [line.removeprefix("$ ") for line in lines if line.startswith("$ ") or (kind in ("bash", "sh", ""))]
            found += [(page, line) for line in shown if is_command and page != "README.md"]
    return found


OTHERS = ("hf", "vllm", "sbatch", "ray")
"""Programs of other projects that examples call; their files must exist, and what follows is theirs."""


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_a_shell_example_is_valid(page: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"\w+=\S*", word)]
    if "xreasoner.cli" in words:  # under torchrun
        assert words[0] == "torchrun"
        words = ["xreasoner", *words[words.index("xreasoner.cli") + 1 :]]
    for word in words:
        if re.match(r"(recipes|scripts|benchmarks|examples)/", word):
            assert (ROOT / word).exists(), f"{page} names {word}"
    if words[0] != "xreasoner":
        assert words[0] in OTHERS, f"{page}: {line}"
        return
    command: Any = typer.main.get_command(cli.app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    parameters = command.make_context(str(command.name), rest).params
    if "recipe" in parameters:
        recipe.load_recipe(parameters["recipe"], parameters.get("set_") or ())


def test_there_are_shell_examples() -> None:
    assert {"scale.md", "serving.md", "grading.md"} <= {page for page, _ in shell_lines()}


@pytest.mark.parametrize(("page", "text"), [each for each in blocks("python") if each[0] != "reasoner.md"])
def test_a_python_example_calls_what_there_is(page: str, text: str) -> None:
    """Names are imported for real, and calls of ours have arguments that bind (those of reasoner.md are run)."""
    tree, names = ast.parse(text), dict[str, Any]()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), names)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in names:
            arguments = [None] * len(call.args), {str(each.arg): None for each in call.keywords}
            inspect.signature(names[call.func.id]).bind(*arguments[0], **arguments[1])


if __name__ == "__main__":
    from xreasoner.benchmarks.listing import page

    (ROOT / "docs" / "cli.md").write_text(command_page())
    (ROOT / "docs" / "recipe.md").write_text(recipe_page())
    (ROOT / "docs" / "benchmarks.md").write_text(page())
