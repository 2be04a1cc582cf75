"""What a policy is asked and what it answers: visits, and a slate for each.

A policy is any object with `act(visits) -> Slates`; one that learns has `update(rows)` too, which is given each day's
log of its own users, tensors by column as `logs.COLUMNS` has them, before it acts on the next. What it draws it draws
from the keys of the visits, extended by streams of its own (`noise.extend(visits.key, STREAM + n)`), so that slates
depend on no order and on no split into batches.

Shapes: S visits, K positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Rows = dict[str, Tensor]

STREAM = 1000  # of a policy's own draws, beyond those of the world


@dataclass(frozen=True, eq=False)
class Visits:
    """Visits to be answered. How far each will scroll is not known to a policy."""

    user_id: Tensor  # int64 [S], raw ids
    timestamp: Tensor  # int64 [S], when the visit starts, microseconds since 1970
    key: Tensor  # int64 [S], of the noise of the visit
    k: int  # positions to fill

    def __len__(self) -> int:
        return len(self.user_id)

    def __getitem__(self, rows: Tensor | slice) -> Visits:
        return Visits(self.user_id[rows], self.timestamp[rows], self.key[rows], self.k)


@dataclass(frozen=True, eq=False)
class Slates:
    """What visits are shown, first position first."""

    item_id: Tensor  # int64 [S, K], raw ids, no two alike in a row; -1 at the end of a row: nothing
    propensity: Tensor | None = None  # float32 [S, K]: P(this item here | the rows above); None: not known


class Policy(Protocol):
    """Chooses what visits are shown."""

    def act(self, visits: Visits) -> Slates:
        """A slate of visits.k positions for each visit."""


def update_of(policy: Policy) -> Callable[[Rows], None] | None:
    """How a policy learns; None if it does not."""
    return getattr(policy, "update", None)


def padded(item_id: Tensor, k: int) -> Tensor:
    """Lists [S, any] cut or filled with -1 to [S, k]."""
    return torch.nn.functional.pad(item_id[:, :k], (0, max(k - item_id.shape[1], 0)), value=-1)


def check(slates: Slates, visits: Visits) -> None:
    """Hold slates to what `Slates` states.

    Raises:
        ValueError: a wrong type or shape, an item twice in a row, a gap, a propensity that is none.
    """
    item_SK, propensity_SK = slates.item_id, slates.propensity
    shape = (len(visits), visits.k)
    if item_SK.dtype != torch.int64 or tuple(item_SK.shape) != shape:
        raise ValueError(
            f"slates must be item_id int64 {list(shape)}, one row a visit, got {_named(item_SK)}: fill up with -1"
        )
    here_SK = item_SK >= 0
    _refuse(item_SK < -1, item_SK, visits, "shows item_id {value}: ids are not negative, and -1 is nothing")
    _refuse(
        here_SK[:, 1:] & ~here_SK[:, :-1], item_SK[:, 1:], visits,
        "shows item_id {value} below a position that is empty: put -1 at the end",
    )  # fmt: skip
    sorted_SK = item_SK.sort(dim=1).values
    twice = (sorted_SK[:, 1:] == sorted_SK[:, :-1]) & (sorted_SK[:, 1:] >= 0)
    _refuse(twice, sorted_SK[:, 1:], visits, "shows item_id {value} twice: a slate has different items")
    if propensity_SK is None:
        return
    if not propensity_SK.is_floating_point() or tuple(propensity_SK.shape) != shape:
        raise ValueError(f"slates must have propensity float32 {list(shape)}, got {_named(propensity_SK)}")
    wrong = here_SK & ~((propensity_SK > 0) & (propensity_SK <= 1 + 1e-6))
    _refuse(wrong, propensity_SK, visits, "has a propensity of {value}: what is shown had a probability in (0, 1]")


def _named(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _refuse(wrong_SK: Tensor, value_SK: Tensor, visits: Visits, what: str) -> None:
    """Raise for the first place that is wrong, naming the visit."""
    if bool(wrong_SK.any()):
        row, column = wrong_SK.nonzero()[0].tolist()
        raise ValueError(refusal(visits, row, what.format(value=_plain(value_SK[row, column]))))


def refusal(visits: Visits, row: int, what: str) -> str:
    """The message about one slate."""
    return f"the slate of visit row {row} (user_id {int(visits.user_id[row])}) {what}"


def _plain(value: Tensor) -> Any:
    return value.item()
