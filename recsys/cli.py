"""The command line: recsys train | evaluate | recommend | resume | compare | features | generate | world |
study | index | doctor.

Nothing heavy is imported before a command needs it, so that help and completion answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import polars as pl

    from recsys.run import Run

USAGE = """\
recsys: a research lab for recommender systems

  recsys train [group=option] [key=value] [-m]   train and measure; `recsys train --help` lists the groups
  recsys resume run=DIR                          go on with a run that was stopped
  recsys evaluate run=DIR [evaluation.k=[5,50]] [queries=next_in_session]
                                                 measure a finished run again; slices=[activity,item_popularity,COLUMN]
                                                 for parts of its users and items [metrics=[recall@20]]
  recsys recommend run=DIR users=FILE|1,2,3 [k=100] [out=F.parquet]
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
                                                 what approximate indexes of its items lose and gain
  recsys study debiasing run=DIR [k=20,100] [out=F.parquet]
                                                 logged clicks weighed by propensity, beside the truth
  recsys doctor                                  versions and devices, with a kernel run on each

Start with:  recsys train model=als
Your log:    recsys train data=table data.path=log.parquet data.columns.user_id=uid
Completion:  eval "$(recsys -sc install=bash)"   (zsh and fish alike)
"""

OF_LISTS = ("popularity", "popularity_lift", "novelty", "serendipity", "diversity", "coverage", "gini")
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
    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra prints stacks of its own for every error; with this it lets them through to the lines below.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        COMMANDS[command](arguments[1:])
    except KeyboardInterrupt:
        _fail("stopped", EXIT_INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        _fail_if_expected(error)
        raise


def _fail_if_expected(error: Exception) -> None:
    if type(error).__name__ == "Interrupted":
        _fail(str(error), EXIT_INTERRUPTED)
    if isinstance(error, ValueError | OSError | MemoryError):
        text = str(error) if not isinstance(error, OSError) or error.strerror is None else error.strerror
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {text}"
        _fail(" ".join(text.split()))


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
    runs: list[Run] = []
    errors: list[BaseException] = []

    def task(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        if any(type(error).__name__ == "Interrupted" for error in errors):
            return
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            from recsys.training import train

            run = train(cfg, run_dir)
            _show(run)
            runs.append(run)
        except (Exception, KeyboardInterrupt) as error:
            # Kept for later: Hydra would print lines of its own, and one cell of a grid must not cost the others.
            errors.append(error)
            if run_dir.is_dir() and not any(run_dir.iterdir()):
                run_dir.rmdir()

    sys.argv = [f"{sys.argv[0]} train", *arguments]
    _hydra_main(task)
    if len(runs) > 1:
        _show_comparison(runs)
    if errors:
        if len(runs) + len(errors) > 1:
            sys.stderr.write(f"recsys: {len(errors)} of {len(runs) + len(errors)} runs failed, the first with\n")
        raise errors[0]


def _resume(arguments: list[str]) -> None:
    options = _options(arguments, required=("run",))
    from recsys import config, tracking
    from recsys.training import train

    run_dir = Path(options["run"])
    if not (run_dir / tracking.CONFIG).exists():
        raise ValueError(f"{run_dir} holds no run to resume: {tracking.CONFIG} is missing")
    _show(train(config.load(run_dir / tracking.CONFIG), run_dir))


def _evaluate(arguments: list[str]) -> None:
    changes = [a for a in arguments if a.startswith(("evaluation.", "queries=", "session=", "num_sampled="))]
    options = _options([a for a in arguments if a not in changes], required=("run",), optional=("slices", "metrics"))
    by, metrics = (options.get(name, "").strip("[]").split(",") for name in ("slices", "metrics"))
    from recsys.training import evaluate, sliced

    if by == [""]:
        _show_metrics(evaluate(Path(options["run"]), changes))
        return
    for name, frame in sliced(Path(options["run"]), by, changes, [m for m in metrics if m]).items():
        shown = [column for column in frame.columns if "/" not in column]
        rows = [[_with_interval(row, column) for column in shown] for row in frame.iter_rows(named=True)]
        _print_table(f"test by {name}", shown, rows)


def _recommend(arguments: list[str]) -> None:
    options = _options(arguments, required=("run", "users"), optional=("k", "out"))
    k = _whole(options, "k")
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
    options = _options(arguments, required=("runs",), optional=("metrics", "baseline", "correction"))
    from recsys.run import Run

    runs = [Run(Path(path)) for path in options["runs"].split(",")]
    metrics = options["metrics"].strip("[]").split(",") if "metrics" in options else None
    _show_comparison(runs, metrics, options.get("baseline"), options.get("correction", "holm"))


def _features(arguments: list[str]) -> None:
    """features=… is a group here, or a file; path and negatives are ours; the rest chooses data and split."""
    own = [a for a in arguments if a.startswith(("path=", "features=", "negatives="))]
    options = _options(own, required=("features", "path"), optional=("negatives",))
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
    _print_table(options["path"], header, [["" if v is None else f"{v}" for v in row] for row in rows])
    for part, about in found["parts"].items():
        rate = about["rows"] / max(about["seconds"], 1e-9)
        tracking.print_line(f"{part}: {about['rows']:,} rows, {about['files']} files, {rate:,.0f} rows/s")
    tracking.print_line(f"fitted on train in {found['fit_seconds']:.1f} s; pipeline {found['pipeline'][:12]}")


def _generate(arguments: list[str]) -> None:
    """world=… and world.key=… choose the world as for train; the rest are options of their own."""
    own = ("path", "tables", "workers", "seed", "world.rows")
    chosen = [a for a in arguments if a.startswith(WORLD) and not a.startswith("world.rows=")]
    options = _options([a for a in arguments if a not in chosen], required=("path",), optional=own)
    numbers = {name: _whole(options, name) for name in ("workers", "seed", "world.rows")}
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
    _options([a for a in arguments[1:] if not a.startswith(WORLD)])
    from recsys import config
    from recsys.world.validation import validate

    world = config.build(config.compose("data=world", *arguments[1:]).world)
    report = validate(world)
    _print_frame(f"world {world.name}", report, ",.4g")
    if (report["verdict"] == "missed").any():
        _fail("a published statistic is missed", 1)


def _study(arguments: list[str]) -> None:
    studies = {"collisions": _study_collisions, "leakage": _study_leakage, "debiasing": _study_debiasing}
    if not arguments or arguments[0] not in studies:
        raise ValueError(f"recsys study: expected one of {', '.join(studies)}")
    studies[arguments[0]](arguments)


def _study_leakage(arguments: list[str]) -> None:
    own = [a for a in arguments[1:] if a.startswith(("metric=", "out="))]
    options = _options(own, optional=("metric", "out"))
    metric = options.get("metric", "recall@20")
    import torch

    from recsys import atomic, config, tasks, tracking
    from recsys.data.datamodule import RecDataModule
    from recsys.studies.leakage_price import study

    chosen = [a for a in arguments[1:] if a not in own]
    if not any(a.startswith("model=") for a in chosen):
        chosen.append("model=als")
    cfg = config.compose(*chosen)
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed, queries=cfg.queries)
    pipeline = None
    if cfg.get("features") is not None:
        task = tasks.of(cfg)(cfg, data, torch.device("cpu"), cfg.seed)
        task.build()
        pipeline = task.pipeline

    def measure(module: RecDataModule) -> pl.DataFrame:
        return tasks.trained(cfg, module, torch.device("cpu"), cfg.seed).measure()[1]

    report = study(data, measure, pipeline, metric)
    if report.is_empty():
        tracking.print_line(f"{data.log.name}, split={data.split.report['kind']}: nothing leaks")
    else:
        _print_frame(f"{data.log.name}: leaks, and their price in points of {metric}", report, ".4g")
    if "out" in options:
        atomic.write(Path(options["out"]), report.write_parquet)


def _study_debiasing(arguments: list[str]) -> None:
    options = _options(arguments[1:], required=("run",), optional=("k", "out"))
    from recsys import atomic, config
    from recsys.studies.debiasing import study
    from recsys.training import again

    k = [config.check_type(n, int, "k") for n in options.get("k", "20,100").strip("[]").split(",")]
    run, task = again(Path(options["run"]))
    if run.is_ranker:
        raise ValueError(f"{run.path} holds a ranker: the study is about lists, name a retriever's run")
    report = study(task.data, run.model.to("cpu").scorer_with_fallback(), k, seed=task.seed)
    _print_frame("what the lists are worth, by the log and in truth", report, ".4f")
    if "out" in options:
        atomic.write(Path(options["out"]), report.write_parquet)


def _study_collisions(arguments: list[str]) -> None:
    own = [a for a in arguments[1:] if a.startswith(("buckets=", "k=", "out="))]
    options = _options(own, optional=("buckets", "k", "out"))
    k = _whole(options, "k") or 20
    from recsys import atomic, backend, config
    from recsys.data.datamodule import RecDataModule
    from recsys.studies.collisions import study

    chosen = [a for a in arguments[1:] if a not in own]
    if not any(a.startswith("model=") for a in chosen):
        chosen.append("model=als")
    cfg = config.compose(*chosen)
    if cfg.queries != "users":
        raise ValueError(f"queries={cfg.queries}: the study of collisions asks one query a user, leave it out")
    data = RecDataModule(config.build(cfg.data), config.partial(cfg.split), cfg.seed)
    items = len(data.items)
    numbers: list[int | None] = [None, *(max(items * share // 100, 2) for share in (1000, 200, 100, 50, 25, 10))]
    if "buckets" in options:
        numbers = [None, *(config.check_type(n, int, "buckets") for n in options["buckets"].strip("[]").split(","))]
    evaluate = partial(config.evaluator(cfg), device=backend.device("cpu"), seed=cfg.seed)
    report = study(data, config.partial(cfg.model), evaluate, numbers, k=k, seed=cfg.seed)
    _print_frame(f"{data.log.name}: {items:,} items in buckets (none given: every item has its own)", report, ".4g")
    if "out" in options:
        atomic.write(Path(options["out"]), report.write_parquet)


def _index(arguments: list[str]) -> None:
    """Factories are parted by semicolons, as they hold commas."""
    if arguments[:1] != ["sweep"]:
        raise ValueError("recsys index: expected `recsys index sweep run=DIR`")
    options = _options(arguments[1:], required=("run",), optional=("k", "recall", "factories", "out"))
    k = _whole(options, "k")
    from recsys import atomic, config
    from recsys.run import Run
    from recsys.studies.frontier import cheapest, check_recall, of_run

    recall = config.check_type(options.get("recall", "0.95"), float, "recall")
    check_recall(recall)  # before minutes are spent
    factories = [factory for factory in options.get("factories", "").strip("[]").split(";") if factory]
    run = Run(Path(options["run"]))
    frame = of_run(run, factories=factories or None, k=100 if k is None else k)
    names = {"build_seconds": "build s", "megabytes": "MB", "batch_qps": "queries/s"}
    left_out = [c for c in frame.columns if c.startswith(("single_qps", "precision@")) or c.partition("@")[2].isdigit()]
    shown = frame.with_columns(frame["batch_qps"].round().cast(int)).drop(left_out).rename(names)
    _print_frame(f"{run.path}: indexes beside exact search, losses in hundredths", shown, ",.4g")
    if "out" in options:
        atomic.write(Path(options["out"]), frame.write_parquet)
    row = cheapest(frame, recall)
    sys.stdout.write(
        f"recall of {recall:g} is kept, 95% sure, at {row['batch_qps']:,.0f} queries/s by\n"
        f"  ItemIndex(vectors, ids, factory={row['factory']!r}, search={row['search']!r})\n"
    )


def _whole(options: dict[str, str], name: str) -> int | None:
    """The whole number of an option that was given; None for one that was not."""
    if name not in options:
        return None
    if not options[name].removeprefix("-").isdigit():
        raise ValueError(f"{name}={options[name]}: expected a whole number")
    return int(options[name])


def _doctor(arguments: list[str]) -> None:
    _options(arguments)
    from recsys.doctor import examine

    _print_table("recsys doctor", ("what", "state", "detail"), examine())


def _options(arguments: list[str], required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, str]:
    """key=value arguments as a dict; an unknown or a missing key is an error that names the right one."""
    from recsys.config import ConfigError, nearest

    options: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in required + optional or not equals:
            raise ConfigError(f"unknown option {argument}: {nearest(key, [f'{o}=' for o in required + optional])}")
        options[key] = value
    for key in required:
        if key not in options:
            raise ConfigError(f"{key} is required: give {key}=…")
    return options


def _show(run: Run) -> None:
    _show_metrics(run.metrics)
    if any(name.startswith("baselines/") for name in run.metrics):
        from recsys.comparison import beside

        _show_differences("beside baselines, differences of this run to them", beside(run))
    path = os.path.relpath(run.path) if run.path.is_relative_to(Path.cwd()) else str(run.path)
    ask = f"recsys.load({path!r}).predict(rows)" if run.is_ranker else ""
    if not ask:
        first = run.users.ids[0] if len(run.users.ids) else ""
        ask = f"recsys recommend run={path} users={first} k=10"
    sys.stdout.write(
        f"\nrun: {path}\n"
        f"next: {ask}\n"
        f"      recsys train model=als        (another model on the same data)\n"
        f"      recsys train --help           (every group and key)\n"
    )


def _show_metrics(metrics: dict[str, Any]) -> None:
    """One line a metric: value, interval, share of the oracle or Bayes' own value; then the lists, then the rest."""
    columns = ["metric", "value", "95% interval", "share of the oracle", "warm only"]
    if any(name.startswith("bayes/") for name in metrics):
        columns[3] = "the truth known"
    rows = []
    for name, value in metrics.items():
        if not name.startswith("test/") or name.count("/") != 1:
            continue
        metric = name.removeprefix("test/")
        if metric.partition("@")[0] in OF_LISTS:
            continue
        low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
        oracle, warm = metrics.get(f"oracle/{metric}"), metrics.get(f"test/warm/{metric}")
        row = [metric, f"{value:.4f}"]
        row.append("" if low is None else f"[{low:.4f}, {high:.4f}]")
        best = metrics.get(f"bayes/{metric}")
        row.append(f"{value / oracle:.1%} of {oracle:.4f}" if oracle else "" if best is None else f"Bayes {best:.4f}")
        row.append("" if warm is None else f"{warm:.4f}")
        rows.append(row)
    for name, value in metrics.items():
        if name.startswith("utility/"):
            metric = name.removeprefix("utility/")
            best = metrics[f"best/{metric}"]
            rows.append([f"expected {metric}", f"{value:.4f}", "", f"{value / best:.1%} of {best:.4f}", ""])
    # A column that has nothing to say in any row (no answer key, no intervals) is left out.
    shown = [c for c in range(len(columns)) if any(row[c] for row in rows)]
    title = f"{metrics.get('candidates', 'whole catalogue')} ranked"
    if "test/log_loss" in metrics:
        title = "rows as shown"
    elif metrics.get("queries") == "next_in_session":
        title = f"next in session, {title}"
    _print_table(
        f"test, {title}",
        [columns[c] for c in shown],
        [[row[c] for c in shown] for row in rows],
    )
    lists = {name: [k for k in metrics if k.startswith(f"test/{name}@") and k.count("/") == 1] for name in OF_LISTS}
    lists = {name: found for name, found in lists.items() if found}
    if lists:
        cuts = [f"@{name.partition('@')[2]}" for name in next(iter(lists.values()))]
        cells = [[name, *(f"{metrics[k]:.4f}" for k in found)] for name, found in lists.items()]
        _print_table("what the lists are like", ["", *cuts], cells)
    rest = {k: v for k, v in metrics.items() if k.split("/")[0] in ("train", "evaluation")}
    sys.stdout.write("  ".join(f"{name} {value:,.4g}" for name, value in rest.items()) + "\n")


