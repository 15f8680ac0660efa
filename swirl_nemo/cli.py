"""`swirl VERB [KEY=VALUE]...`: each verb is a call into a room of this package.

A room is imported when its verb runs and after the settings are read: the NeMo stack takes seconds to import, and a
mistake should show at once.
"""

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

from .checks import check
from .settings import compose, load

# torch says this at every import, about a package that Megatron Core's dependencies bring in.
warnings.filterwarnings("ignore", message="The pynvml package is deprecated")

app = typer.Typer(
    name="swirl",
    help="Train a forward world model and an inverse dynamics model against each other on state-only data.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings of conf/swirl.yaml, and choices of its groups: experiment, data, model, phase, parallel, "
        "precision, cluster, suite.",
        show_default=False,
    ),
]
UsageError = typer.BadParameter.__base__  # Click's, from whichever module this version of Typer takes it


@app.command(epilog="Example: swirl quickstart run.seed=2 run.name=second")
def quickstart(overrides: Overrides = ()) -> None:
    """The whole loop, small: collect a built-in world, warm up, train, compare, report."""
    from .quickstart import run

    run(list(overrides))


@app.command(epilog="Example: swirl collect world=household seed=1 world.labelled=100")
def collect(
    overrides: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Settings of conf/collect.yaml.", show_default=False)
    ] = (),
) -> None:
    """Collect transitions of a world into data/WORLD."""
    from .collection import CollectConfig
    from .collection import collect as run

    cfg = compose(list(overrides), "collect", CollectConfig)
    counts = run(cfg)
    typer.echo(f"{cfg.out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))


@app.command("train-tokenizer", epilog="Example: swirl train-tokenizer frames=data/pictures out=models/vq codes=512")
def train_tokenizer(
    overrides: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE", help="Settings of conf/train_tokenizer.yaml.", show_default=False),
    ] = (),
) -> None:
    """Train a small image tokenizer on frames, and say how well it gives them back."""
    from .data.images.config import TrainTokenizerConfig

    cfg = compose(list(overrides), "train_tokenizer", TrainTokenizerConfig)
    from .data.images.training import train_tokenizer as run

    figures = run(cfg)
    typer.echo(f"{cfg.out}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


@app.command(
    epilog="Example: swirl tokenize source=videos out=data/videos tokenizer=models/emu3_vq size=[256,256] stride=8"
)
def tokenize(
    overrides: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Settings of conf/tokenize.yaml.", show_default=False)
    ] = (),
) -> None:
    """Pictures or videos to codes on disk, with transitions files that name them. Goes on where it stopped."""
    from .data.images.config import TokenizeConfig

    cfg = compose(list(overrides), "tokenize", TokenizeConfig)
    from .data.images.tokenize import tokenize as run

    typer.echo(f"{cfg.out}: {run(cfg)} pictures")


@app.command("import", epilog="Example: swirl import models/smollm2_135m_hf models/smollm2_135m --query-groups 4")
def import_(
    hf_dir: Annotated[Path, typer.Argument(help="Hugging Face folder: config.json, safetensors, tokenizer.")],
    out: Annotated[Path, typer.Argument(help="NeMo checkpoint folder to make.")],
    query_groups: Annotated[
        int | None, typer.Option(help="Pad the query groups with zero heads, so that a tensor parallel size divides.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="CODES:ROWSxCOLUMNS", help="Add rows for image codes, e.g. 8192:32x32.")
    ] = None,
    image_ends: Annotated[
        str | None,
        typer.Option(metavar="BEGIN,END", help="Tokens of the tokenizer around an image; without it, two new ones."),
    ] = None,
    image_first: Annotated[
        int | None, typer.Option(help="The row of code 0, where the model has the codes already.")
    ] = None,
) -> None:
    """Make a NeMo checkpoint of a Hugging Face folder: Llama, Qwen2, Qwen3, Mistral or Gemma."""
    from .checkpoint.huggingface import import_hf
    from .checkpoint.image_rows import ImageOptions

    if images is None and (image_ends or image_first):
        raise ValueError("--image-ends, --image-first: which images? Give --images CODES:ROWSxCOLUMNS too")
    options = None if images is None else ImageOptions(images, image_ends, image_first)
    import_hf(hf_dir, out, query_groups, options)
    typer.echo(str(out))


@app.command(epilog="Example: swirl export runs/latest/checkpoints/swirl/fwm models/my_fwm --dtype bfloat16 --verify")
def export(
    nemo_dir: Annotated[Path, typer.Argument(help="NeMo checkpoint folder: of swirl import, or a run's role.")],
    out: Annotated[Path, typer.Argument(help="Hugging Face folder to make.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; without it, the checkpoint's own, bit for bit.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest file.")] = "5GB",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare log-probs of transformers with those of Megatron's model.")
    ] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file to verify on, a prompt a line; without it, random tokens.")
    ] = None,
) -> None:
    """Make a Hugging Face folder of a NeMo checkpoint, with a model card."""
    from .checkpoint.export import export_hf, named_dtype, shard_bytes

    kind, limit = named_dtype(dtype), shard_bytes(shard_size)
    difference = export_hf(nemo_dir, out, dtype=kind, shard_size=limit, verify=verify, prompts=prompts)
    checked = "" if difference is None else f": log-probs differ from Megatron's by at most {difference:.2g}"
    typer.echo(f"{out}{checked}")


@app.command(epilog="Example: swirl warmup experiment=quickstart warmup.steps=200")
def warmup(overrides: Overrides = ()) -> None:
    """Supervised fine-tuning of both roles on the labelled set."""
    cfg = load(list(overrides))
    from . import alternation

    alternation.warmup(cfg)


