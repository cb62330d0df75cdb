"""The command line. Thin: every command calls one function; what they need is imported when they run."""

from __future__ import annotations

import errno
import json
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xreasoner.errors import RequestsError, UserError, XReasonerError, reason

if TYPE_CHECKING:
    from xreasoner.cli_options import EngineOptions, SamplingOptions
    from xreasoner.reasoner import Reasoner

app = typer.Typer(
    help="Make vision-language models reason with text alone, and show what that did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Out = Annotated[Path, typer.Option(help="Run folder; the same command in the same folder resumes.")]
RESUMABLE = ("demo", "train", "eval", "distill", "batch")
"""Commands that a second call with the same arguments continues."""
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of data order, sampling and evaluation items.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field of the recipe: key=value.")] = None,
) -> None:
    """Run the full pipeline on the built-in model: measure, SFT, RL, measure again, report."""
    recipe = _checked_recipe("demo", [f"seed={seed}", f"evaluation.seed={seed}", *(set_ or [])], out)
    from xreasoner.demo import closing, run_demo
    from xreasoner.progress import Screen, matrix

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the recipe, its plan and its first batch.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Accepted for older scripts; the same command resumes without it.")
    ] = False,
) -> None:
    """Run a recipe's stages; where it names benchmarks, measure each and report. Under torchrun, on all processes."""
    wanted = _checked_recipe(recipe, set_ or [], None if dry_run else out)
    from xreasoner.demo import claim, run_demo
    from xreasoner.planning import check_recipe
    from xreasoner.progress import Screen, matrix
    from xreasoner.training import parallel
    from xreasoner.training.preflight import check_benchmarks, check_run_files
    from xreasoner.training.run import known_sources, run_recipe

    _quiet(wanted.model)
    if dry_run:
        from xreasoner import showing

        _print(showing.dry_run(wanted))
        return
    check_recipe(wanted)
    known_sources(wanted, out)
    check_run_files(out)  # last: it makes the folder
    measured = wanted.evaluation.measures
    with Screen() as screen:
        with parallel.world():
            if parallel.rank() == 0:
                claim(wanted, out)
            first, several = parallel.rank() == 0, parallel.size() > 1
            if several and first:  # which measure after all stages; a single process measures the base first
                check_benchmarks(wanted.evaluation)
            if several or not measured:
                run_recipe(wanted, out, screen.training)
        summary = run_demo(wanted, out, screen.show) if first and measured else None
    if summary is not None:
        screen.console.print(matrix(summary))
        typer.echo(f"report: {out / 'report.html'}")
    if first:
        typer.echo(f"done: {out / wanted.stages[-1].name / 'export'}")


def _checked_recipe(name: str, overrides: list[str], out: Path | None) -> Any:
    """A recipe whose names and folder are checked; nothing heavy is imported, nothing written."""
    from xreasoner.checks import check_model
    from xreasoner.recipe import load_recipe
    from xreasoner.run_folder import check_run_folder

    recipe = load_recipe(name, overrides, check_model, _check_bench)
    if out is not None:
        check_run_folder(recipe, out)
    return recipe


def _check_bench(name: str) -> None:
    from xreasoner.benchmarks.opening import check_name

    check_name(name)


def _check_benches(names: Iterable[str]) -> None:
    """Raise `UserError` with every unknown benchmark."""
    from xreasoner.checks import check_all

    check_all(lambda name=name: _check_bench(name) for name in names)  # type: ignore[misc]


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs.")],
    memory: Annotated[str | None, typer.Option(help="Memory per GPU: 24GB, 40GB, 80GB, …; default: --gpu's.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Kind of GPU, such as 'A100 80GB'; default: by its memory.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price per GPU hour, in any currency.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Mean length of an example or reply in tokens; default: the limits.")
    ] = None,
    length_spread: Annotated[
        float, typer.Option(min=0, max=5, help="Standard deviation of these lengths over their mean.")
    ] = 0.7,
    network: Annotated[float, typer.Option(help="Gbit/s between machines for each GPU.")] = 200.0,
    host_memory: Annotated[
        str | None, typer.Option(help="Main memory per machine, such as 512GB; default: not checked.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: key=value.")] = None,
) -> None:
    """Estimate memory by part, tokens, FLOPs, hours and cost of a recipe, and what makes it run. Trains nothing."""
    from xreasoner import planning
    from xreasoner.recipe import load_recipe

    machine = planning.Machine.of(gpus, memory, price, gpu, network, host_memory)
    wanted = load_recipe(recipe, set_ or [])
    _quiet(wanted.model)
    plans = planning.plan(wanted, machine, length, length_spread)
    typer.echo(planning.told(plans, wanted, machine, length, length_spread))


