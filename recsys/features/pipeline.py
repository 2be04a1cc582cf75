"""A pipeline of features: fitted on train in one pass, then the same object for one request and for a billion rows.

pipeline = FeaturePipeline(
    user={"country": Category()},
    item={"item_id": Category(min_count=5), "duration": Numeric(scale="power_law", clip_quantiles=[0.01, 0.99])},
    context={"country_hour": Hashed(1000, columns=["country", "hour"]), "history": History(of="item_id")},
    derive={"hour": "extract(hour from timestamp)"},
).fit(train)
tensors = pipeline.transform(rows)
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import polars as pl
import torch
from torch import Tensor

from recsys.config import nearest
from recsys.features import storage
from recsys.features.base import KINDS, Device, Feature, FeatureError, as_kind, kind_of
from recsys.features.history import History
from recsys.schema import Column, Role
from recsys.threads import in_order

if TYPE_CHECKING:
    import pandas as pd

INPUTS: tuple[Role, ...] = ("user_feature", "item_feature", "context")  # what a model is given; labels are asked for
ROLES: tuple[Role, ...] = (*INPUTS, "label")
ROWS_AT_ONCE = 1 << 16
FEW_ROWS = 1 << 15  # PyTorch starts no threads for up to so many numbers

Rows: TypeAlias = "pl.LazyFrame | pl.DataFrame | pd.DataFrame"
Request = Mapping[str, Any]


class FeaturePipeline:
    """Named features in four roles, and columns derived for them.

    columns: the model's inputs, as `schema.Column`, once fitted.
    inputs: the raw columns that are read, each with its kind (see `base.KINDS`), once fitted.
    """

    def __init__(
        self,
        *,
        user: Mapping[str, Feature] | None = None,
        item: Mapping[str, Feature] | None = None,
        context: Mapping[str, Feature] | None = None,
        label: Mapping[str, Feature] | None = None,
        derive: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            user, item, context: features by name; those of `user` read columns of the user alone, those of `item`
                columns of the item alone, so that a tower can be computed without the other.
            label: what is only asked for in training.
            derive: columns made from others, as SQL expressions over one row ("extract(hour from timestamp)"); a
                later one may read an earlier one.

        Raises:
            FeatureError: a name is used twice, an expression cannot be read, no feature at all.
        """
        groups: tuple[tuple[Role, Mapping[str, Feature] | None], ...] = (
            ("user_feature", user), ("item_feature", item), ("context", context), ("label", label),
        )  # fmt: skip
        self.features: dict[str, Feature] = {}
        self.roles: dict[str, Role] = {}
        for role, group in groups:
            for name, feature in (group or {}).items():
                if name in self.features:
                    raise FeatureError(f"feature {name!r} stands twice, as {self.roles[name]} and {role}: rename one")
                if not re.fullmatch(r"\w[\w-]*", name):
                    raise FeatureError(f"feature {name!r}: a name is made of letters, digits, _ and -")
                if not isinstance(feature, Feature):
                    raise FeatureError(f"feature {name!r} is {feature!r}: expected a feature, as Category()")
                self.features[name], self.roles[name] = feature, role
        if not self.features:
            raise FeatureError("a pipeline needs at least one feature")
        self.derive = dict(derive or {})
        self._derived = {name: _expression(name, sql) for name, sql in self.derive.items()}
        self.inputs: dict[str, str] = {}
        self.columns: tuple[Column, ...] = ()
        self._renew()

    def _renew(self) -> None:
        """Begin with features that have seen nothing."""
        self.features = {name: feature.named(name) for name, feature in self.features.items()}
        for name, feature in self.features.items():
            with _naming(name):
                feature.use(self.features)

    # --- fitting ---

    def fit(self, rows: Rows, past: Rows | None = None) -> Self:
        """Learn from the rows of train, in one pass, in bounded memory where they are lazy.

        Args:
            past: positives from before those rows, for histories alone: the columns that a history reads, with or
                without the label.

        Raises:
            FeatureError: no rows; a column is missing, of a type that features do not know, or empty; a value does
                not fit. The message names the feature and the column.
        """
        rows = _frame(rows)
        self.columns = ()
        self._renew()
        self.inputs = self._kinds(rows.collect_schema())
        total = 0
        for chunk in self._chunks(rows, tuple(self.inputs), ROWS_AT_ONCE):
            if not total:
                self._check_derived(chunk)
            total += chunk.height
            self._observe(self.features, self._with_derived(chunk))
        if not total:
            raise FeatureError("no rows to fit on")
        if past is not None:
            past = _frame(past)
            labels = {h.positive for h in self._histories().values() if h.positive} - set(past.collect_schema())
            self._observe_past(past.with_columns(pl.lit(1).alias(name) for name in labels))
        # A history encodes its items by another feature, which has to be ready.
        for name in sorted(self.features, key=lambda name: isinstance(self.features[name], History)):
            with _naming(name):
                self.features[name].finish()
        columns = self._outputs()
        names = [column.name for column in columns]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise FeatureError(f"two features have an output {twice!r}: rename one")
        self.columns = columns
        return self

    def _outputs(self) -> tuple[Column, ...]:
        return tuple(c for name, f in self.features.items() for c in f.outputs(name, self.roles[name]))

    def update(self, rows: Rows) -> Self:
        """Add later rows to the histories. Nothing else changes: what was fitted stays fitted on train.

        Raises:
            FeatureError: as in `fit`. Nothing was added then.
        """
        self._fitted()
        try:
            self._observe_past(_frame(rows))
        except BaseException:
            for feature in self._histories().values():
                feature.forget()
            raise
        for feature in self._histories().values():
            feature.extend()
        return self

    def trimmed(self) -> FeaturePipeline:
        """A copy for serving: of each history the last events alone, as of the last row that was fitted or updated."""
        trimmed = deepcopy(self)
        for feature in trimmed._histories().values():
            feature.trim()
        return trimmed

    def reads(self, name: str) -> tuple[str, ...]:
        """The raw columns behind a feature, which `transform` needs for it."""
        return self._raw(self.features[name].inputs)

    def only(self, names: Collection[str]) -> FeaturePipeline:
        """The fitted pipeline with some of its features, by name: they are shared, not copied."""
        self._fitted()
        part = copy(self)
        part.features = {name: feature for name, feature in self.features.items() if name in names}
        part.columns = part._outputs()
        return part

    def _histories(self) -> dict[str, History]:
        return {name: feature for name, feature in self.features.items() if isinstance(feature, History)}

    def _observe_past(self, rows: pl.LazyFrame | pl.DataFrame) -> None:
        histories = self._histories()
        raw = self._raw(name for h in histories.values() for name in h.fit_inputs)
        for chunk in self._chunks(rows, raw, ROWS_AT_ONCE):
            self._observe(histories, self._with_derived(chunk))

    def _observe(self, features: Mapping[str, Feature], rows: pl.DataFrame) -> None:
        for name, feature in features.items():
            with _naming(name):
                feature.observe(rows)

    # --- transforming ---

    def transform(
        self, rows: Rows | Request | Sequence[Request], roles: Sequence[Role] = INPUTS, device: Device = "cpu"
    ) -> dict[str, Tensor]:
        """Tensors by name, one row for each row, in their order.

        Args:
            rows: a frame, lazy or not; or one request (a dict of column to value), or a list of them.
            roles: which features; columns that only others read need not be there. Labels are not among the default.

        Raises:
            FeatureError: not fitted; a column vanished or changed its type; a value that has no documented meaning.
        """
        chosen = self._chosen(roles)
        raw = self._raw(column for feature in chosen.values() for column in feature.inputs)
        if isinstance(rows, Mapping):
            rows = [rows]
        frame = self._requests(rows, raw) if isinstance(rows, Sequence) else _frame(rows)
        frame = self._select(frame.lazy(), raw).collect()
        if frame.height <= FEW_ROWS:
            return self._apply(chosen, device, frame)
        parts = list(self._apply_all(chosen, device, self._chunks(frame, raw, ROWS_AT_ONCE)))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def batches(
        self, rows: Rows, num_rows: int = ROWS_AT_ONCE, roles: Sequence[Role] = INPUTS, device: Device = "cpu"
    ) -> Iterator[dict[str, Tensor]]:
        """`transform` in pieces of `num_rows` rows in their order, for what is larger than memory."""
        chosen = self._chosen(roles)
        raw = self._raw(column for feature in chosen.values() for column in feature.inputs)
        yield from self._apply_all(chosen, device, self._chunks(_frame(rows), raw, num_rows))

    def _apply_all(
        self, features: Mapping[str, Feature], device: Device, chunks: Iterable[pl.DataFrame]
    ) -> Iterator[dict[str, Tensor]]:
        """Chunk by chunk; on a CPU on several threads, a few chunks ahead."""
        work = partial(self._apply, features, device)
        return in_order(work, chunks) if torch.device(device).type == "cpu" else map(work, chunks)

    def _apply(self, features: Mapping[str, Feature], device: Device, chunk: pl.DataFrame) -> dict[str, Tensor]:
        rows, found = self._with_derived(chunk), {}
        for name, feature in features.items():
            with _naming(name):
                for suffix, tensor in feature.transform(rows, device).items():
                    found[name + suffix] = tensor
        return found

    def _chosen(self, roles: Sequence[Role]) -> dict[str, Feature]:
        self._fitted()
        for role in roles:
            if role not in ROLES:
                raise FeatureError(f"roles: unknown role {role}: {nearest(role, ROLES)}")
        return {name: feature for name, feature in self.features.items() if self.roles[name] in roles}

    def _fitted(self) -> None:
        if not self.columns:
            raise FeatureError("this pipeline is not fitted: call fit(train) or load one")

    # --- raw columns ---

    def _raw(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """The raw columns behind columns, derived ones among them."""
        found: dict[str, None] = {}
        for column in wanted:
            if column in self._derived:
                earlier = list(self.derive)[: list(self.derive).index(column)]
                for root in self._derived[column].meta.root_names():
                    found |= dict.fromkeys(self._raw([root]) if root in earlier else [root])
            else:
                found[column] = None
        return tuple(found)

    def _kinds(self, schema: Mapping[str, pl.DataType]) -> dict[str, str]:
        kinds = {}
        for name, feature in self.features.items():
            for column in self._raw(dict.fromkeys((*feature.inputs, *feature.fit_inputs))):
                with _naming(name):
                    if column not in schema:
                        raise FeatureError(f"no column {column!r}: {nearest(column, schema)}")
                    if schema[column] == pl.Null:
                        raise FeatureError(f"column {column!r} holds nothing but nulls: leave it out")
                    kind = kind_of(schema[column])
                    if kind is None:
                        raise FeatureError(f"column {column!r} is {schema[column]}: convert it, features know {_KNOWN}")
                    kinds[column] = kind
        return kinds

    def _select(self, rows: pl.LazyFrame, raw: Sequence[str]) -> pl.LazyFrame:
        present = rows.collect_schema()
        for column in raw:
            if column not in present:
                raise FeatureError(
                    f"no column {column!r}, which this pipeline was fitted on: {nearest(column, present)}"
                )
        return rows.select(raw)

    def _chunks(self, rows: pl.LazyFrame | pl.DataFrame, raw: Sequence[str], num_rows: int) -> Iterator[pl.DataFrame]:
        chosen = self._select(rows.lazy(), raw)
        if isinstance(rows, pl.DataFrame):
            yield from (chunk for chunk in chosen.collect().iter_slices(num_rows) if chunk.height)
            return
        yield from (chunk for chunk in chosen.collect_batches(chunk_size=num_rows, engine="streaming") if chunk.height)

    def _requests(self, requests: Sequence[Request], raw: Sequence[str]) -> pl.DataFrame:
        columns = []
        for number, request in enumerate(requests):
            if not isinstance(request, Mapping):
                raise FeatureError(f"request {number} is {request!r}: give a dict of column to value")
            if missing := next((name for name in raw if name not in request), None):
                raise FeatureError(f"request {number} has no {missing!r}: give it, or None for a missing value")
        for name in raw:
            columns.append(_values(name, [request[name] for request in requests], self.inputs[name]))
        return pl.DataFrame(columns)

    def _with_derived(self, chunk: pl.DataFrame) -> pl.DataFrame:
        """A chunk of raw columns in the dtypes of their kinds, and what is derived from them."""
        # Polars divides one number by a constant, but multiplies several by its reciprocal, which gives other bits. So
        # a row is never computed alone, nor a piece of memory that holds one row.
        if chunk.height == 1:
            return self._with_derived(pl.concat([chunk, chunk])).head(1)
        rows = chunk.rechunk()
        rows = rows.with_columns(as_kind(column, self.inputs[column.name]) for column in rows.iter_columns())
        for name, expression in self._derived.items():
            if set(expression.meta.root_names()) <= set(rows.columns):
                try:
                    rows = rows.with_columns(expression.alias(name))
                except pl.exceptions.PolarsError as error:
                    said = str(error).splitlines()[0]
                    raise FeatureError(f"derive.{name}={self.derive[name]}: {said}") from None
                made = rows[name]
                kind = kind_of(made.dtype)
                if kind is None:
                    raise FeatureError(f"derive.{name}={self.derive[name]} gives {made.dtype}; features know {_KNOWN}")
                rows = rows.with_columns(as_kind(made, kind))
        return rows

    def _check_derived(self, chunk: pl.DataFrame) -> None:
        """A derived column that changes when other rows are left out would let a row see its future."""
        whole = self._with_derived(chunk)
        for low, high in ((0, 1), (chunk.height // 2, chunk.height), (chunk.height - 1, chunk.height)):
            part = self._with_derived(chunk[low:high])
            for name in self.derive:
                if name in whole.columns and not part[name].equals(whole[name][low:high], null_equal=True):
                    raise FeatureError(
                        f"derive.{name}={self.derive[name]} depends on other rows than its own: an expression over "
                        "one row is needed"
                    )

    # --- saving ---

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex of all that was declared and learned."""
        return storage.fingerprint(self._description(), self._tables())

    def _description(self) -> dict[str, Any]:
        self._fitted()
        features = [
            {
                "name": name,
                "role": self.roles[name],
                "feature": f"{type(feature).__module__}.{type(feature).__qualname__}",
                "arguments": feature.arguments(),
                "state": feature.state(),
            }
            for name, feature in self.features.items()
        ]
        return {"derive": self.derive, "inputs": self.inputs, "features": features}

    def _tables(self) -> dict[str, pl.DataFrame]:
        return {f"{name}.{table}": t for name, f in self.features.items() for table, t in f.tables().items()}

    def save(self, path: str | Path) -> None:
        """Write the pipeline into a folder (see `storage`); one that is there is replaced in one step.

        Raises:
            OSError: a file cannot be written. What was there before still loads.
        """
        storage.write(Path(path), self._description(), self._tables())

    @classmethod
    def load(cls, path: str | Path) -> FeaturePipeline:
        """The inverse of `save`.

        Raises:
            FeatureError: no pipeline there, one of a newer version, or a file that is damaged or missing.
        """
        found, tables = storage.read(Path(path))
        groups: dict[Role, dict[str, Feature]] = {role: {} for role in ROLES}
        for entry in found["features"]:
            groups[entry["role"]][entry["name"]] = _class(entry["feature"])(**entry["arguments"])
        user, item, context, label = groups.values()
        pipeline = cls(user=user, item=item, context=context, label=label, derive=found["derive"])
        for entry in found["features"]:
            prefix = f"{entry['name']}."
            own = {name.removeprefix(prefix): table for name, table in tables.items() if name.startswith(prefix)}
            pipeline.features[entry["name"]].restore(entry["state"], own)
        pipeline.inputs = found["inputs"]
        pipeline.columns = pipeline._outputs()
        return pipeline


_KNOWN = ", ".join(KINDS)


@contextmanager
def _naming(feature: str) -> Iterator[None]:
    """Put the name of the feature in front of what is wrong with it."""
    try:
        yield
    except FeatureError as error:
        raise FeatureError(f"feature {feature!r}: {error}") from None


def _frame(rows: Rows) -> pl.LazyFrame | pl.DataFrame:
    if isinstance(rows, pl.LazyFrame | pl.DataFrame):
        return rows
    if hasattr(rows, "iloc"):
        return pl.from_pandas(rows)
    raise FeatureError(f"rows are a {type(rows).__name__}: give a Polars frame, lazy or not, or a pandas DataFrame")


def _expression(name: str, sql: str) -> pl.Expr:
    try:
        return pl.sql_expr(sql)
    except pl.exceptions.PolarsError as error:
        raise FeatureError(f"derive.{name}={sql}: {str(error).splitlines()[0]}") from None


def _values(name: str, values: list[Any], kind: str) -> pl.Series:
    try:
        return pl.Series(name, values, dtype=KINDS[kind], strict=True)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        try:
            return as_kind(pl.Series(name, values, strict=True), kind)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            if isinstance(error, FeatureError):
                raise
            raise FeatureError(f"column {name!r} should be {kind}: {str(error).splitlines()[0]}") from None


def _class(name: str) -> type[Feature]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Feature)):
        raise FeatureError(f"the saved pipeline has a feature {name}, which is not installed here")
    return found
