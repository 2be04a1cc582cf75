"""The command line: recsys train | evaluate | recommend | funnel | resume | compare | features | generate |
world | study | index | bench | doctor.

Nothing heavy is imported before a command needs it, so that help and completion answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from recsys.cli_studies import funnel_command, index_command, study_command
from recsys.options import TRACKERS, parsed, parted, whole
from recsys.tables import (
    print_frame,
    print_table,
    show_changes,
    show_comparison,
    show_metrics,
    show_run,
    with_interval,
)

if TYPE_CHECKING:
    from recsys.run import Run

USAGE = """\
recsys: a research lab for recommender systems

  recsys train [group=option] [key=value] [-m]   train and measure; `recsys train --help` lists the groups
  recsys train -m sweep=optuna model=als,mf hydra.sweeper.n_trials=20 [hydra.sweep.dir=DIR]
                                                 search for the best values by validation; the same DIR again: goes on;
                                                 hydra.sweeper.n_jobs=4: side by side
  recsys resume run=DIR                          go on with a run that was stopped
  recsys evaluate run=DIR [evaluation.k=[5,50]] [queries=next_in_session]
                                                 measure a finished run again; slices=[activity,item_popularity,COLUMN]
                                                 for parts of its users and items [metrics=[recall@20]] [logger=wandb]
  recsys recommend run=DIR users=FILE|1,2,3 [k=100] [out=F.parquet]
  recsys funnel retrievers=DIR,DIR ranker=DIR users=FILE|1,2,3 [k=100] [candidates=1000] [factory=Flat] [diversity=0.1]
                [caps=creator:5] [exploration=0.02] [fresh=true] [precision=bfloat16] [out=F.parquet]
                                                 several retrievers, a ranker and the rules of a page
  recsys generate world=small path=DIR [world.rows=N] [seed=S] [workers=N] [tables=DIR]
                                                 a synthetic world's log as Parquet by day; again: goes on
  recsys world validate world=small              its statistics beside published ones
  recsys compare runs=DIR,DIR,… [metrics=[recall@20,gini@20]] [baseline=ALS] [correction=benjamini_hochberg]
                                                 one table of several runs: seeds aggregated, differences tested
  recsys features features=world path=DIR [data=…] [split=…] [negatives=0.1]
                                                 columns to tensors: fit on train, write every part (or features=F.yaml)
  recsys study collisions [buckets=100,1000] [world=…] [model=…] [k=20] [out=F.parquet]
                                                 what hashing the items of a log costs
  recsys study leakage [data=…] [split=…] [model=als] [metric=recall@20] [features=…] [out=F.parquet]
                                                 what of test could be known in training, and what that is worth
  recsys index sweep run=DIR [k=100] [recall=0.95] [factories=[IVF64,Flat;HNSW32]] [out=F.parquet]
                [logger=wandb]
                                                 what approximate indexes of its items lose and gain
  recsys study loss_budget retrievers=DIR,DIR ranker=DIR [candidates=300,1000] [k=100] [users=1000] [out=F.parquet]
                                                 what each stage of that funnel loses, and takes in time
  recsys study debiasing run=DIR [k=20,100] [out=F.parquet]
                                                 logged clicks weighed by propensity, beside the truth
  recsys bench compare A B                       two files or folders of benchmark results: what B is worse at than A
  recsys doctor                                  versions and devices, with a kernel run on each

Start with:  recsys train model=als
Your log:    recsys train data=table data.path=log.parquet data.columns.user_id=uid
Completion:  eval "$(recsys -sc install=bash)"   (zsh and fish alike)
"""

WORLD = ("world=", "world.")  # how arguments begin that choose a synthetic world

# What a user can cause and mend gets one line; anything else is a defect and keeps its traceback.
EXIT_USAGE, EXIT_INTERRUPTED = 2, 130


def main() -> None:
    """The entry point of the `recsys` command."""
    arguments = sys.argv[1:]
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return
    if command in ("-sc", "--shell-completion"):
        _complete(arguments)
        return
    if command not in COMMANDS:
        from recsys.config import nearest

        _fail(f"unknown command {command}: {nearest(command, COMMANDS)}")
    before = os.environ.get("HYDRA_FULL_ERROR")
    # Hydra prints stacks of its own for every error; with this it lets them through to the lines below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        COMMANDS[command](arguments[1:])
    except KeyboardInterrupt as stop:
        _fail(_with_notes("stopped", stop), EXIT_INTERRUPTED)
    except Exception as error:
        if before == "1":
            raise
        _fail_if_expected(error)
        raise
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _fail_if_expected(error: Exception) -> None:
    if type(error).__name__ == "Interrupted":
        _fail(str(error), EXIT_INTERRUPTED)
    if isinstance(error, ValueError | OSError | MemoryError):
        text = str(error) if not isinstance(error, OSError) or error.strerror is None else error.strerror
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {text}"
        _fail(_with_notes(" ".join(text.split()), error))


def _with_notes(text: str, error: BaseException) -> str:
    return "; ".join([text, *getattr(error, "__notes__", [])])


def _fail(message: str, code: int = EXIT_USAGE) -> NoReturn:
    sys.stderr.write(f"recsys: {message}\n")
    sys.exit(code)


def _complete(arguments: list[str]) -> None:
    """Hydra's completion asks the program itself; the word after `recsys` is a command of ours."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    program = words[0] if words else "recsys"
    if arguments[1:2] and arguments[1].startswith("query"):
        typing_command = len(words) < 2 or (len(words) == 2 and not line.endswith(" "))
        if typing_command:
            sys.stdout.write(" ".join(COMMANDS) + "\n")
            return
        if words[1] != "train":
            return
        os.environ["COMP_LINE"] = line.replace(f"{program} train", program, 1)
    sys.argv = [sys.argv[0], *arguments]
    _hydra_main(lambda cfg: None)


