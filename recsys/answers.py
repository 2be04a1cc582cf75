"""What a retriever answers: lists for users, and items like an item. Raw ids in, raw ids out."""

from __future__ import annotations

from typing import Any

import polars as pl
import torch

from recsys.evaluation.ranking import rank
from recsys.features.vocabulary import Vocabulary, id_keys
from recsys.models.base import Retriever
from recsys.schema import NUM_RESERVED, UNKNOWN, Interactions, Queries


@torch.inference_mode()
def recommend(
    model: Retriever, ids: pl.Series, user_idx: torch.Tensor, history: Interactions, items: Vocabulary, k: int
) -> pl.DataFrame:
    """The top k items of users, without what they already liked; see `Run.recommend`.

    Args:
        ids, user_idx: of the users, raw and encoded, [B].
        history: of all known users, row = user_idx.
    """
    candidates = torch.ones(len(items), dtype=torch.bool)
    candidates[:NUM_RESERVED] = False
    queries = Queries(
        user_idx=user_idx,
        user_key=torch.from_numpy(id_keys(ids).copy()),
        history=history.select(user_idx),
        relevant=Interactions.empty(len(ids), len(items)),
        num_cold_relevant=torch.zeros(len(ids), dtype=torch.int64),
        warm=user_idx != UNKNOWN,
        candidates=candidates,
    )
    top = rank(model.scorer_with_fallback(), queries, min(k, int(candidates.sum())), device=model.device).cpu()
    personal = model.personal(queries.to(model.device).batch()).cpu()
    width = top.shape[1]
    row = torch.arange(len(ids)).repeat_interleave(width).numpy()
    found = pl.DataFrame(
        {
            "user_id": ids.gather(row),
            "rank": torch.arange(1, width + 1).repeat(len(ids)).numpy(),
            "item_id": items.decode(top.clamp(min=0).flatten()),
            "source": pl.Series(personal.numpy()).gather(row),
        }
    )
    source = pl.when("source").then(pl.lit("model")).otherwise(pl.lit("fallback"))
    return found.with_columns(source=source).filter(pl.col("item_id").is_not_null())


@torch.inference_mode()
def similar(model: Retriever, item_idx: int, items: Vocabulary, k: int) -> pl.DataFrame:
    """The k items most like one: by cosine of item vectors, else by what it alone as a history brings.

    Raises:
        ValueError: the model does not tell items apart.
    """
    if model.factored:
        vectors_ID = model.encode_items(torch.arange(len(items), device=model.device))
        vectors_ID = torch.nn.functional.normalize(vectors_ID, dim=1)
        scores_I = vectors_ID @ vectors_ID[item_idx]
    else:
        # One stranger who liked this item alone, and one who liked nothing.
        history = Interactions(torch.tensor([0, 1, 1]), torch.tensor([item_idx]), len(items)).to(model.device)
        strangers = torch.full((2,), UNKNOWN, device=model.device)
        batch: Any = {"user_idx": strangers, "user_key": strangers, "history": history}
        scores_I, without_I = model.score(batch)
        if torch.equal(scores_I, without_I):
            raise ValueError(f"{type(model).__name__} knows no similarity of items")
    scores_I = scores_I.float().cpu()
    scores_I[:NUM_RESERVED] = -torch.inf
    scores_I[item_idx] = -torch.inf
    best = scores_I.topk(min(k, len(items.ids) - 1))
    return pl.DataFrame({"item_id": items.decode(best.indices), "similarity": best.values.numpy()})
