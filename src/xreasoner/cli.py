"""The command line. Thin: every command calls one function; what they need is imported when they run."""

from __future__ import annotations

import errno
import json
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
RESUME = {
    "demo": "the same command goes on from here",
    "train": "the same command with --resume goes on from here",
    "eval": "the same command goes on from here",
}
"""What to say to a user who stopped a command."""
STOPPED = 130
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_traceback = {"shown": False}


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="XREASONER_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    _traceback["shown"] = debug


def _quiet(model: str) -> None:
    """Transformers' own progress bars are for downloads, not for reading a folder."""
    from transformers.utils import logging

    from xreasoner.registry import MODELS

    if model in MODELS or Path(model).exists():
        logging.disable_progress_bar()


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of data order, sampling and evaluation items.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field of the recipe: key=value.")] = None,
) -> None:
    """The whole of it on the embedded model: measure, SFT, RL, measure again, report."""
    from xreasoner.demo import closing, run_demo
    from xreasoner.progress import Screen, matrix
    from xreasoner.recipe import load_recipe

    recipe = load_recipe("demo", [f"seed={seed}", f"evaluation.seed={seed}", *(set_ or [])])
    _quiet(recipe.model)
    with Screen() as screen:
        summary = run_demo(recipe, out, screen.show)
    screen.console.print(matrix(summary))
    typer.echo(closing(out, recipe.stages[-1].name, summary["timings"]))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    out: Out = Path("runs/train"),
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: key=value.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the first examples as the model sees them.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in a folder that holds a run already.")] = False,
) -> None:
    """Run a recipe's stages; under torchrun, on all of its processes."""
    from xreasoner.progress import Screen
    from xreasoner.recipe import load_recipe
    from xreasoner.training import parallel
    from xreasoner.training.run import dry_run as shown
    from xreasoner.training.run import run_recipe

    wanted = load_recipe(recipe, set_ or [])
    _quiet(wanted.model)
    if dry_run:
        typer.echo(shown(wanted))
        return
    with parallel.world():
        if parallel.told(out.exists() and any(out.iterdir())) and not resume:
            raise UserError(f"{out} is not empty; add --resume to go on there, or choose another --out")
        with Screen() as screen:
            run_recipe(wanted, out, screen.training)
        if parallel.rank() == 0:
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

    names = [name.strip() for name in bench.split(",")]
    _quiet(model)
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
    budget: Annotated[int, typer.Option(min=1, help="Thinking budget in tokens.")] = 4000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole completion as JSON.")] = False,
) -> None:
    """Ask a model one question: the thought dim, the answer bright."""
    from xreasoner.ask import ask as put

    _quiet(model)
    completion = put(model, question, image or [], option or [], prompt=prompt, thinking_budget=budget)
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
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run a command with these arguments; returns the exit code (errors.py; 130 when it was stopped)."""
    try:
        code: Any = app(args, prog_name="xreasoner", standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except Exception as error:
        found = None if _traceback["shown"] else complaint(error)
        if found is None:
            raise
        text, code = found
        typer.echo(text, err=True)
    if code == STOPPED:
        hint = next((RESUME[word] for word in args if word in RESUME), "")
        typer.echo(f"stopped; {hint}" if hint else "stopped", err=True)
    return code if isinstance(code, int) else 0


def complaint(error: Exception) -> tuple[str, int] | None:
    """What to tell a person about an error, and the exit code; None for a defect of ours."""
    if isinstance(error, XReasonerError):
        return f"error: {error}", error.exit_code
    refused = error if isinstance(error, OSError) else full_disk(error)
    if refused is not None:
        where = f" ({refused.filename})" if refused.filename else ""
        return f"error: {refused.strerror or refused}{where}; what was saved before stays as it was", 1
    message, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if message and isinstance(code, int):  # the command line's own complaints
        text = message()
        return (text if "\n" in text else f"error: {text}"), code
    return None


def full_disk(error: BaseException) -> OSError | None:
    """The disk's refusal behind an error, if that is what it was: torch.save turns it into a `RuntimeError`."""
    behind = error.__cause__ or error.__context__
    if isinstance(behind, OSError) and behind.errno in DISK:
        return behind
    return full_disk(behind) if behind is not None else None


if __name__ == "__main__":
    main()
