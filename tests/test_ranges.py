import numpy as np
import torch
from torch import nn

from fastrcnn.model.ranges import EVERY, Activation, Histogram, watching


def test_a_histogram_widens():
    histogram, rng = Histogram(), np.random.default_rng(0)
    parts = [rng.exponential(size, 1000).astype(np.float32) for size in (0.0, 1e-3, 1.0, 30.0, 2.0)]
    for part in parts:
        histogram.add(torch.from_numpy(part))
    histogram.add(torch.zeros(0))
    whole = np.concatenate(parts)
    assert int(histogram.counts.sum()) == len(whole)
    for share in (0.1, 0.5, 0.9, 0.999):
        exact = np.quantile(whole, share, method="inverted_cdf")
        assert exact <= histogram.quantile(share) <= exact + histogram.end / histogram.BINS


def test_what_goes_through_layers_is_watched_until_the_end():
    first, second = nn.Linear(3, 2, bias=False), nn.Identity()
    nn.init.eye_(first.weight)
    watched = {"put out": Activation(first), "either sign": Activation(first, signed=True)}
    watched["taken"] = Activation(second, signed=True, taken=True)
    rows = torch.tensor([[0.5, -4.0, 9.0]]).repeat(EVERY + 1, 1)
    rows[1] = 100  # between two rows that are looked at
    with watching(watched) as largest:
        second(first(rows))
    assert largest.keys() == watched.keys()
    for name, exact in {"put out": 0.5, "either sign": 4.0, "taken": 4.0}.items():
        assert exact <= largest[name] <= exact * (1 + 2 / Histogram.BINS)
    first(rows * 50)
    assert watched["put out"].largest == largest["put out"]
