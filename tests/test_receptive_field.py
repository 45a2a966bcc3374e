import copy

import pytest
import torch
from torch import nn

from fastrcnn.model import backbones
from fastrcnn.model.receptive_field import ReceptiveField, receptive_field


def seen_through(network: nn.Module) -> nn.Module:
    """A copy with one channel everywhere, positive weights, means in place of maxima, and nothing else that could stop
    a gradient: every weight of a window gets one."""
    thin = copy.deepcopy(network)
    for parent in [*thin.modules()]:
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Conv2d):
                window = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, bias=False).double()
                nn.init.ones_(window.weight)
                setattr(parent, name, window)
            elif isinstance(layer, nn.MaxPool2d):
                sides = (layer.kernel_size, layer.stride, layer.padding)
                setattr(parent, name, nn.AvgPool2d(*sides, ceil_mode=layer.ceil_mode))
            elif isinstance(layer, nn.ReLU | nn.LocalResponseNorm | backbones.FrozenNorm):
                setattr(parent, name, nn.Identity())
    return thin


def seen(network: nn.Module, cell: int, side: int) -> tuple[int, int]:
    """The first and the last pixel along an axis that the output's cell (cell, cell) has a gradient of."""
    image = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    seen_through(network)(image)[0, 0, cell, cell].backward()
    rows, columns = image.grad[0, 0].nonzero().unbind(dim=1)
    assert (rows.min(), rows.max()) == (columns.min(), columns.max())
    return int(rows.min()), int(rows.max())


@pytest.mark.parametrize("name", backbones.BUILDERS)
def test_gradients_reach_the_pixels_of_the_receptive_field_and_no_others(name):
    network = backbones.BUILDERS[name]()
    for depth in range(1, len(network) + 1):
        field = receptive_field(network[:depth])
        cell = -(-field.size // field.stride)  # far enough from the edge
        for place in (cell, cell + 1):
            middle, reach = field.stride * place + field.offset, (field.size - 1) / 2
            found = seen(network[:depth], place, int(middle + reach) + 2 * field.stride + 1)
            assert found == (middle - reach, middle + reach), depth


@pytest.mark.parametrize(
    ("name", "stride", "offset", "size"),
    [("caffenet", 16, 0, 163), ("vgg_cnn_m_1024", 16, 17, 139), ("vgg16", 16, 7.5, 196), ("tiny", 8, 3, 51)],
)
def test_fields_of_what_rois_are_pooled_from(name, stride, offset, size):
    """163 is AlexNet's conv5, 196 VGG16's conv5_3 (Araujo et al. 2019, distill.pub/2019/computing-receptive-fields)."""
    assert receptive_field(backbones.BUILDERS[name]()) == ReceptiveField(stride, offset, size)
