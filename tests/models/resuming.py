"""Exact resuming, held against every retriever that is trained by gradient."""

import copy

import torch


def check_resuming(make, batches_of):
    """Weights and optimiser state stored after n chunks, then a new model: the same bits at the end.

    make: make(seed) is the untrained model. batches_of: batches_of(model) is its source of three chunks an epoch or
    more.
    """
    model, stored = make(0), []
    optimizers, batches = model.configure_optimizers(), batches_of(model)
    assert len(batches) >= 3
    for epoch in range(3):
        for chunk in batches.chunks(epoch):
            stored.append(copy.deepcopy((model.state_dict(), [o.state_dict() for o in optimizers])))
            model.train_steps(chunk, optimizers)
    for stop in (1, 3, len(batches) + 1, len(stored) - 1):
        again = make(99)
        optimizers = again.configure_optimizers()
        again.load_state_dict(stored[stop][0])
        for optimizer, state in zip(optimizers, stored[stop][1], strict=True):
            optimizer.load_state_dict(state)
        torch.manual_seed(1234)  # the global generator must not matter
        first, start = divmod(stop, len(batches))
        for epoch in range(first, 3):
            for chunk in batches_of(again).chunks(epoch, start if epoch == first else 0):
                again.train_steps(chunk, optimizers)
        for name, tensor in model.eval().state_dict().items():
            assert torch.equal(again.eval().state_dict()[name], tensor), name
