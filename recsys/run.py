"""A finished run: its numbers, its model, and answers from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from recsys import atomic, backend, config, tracking
from recsys.evaluation.ranking import rank
from recsys.features.pipeline import FeaturePipeline
from recsys.features.sampling import NegativeSampling
from recsys.features.vocabulary import Vocabulary, id_keys
from recsys.models.base import Ranker, Retriever, score
from recsys.schema import NUM_RESERVED, UNKNOWN, Column, Interactions, Queries, Schema

PRUNED = "pruned.json"  # in the directory of a run that a sweep stopped: why, after which epoch, and its values there


class Run:
    """A run directory, read as it is asked for.

    Raises:
        ValueError: the directory holds no finished run.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / tracking.METRICS).exists():
            state = "holds an unfinished run" if (self.path / tracking.CONFIG).exists() else "holds no run"
            state = "holds a run that was pruned" if (self.path / PRUNED).exists() else state
            raise ValueError(f"{self.path} {state}: {tracking.METRICS} is missing")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

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
    def metrics(self) -> dict[str, Any]:
        """Flat numbers: "test/recall@20", "train/seconds", …; and "queries", which ones a retriever was asked."""
        return json.loads((self.path / tracking.METRICS).read_text(encoding="utf-8"))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Versions, device, seed, data fingerprint, split and leakage report."""
        return json.loads((self.path / tracking.MANIFEST).read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> Any:
        """The resolved configuration."""
        return config.load(self.path / tracking.CONFIG)

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """One row a test query, one column a metric."""
        return pl.read_parquet(self.path / tracking.PER_USER)

    @cached_property
    def curves(self) -> pl.DataFrame:
        """What was measured while training, one row an epoch or sweep; resumed parts joined."""
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

        Raises:
            ValueError: the run holds a ranker.
        """
        if self.is_ranker:
            raise ValueError(f"{self.path} cannot recommend: it holds a ranker, ask it to predict")
        return Vocabulary.load(self.path / tracking.USERS)

    @cached_property
    def items(self) -> Vocabulary:
        """Item ids known by the test cut: the candidates."""
        return Vocabulary.load(self.path / tracking.ITEMS)

    @cached_property
    def history(self) -> Interactions:
        """Each known user's positives up to the test cut; row = user_idx."""
        tensors, _ = tracking.read_tensors(self.path / tracking.HISTORY)
        return Interactions(tensors["indptr"], tensors["item_idx"], len(self.items))

    @cached_property
    def model(self) -> Any:
        """The trained model, on a GPU where there is one: a Retriever or a Ranker.

        Raises:
            ValueError: the weights are another model's or another schema's.
        """
        tensors, metadata = tracking.read_tensors(self.path / tracking.MODEL)
        if "columns" in metadata:
            made_for: dict[str, Any] = {"columns": [Column(**column) for column in json.loads(metadata["columns"])]}
        else:
            made_for = {"schema": Schema.from_dict(json.loads(metadata["schema"]))}
        model = config.build(self.config.model, **made_for)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:  # the second line names the first tensor that does not fit
            what = " ".join(str(error).split("\n")[1].split())
            file = self.path / tracking.MODEL
            raise ValueError(f"{file} is no {type(model).__name__} of this run's config.yaml: {what}") from error
        return model.to(backend.device("auto")).eval()

    @property
    def is_ranker(self) -> bool:
        """Whether the run answers `predict`, and not `recommend`."""
        return not (self.path / tracking.USERS).exists()

    @cached_property
    def pipeline(self) -> FeaturePipeline:
        """The feature pipeline: a ranker's as of the test cut, a retriever's as fitted on train."""
        return FeaturePipeline.load(self.path / tracking.PIPELINE)

    def predict(self, rows: Any) -> Tensor:
        """The probability of a positive for each row, float32 [N] on the CPU, corrected for left-out negatives.

        Args:
            rows: a frame with the columns that the pipeline reads, or one request as a dict, or a list of them.

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

    @torch.inference_mode()
    def recommend(self, user_ids: Sequence[Any] | pl.Series | None = None, k: int = 100) -> pl.DataFrame:
        """The top k items of each user, without what they already liked.

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
        user_idx = self.users.encode(ids)
        candidates = torch.ones(len(self.items), dtype=torch.bool)
        candidates[:NUM_RESERVED] = False
        queries = Queries(
            user_idx=user_idx,
            user_key=torch.from_numpy(id_keys(ids).copy()),
            history=self.history.select(user_idx),
            relevant=Interactions.empty(len(ids), len(self.items)),
            num_cold_relevant=torch.zeros(len(ids), dtype=torch.int64),
            warm=user_idx != UNKNOWN,
            candidates=candidates,
        )
        top = rank(model.scorer_with_fallback(), queries, min(k, int(candidates.sum())), device=model.device)
        top = top.cpu()
        personal = model.personal(queries.to(model.device).batch()).cpu()
        width = top.shape[1]
        return pl.DataFrame(
            {
                "user_id": ids.gather(torch.arange(len(ids)).repeat_interleave(width).numpy()),
                "rank": torch.arange(1, width + 1).repeat(len(ids)).numpy(),
                "item_id": self.items.decode(top.clamp(min=0).flatten()),
                "source": pl.Series(personal.numpy()).gather(
                    torch.arange(len(ids)).repeat_interleave(width).numpy()
                ),
            }
        ).with_columns(
            source=pl.when("source").then(pl.lit("model")).otherwise(pl.lit("fallback"))
        ).filter(pl.col("item_id").is_not_null())  # fmt: skip

    @torch.inference_mode()
    def similar_items(self, item_id: Any, k: int = 10) -> pl.DataFrame:
        """The k items most like one: by cosine of item vectors, else by what it alone as a history brings.

        Raises:
            ValueError: the item is unknown, or the model does not tell items apart.
        """
        model = self._of_kind(Retriever, "tell similar items")
        item_idx = self.items.encode([item_id])
        if int(item_idx) == UNKNOWN:
            known = [str(i) for i in self.items.ids.head(100_000).to_list()]
            raise ValueError(f"item {item_id!r} is unknown: {config.nearest(str(item_id), known)}")
        if model.factored:
            vectors = torch.nn.functional.normalize(
                model.encode_items(torch.arange(len(self.items), device=model.device)), dim=1
            )
            scores = vectors @ vectors[item_idx.to(model.device)[0]]
        else:
            # One stranger who liked this item alone, and one who liked nothing.
            history = Interactions(torch.tensor([0, 1, 1]), item_idx, len(self.items)).to(model.device)
            strangers = torch.full((2,), UNKNOWN, device=model.device)
            batch = {"user_idx": strangers, "user_key": strangers, "history": history}
            scores, without = model.score(batch)
            if torch.equal(scores, without):
                raise ValueError(f"{type(model).__name__} knows no similarity of items")
        scores = scores.float().cpu()
        scores[:NUM_RESERVED] = -torch.inf
        scores[item_idx] = -torch.inf
        best = scores.topk(min(k, len(self.items.ids) - 1))
        return pl.DataFrame({"item_id": self.items.decode(best.indices), "similarity": best.values.numpy()})


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
