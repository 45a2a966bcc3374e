import pytest
import torch
from torch import nn

from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import compress_weights
from fastrcnn.errors import FastRCNNError
from fastrcnn.model.svd import multiplications, parameters, truncated_svd
from fastrcnn.model.weights import build, load_model, save_weights


def test_full_rank_is_the_original():
    layer = nn.Linear(30, 20)
    x = torch.randn(7, 30)
    assert torch.allclose(truncated_svd(layer, 20)(x), layer(x), atol=1e-5)


def test_truncation_is_the_best_of_its_rank():
    """Eckart and Young: what is left is the norm of the singular values that were dropped."""
    layer = nn.Linear(30, 20)
    smaller = truncated_svd(layer, 5)
    product = smaller.U.weight @ smaller.V.weight
    dropped = torch.linalg.svdvals(layer.weight)[5:].norm()
    assert (layer.weight - product).norm().item() == pytest.approx(dropped.item(), rel=1e-4)
    assert smaller.V.bias is None and torch.equal(smaller.U.bias, layer.bias)


def test_counts_are_those_of_the_paper():
    """fc6 of VGG16 at rank 1024: 102.8M weights become 29.9M."""
    with torch.device("meta"):
        fc6, smaller = nn.Linear(25088, 4096), nn.Sequential(nn.Linear(25088, 1024, bias=False), nn.Linear(1024, 4096))
    assert multiplications(fc6) == 25088 * 4096 and parameters(fc6) == 25088 * 4096 + 4096
    assert multiplications(smaller) == 1024 * (25088 + 4096)
    assert parameters(smaller) == 1024 * (25088 + 4096) + 4096


@pytest.mark.parametrize("rank", [0, 21])
def test_an_impossible_rank_says_what_is_possible(rank):
    with pytest.raises(FastRCNNError, match="give 1 to 20"):
        truncated_svd(nn.Linear(30, 20), rank)


def test_a_compressed_file_is_a_weights_file(tree, tmp_path):
    config = configs.from_dict(tree)
    model = build(config)
    statistics = TargetStatistics(torch.zeros(6, 4), torch.ones(6, 4))
    save_weights(tmp_path / "full.safetensors", model, config, statistics)
    fc6, fc7 = compress_weights(
        tmp_path / "full.safetensors", tmp_path / "small.safetensors", {"fc6": 32, "fc7": 4}
    ).layers
    inputs = model.fc6.in_features
    assert (fc6.layer, fc6.rank, fc7.layer, fc7.rank) == ("fc6", 32, "fc7", 4)
    assert fc6.parameters == (32 * inputs + 32, 32 * (inputs + 32) + 32)
    assert fc7.parameters == (32 * 32 + 32, 4 * 64 + 32)
    assert fc7.gflop == pytest.approx((2e-9 * 2000 * 32 * 32, 2e-9 * 2000 * 4 * 64))
    loaded, _ = load_model(tmp_path / "small.safetensors")
    pooled = torch.rand(3, model.fc6.in_features)
    with torch.no_grad():
        hidden = torch.relu(model.fc6(pooled))  # fc6 has full rank, 32; fc7 has 4 of 32
        expected = torch.relu(truncated_svd(model.fc7, 4)(hidden))
        assert torch.allclose(loaded.fully_connected(pooled), expected, atol=1e-4)
    with pytest.raises(FastRCNNError, match=r"small\.safetensors: fc6 is compressed already"):
        compress_weights(tmp_path / "small.safetensors", tmp_path / "x.safetensors", {"fc6": 2})
