"""recsys: a research lab for recommender systems, with an answer key."""
