"""The command line. Thin: every command calls one function; what they need is imported when they run."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from xreasoner.errors import UserError, XReasonerError

app = typer.Typer(
    help="Make vision-language models reason with text alone, and show what that did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Out = Annotated[Path, typer.Option(help="Folder of the run; the same folder goes on from where it stopped.")]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of data order, sampling and evaluation items.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field of the recipe: key=value.")] = None,
) -> None:
    """The whole of it on the embedded model: measure, SFT, RL, measure again, report."""
    from xreasoner.demo import run_demo
    from xreasoner.progress import Screen, matrix
    from xreasoner.recipe import load_recipe

    recipe = load_recipe("demo", [f"seed={seed}", f"evaluation.seed={seed}", *(set_ or [])])
    with Screen() as screen:
        summary = run_demo(recipe, out, screen.show)
    screen.console.print(matrix(summary))
    last = recipe.stages[-1].name
    screen.console.print(f"report     {out / 'report.html'}\nreasoner   {out / last / 'export'}", soft_wrap=True)
    screen.console.print(
        f'try next   xreasoner ask "{out / last / "export"}" --prompt brief '
        '"Ana has 14, Ben has 9 and Cara has 20. What is the total score of Ana and Cara?"',
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    out: Out = Path("runs/train"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: key=value.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the first examples as the model sees them.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in a folder that holds a run already.")] = False,
) -> None:
    """Run a recipe's stages."""
    from xreasoner.progress import Screen
    from xreasoner.recipe import load_recipe
    from xreasoner.training.run import dry_run as shown
    from xreasoner.training.run import run_recipe

    wanted = load_recipe(recipe, set_ or [])
    if dry_run:
        typer.echo(shown(wanted))
        return
    if out.exists() and any(out.iterdir()) and not resume:
        raise UserError(f"{out} is not empty; add --resume to go on there, or choose another --out")
    with Screen() as screen:
        run_recipe(wanted, out, screen.training)
    typer.echo(f"done: {out / wanted.stages[-1].name / 'export'}")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, tiny or tiny-base.")],
    bench: Annotated[str, typer.Option(help="Benchmarks, separated by commas.")],
    limit: Annotated[int, typer.Option(min=1, help="Items of each benchmark.")] = 500,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each item.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    blind: Annotated[bool, typer.Option("--blind", help="Withhold the pictures.")] = False,
    prompt: Annotated[str | None, typer.Option(help="The prompt's name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which items, and of the sampling.")] = 0,
    budget: Annotated[int, typer.Option(min=1, help="Thinking budget in tokens.")] = 160,
    out: Out = Path("runs/eval"),
) -> None:
    """Measure a model on benchmarks; prints one line each and keeps every reply."""
    from xreasoner.evaluating import evaluate_model
    from xreasoner.progress import Screen

    names = [name.strip() for name in bench.split(",") if name.strip()]
    with Screen() as screen:
        found = evaluate_model(
            model,
            names,
            out,
            n=limit,
            samples=samples,
            temperature=temperature,
            blind=blind,
            prompt=prompt,
            seed=seed,
            budget=budget,
            show=screen.show,
        )
    for name, result in found.items():
        line = f"{name:28} {100 * result['accuracy']:5.1f}  [{100 * result['low']:.1f}, {100 * result['high']:.1f}]"
        typer.echo(f"{line}  n={result['n']}")
    typer.echo(f"replies: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(help="The page's file; report.html in the run when left out.")] = None,
) -> None:
    """Write the transfer report of a run."""
    from xreasoner.reporting import write_report

    typer.echo(str(write_report(run, out)))


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, tiny or tiny-base.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be given several times.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option; may be given several times.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt's name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole completion as JSON.")] = False,
) -> None:
    """Ask a model one question: the thought dim, the answer bright."""
    from xreasoner.ask import ask as put

    completion = put(model, question, image or [], option or [], prompt=prompt)
    if as_json:
        typer.echo(json.dumps(asdict(completion), ensure_ascii=False))
        return
    if completion.thought:
        typer.secho(completion.thought, dim=True)
    typer.secho(completion.answer or f"(no answer: {completion.exit})", bold=True)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run a command; errors become one line and the exit code of their kind."""
    debug = bool(os.environ.get("XREASONER_DEBUG"))
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code: Any = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("stopped; the same command goes on from here", err=True)
        code = 130
    except XReasonerError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        code = error.exit_code
    except OSError as error:
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        typer.echo(f"error: {error.strerror or error}{where}; nothing saved before was harmed", err=True)
        code = 1
    except Exception as error:
        if debug or not hasattr(error, "exit_code"):
            raise
        error.show()  # type: ignore[attr-defined]  # the command line's own complaints
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