@app.command(epilog="Example: swirl annotate experiment=quickstart annotate.greedy=true")
def annotate(overrides: Overrides = ()) -> None:
    """Latent actions for the state-only transitions, from the current IDM."""
    cfg = load(list(overrides))
    from . import alternation

    _say(str(alternation.annotate(cfg)))


@app.command(epilog="Example: torchrun --nproc-per-node 2 -m swirl_nemo train experiment=quickstart parallel=tp2")
def train(
    overrides: Overrides = (),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build rank 0 of the whole world without memory, print the plan, and end."),
    ] = False,
) -> None:
    """Warm-up, then iterations of annotation, Phase I and Phase II. The same command goes on where a run stopped."""
    if dry_run:
        cfg = compose(list(overrides))
        from .dry_run import dry_run as build

        build(cfg)
        return
    cfg = load(list(overrides))
    from . import alternation

    alternation.train(cfg)


@app.command("eval", epilog="Example: swirl eval run.name=my_run suite=stabletoolbench suite.folder=StableToolBench")
def evaluate(overrides: Overrides = ()) -> None:
    """Held-out figures of both roles or, with suite=NAME, a run's models on one of the paper's benchmarks."""
    cfg = compose(list(overrides))
    if cfg.suite is not None and cfg.suite.predictions is not None:
        check(cfg, cfg.parallel.processes)  # no model is run: neither its files nor a process a rank are needed
    else:
        cfg = load(list(overrides))
    if cfg.suite is not None:
        from .evaluation import benchmarks

        benchmarks.evaluate(cfg)
        return
    from . import alternation

    _say(json.dumps(alternation.evaluate(cfg), indent=2))


@app.command(epilog="Example: swirl report runs/a runs/b")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of several runs: the page. Without it, comparison.html in their common parent folder."
        ),
    ] = None,
) -> None:
    """Write a run's report.html or, of several runs, one page that compares them."""
    if len(runs) > 1:
        from .evaluation.comparison import write_comparison

        typer.echo(str(write_comparison(runs, out)))
        return
    if out is not None:
        raise ValueError(f"--out={out}: of one run the report is report.html in its folder: leave --out out")
    from .evaluation.report import write_report

    typer.echo(str(write_report(runs[0])))


@app.command(epilog="Example: swirl bench model=tiny completion_len=128 --json bench.json")
def bench(
    overrides: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Settings of conf/bench/step.yaml.", show_default=False)
    ] = (),
    against_trl: Annotated[
        Path | None,
        typer.Option(metavar="PYTHON", help="Alternate with TRL, step by step: the python of an environment with trl."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
) -> None:
    """Seconds of one step of Phase I on made-up prompts, beside the machine's own limit."""
    from .bench.config import BenchConfig

    cfg = compose(list(overrides), "bench/step", BenchConfig)
    from .bench.run import bench as measure

    measure(cfg, against_trl, json_file)


@app.command(epilog="Example: swirl plan model=llama3_70b cluster=dgx_h100 cluster.nodes=8 precision=bf16 --search")
def plan(
    overrides: Overrides = (),
    search: Annotated[bool, typer.Option("--search", help="Look for the fastest layouts that fit.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Instead: published runs, NeMo-RL's step, and 8 to 4,096 GPUs.")
    ] = False,
    lengths: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            metavar="STATE NEXT ACTION", help="Mean tokens of each; without it, the longest that are allowed."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
) -> None:
    """Memory of each GPU and host and seconds of a step, on paper, and what does not fit."""
    cfg = compose(list(overrides))
    from .planning import comparison, report
    from .planning.work import Lengths

    if compare:
        comparison.compare(json_file)
        return
    report.plan(cfg, Lengths(*lengths) if lengths else None, search, json_file)


@app.command(epilog="Example: swirl submit cluster=dgx_h100 cluster.nodes=2 experiment=quickstart --dry-run")
def submit(
    overrides: Overrides = (),
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="A job array, a run a seed: 1-3 or 1,4,7.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the batch script.")] = False,
) -> None:
    """Give a training run to Slurm, which starts it again until it is finished."""
    from .cluster.submit import submit as give

    for line in give(list(overrides), seeds=seeds, dry_run=dry_run):
        typer.echo(line)


@app.command(epilog="Example: srun swirl preflight cluster=dgx_h100 cluster.nodes=2")
def preflight(overrides: Overrides = ()) -> None:
    """What a job does on its nodes before it trains: look for a bad one; exit code 1 names it."""
    from .cluster.preflight import preflight as look

    look(compose(list(overrides)))


@app.command(epilog="Example: swirl status runs/latest")
def status(run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Where a run is: its job, step, tokens/s, last metrics, and the attempts it took."""
    from .cluster.status import status as known

    for line in known(run_dir):
        typer.echo(line)


@app.command(epilog="Example: swirl doctor")
def doctor() -> int:
    """Versions, devices, memory, a collective between two processes; exit code 1 where something needed is missing."""
    from .doctor import examine

    return examine()


def main(arguments: list[str] | None = None) -> None:
    """The console script. A user's mistake is one line on standard error and exit code 2.

    A mistake is a ValueError that this package raised; from within a library it is a bug and keeps its traceback, as
    does every one under SWIRL_DEBUG=1.
    """
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except UsageError as error:
        _fail(f"{error.format_message().rstrip('.')}: see swirl --help")
    except typer.Abort:
        sys.exit(130)
    except ValueError as error:
        if os.environ.get("SWIRL_DEBUG") == "1" or not _raised_here(error):
            raise
        _fail(str(error))


def _say(text: str) -> None:
    """Once, not once a process."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


def _raised_here(error: ValueError) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].split(".")[0] == __package__


def _fail(message: str) -> None:
    sys.stderr.write(f"swirl: error: {' '.join(message.split())}\n")  # in one piece: ranks share the stream
    sys.exit(2)