data = typer.Typer(help="Inspect training data, decontaminate it, and distill chains of thought.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command("show")
def data_show(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    examples: Annotated[int, typer.Option(min=0, help="Examples shown per stage.")] = 2,
    limit: Annotated[int, typer.Option(min=1, help="Rows read from each source.")] = 2000,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: key=value.")] = None,
) -> None:
    """Show a recipe's data as the model sees it: text, ids, trained tokens in color, lengths, and what is dropped."""
    from xreasoner import showing
    from xreasoner.recipe import load_recipe

    wanted = load_recipe(recipe, set_ or [])
    _quiet(wanted.model)
    _print(showing.shown(wanted, examples, limit))


@data.command("decontaminate")
def data_decontaminate(
    rows: Annotated[str, typer.Argument(help="Training data: a file, a folder or a hub id.")],
    bench: Annotated[str, typer.Option(help="Benchmarks, separated by commas.")],
    out: Annotated[Path, typer.Option(help="Folder for clean.jsonl, hits.jsonl and report.json.")],
    n: Annotated[int, typer.Option(min=1, help="Length of a shared word n-gram that counts as overlap.")] = 13,
    field: Annotated[list[str] | None, typer.Option(help="Compare only this field of a row; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per benchmark; default: all.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the benchmarks' data sets; default: the hub.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the data set.")] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
) -> None:
    """Find training rows that share an n-gram with a benchmark's items; report them, and write the others."""
    from xreasoner.benchmarks.opening import check_name, open_benchmark
    from xreasoner.data.dataset_files import Table
    from xreasoner.data.decontamination import decontaminate
    from xreasoner.progress import Screen

    names = [name.strip() for name in bench.split(",")]
    for name in names:
        check_name(name)
    table = Table(rows, config, split)
    table.check()
    items = {name: open_benchmark(name, limit, 0, data) for name in names}
    with Screen() as screen:
        result = decontaminate(table, items, out, n, field or (), lambda done: screen.show("rows", done, 0))
    for name, counts in result["benches"].items():
        short = f", {counts['too_short']:,} too short to look for" if counts["too_short"] else ""
        typer.echo(f"{name:28} {counts['items_hit']:,} of {counts['items']:,} items in {counts['rows']:,} rows{short}")
    typer.echo(f"{result['dropped']:,} of {result['rows']:,} rows dropped; the others: {out / 'clean.jsonl'}")


@data.command("distill")
def data_distill(
    recipe: Annotated[str, typer.Argument(help="The recipe whose stage holds the problems.")],
    teacher: Annotated[str, typer.Option(help="A model, or comma-separated server URLs.")],
    out: Annotated[Path, typer.Option(help="Output JSONL file; the same command with the same file resumes.")],
    stage: Annotated[str | None, typer.Option(help="Name of the stage; default: the first RL stage.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Chains sampled per problem.")] = 4,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 0.6,
    budget: Annotated[int, typer.Option(min=1, help="Thinking budget in tokens.")] = 8192,
    answer_budget: Annotated[int, typer.Option(min=1, help="Answer budget in tokens.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed.")] = 0,
    prompt: Annotated[str | None, typer.Option(help="Name of the prompt; default: the stage's.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: key=value.")] = None,
) -> None:
    """Sample chains of thought from a teacher, and keep those that the grader finds correct as SFT data."""
    from xreasoner.data.distillation import distill_stage
    from xreasoner.engines.base import Sampling
    from xreasoner.progress import Screen
    from xreasoner.recipe import load_recipe

    wanted = load_recipe(recipe, set_ or [])
    _quiet(teacher)
    sampling = Sampling(temperature=temperature, thinking_budget=budget, answer_budget=answer_budget, seed=seed)
    with Screen() as screen:
        result = distill_stage(wanted, stage, teacher, out, samples, sampling, prompt, screen.show)
    typer.echo(", ".join(f"{name} {count:,}" for name, count in result["outcomes"].items()))
    typer.echo(f"{result['kept']:,} chains of {result['solved']:,} of {result['problems']:,} problems: {out}")


def _print(parts: Iterable[Any]) -> None:
    """Rich text: color on a terminal, unwrapped everywhere."""
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part, soft_wrap=True)