def _show_comparison(
    runs: list[Run], metrics: list[str] | None = None, baseline: str | None = None, correction: str = "holm"
) -> None:
    from recsys.comparison import compare

    frame = compare(runs, metrics, baseline, correction=correction).rename({"low": "value/low", "high": "value/high"})
    if metrics is None:
        import polars as pl

        frame = frame.filter(~pl.col("metric").str.split("@").list.first().is_in(OF_LISTS))
    title = f"{len(runs)} run{'s' * (len(runs) > 1)}, differences to {baseline or frame['label'][0]}, p by {correction}"
    _show_differences(title, frame)


def _show_differences(title: str, frame: pl.DataFrame) -> None:
    """What `comparison` gives, as a table."""
    rows = []
    for row in frame.iter_rows(named=True):
        known = row["difference_low"] is not None
        interval = f" [{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]" if known else ""
        share = row.get("share")
        cells = [row["metric"], row["label"], *("" if row.get(n) is None else str(row[n]) for n in ("seeds", "trials"))]
        cells += [_with_interval(row, "value")]
        cells += ["" if share is None else f"{share:.1%}"]
        cells += ["" if row["difference"] is None else f"{row['difference']:+.4f}{interval}"]
        cells += ["" if row["detectable"] is None else f"{row['detectable']:.4f}"]
        cells += ["" if row["p_corrected"] is None else f"{row['p_corrected']:.3f}", row["verdict"] or ""]
        rows.append(cells)
    header = [
        "metric",
        "label",
        "seeds",
        "trials",
        "value",
        "of the oracle",
        "difference",
        "detectable",
        "p",
        "verdict",
    ]
    shown = [c for c in range(len(header)) if any(row[c] for row in rows)]
    _print_table(title, [header[c] for c in shown], [[row[c] for c in shown] for row in rows])


def _with_interval(row: dict[str, Any], name: str) -> str:
    """A value with its interval, where it has one."""
    low, high = row.get(f"{name}/low"), row.get(f"{name}/high")
    text = "" if row[name] is None else f"{row[name]:.4f}" if isinstance(row[name], float) else f"{row[name]}"
    return text if low is None else f"{text} [{low:.4f}, {high:.4f}]"


def _print_frame(title: str, frame: pl.DataFrame, spec: str) -> None:
    """A frame as a table; spec: how floats are written."""
    rows = [
        ["" if v is None else f"{v:{spec}}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.iter_rows()
    ]
    _print_table(title, frame.columns, rows)


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "recommend": _recommend,
    "compare": _compare,
    "features": _features,
    "generate": _generate,
    "world": _world,
    "study": _study,
    "index": _index,
    "doctor": _doctor,
}

if __name__ == "__main__":
    main()
