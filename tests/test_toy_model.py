"""A new model is one file and one yaml: nothing else is touched, and the contract finds it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from recsys import config

MODEL = '''
"""The mean of the items before, and how often an item is liked."""

import torch

from recsys.models.base import Retriever, no_report


class Toy(Retriever):
    scores_from_history = True

    def __init__(self, schema, *, shrinkage: float = 10.0):
        super().__init__(schema)
        self.shrinkage = shrinkage
        self.register_buffer("together_II", torch.zeros(schema.num_items, schema.num_items))

    def fit(self, interactions, report=no_report):
        self.observe(interactions)
        users_UI = torch.zeros(self.schema.num_users, self.schema.num_items)
        users_UI[interactions.row_idx(), interactions.item_idx] = 1
        together_II = users_UI.T @ users_UI
        self.together_II.copy_(together_II / (together_II.diagonal() + self.shrinkage))
        report(1, 1, {})

    def score(self, batch):
        history = batch["history"]
        rows_ZI = self.together_II.index_select(0, history.item_idx)
        return torch.zeros(history.num_rows, self.schema.num_items).index_add_(0, history.row_idx(), rows_ZI)
'''
PLUGIN = """
from pathlib import Path

from recsys import config

config.config_dir = lambda: Path(__file__).parent / "configs"
"""


def test_a_model_of_ones_own_passes_the_contract(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(MODEL)
    (tmp_path / "toy_plugin.py").write_text(PLUGIN)
    shutil.copytree(config.config_dir(), tmp_path / "configs")
    yaml = "_target_: toy.Toy\n_partial_: true\nshrinkage: 10.0\n"
    (tmp_path / "configs" / "model" / "toy.yaml").write_text(yaml)
    contract = Path(__file__).parent / "test_contract.py"
    words = ["-p", "toy_plugin", "-p", "no:cacheprovider", "-q", "-k", "toy", "-rN", str(contract)]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0].count(".") >= 9