Model = Annotated[str, typer.Argument(help="A folder, a hub id, tiny or tiny-base, or comma-separated server URLs.")]
Prompt = Annotated[
    str | None, typer.Option(help="Name of the prompt; default: the one that the model was trained with.")
]
ChatPrompt = Annotated[
    str | None,
    typer.Option(help="Prompt of the last user message; default: the model's own. none sends messages unchanged."),
]
Budget = Annotated[
    int | None, typer.Option(min=0, help="Thinking budget in tokens; default: the model's own, or 3744.")
]
AnswerBudget = Annotated[
    int | None, typer.Option(min=1, help="Answer budget in tokens; default: the model's own, or 256.")
]
ExitText = Annotated[str | None, typer.Option(help="Text that ends thinking at the budget; must contain </think>.")]
ExitOnRepeats = Annotated[bool, typer.Option("--exit-on-repeats", help="Also end thinking when it repeats itself.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, help="0 is greedy; default: 0.6, or 0 for the built-in models.")
]
Seed = Annotated[int, typer.Option(min=0, help="Sampling seed.")]
System = Annotated[str | None, typer.Option(help="System prompt; default: the model's own.")]
EngineName = Annotated[str | None, typer.Option("--engine", help="torch, vllm or openai; default: what suits MODEL.")]
Served = Annotated[str | None, typer.Option(help="Name of the model at the servers; default: their first.")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="API key of the servers.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: all GPUs, or the CPU.")]
Dtype = Annotated[
    str | None, typer.Option(help="bfloat16, float16 or float32; default: bfloat16 on a GPU, float32 on a CPU.")
]
Attention = Annotated[str | None, typer.Option(help="Attention implementation: sdpa, flash_attention_2, …")]
MinPixels = Annotated[int | None, typer.Option(min=1, help="Minimum image area in pixels.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Maximum image area in pixels.")]


@app.command()
def grade(
    file: Annotated[Path, typer.Argument(help="Replies: response, gold, answer_type, choices; other fields are kept.")],
    out: Annotated[Path | None, typer.Option(help="Output file; default: standard output.")] = None,
) -> None:
    """Grade saved replies again without a model: adds outcome, extracted and correct to each line."""
    from xreasoner.checks import check_output

    if out is not None:
        check_output(out)
    from xreasoner.grading.rescoring import grade_file

    tally = grade_file(file, out, lambda text: typer.echo(text, err=True))
    share = f" ({100 * tally.correct / tally.total:.1f} %)" if tally.total else ""
    typer.echo(f"{tally.correct} of {tally.total} correct{share}; {tally.bad} lines could not be graded", err=True)
    if tally.bad:
        raise typer.Exit(2 if tally.invalid else 1)


