import pytest
import torch

from fastrcnn.config import ModelConfig
from fastrcnn.model.fast_rcnn import FastRCNN, factors
from fastrcnn.model.receptive_field import ReceptiveField
from fastrcnn.model.summary import summarise


def network(**settings) -> FastRCNN:
    with torch.device("meta"):
        return FastRCNN(ModelConfig(**settings), num_classes=21)


def test_vgg16_before_and_after_svd():
    """293 GFLOP in the convolutions at 600 x 800, 478 in fc6 and fc7 of 2,000 RoIs, 128 after SVD."""
    model = network()
    rows = {row.layer: row for row in summarise(model, 600, 800, 2000)}
    assert rows["conv5_3"].output == (512, 38, 50) and rows["conv5_3"].field == ReceptiveField(16, 7.5, 196)
    assert sum(row.gflop for name, row in rows.items() if name.startswith("conv")) == pytest.approx(293, abs=1)
    assert rows["fc6"].gflop + rows["fc7"].gflop == pytest.approx(478, abs=1)
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    model.fc6, model.fc7 = factors(model.fc6, 1024), factors(model.fc7, 256)
    after = {row.layer: row for row in summarise(model, 600, 800, 2000)}
    assert after["fc6"].gflop + after["fc7"].gflop == pytest.approx(128, abs=1)
    assert after["fc6"].parameters == 1024 * (25088 + 4096) + 4096


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "resnet50", "freeze_up_to": "conv2_3", "pool_size": 4},
        {"backbone": "tiny", "freeze_up_to": None, "pool_layers": ["pool1", "conv3_2"], "fc_width": 8},
        {"backbone": "caffenet", "freeze_up_to": "conv1", "roi_features": "spp", "fc_width": 8},
        {"backbone": "tiny", "freeze_up_to": None, "roi_features": "warp", "fc_width": 8},
    ],
    ids=str,
)
def test_no_weight_is_left_out(settings):
    model = network(**settings)
    rows = summarise(model, 120, 160, 9)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())
    assert [row.layer for row in rows][-2:] == ["cls_score", "bbox_pred"]
    assert all(row.gflop > 0 for row in rows if row.parameters)
