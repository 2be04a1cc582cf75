"""A synthetic YouTube whose truth is known: users, videos, a month on the homepage, and the answer key."""

from recsys.world.constants import World

__all__ = ["World"]
