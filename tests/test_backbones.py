import pytest
import torch
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.models import vgg16 as torchvision_vgg16

from fastrcnn.model import backbones
from fastrcnn.model.receptive_field import receptive_field

VGG16_LAYERS = """conv1_1 relu1_1 conv1_2 relu1_2 pool1 conv2_1 relu2_1 conv2_2 relu2_2 pool2
conv3_1 relu3_1 conv3_2 relu3_2 conv3_3 relu3_3 pool3 conv4_1 relu4_1 conv4_2 relu4_2 conv4_3 relu4_3 pool4
conv5_1 relu5_1 conv5_2 relu5_2 conv5_3 relu5_3""".split()


def test_vgg16_has_the_paper_s_layers():
    assert [name for name, _ in backbones.vgg16().named_children()] == VGG16_LAYERS


@pytest.mark.parametrize(("name", "size", "cells"), [("vgg16", (600, 800), (38, 50)), ("tiny", (101, 160), (13, 20))])
def test_pooling_rounds_up(name, size, cells):
    """600 rows are 37.5 cells of 16: rounding down would lose the row of the bottom edge."""
    with torch.device("meta"):
        backbone = backbones.BUILDERS[name]()
        output = backbone(torch.zeros(1, 3, *size))
    assert output.shape == (1, backbones.output_channels(backbone), *cells)
    assert [-(-side // receptive_field(backbone).stride) for side in size] == list(cells)


def test_vgg16_computes_what_torchvision_s_does():
    """Where all sizes divide by 16, rounding up or down does not matter."""
    backbone = backbones.vgg16()
    with torch.device("meta"):
        reference = torchvision_vgg16(weights=None).features[:-1]
    reference.load_state_dict(
        dict(zip(reference.state_dict(), backbone.state_dict().values(), strict=True)), assign=True
    )
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(backbone(image), reference(image))


def test_freezing_goes_by_name_and_takes_the_pooling_along():
    backbone = backbones.vgg16()
    assert backbones.frozen_depth(backbone, "") == 0
    assert backbones.frozen_depth(backbone, "conv2_2") == VGG16_LAYERS.index("conv3_1")
    assert backbones.frozen_depth(backbone, "pool4") == backbones.frozen_depth(backbone, "conv4_3")
    assert backbones.frozen_depth(backbone, "conv5_3") == len(VGG16_LAYERS)
    with pytest.raises(KeyError, match="conv1_1, relu1_1"):
        backbones.frozen_depth(backbone, "conv9")


@pytest.mark.parametrize(
    ("name", "cells", "parameters"),
    [("caffenet", (39, 51), 2_334_080), ("vgg_cnn_m_1024", (36, 49), 6_528_640)],
)
def test_models_s_and_m(name, cells, parameters):
    """Of a picture of 600 x 800; parameters by the prototxts: k * k * in / group * out + out of each convolution."""
    with torch.device("meta"):
        backbone = backbones.BUILDERS[name]()
        assert backbone(torch.zeros(1, 3, 600, 800)).shape[2:] == cells
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert backbones.frozen_depth(backbone, "conv1") == [*backbone._modules].index("conv2")


def test_batch_norm_folded_into_convolutions_changes_nothing_but_rounding():
    network = backbones.resnet50()[:7].eval()  # to conv2_3, with and without a shortcut that is a convolution
    for layer in network.modules():
        if isinstance(layer, backbones.FrozenNorm):
            for numbers in (layer.weight, layer.running_var, layer.bias, layer.running_mean):
                numbers.uniform_(0.5, 1)
    image = torch.randn(1, 3, 64, 80)
    folded = backbones.without_batch_norm(network)
    with torch.no_grad():
        expected, found = network(image), folded(image)
    assert not any(isinstance(layer, backbones.FrozenNorm) for layer in folded.modules())
    assert 0 < (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(network(image), expected)
    assert backbones.without_batch_norm(folded) is folded


def test_resnet50_s_blocks_compute_what_torchvision_s_network_does():
    backbone = backbones.resnet50().eval()
    reference = torchvision_resnet50().eval()
    names = [name for name in reference.state_dict() if "num_batches" not in name and not name.startswith("fc.")]
    state = dict(zip(names, backbone.state_dict().values(), strict=True))
    reference.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(image).mean(dim=(2, 3))
        assert torch.allclose(reference.fc(found), reference(image), rtol=1e-4, atol=1e-4)