@app.command("eval")
def evaluate(
    model: Model,
    bench: Annotated[str | None, typer.Option(help="Benchmarks, separated by commas; gym:FAMILY too.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items per benchmark; default: all, or 500 of a generated one.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples per item.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 is greedy; default: 0 for one sample, 0.3 for several.")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Ask without the images.")] = False,
    swapped: Annotated[bool, typer.Option("--swapped", help="Ask each item with another item's images.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Name of the prompt; default: the benchmark's own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of items and of sampling.")] = 0,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Thinking budget in tokens; default: the model's own, or 4096.")
    ] = None,
    exit_text: ExitText = None,
    exit_on_repeats: ExitOnRepeats = False,
    data: Annotated[Path | None, typer.Option(help="Folder with the data sets; default: the hub.")] = None,
    inspect_log: Annotated[
        bool, typer.Option("--inspect-log", help="Also write Inspect AI's logs to OUT/inspect.")
    ] = False,
    out: Out = Path("runs/eval"),
    name: Annotated[
        str | None, typer.Option(help="Name of the model in the results and the report; default: its folder's name.")
    ] = None,
    engine: EngineName = None,
    served_model: Served = None,
    api_key: ApiKey = None,
    device: Device = None,
    dtype: Dtype = None,
    attn_implementation: Attention = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    preprocessing: Annotated[
        str, typer.Option(help="Resize images by the processor, or by qwen-vl-utils before it.")
    ] = "processor",
    patch_size: Annotated[
        int | None, typer.Option(min=1, help="Side of an image token at the servers, in pixels; default: by its name.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the benchmarks and exit.")] = False,
) -> None:
    """Evaluate a model on benchmarks; prints a table and stores every reply."""
    if list_:
        benches()
        return
    from xreasoner.checks import check_all, check_exit_text, check_output, check_preprocessing, check_prompt
    from xreasoner.cli_options import EngineOptions

    place = EngineOptions(
        model=model, engine=engine, served_model=served_model, api_key=api_key, device=device, dtype=dtype,
        attn_implementation=attn_implementation, min_pixels=min_pixels, max_pixels=max_pixels,
    )  # fmt: skip
    names = list(dict.fromkeys(name.strip() for name in (bench or "").split(",") if name.strip()))
    check_all(
        [
            *place.checks(),
            lambda: check_prompt(prompt),
            lambda: check_exit_text(exit_text),
            lambda: _check_conditions(blind, swapped, samples, temperature),
            lambda: _check_bench_option(names, data),
            lambda: _check_name(name),
            lambda: check_preprocessing(preprocessing),
            lambda: _check_patch_size(model, patch_size),
            lambda: check_output(out, folder=True),
        ]
    )
    from xreasoner.evaluating import Settings, evaluate_model
    from xreasoner.progress import Screen, ensembles

    settings = Settings(
        n=limit,
        samples=samples,
        temperature=temperature,
        condition="blind" if blind else "swapped" if swapped else "seen",
        prompt=prompt,
        seed=seed,
        budget=budget,
        exit_text=exit_text,
        exit_on_repeats=exit_on_repeats,
        data=data,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        preprocessing=check_preprocessing(preprocessing),
    )
    _quiet(model)
    failures: list[str] = []
    with Screen() as screen:
        found = evaluate_model(
            model,
            names,
            out,
            settings,
            screen.show,
            engine=engine,
            name=name,
            failures=failures,
            patch_size=patch_size,
            **place.placement(),
        )
    typer.echo(ensembles(found))
    for line in _without_credit(found, prompt):
        typer.echo(line)
    typer.echo(f"replies: {out}")
    if inspect_log:
        from xreasoner.evaluating import stage_name
        from xreasoner.reporting.inspect_log import write_logs

        write_logs([out], out / "inspect", [name or stage_name(model)])
        typer.echo(f"logs: {out / 'inspect'}")
    if failures:
        raise XReasonerError("\n".join(failures))


def _without_credit(found: dict[str, dict[str, Any]], prompt: str | None) -> list[str]:
    """A line for each benchmark with no correct reply: how the replies were graded, and what to try."""
    other = "brief-direct" if prompt != "brief-direct" else "brief"
    return [
        f"{bench}: no reply is correct ({', '.join(f'{count} {name}' for name, count in result['outcomes'].items())}); "
        f"--prompt {other} shows whether the prompt is the cause, and the replies below what was answered"
        for bench, result in found.items()
        if result.get("accuracy") == 0 and result.get("outcomes")
    ]


def _check_patch_size(model: str, patch_size: int | None) -> None:
    if patch_size is not None and not model.startswith(("http://", "https://")):
        raise UserError(f"--patch-size is for a server's URL; MODEL is {model}, which says its own; omit --patch-size")


def _check_conditions(blind: bool, swapped: bool, samples: int, temperature: float | None) -> None:
    if blind and swapped:
        raise UserError("--blind withholds the images and --swapped shows others; choose one")
    if temperature == 0 and samples > 1:
        raise UserError(
            f"--samples {samples} with --temperature 0: greedy samples are all alike; expected a temperature above 0 "
            "(the paper's is 0.3)"
        )


def _check_bench_option(names: list[str], data: Path | None) -> None:
    """Raise `UserError` for no or unknown benchmarks, and for --data that none of them reads."""
    from xreasoner.registry import BENCHMARKS

    if not names:
        raise UserError("no benchmark; expected --bench with names (xreasoner benches lists them)")
    _check_benches(names)
    embedded = [name for name in names if name in BENCHMARKS or name.startswith("gym:")]
    if data is not None and embedded:
        raise UserError(f"--data {data}: {', '.join(embedded)} comes with the package and reads no data; omit --data")
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder; expected one that holds the data sets")


def _check_name(name: str | None) -> None:
    """Raise `UserError` for a name that cannot be a folder's."""
    if name is not None and not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise UserError(f"--name {name!r}: expected letters, digits, '.', '_', '+' and '-'")


