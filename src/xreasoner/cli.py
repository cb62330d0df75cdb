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
    "batch": "the same command goes on from here",
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


Model = Annotated[str, typer.Argument(help="A folder, a hub id, tiny or tiny-base, or URLs of servers with commas.")]
Prompt = Annotated[str | None, typer.Option(help="The prompt's name; what the model was trained with when left out.")]
Budget = Annotated[int | None, typer.Option(min=0, help="Thinking budget in tokens; 3744 when left out.")]
AnswerBudget = Annotated[int, typer.Option(min=1, help="Answer budget in tokens.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="0 is greedy; 0.6 when left out, 0 for the embedded models.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the sampling.")]
System = Annotated[str | None, typer.Option(help="A system prompt in place of the model's own.")]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="torch, vllm or openai; what suits MODEL if left out.")
]
Served = Annotated[str | None, typer.Option(help="The model's name at the servers; their first when left out.")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="The servers' key.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, auto, …")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; bfloat16 on a GPU when left out.")]
Attention = Annotated[str | None, typer.Option(help="Attention's implementation: sdpa, flash_attention_2, …")]
MinPixels = Annotated[int | None, typer.Option(min=1, help="Least width times height of a picture.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Most width times height of a picture.")]


@app.command()
def ask(
    model: Model,
    question: Annotated[str, typer.Argument(help="The question.")],
    image: Annotated[
        list[str] | None, typer.Option(help="A picture's path or URL; may be given several times.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option; may be given several times.")] = None,
    prompt: Prompt = None,
    budget: Budget = None,
    answer_budget: AnswerBudget = 256,
    temperature: Temperature = None,
    seed: Seed = 0,
    system: System = None,
    engine: EngineName = None,
    served_model: Served = None,
    api_key: ApiKey = None,
    device: Device = None,
    dtype: Dtype = None,
    attn_implementation: Attention = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole completion as JSON.")] = False,
) -> None:
    """Ask a model one question: the thought dim, the answer bright."""
    given = dict(locals())
    from xreasoner.talking import Paper, epilogue, show

    if not question.strip():
        raise UserError('the question is empty; expected some text, as in: xreasoner ask tiny "What is 3 + 4?"')
    with _reasoner(given) as reasoner:
        stream = reasoner.stream(question, image or [], option or [])
        if as_json:
            answer = stream.answer
            more = {"option_probabilities": answer.option_probabilities, "mass": answer.mass}
            typer.echo(json.dumps({**asdict(answer.completion), **more}, ensure_ascii=False))
            return
        show(stream, Paper())
        note = epilogue(stream.answer)
        if note:
            typer.secho(note, dim=bool(stream.answer.answer), bold=not stream.answer.answer)


@app.command()
def chat(
    model: Model,
    prompt: Prompt = None,
    budget: Budget = None,
    answer_budget: AnswerBudget = 256,
    temperature: Temperature = None,
    seed: Seed = 0,
    system: System = None,
    engine: EngineName = None,
    served_model: Served = None,
    api_key: ApiKey = None,
    device: Device = None,
    dtype: Dtype = None,
    attn_implementation: Attention = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    show_thoughts: Annotated[bool, typer.Option(help="Show what it thinks.")] = True,
) -> None:
    """Talk with a model; pictures by their path in the message. /help lists the commands, Ctrl-C stops an answer."""
    given = dict(locals())
    from xreasoner.chatting import Chat, converse

    with _reasoner(given) as reasoner:
        converse(Chat(reasoner, show_thoughts))


@app.command()
def batch(
    model: Model,
    source: Annotated[Path, typer.Option("--in", "-i", help="OpenAI batch lines.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The answers; the same file goes on from where it stopped.")],
    budget: Budget = None,
    answer_budget: AnswerBudget = 256,
    temperature: Temperature = None,
    seed: Seed = 0,
    engine: EngineName = None,
    served_model: Served = None,
    api_key: ApiKey = None,
    device: Device = None,
    dtype: Dtype = None,
    attn_implementation: Attention = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    media_root: Annotated[
        Path | None, typer.Option(help="The folder that pictures' files are read below; that of the input if left out.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A host that pictures are fetched from; may be given several times.")
    ] = None,
) -> None:
    """Answer a file of OpenAI batch lines. Killed and started again, it ends with each line answered once."""
    given = dict(locals())
    from xreasoner.batching import run_batch
    from xreasoner.media import Guard
    from xreasoner.progress import Screen

    if not source.is_file():
        raise UserError(f"{source}: no such file; expected OpenAI batch lines")
    guard = Guard(hosts=frozenset(allow_host or ()), root=media_root or source.absolute().parent)
    with _reasoner(given) as reasoner, Screen() as screen:
        done = run_batch(reasoner, source, out, guard, lambda done, total: screen.show("answers", done, total))
    typer.echo(f"{done.answered} answered now, {done.before} before, of {done.total}: {out}")
    if done.refused:
        shown = ", ".join(map(str, done.refused[:10])) + (", …" if len(done.refused) > 10 else "")
        raise UserError(f"{source}: {len(done.refused)} lines are no good requests (lines {shown}); {out} says why")


def _reasoner(given: dict[str, Any]) -> Any:
    """The `Reasoner` of a command's options."""
    from xreasoner.reasoner import Reasoner

    model: str = given["model"]
    _quiet(model)
    names = {"budget": "thinking_budget"} | {
        name: name
        for name in ("answer_budget", "temperature", "seed", "prompt", "system", "engine", "min_pixels", "max_pixels")
    }
    here = ("device", "dtype", "attn_implementation")
    there = ("served_model", "api_key")
    is_remote = model.startswith(("http://", "https://"))
    for name in here if is_remote else there[:1]:
        if given[name] is not None:
            expected = "a model in this process" if is_remote else "a server's URL"
            raise UserError(f"--{name.replace('_', '-')} is for {expected}; MODEL is {model}")
    place = {name: given[name] for name in (there if is_remote else here)}
    return Reasoner(model, **{names[name]: given[name] for name in names if name in given}, **place)


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
