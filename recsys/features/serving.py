"""A ranker's inputs for one request and many candidates: each made once where it can be.

Features that read the item alone are made when the store is built, those of the request alone once a request, and only
what reads both, as the age of a video, for every candidate. Shapes: R requests, N candidates, I items.
"""

from __future__ import annotations

import polars as pl
from torch import Tensor

from recsys.config import nearest
from recsys.features.base import KINDS, FeatureError
from recsys.features.pipeline import INPUTS, FeaturePipeline

Rows = dict[str, Tensor]


class FeatureStore:
    """The inputs of a fitted pipeline for candidates, and what is known of items beforehand.

    request_columns: the raw columns that a request has to bring; dtypes: what they are.

    Args:
        pipeline: fitted; histories end with the last row that it was fitted on or updated with.
        items: raw columns of the items, one row each: those of these names are taken from here, all others from the
            request.

    Raises:
        FeatureError: a column of the items does not fit the pipeline.
    """

    def __init__(self, pipeline: FeaturePipeline, items: pl.DataFrame) -> None:
        inputs = [name for name in pipeline.features if pipeline.roles[name] in INPUTS]
        reads = {name: set(pipeline.reads(name)) for name in inputs}
        of_items = set(items.columns)
        alone = [name for name in inputs if reads[name] <= of_items]
        both = [name for name in inputs if reads[name] & of_items and name not in alone]
        self._request = pipeline.only([name for name in inputs if not reads[name] & of_items])
        self._both = pipeline.only(both)
        read = set().union(*reads.values()) if reads else set()
        self.request_columns = tuple(name for name in pipeline.inputs if name in read - of_items)
        self.dtypes = {name: KINDS[pipeline.inputs[name]] for name in self.request_columns}
        mixed = set().union(*(reads[name] for name in both)) if both else set()
        self._items = items.select(name for name in items.columns if name in mixed)
        self._shared = tuple(name for name in self.request_columns if name in mixed)
        self._made: Rows = pipeline.only(alone).transform(items) if alone else {}

    def of_requests(self, requests: pl.DataFrame) -> Rows:
        """What reads the request alone, tensors by name [R, ...].

        Raises:
            FeatureError: a column is missing or does not fit.
        """
        for name in self.request_columns:
            if name not in requests.columns:
                raise FeatureError(f"requests have no column {name!r}: {nearest(name, requests.columns)}")
        return self._request.transform(requests) if self._request.features else {}

    def of_candidates(self, requests: pl.DataFrame, request_N: Tensor, item_N: Tensor) -> Rows:
        """What reads the item, alone or with the request, tensors by name [N, ...].

        Args:
            request_N: which row of the requests each candidate is for, int64.
            item_N: which row of the items it is, int64.
        """
        found = {name: values.index_select(0, item_N) for name, values in self._made.items()}
        if self._both.features:
            rows = self._items[item_N.numpy()] if self._items.width else pl.DataFrame()
            shared = requests.select(self._shared)
            rows = rows.hstack(shared[request_N.numpy()])
            found |= self._both.transform(rows)
        return found
