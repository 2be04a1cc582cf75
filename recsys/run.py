"""A finished run: its numbers, its model, and answers from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from recsys import answers, atomic, backend, config, scorecard, tracking
from recsys.features.pipeline import FeaturePipeline
from recsys.features.sampling import NegativeSampling
from recsys.features.vocabulary import Vocabulary
from recsys.models.base import Ranker, Retriever, score
from recsys.overrides import Settings
from recsys.schema import UNKNOWN, Column, Interactions, Schema
from recsys.scorecard import Metrics

PRUNED = "pruned.json"  # in the directory of a run that a sweep stopped: why, after which epoch, and its values there


class Run:
    """A run directory, read as it is asked for.

    >>> run = recsys.load(path)
    >>> run
    Run(...): ALS on tiny, recall@20 0..., ...% of the oracle

    Raises:
        ValueError: the directory holds no finished run.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / tracking.METRICS).exists():
            raise ValueError(f"{self.path} {self._state()}")

    def _state(self) -> str:
        """What a directory without metrics.json is, and what to do about it."""
        if (self.path / PRUNED).exists():
            return f"holds a run that was pruned: {tracking.METRICS} is missing; {PRUNED} says why"
        if (self.path / tracking.CONFIG).exists():
            return f"holds an unfinished run: {tracking.METRICS} is missing; recsys.resume({str(self.path)!r}) goes on"
        if not self.path.is_dir():
            near = [] if not self.path.parent.is_dir() else [p.name for p in self.path.parent.iterdir() if p.is_dir()]
            return f"holds no run, there is no such folder: {config.nearest(self.path.name, near)}"
        return f"holds no run: {tracking.METRICS} is missing; recsys.runs({str(self.path)!r}) lists what lies below"

    def __repr__(self) -> str:
        try:
            facts = [f"{self.name} on {self.manifest['data']['name']}", *scorecard.headline(self.metrics)]
        except ValueError:  # a directory that is damaged can still be named
            return f"Run({str(self.path)!r})"
        return f"Run({str(self.path)!r}): {', '.join(facts)}"

    def _repr_html_(self) -> str:
        curves = {name: self.curves[name].drop_nulls().to_list() for name in self.curves.columns}
        return scorecard.card(self.name, self.path, self.manifest, self.metrics, curves, self.monitor)

    @property
    def monitor(self) -> str:
        """The validation metric that its learning curve is about, measured or not.

        >>> run.monitor
        'val/ndcg@10'
        """
        return f"val/{self.config.get('monitor') or ('auc' if self.is_ranker else 'ndcg@10')}"

    @property
    def name(self) -> str:
        """The class of its model.

        >>> run.name
        'ALS'
        """
        return self.manifest["model"].rpartition(".")[2]

    @staticmethod
    def save_model(path: Path, model: Retriever, data: Any, pipeline: FeaturePipeline | None = None) -> None:
        """Write what `recommend` needs: weights, vocabularies, histories up to the test cut, and the pipeline of
        features where there is one."""
        tracking.write_tensors(path / tracking.MODEL, model.state_dict(), schema=json.dumps(model.schema.to_dict()))
        for file, vocabulary in ((tracking.USERS, data.users), (tracking.ITEMS, data.items)):
            atomic.write(path / file, vocabulary.save)
        history = {"indptr": data.history.indptr, "item_idx": data.history.item_idx}
        tracking.write_tensors(path / tracking.HISTORY, history)
        if pipeline is not None:
            pipeline.save(path / tracking.PIPELINE)

    @staticmethod
    def save_ranker(path: Path, model: Ranker, pipeline: FeaturePipeline) -> None:
        """Write what `predict` needs: weights, and the pipeline up to the test cut."""
        columns = json.dumps([asdict(column) for column in pipeline.columns])
        tracking.write_tensors(path / tracking.MODEL, model.state_dict(), columns=columns)
        pipeline.save(path / tracking.PIPELINE)

    @cached_property
    def metrics(self) -> Metrics:
        """Flat numbers: "test/recall@20", "train/seconds", …; and "queries", which ones a retriever was asked.

        >>> run.metrics["test/recall@20"] <= run.metrics["oracle/recall@20"]
        True
        """
        return Metrics(self._read(tracking.METRICS))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Versions, device, seed, data fingerprint, split and leakage report.

        >>> run.manifest["data"]["users"], run.manifest["split"]["kind"]
        (..., 'global_time')

        Raises:
            ValueError: it is missing, or lacks what the manifests of this version have.
        """
        found = self._read(tracking.MANIFEST)
        for key in ("model", "seed", "data", "split"):
            if key not in found:
                what = f"{self.path / tracking.MANIFEST} has no {key}"
                raise ValueError(f"{what}: another version of recsys wrote it; train the run again")
        return found

    def _read(self, name: str) -> dict[str, Any]:
        """A JSON file of keys and values."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{self.path / name} is missing: the run was moved in part; train it again") from None
        except ValueError as error:
            raise ValueError(f"{self.path / name} holds no JSON ({error}): train the run again") from None
        if not isinstance(found, dict):
            raise ValueError(f"{self.path / name} holds no keys and values: train the run again")
        return found

    @cached_property
    def config(self) -> Any:
        """The resolved configuration, shown as YAML.

        >>> run.config.model.embedding_dim
        8
        """
        return Settings(config.load(self.path / tracking.CONFIG))

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """One row a test query, one column a metric.

        >>> abs(run.per_user["recall@20"].mean() - run.metrics["test/recall@20"]) < 1e-6
        True
        """
        if not (self.path / tracking.PER_USER).exists():
            raise ValueError(f"{self.path / tracking.PER_USER} is missing: the run was moved in part; train it again")
        return pl.read_parquet(self.path / tracking.PER_USER)

    @cached_property
    def curves(self) -> pl.DataFrame:
        """What was measured while training, one row an epoch or sweep; resumed parts joined.

        >>> run.curves.columns[:3]
        ['epoch', 'step', 'train/loss']
        """
        parts = [
            pl.read_csv(file)
            for file in sorted(
                (self.path / "logs").glob("version_*/metrics.csv"),
                key=lambda file: int(file.parent.name.removeprefix("version_")),
            )
        ]
        if not parts:
            return pl.DataFrame(schema={"epoch": pl.Int64})
        return pl.concat(parts, how="diagonal_relaxed").unique("epoch", keep="last").sort("epoch")

    @cached_property
    def users(self) -> Vocabulary:
        """User ids known by the test cut.

        >>> run.users.ids.name, len(run.users.ids) == run.users.ids.n_unique()
        ('id', True)

        Raises:
            ValueError: the run holds a ranker.
        """
        if self.is_ranker:
            raise ValueError(f"{self.path} cannot recommend: it holds a ranker, ask it to predict")
        return Vocabulary.load(self.path / tracking.USERS)

    @cached_property
    def items(self) -> Vocabulary:
        """Item ids known by the test cut: the candidates.

        >>> run.items.decode(run.items.encode(run.items.ids.head(2))).equals(run.items.ids.head(2))
        True
        """
        return Vocabulary.load(self.path / tracking.ITEMS)

    @cached_property
    def history(self) -> Interactions:
        """Each known user's positives up to the test cut; row = user_idx.

        >>> user_idx = run.users.encode(run.users.ids.head(1))
        >>> run.items.decode(run.history.select(user_idx).item_idx).dtype
        Int64
        """
        tensors, _ = tracking.read_tensors(self.path / tracking.HISTORY)
        return Interactions(tensors["indptr"], tensors["item_idx"], len(self.items))

    @cached_property
    def model(self) -> Any:
        """The trained model, on a GPU where there is one: a Retriever or a Ranker.

        >>> run.model.encode_items(run.items.encode(run.items.ids.head(2))).shape
        torch.Size([2, 8])

        Raises:
            ValueError: the weights are another model's or another schema's.
        """
        tensors, metadata = tracking.read_tensors(self.path / tracking.MODEL)
        if "columns" in metadata:
            made_for: dict[str, Any] = {"columns": [Column(**column) for column in json.loads(metadata["columns"])]}
        else:
            made_for = {"schema": Schema.from_dict(json.loads(metadata["schema"]))}
        try:
            model = config.build(self.config.model, **made_for)
        except ValueError as error:
            version = self.manifest.get("packages", {}).get("recsys", "another version")
            what = f"{self.path / tracking.CONFIG} was written by recsys {version} and no longer fits"
            raise ValueError(f"{what}, mend it or train the run again: {error}") from error
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:  # the second line names the first tensor that does not fit
            what = " ".join(str(error).split("\n")[1].split())
            file = self.path / tracking.MODEL
            raise ValueError(f"{file} is no {type(model).__name__} of this run's config.yaml: {what}") from error
        return model.to(backend.device("auto")).eval()

    @cached_property
    def is_ranker(self) -> bool:
        """Whether the run answers `predict`, and not `recommend`.

        >>> run.is_ranker, ranker.is_ranker
        (False, True)
        """
        return "columns" in tracking.read_metadata(self.path / tracking.MODEL)

    @cached_property
    def pipeline(self) -> FeaturePipeline:
        """The feature pipeline: a ranker's as of the test cut, a retriever's as fitted on train.

        >>> sorted(ranker.pipeline.transform(rows.head(2)))[:3]
        ['age_band', 'age_topic', 'country']
        """
        return FeaturePipeline.load(self.path / tracking.PIPELINE)

    def predict(self, rows: Any) -> Tensor:
        """The probability of a positive for each row, float32 [N] on the CPU, corrected for left-out negatives.

        Args:
            rows: a frame with the columns that the pipeline reads, or one request as a dict, or a list of them.

        >>> ranker.predict(rows.head(2)).shape
        torch.Size([2])

        Raises:
            ValueError: the run holds no ranker, or a column does not fit.
        """
        model = self._of_kind(Ranker, "predict")
        logits = score(model, self.pipeline.transform(rows))
        return NegativeSampling(self.config.negatives).correct_logits(logits).sigmoid()

    def _of_kind(self, kind: type, what: str) -> Any:
        if not isinstance(self.model, kind):
            other = "ranker, ask it to predict" if isinstance(self.model, Ranker) else "retriever, ask it to recommend"
            raise ValueError(f"{self.path} cannot {what}: {type(self.model).__name__} is a {other}")
        return self.model

    def recommend(self, user_ids: Sequence[Any] | pl.Series | None = None, k: int = 100) -> pl.DataFrame:
        """The top k items of each user, without what they already liked.

        >>> run.recommend(run.users.ids.head(1).to_list() + [1], k=2).select("rank", "source").rows()
        [(1, 'model'), (2, 'model'), (1, 'fallback'), (2, 'fallback')]

        Args:
            user_ids: raw ids; None = every known user.
            k: items a user; fewer come back where the catalogue is smaller.

        Returns:
            user_id, rank (from 1), item_id, source: "model", or "fallback" (items in order of their count
            in train) for users that the model does not know.

        Raises:
            ValueError: ids are text where the log has integers, or the reverse; k below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        model = self._of_kind(Retriever, "recommend")
        ids = self.users.ids if user_ids is None else pl.Series("id", user_ids)
        return answers.recommend(model, ids, self.users.encode(ids), self.history, self.items, k)

    def similar_items(self, item_id: Any, k: int = 10) -> pl.DataFrame:
        """The k items most like one: by cosine of item vectors, else by what it alone as a history brings.

        >>> run.similar_items(run.items.ids[0], k=3).shape
        (3, 2)

        Raises:
            ValueError: the item is unknown, or the model does not tell items apart.
        """
        model = self._of_kind(Retriever, "tell similar items")
        item_idx = self.items.encode([item_id])
        if int(item_idx) == UNKNOWN:
            known = [str(i) for i in self.items.ids.head(100_000).to_list()]
            raise ValueError(f"item {item_id!r} is unknown: {config.nearest(str(item_id), known)}")
        return answers.similar(model, int(item_idx), self.items, k)


def read_user_ids(text: str, dtype: Any) -> pl.Series:
    """User ids from a command line: a Parquet, CSV or text file with one id a line, or "1,2,3".

    Raises:
        ValueError: the file has no user_id column, or an id is not of the log's type.
    """
    path = Path(text)
    if path.suffix in (".parquet", ".csv") and not path.exists():
        raise ValueError(f"users={text}: there is no such file")
    if path.suffix == ".parquet" or path.suffix == ".csv":
        frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
        if "user_id" not in frame.columns and frame.width != 1:
            raise ValueError(f"{path} has no column user_id: {config.nearest('user_id', frame.columns)}")
        ids = frame["user_id"] if "user_id" in frame.columns else frame.to_series()
    elif path.is_file():
        ids = pl.Series(path.read_text(encoding="utf-8").split())
    else:
        ids = pl.Series(text.split(","))
    cast = ids.cast(dtype, strict=False)
    if cast.null_count() > ids.null_count():
        bad = ids.filter(cast.is_null() & ids.is_not_null())[0]
        raise ValueError(f"users={text}: {bad!r} is not an id of this log, whose ids are {dtype}")
    return cast.drop_nulls()
