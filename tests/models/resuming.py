"""Exact resuming, held against every model whose training has one optimiser over pairs."""

import copy
import itertools

import torch

from recsys.data.batches import PairBatches


def check_resuming(make, pairs, batch_size):
    """Weights and optimiser state stored after n chunks, then a new model: the same bits at the end.

    make: make(seed) is the untrained model.
    """
    batches = PairBatches(pairs, batch_size, seed=7, steps_per_chunk=3)
    chunks = [chunk for epoch in range(3) for chunk in batches.chunks(epoch)]
    model = make(0)
    optimizer, stored = model.configure_optimizers(), []
    for chunk in chunks:
        stored.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
        model.train_steps(chunk, optimizer)
    for stop in (1, 4, len(chunks) - 1):
        again = make(99)
        optimizer = again.configure_optimizers()
        again.load_state_dict(stored[stop][0])
        optimizer.load_state_dict(stored[stop][1])
        torch.manual_seed(1234)  # the global generator must not matter
        for chunk in itertools.islice(chunks, stop, None):
            again.train_steps(chunk, optimizer)
        for one, other in zip(model.eval().state_dict().values(), again.eval().state_dict().values(), strict=True):
            assert torch.equal(one, other)