@app.command()
def benches() -> None:
    """List the benchmarks: items, cell, answers, license, gate."""
    from xreasoner.benchmarks.listing import shown

    typer.echo(shown())


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several make one report.")],
    out: Annotated[Path | None, typer.Option(help="The page's file; default: report.html in the first folder.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Stage (or run folder) that the others are compared with; default: the base."),
    ] = None,
    inspect_log: Annotated[Path | None, typer.Option(help="Also write Inspect AI's logs to this folder.")] = None,
) -> None:
    """Write the transfer report of runs, and its numbers as Markdown, CSV and a model card beside it."""
    from xreasoner.checks import check_all, check_output

    checks: list[Callable[[], object]] = [lambda: check_output(out or runs[0] / "report.html")]
    if inspect_log is not None:
        checks.append(lambda: check_output(inspect_log, folder=True))
    check_all(checks)
    from xreasoner.reporting import write_report

    typer.echo(str(write_report(runs, out, baseline)))
    if inspect_log is not None:
        from xreasoner.reporting.inspect_log import write_logs

        typer.echo(f"{len(write_logs(runs, inspect_log))} logs: {inspect_log}")


@app.command()
def ask(
    model: Model,
    question: Annotated[
        str | None, typer.Argument(help="The question; - or nothing reads it from standard input.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(help="An image's path or URL; repeatable.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An answer option; repeatable.")] = None,
    prompt: Prompt = None,
    budget: Budget = None,
    answer_budget: AnswerBudget = None,
    exit_text: ExitText = None,
    exit_on_repeats: ExitOnRepeats = False,
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
    thought: Annotated[
        bool | None,
        typer.Option("--thought/--no-thought", help="Print the thought to standard output too, or not at all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print answer, thought, exit and usage as JSON.")] = False,
    full: Annotated[bool, typer.Option("--full", help="With --json: also text, token ids and log-probs.")] = False,
) -> None:
    """Ask a model one question. The answer goes to standard output, the thought to standard error."""
    from xreasoner.checks import check_all, check_images
    from xreasoner.cli_options import EngineOptions, SamplingOptions
    from xreasoner.reasoner import check_question
    from xreasoner.talking import Paper, as_mapping, epilogue, read_question, show

    place = EngineOptions(
        model=model, engine=engine, served_model=served_model, api_key=api_key, device=device, dtype=dtype,
        attn_implementation=attn_implementation, min_pixels=min_pixels, max_pixels=max_pixels,
    )  # fmt: skip
    sampling = SamplingOptions(
        budget=budget, answer_budget=answer_budget, exit_text=exit_text, exit_on_repeats=exit_on_repeats,
        temperature=temperature, seed=seed, prompt=prompt, system=system,
    )  # fmt: skip
    text = read_question(question)
    check_all(
        [
            *place.checks(),
            *sampling.checks(),
            lambda: check_question(text, option or []),
            lambda: check_images(image or []),
            lambda: _check_full(full, as_json),
        ]
    )
    with _reasoner(place, sampling) as reasoner:
        stream = reasoner.stream(text, image or [], option or [])
        if as_json:
            typer.echo(json.dumps(as_mapping(stream.answer, full), ensure_ascii=False))
            return
        show(stream, Paper(thought is not False, thoughts_to_stderr=thought is None))
        note = epilogue(stream.answer)
        if note:
            typer.secho(note, err=True, dim=bool(stream.answer.answer), bold=not stream.answer.answer)


def _check_full(full: bool, as_json: bool) -> None:
    if full and not as_json:
        raise UserError("--full adds fields to --json; give --json too")


@app.command()
def chat(
    model: Model,
    prompt: Prompt = None,
    budget: Budget = None,
    answer_budget: AnswerBudget = None,
    exit_text: ExitText = None,
    exit_on_repeats: ExitOnRepeats = False,
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
    show_thoughts: Annotated[bool, typer.Option(help="Show the thoughts.")] = True,
) -> None:
    """Chat with a model. Write an image's path in a message to show it; /help lists commands, Ctrl-C stops a reply."""
    from xreasoner.chatting import Chat, converse
    from xreasoner.checks import check_all
    from xreasoner.cli_options import EngineOptions, SamplingOptions

    place = EngineOptions(
        model=model, engine=engine, served_model=served_model, api_key=api_key, device=device, dtype=dtype,
        attn_implementation=attn_implementation, min_pixels=min_pixels, max_pixels=max_pixels,
    )  # fmt: skip
    sampling = SamplingOptions(
        budget=budget, answer_budget=answer_budget, exit_text=exit_text, exit_on_repeats=exit_on_repeats,
        temperature=temperature, seed=seed, prompt=prompt, system=system,
    )  # fmt: skip
    check_all([*place.checks(), *sampling.checks()])
    with _reasoner(place, sampling) as reasoner:
        converse(Chat(reasoner, show_thoughts))


@app.command()
def batch(
    model: Model,
    source: Annotated[Path, typer.Option("--in", "-i", help="Input file of OpenAI batch lines.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file; the same command with the same file resumes.")],
    budget: Budget = None,
    answer_budget: AnswerBudget = None,
    exit_text: ExitText = None,
    exit_on_repeats: ExitOnRepeats = False,
    temperature: Temperature = None,
    seed: Seed = 0,
    prompt: ChatPrompt = None,
    engine: EngineName = None,
    served_model: Served = None,
    api_key: ApiKey = None,
    device: Device = None,
    dtype: Dtype = None,
    attn_implementation: Attention = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder from which image files may be read; default: the input's.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host from which images may be fetched; repeatable.")
    ] = None,
) -> None:
    """Answer a file of OpenAI batch lines. Stopped and started again, it answers each line once."""
    from xreasoner.batching import run_batch
    from xreasoner.checks import check_all, check_output
    from xreasoner.cli_options import EngineOptions, SamplingOptions
    from xreasoner.media import Guard
    from xreasoner.progress import Screen

    place = EngineOptions(
        model=model, engine=engine, served_model=served_model, api_key=api_key, device=device, dtype=dtype,
        attn_implementation=attn_implementation, min_pixels=min_pixels, max_pixels=max_pixels,
    )  # fmt: skip
    sampling = SamplingOptions(
        budget=budget, answer_budget=answer_budget, exit_text=exit_text, exit_on_repeats=exit_on_repeats,
        temperature=temperature, seed=seed, prompt=prompt, raw_is_possible=True,
    )  # fmt: skip
    check_all([*place.checks(), *sampling.checks(), lambda: _check_batch_input(source), lambda: check_output(out)])
    guard = Guard(hosts=frozenset(allow_host or ()), root=media_root or source.absolute().parent)
    with _reasoner(place, sampling) as reasoner, Screen() as screen:
        done = run_batch(
            *(reasoner, source, out, guard),
            lambda done, total: screen.show("answers", done, total),
            prompt="none" if prompt == "none" else "default",
        )
    typer.echo(f"{done.answered} answered now, {done.before} before, of {done.total}: {out}")
    if done.failed:
        raise RequestsError({line.number: error for line, error in done.failed}, done.total, f"{source}: line")
    if done.refused:
        shown = ", ".join(map(str, done.refused[:10])) + (", …" if len(done.refused) > 10 else "")
        raise UserError(
            "\n".join(f"{source}: {done.reasons[number]}" for number in done.refused[:20])
            + f"\n{source}: {len(done.refused)} lines are invalid requests (lines {shown}); {out} says why; "
            "fix them and run again with another -o"
        )


def _check_batch_input(source: Path) -> None:
    if not source.is_file():
        raise UserError(f"{source}: no such file; expected OpenAI batch lines")


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL-or-URL...", help="A folder, a hub id, tiny or tiny-base; or server URLs."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than this machine only with --key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")] = 8000,
    key: Annotated[str | None, typer.Option(envvar="XREASONER_API_KEY", help="API key that clients must send.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Additional accepted Host header; repeatable.")] = None,
    budget: Budget = None,
    answer_budget: AnswerBudget = None,
    exit_text: ExitText = None,
    exit_on_repeats: ExitOnRepeats = False,
    temperature: Temperature = None,
    seed: Seed = 0,
    prompt: ChatPrompt = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send messages to the model as they are, without its prompt.")
    ] = False,
    lenient: Annotated[
        bool,
        typer.Option("--lenient", help="Ignore request fields that are not supported, and list them in the reply."),
    ] = False,
    engine: EngineName = None,
    served_model: Served = None,
    api_key: ApiKey = None,
    device: Device = None,
    dtype: Dtype = None,
    attn_implementation: Attention = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder from which image files may be read; default: none.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host from which images may be fetched; repeatable.")
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Maximum images per request.")] = 16,
    max_body: Annotated[int, typer.Option(min=1, help="Maximum request body in megabytes.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per sample, thought and answer.")] = 32_768,
    max_running: Annotated[int, typer.Option(min=1, help="Maximum concurrent requests.")] = 256,
    max_queue: Annotated[int, typer.Option(min=0, help="Maximum queued requests; more are refused (429).")] = 256,
    grace: Annotated[float, typer.Option(min=0, help="Shutdown grace period in seconds.")] = 60.0,
) -> None:
    """Serve a model, or a pool of servers, through OpenAI's API, with a web page at /."""
    from xreasoner.engines.opening import addresses
    from xreasoner.media import Guard
    from xreasoner.serving.desk import Limits
    from xreasoner.serving.run import serve as run_service

    if len(models) > 1 and not addresses(models):
        raise UserError(f"{' '.join(models)}: expected one model, or servers' addresses")
    from xreasoner.checks import check_all
    from xreasoner.cli_options import EngineOptions, SamplingOptions

    place = EngineOptions(
        model=",".join(models), engine=engine, served_model=served_model, api_key=api_key, device=device, dtype=dtype,
        attn_implementation=attn_implementation, min_pixels=min_pixels, max_pixels=max_pixels,
    )  # fmt: skip
    sampling = SamplingOptions(
        budget=budget, answer_budget=answer_budget, exit_text=exit_text, exit_on_repeats=exit_on_repeats,
        temperature=temperature, seed=seed, prompt=prompt, raw_is_possible=True,
    )  # fmt: skip
    check_all([*place.checks(), *sampling.checks()])
    guard = Guard(hosts=frozenset(allow_host or ()), root=media_root, max_images=max_images)
    limits = Limits(max_body=max_body * 2**20, max_tokens=max_tokens, max_running=max_running, max_queue=max_queue)
    run_service(
        lambda: _reasoner(place, sampling),
        host=host,
        port=port,
        key=key,
        names=name or (),
        guard=guard,
        limits=limits,
        grace=grace,
        prompt="none" if raw or prompt == "none" else "default",
        lenient=lenient,
        say=typer.echo,
    )


