"""What training needs to know of retrieving and of ranking: what is learnt from, how it is measured and what is kept.

Both give `training.train` the same: model, monitor, source(batches), fit-time validation, a measurement of the test
part, and files in the run directory. Neither names a model or a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytorch_lightning as lightning
import torch
from omegaconf import DictConfig

from recsys import config
from recsys.answer_key import answer_key, bayes
from recsys.comparison import LESS_IS_BETTER, MORE_IS_BETTER
from recsys.data import batches
from recsys.data.datamodule import RecDataModule
from recsys.data.rows import item_kinds, joined, table_rows
from recsys.evaluation import calibration
from recsys.evaluation.beyond import Items
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.slices import groups
from recsys.features import FeaturePipeline
from recsys.features.pipeline import ROLES
from recsys.features.sampling import NegativeSampling
from recsys.features.vocabulary import id_keys
from recsys.models.base import Ranker, Retriever, RowBatch, Solver, no_report, score
from recsys.run import Run
from recsys.schema import ITEM_ID, LABEL, NUM_RESERVED, USER_ID, Schema

Metrics = dict[str, Any]


class Retrieval:
    """A retriever: learns from pairs, ranks the whole catalogue."""

    monitor = "ndcg@10"

    def __init__(self, cfg: DictConfig, data: RecDataModule, device: torch.device, seed: int) -> None:
        self.has_features = cfg.get("features") is not None
        if self.has_features and not config.target(cfg.model).takes_features:
            raise ValueError(f"{cfg.model._target_} uses no features: leave features out")
        if cfg.get("negatives", 1) != 1:
            raise ValueError(f"negatives={cfg.negatives} is for rankers: a retriever draws its own")
        self.cfg, self.data, self.device, self.seed = cfg, data, device, seed
        self.evaluate = partial(config.evaluator(cfg), device=device, seed=seed)
        kinds = config.check_type(cfg.get("kinds"), str | None, "kinds")
        self.kinds_ID = None if kinds is None else item_kinds(data.log, data.items.ids, kinds)

    def build(self) -> Retriever:
        """The untrained model; where it has features, with those of all users and items, as fitted on train."""
        schema = self.data.schema
        self.pipeline: FeaturePipeline | None = None
        if self.has_features:
            self.pipeline = config.build(self.cfg.features)
            self.pipeline.fit(joined(self.data.log, self.data.split.train), past=self.data.log.past)
            # Ids are known to a retriever by their index.
            columns = (c for c in self.pipeline.columns if c.name not in (USER_ID, ITEM_ID))
            schema = Schema((*schema.columns, *(c for c in columns if c.role in ("user_feature", "item_feature"))))
        self.model: Retriever = config.build(self.cfg.model, schema=schema)
        if self.pipeline is not None:
            users = table_rows(self.data.log, USER_ID, self.data.users.ids)
            items = table_rows(self.data.log, ITEM_ID, self.data.items.ids)
            self.model.describe(
                self.pipeline.transform(users, ["user_feature"]), self.pipeline.transform(items, ["item_feature"])
            )
        self._date(self.data.split.validation_cut or self.data.split.test_cut)
        return self.model

    def _date(self, now: datetime | None) -> None:
        """Tell the model when items came and as of when it is asked, where both are known."""
        if now is not None and (came_I := self.data.came) is not None:
            self.model.date(came_I.to(self.model.device), int(now.timestamp() * 1_000_000))

    def observe(self) -> None:
        """Tell the model what it will learn from."""
        self.model.observe(self.data.train)

    @property
    def num_examples(self) -> int:
        """Positives an epoch or sweep."""
        return len(self.data.train)

    def source(self, resident_bytes: int | None = None) -> Any:
        """Batches for a model that is trained by gradient."""
        model: Any = self.model
        where = {"device": self.device, "resident_bytes": resident_bytes}
        return getattr(batches, model.batches)(
            self.data.train, batch_size=model.batch_size, seed=self.seed, **where, **model.batch_options
        )

    def solve(self, report: Callable[..., None]) -> bool:
        """Fit a model that is not trained by gradient; whether it was one."""
        if not isinstance(self.model, Solver):
            return False
        self.model.fit(self.data.train.to(self.device), report)
        return True

    def validation(self, monitor: str) -> Callable[[], Metrics] | None:
        """A callable that measures the model on the validation part; None where there is none."""
        queries, k = self.data.validation, int(monitor.partition("@")[2])
        if queries is None:
            return None

        def validate() -> Metrics:
            score = self.model.scorer_with_fallback()
            return self.evaluate(score=score, queries=queries, k=[k], num_replicates=0).metrics

        return validate

    def measure(self) -> tuple[Metrics, pl.DataFrame, dict[str, int]]:
        """Metrics of the test part, one row a query, and counts. Under cold_items only what had no positive before the
        cut is relevant, to those queries that have such."""
        self._date(self.data.split.test_cut)
        score = self.model.scorer_with_fallback()
        num_users = int((self.data.train.row_counts() > 0).sum())
        items = Items(self.data.train.item_counts() / num_users, num_users, self.kinds_ID)
        found = self.evaluate(score=score, queries=self.data.test, items=items)
        metrics = flat(found.metrics, found.intervals, found.warm)
        metrics |= {"evaluation/seconds": round(found.seconds, 3), "evaluation/queries": len(found.per_user)}
        metrics |= {"evaluation/users": found.per_user["user_key"].n_unique(), "queries": self.data.queries}
        metrics["candidates"] = self.data.ranked
        cold = self.data.test.about(self.data.history.item_counts() == 0)
        if len(cold):
            alone = self.evaluate(score=score, queries=cold, num_replicates=0)
            metrics |= flat(alone.metrics, {}, {}, prefix="test/cold_items")
        return metrics, found.per_user, found.counts | {"cold_item_queries": len(cold)}

    def measure_run(self, run: Run) -> tuple[Metrics, pl.DataFrame, dict[str, int]]:
        """The same for the model of a finished run."""
        self.model = run.model.to(self.device)
        return self.measure()

    def groups(self, by: str) -> tuple[pl.DataFrame | None, pl.Series | None]:
        """Which group each user is in (user_key, group), or each item ([I]), by a column or a count.

        Raises:
            ValueError: neither users nor items have such a column.
        """
        if by == "item_popularity":
            return None, groups(pl.Series(self.data.train.item_counts().numpy()), amounts=True)
        items = {} if self.data.log.items is None else dict(self.data.log.items.collect_schema())
        users = _user_groups(self.data, by, {**items, "item_popularity": None})
        if users is None:
            rows = table_rows(self.data.log, ITEM_ID, self.data.items.ids).collect()
            name = by if by in rows.columns else f"item_{by}"
            return None, groups(rows[name])
        return users, None

    def truth(self) -> Metrics:
        """What only a synthetic world can tell."""
        return answer_key(self.data, self.model, self.evaluate, k=self.cfg.evaluation.k, seed=self.seed)

    def save(self, run_dir: Path) -> None:
        """Keep what answers from the run need."""
        Run.save_model(run_dir, self.model, self.data, self.pipeline)


class Ranking:
    """A ranker: learns from impressions through a feature pipeline, gives each a probability."""

    monitor = "auc"

    def __init__(self, cfg: DictConfig, data: RecDataModule, device: torch.device, seed: int) -> None:
        if cfg.get("features") is None:
            raise ValueError(f"{cfg.model._target_} is a ranker and needs columns: give features=… (as features=world)")
        if data.queries != "users":
            raise ValueError(f"queries={data.queries} is for retrievers: a ranker is measured on the rows as shown")
        if data.num_sampled is not None:
            raise ValueError(f"num_sampled={data.num_sampled} is for retrievers: a ranker is measured on rows as shown")
        if LABEL not in data.split.train.columns or data.split.train[LABEL].n_unique() < 2:
            what = "a ranker learns from rows of label 0 and rows of label 1, train has not both"
            raise ValueError(f"{data.log.name}: {what}; name the label (data.columns.label=…) and keep the negatives")
        self.cfg, self.data, self.device, self.seed = cfg, data, device, seed
        rate = config.check_type(cfg.negatives, float, "negatives")
        self.negatives = NegativeSampling(rate, seed)
        self.pipeline: FeaturePipeline = config.build(cfg.features)
        if LABEL not in self.pipeline.features:
            raise ValueError(f"features: no feature {LABEL!r} among the labels; add label: {{{LABEL}: …Plain}}")

    def build(self) -> Ranker:
        """The untrained model, over the columns of the fitted pipeline."""
        train = joined(self.data.log, self.data.split.train)
        self.pipeline.fit(train, past=self.data.log.past)
        kept = train if self.negatives.rate == 1 else self.negatives.keep(train)
        self.train = self._rows(kept)
        self.validation_rows: RowBatch | None = None
        if self.data.split.validation is not None:
            rows = joined(self.data.log, self.data.split.validation)
            self.validation_rows = self._rows(rows)
            self.pipeline.update(rows)
        self.model: Ranker = config.build(self.cfg.model, columns=self.pipeline.columns)
        return self.model

    def _rows(self, rows: pl.LazyFrame | pl.DataFrame) -> RowBatch:
        """Inputs and labels of rows.

        Raises:
            ValueError: a label that is neither 0 nor 1.
        """
        found = self.pipeline.transform(rows, ROLES)
        wrong = ((found[LABEL] != 0) & (found[LABEL] != 1)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            what = f"feature {LABEL!r} is {float(found[LABEL][row]):g} in row {row}"
            raise ValueError(f"{what}, neither 0 nor 1: let it read the column {LABEL}, or another of two values")
        return found

    def observe(self) -> None:
        """Tell the model what it will learn from."""
        self.model.observe(self.num_examples)

    @property
    def num_examples(self) -> int:
        """Rows an epoch."""
        return len(self.train[LABEL])

    def source(self, resident_bytes: int | None = None) -> Any:
        """Batches of rows."""
        where = {"device": self.device, "resident_bytes": resident_bytes}
        return getattr(batches, self.model.batches)(
            self.train, batch_size=self.model.batch_size, seed=self.seed, **where, **self.model.batch_options
        )

    def solve(self, report: Callable[..., None]) -> bool:
        """No ranker is solved for."""
        return False

    def validation(self, monitor: str) -> Callable[[], Metrics] | None:
        """A callable that measures the model on the validation part; None where there is none."""
        rows, split = self.validation_rows, self.data.split.validation
        if rows is None or split is None:
            return None
        return lambda: self._measured(rows, split, num_replicates=0).metrics

    def measure(self) -> tuple[Metrics, pl.DataFrame, dict[str, int]]:
        """Metrics of the test part, one row a user, and counts."""
        rows = self._rows(joined(self.data.log, self.data.split.test))
        found = self._measured(rows, self.data.split.test, num_replicates=self.cfg.evaluation.num_replicates)
        self.log_loss, self.entropy = found.metrics["log_loss"], found.metrics["log_loss"]
        if "normalised_cross_entropy" in found.metrics:
            self.entropy = found.metrics["log_loss"] / found.metrics["normalised_cross_entropy"]
        return flat(found.metrics, found.intervals, {}), found.per_user, found.counts

    def measure_run(self, run: Run) -> tuple[Metrics, pl.DataFrame, dict[str, int]]:
        """The same for the model and the pipeline of a finished run."""
        self.model, self.pipeline = run.model.to(self.device), run.pipeline
        return self.measure()

    def groups(self, by: str) -> tuple[pl.DataFrame | None, None]:
        """Which group each user is in (user_key, group), by a column or a count; see `Retrieval.groups`."""
        return _user_groups(self.data, by, {}), None

    def truth(self) -> Metrics:
        """What only a synthetic world can tell: Bayes' own metrics, and the share of the gap between the base rate and
        Bayes that the model closes in log loss."""
        found = bayes(self.data)
        if found and self.entropy > found["log_loss"]:
            gap = (self.entropy - self.log_loss) / (self.entropy - found["log_loss"])
            return {f"bayes/{name}": value for name, value in found.items()} | {"test/gap_closed": gap}
        return {}

    def save(self, run_dir: Path) -> None:
        """Keep what answers from the run need."""
        Run.save_ranker(run_dir, self.model, self.pipeline)

    def _measured(self, rows: RowBatch, split: pl.DataFrame, num_replicates: int) -> calibration.Measured:
        logits = self.negatives.correct_logits(score(self.model, rows))
        keys = torch.from_numpy(id_keys(split[USER_ID]).copy())
        return calibration.measure(
            logits, rows[LABEL], keys, num_replicates=num_replicates, confidence=self.cfg.evaluation.confidence,
            seed=self.seed,
        )  # fmt: skip


def _user_groups(data: RecDataModule, by: str, others: Collection[str]) -> pl.DataFrame | None:
    """user_key and group by what users are, or did before the test cut; None for one of the other names.

    Raises:
        ValueError: neither users nor the others have it.
    """
    if by == "activity":
        keys = id_keys(data.users.ids)
        counts = pl.Series(data.history.row_counts()[NUM_RESERVED:].numpy())
        return pl.DataFrame({"user_key": keys, "group": groups(counts, amounts=True)})
    table = data.log.users
    if table is not None and by != USER_ID and by in table.collect_schema():
        rows = table.select(USER_ID, by).unique(USER_ID, keep="first", maintain_order=True).collect()
        return pl.DataFrame({"user_key": id_keys(rows[USER_ID]), "group": groups(rows[by])})
    if by in others and by != ITEM_ID:
        return None
    known = [*([] if table is None else table.collect_schema()), *others, "activity"]
    raise ValueError(f"{data.log.name} cannot be sliced by {by}: {config.nearest(by, known)}")


def fit(task: Retrieval | Ranking) -> None:
    """Train the built model of a task with nothing beside: no run directory, no checkpoint, no learning curve."""
    model: Any = task.model
    task.observe()
    model.to(task.device)
    if not task.solve(no_report):
        model.on_train_start()
        source, optimizers = task.source(), model.train().configure_optimizers()
        for epoch in range(model.max_epochs):
            for chunk in source.chunks(epoch):
                model.train_steps(chunk, optimizers)
    model.eval()


def flat(metrics: Metrics, intervals: dict[str, tuple[float, float]], warm: Metrics, prefix: str = "test") -> Metrics:
    """A measurement as flat metrics: prefix/recall@20, and /low and /high where an interval is known."""
    found = {f"{prefix}/{name}": value for name, value in metrics.items()}
    for name, (low, high) in intervals.items():
        found[f"{prefix}/{name}/low"], found[f"{prefix}/{name}/high"] = low, high
    return found | {f"{prefix}/warm/{name}": value for name, value in warm.items()}


def of(cfg: DictConfig) -> type[Retrieval] | type[Ranking]:
    """Which of the two a configuration is about, by the class that its model names."""
    target: Any = config.target(cfg.model)
    return Ranking if isinstance(target, type) and issubclass(target, Ranker) else Retrieval


def monitor_of(cfg: DictConfig) -> str:
    """The validation metric of a configuration, such as ndcg@10.

    Raises:
        ValueError: it is none that such a model is measured by.
    """
    task = of(cfg)
    monitor = str(cfg.monitor or task.monitor)
    name, _, k = monitor.partition("@")
    if task is Ranking:
        known = [m for m in (*MORE_IS_BETTER, *LESS_IS_BETTER) if m not in METRICS and m != "gap_closed"]
        fits = monitor in known
    else:
        names = (*METRICS, *(cfg.evaluation.get("metrics") or ()))
        known = [f"{metric}@10" for metric in names]
        fits = name in names and k.isdigit() and int(k) > 0
    if not fits:
        raise ValueError(f"monitor={monitor} is no metric of the model's: {config.nearest(monitor, known)}")
    return monitor


def trained(cfg: DictConfig, data: RecDataModule, device: torch.device, seed: int = 0) -> Retrieval | Ranking:
    """The task of a configuration, its model fitted (see `fit`) to the weights that `training.train` would end in."""
    lightning.seed_everything(seed, verbose=False)
    task = of(cfg)(cfg, data, device, seed)
    task.build()
    fit(task)
    return task
