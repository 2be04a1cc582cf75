"""The inverted index over tags against a naive reference, and what a user or an item without tags gets."""

import math

import pytest
import torch

from recsys.models.tags import Tags
from recsys.schema import NUM_RESERVED, UNKNOWN, Column, Interactions, Schema, UserBatch

ITEMS = 6
TOPIC = Column("topic", "item_feature", "int64", 5)
LISTED = Column("listed", "item_feature", "int64", 4, 2)
LENGTH = Column("length", "item_feature", "float32")
SCHEMA = Schema((*Schema.of(4, ITEMS + NUM_RESERVED).columns, TOPIC, LISTED, LENGTH))
ITEM_ROWS = {
    "topic": torch.tensor([0, 1, 2, 2, 3, 4, 1, 2]),  # items 2 to 7; item 6 is of none
    "listed": torch.tensor([[0, 0], [0, 0], [2, 0], [2, 3], [3, 0], [0, 0], [0, 0], [1, 3]]),
    "length": torch.zeros(8),
}
TRAIN = Interactions.from_pairs(
    torch.tensor([2, 2, 3, 3, 3]), torch.tensor([2, 5, 2, 3, 6]), num_rows=4, num_items=ITEMS + NUM_RESERVED
)


def fitted(**arguments: object) -> Tags:
    model = Tags(SCHEMA, **arguments)  # type: ignore[arg-type]
    model.describe({}, ITEM_ROWS)
    model.fit(TRAIN)
    return model


def batch(*histories: list[int]) -> UserBatch:
    row = torch.tensor([b for b, items in enumerate(histories) for _ in items], dtype=torch.int64)
    item = torch.tensor([i for items in histories for i in items], dtype=torch.int64)
    history = Interactions.from_pairs(row, item, num_rows=len(histories), num_items=ITEMS + NUM_RESERVED)
    strangers = torch.full((len(histories),), UNKNOWN)
    return {"user_idx": strangers, "user_key": strangers, "history": history}


def tags_of(item: int, columns: tuple[str, ...]) -> list[tuple[str, int]]:
    """What an item carries, by the plainest reading of the columns."""
    found = []
    for name in columns:
        values = ITEM_ROWS[name][item].view(-1).tolist()
        found += [(name, value) for value in values if value >= NUM_RESERVED]
    return found


def naive(history: list[int], columns: tuple[str, ...], power: float) -> list[float]:
    real = range(NUM_RESERVED, ITEMS + NUM_RESERVED)
    carried = [tag for item in real for tag in tags_of(item, columns)]

    def vector(item: int) -> dict[tuple[str, int], float]:
        weights = {tag: math.log(1 + ITEMS / carried.count(tag)) for tag in tags_of(item, columns)}
        norm = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {tag: weight / norm for tag, weight in weights.items()}

    profile: dict[tuple[str, int], float] = {}
    for item in history:
        for tag, weight in vector(item).items():
            profile[tag] = profile.get(tag, 0.0) + weight
    norm = math.sqrt(sum(weight**2 for weight in profile.values())) or 1.0
    positives = TRAIN.item_counts().tolist()
    return [
        sum(profile.get(tag, 0.0) / norm * weight for tag, weight in vector(item).items())
        * (1 + positives[item]) ** power
        for item in real
    ]


@pytest.mark.parametrize("columns", [("topic", "listed"), ("listed",)])
@pytest.mark.parametrize("power", [0.0, 0.5])
def test_scores_are_those_of_a_naive_reading(columns: tuple[str, ...], power: float) -> None:
    model = fitted(columns=list(columns), popularity_power=power)
    histories = [[2], [3, 4], [2, 5, 7], [6], []]
    scores_BI = model.score(batch(*histories))
    for scores, history in zip(scores_BI, histories, strict=True):
        torch.testing.assert_close(scores[NUM_RESERVED:], torch.tensor(naive(history, columns, power)))
    assert bool((scores_BI[:, :NUM_RESERVED] == 0).all())


def test_all_indexed_features_are_tags_unless_told() -> None:
    histories = [[2], [3, 4]]
    assert torch.equal(fitted().score(batch(*histories)), fitted(columns=["topic", "listed"]).score(batch(*histories)))


def test_an_item_without_positives_is_found_by_its_tags() -> None:
    assert int(TRAIN.item_counts()[7]) == 0
    scores = fitted(columns=["topic"]).score(batch([2]))[0]
    assert float(scores[7]) > 0
    assert float(scores[4]) == 0


def test_only_users_with_tags_are_known() -> None:
    assert fitted().personal(batch([2], [6], [])).tolist() == [True, False, False]


def test_only_the_last_items_speak() -> None:
    # Without timestamps a history is in order of the item index.
    assert torch.equal(fitted(length=1).score(batch([2, 4])), fitted().score(batch([4])))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="give features="):
        Tags(Schema.of(4, 8))
    with pytest.raises(ValueError, match="did you mean topic"):
        Tags(SCHEMA, columns=["topics"])
    with pytest.raises(ValueError, match="length must be at least 1"):
        Tags(SCHEMA, length=0)
    with pytest.raises(ValueError, match="popularity_power"):
        Tags(SCHEMA, popularity_power=-1.0)