def _reasoner(engine: EngineOptions, sampling: SamplingOptions) -> Reasoner:
    """The `Reasoner` of a command's options."""
    _quiet(engine.model)
    return sampling.open_reasoner(engine)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run a command; errors become one line and the exit code of their kind."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run a command with these arguments; returns the exit code (errors.py; 130 when it was stopped)."""
    try:
        with _plain_warnings():
            code: Any = app(args, prog_name="xreasoner", standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except Exception as error:
        if _traceback["shown"]:
            raise
        text, code = complaint(error)
        typer.echo(text, err=True)
    if code == STOPPED:
        hint = "; the same command resumes" if any(word in RESUMABLE for word in args) else ""
        typer.echo(f"stopped{hint}", err=True)
    return code if isinstance(code, int) else 0


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Each warning is one line on stderr; those of this package are shown, whatever the filters say."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
        warnings.filterwarnings("default", category=UserWarning, module=r"xreasoner\.")
        yield


def complaint(error: Exception) -> tuple[str, int]:
    """What to tell a person about an error, and the exit code."""
    if isinstance(error, XReasonerError):
        return "error: " + re.sub(r"\n(?! )", "\nerror: ", str(error)), error.exit_code
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"error: {error.filename} already exists and is not a folder; choose another --out", 2
    refused = error if isinstance(error, OSError) else full_disk(error)
    if refused is not None:
        where = f" ({refused.filename})" if refused.filename else ""
        return f"error: {refused.strerror or refused}{where}; what was saved before stays as it was", 1
    message, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if message and isinstance(code, int):  # the command line's own complaints
        text = message()
        return (text if "\n" in text else f"error: {text}"), code
    return f"error: {reason(error)} (unexpected; `xreasoner --debug …` shows where, for a report of it)", 1


def full_disk(error: BaseException) -> OSError | None:
    """The disk's refusal behind an error, if that is what it was: torch.save turns it into a `RuntimeError`."""
    behind = error.__cause__ or error.__context__
    if isinstance(behind, OSError) and behind.errno in DISK:
        return behind
    return full_disk(behind) if behind is not None else None


if __name__ == "__main__":
    main()
