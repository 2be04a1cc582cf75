"""The world that policies are tried in."""

import pytest

from recsys import config
from recsys.world import World


@pytest.fixture(scope="session")
def tiny() -> World:
    return config.build(config.compose("data=world", "world=tiny").world)