def _hydra_main(task: Callable[[Any], None]) -> None:
    import hydra

    from recsys.config import MAIN_CONFIG, config_dir, one_line_errors

    with one_line_errors():
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=MAIN_CONFIG)(task)()


def _train(arguments: list[str]) -> None:
    from recsys.config import check_flags

    check_flags(arguments)
    runs: list[Run] = []
    errors: list[BaseException] = []

    def task(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        from recsys import tracking

        if any(isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Interrupted" for error in errors):
            return
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            from recsys.training import train

            run = train(cfg, run_dir)
            show_run(run)
            runs.append(run)
        except (Exception, KeyboardInterrupt) as error:
            # Kept for later: Hydra would print lines of its own, and one cell of a grid must not cost the others.
            errors.append(error)
            if isinstance(error, OSError | KeyboardInterrupt) and tracking.unfinished(run_dir):
                error.add_note(f"to go on: recsys resume run={run_dir}")
            if run_dir.is_dir() and not any(run_dir.iterdir()):
                run_dir.rmdir()

    sys.argv = [f"{sys.argv[0]} train", *arguments]
    _hydra_main(task)
    if len(runs) > 1:
        show_comparison(runs)
    if errors:
        if len(runs) + len(errors) > 1:
            sys.stderr.write(f"recsys: {len(errors)} of {len(runs) + len(errors)} runs failed, the first with\n")
        raise errors[0]


def _resume(arguments: list[str]) -> None:
    options = parsed(arguments, required=("run",))
    from recsys.training import resume

    show_run(resume(Path(options["run"])))


def _evaluate(arguments: list[str]) -> None:
    changes, others = parted(arguments, ("evaluation.", "queries=", "session=", "num_sampled="))
    tracked, own = parted(others, TRACKERS)
    options = parsed(own, required=("run",), optional=("slices", "metrics"))
    by, metrics = (options.get(name, "").strip("[]").split(",") for name in ("slices", "metrics"))
    from recsys.training import evaluate, sliced

    if by == [""]:
        found = evaluate(Path(options["run"]), changes)
        show_metrics(found)
        if tracked:
            from recsys.loggers import record_phase
            from recsys.run import Run

            record_phase(Run(Path(options["run"])), "evaluate", tracked, found, settings={"changes": changes})
        return
    for name, frame in sliced(Path(options["run"]), by, changes, [m for m in metrics if m]).items():
        shown = [column for column in frame.columns if "/" not in column]
        rows = [[with_interval(row, column) for column in shown] for row in frame.iter_rows(named=True)]
        print_table(f"test by {name}", shown, rows)


def _recommend(arguments: list[str]) -> None:
    options = parsed(arguments, required=("run", "users"), optional=("k", "out"))
    k = whole(options, "k")
    import polars as pl

    from recsys import atomic, tracking
    from recsys.run import Run, read_user_ids

    run = Run(Path(options["run"]))
    answer = run.recommend(read_user_ids(options["users"], run.users.ids.dtype), k=100 if k is None else k)
    if "out" not in options:
        with pl.Config(tbl_rows=50, tbl_hide_dataframe_shape=True):
            sys.stdout.write(f"{answer}\n")
        return
    out = Path(options["out"])
    atomic.write(out, answer.write_parquet)
    strangers = answer.filter(pl.col("source") == "fallback")["user_id"].n_unique()
    tracking.print_line(
        f"{out}: {answer.height:,} rows for {answer['user_id'].n_unique():,} users, "
        f"{strangers:,} of them unknown to the model and answered by popularity"
    )


def _compare(arguments: list[str]) -> None:
    options = parsed(arguments, required=("runs",), optional=("metrics", "baseline", "correction"))
    from recsys.run import Run

    runs = [Run(Path(path)) for path in options["runs"].split(",")]
    metrics = options["metrics"].strip("[]").split(",") if "metrics" in options else None
    show_comparison(runs, metrics, options.get("baseline"), options.get("correction", "holm"))


def _features(arguments: list[str]) -> None:
    """features=… is a group here, or a file; path and negatives are ours; the rest chooses data and split."""
    own = [a for a in arguments if a.startswith(("path=", "features=", "negatives="))]
    options = parsed(own, required=("features", "path"), optional=("negatives",))
    chosen, rest = options["features"], [a for a in arguments if a not in own]
    from recsys import config, feature_files, tracking
    from recsys.data.datamodule import RecDataModule
    from recsys.features.embeddings import embedding_dim
    from recsys.features.sampling import NegativeSampling

    if chosen.endswith(".yaml"):
        cfg = config.with_value(config.compose(*rest), "features", config.load(Path(chosen)))
    else:
        cfg = config.compose(f"features={chosen}", *rest)
    pipeline = config.build(cfg.features)
    rate = config.check_type(options.get("negatives"), float | None, "negatives")
    negatives = None if rate is None else NegativeSampling(rate, cfg.seed)
    module = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)
    found = feature_files.write(pipeline, module, options["path"], negatives=negatives)
    rows = [
        (c.name, c.role, c.dtype, c.cardinality, c.width, c.cardinality and embedding_dim(c.cardinality))
        for c in pipeline.columns
    ]
    header = ("input", "role", "dtype", "indices", "values a row", "embedding dim (rule)")
    print_table(options["path"], header, [["" if v is None else f"{v}" for v in row] for row in rows])
    for part, about in found["parts"].items():
        rate = about["rows"] / max(about["seconds"], 1e-9)
        tracking.print_line(f"{part}: {about['rows']:,} rows, {about['files']} files, {rate:,.0f} rows/s")
    tracking.print_line(f"fitted on train in {found['fit_seconds']:.1f} s; pipeline {found['pipeline'][:12]}")


def _generate(arguments: list[str]) -> None:
    """world=… and world.key=… choose the world as for train; the rest are options of their own."""
    own = ("path", "tables", "workers", "seed", "world.rows")
    chosen = [a for a in arguments if a.startswith(WORLD) and not a.startswith("world.rows=")]
    options = parsed([a for a in arguments if a not in chosen], required=("path",), optional=own)
    numbers = {name: whole(options, name) for name in ("workers", "seed", "world.rows")}
    from rich.progress import Progress

    from recsys import config, tracking
    from recsys.world import writer

    if numbers["seed"] is not None:
        chosen.append(f"world.seed={numbers['seed']}")
    world = config.build(config.compose("data=world", *chosen).world)
    rows, workers = numbers["world.rows"], numbers["workers"]
    count, size, seconds = writer.estimate(world, rows, workers)
    tracking.print_line(
        f"world {world.name}, {world.surface}: about {count:,.0f} rows, {size / 1e6:,.0f} MB, {seconds:,.0f} s "
        f"to {options['path']}"
    )
    with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("generate")
        found = writer.generate(
            world, options["path"], rows=rows, workers=workers, tables=options.get("tables"),
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    sys.stdout.write(
        f"{options['path']}: {found['rows']:,} rows, {found['positives'] / found['rows']:.2%} positive, "
        f"{found['files']:,} files, {found['bytes'] / 1e6:,.1f} MB\ncontent hash {found['content_hash']}\n"
        f"next: recsys train data=table data.path='{options['path']}/day=*/*.parquet' data.columns.label=label\n"
    )


def _world(arguments: list[str]) -> None:
    if arguments[:1] != ["validate"]:
        raise ValueError("recsys world: expected `recsys world validate world=…`")
    parsed([a for a in arguments[1:] if not a.startswith(WORLD)])
    from recsys import config
    from recsys.world.validation import validate

    world = config.build(config.compose("data=world", *arguments[1:]).world)
    report = validate(world)
    print_frame(f"world {world.name}", report, ",.4g")
    if (report["verdict"] == "missed").any():
        _fail("a published statistic is missed", 1)


def _bench(arguments: list[str]) -> None:
    if len(arguments) != 3 or arguments[0] != "compare":
        raise ValueError("recsys bench: expected `recsys bench compare A B`, two files or folders of results")
    from recsys.regressions import compare

    changes, notes = compare(Path(arguments[1]), Path(arguments[2]))
    show_changes(changes, notes)
    worse = sum(change.verdict == "worse" for change in changes)
    if worse:
        _fail(f"{worse} of {len(changes)} figures worse in {arguments[2]}, beyond noise", 1)


def _doctor(arguments: list[str]) -> None:
    parsed(arguments)
    from recsys.doctor import examine

    print_table("recsys doctor", ("what", "state", "detail"), examine())


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "recommend": _recommend,
    "compare": _compare,
    "features": _features,
    "generate": _generate,
    "world": _world,
    "study": study_command,
    "index": index_command,
    "funnel": funnel_command,
    "bench": _bench,
    "doctor": _doctor,
}

if __name__ == "__main__":
    main()
