"""model/int8_kernels.py: each kernel beside the same arithmetic in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastrcnn.model import int8_kernels
from fastrcnn.model.int8_kernels import MIDDLE

pytestmark = pytest.mark.skipif(not int8_kernels.works(), reason="this processor has no exact products of int8")


def rounded(values: Tensor, step: float, zero: int) -> Tensor:
    return ((values / step).round() + zero).clamp(0, 255)


def check(found: Tensor, values: Tensor, step: float, zero: int) -> None:
    """The nearest step, of numbers in the middle of two either: float32 may see the middle elsewhere."""
    assert found.dtype == torch.uint8
    exact = (values / step + zero).clamp(0, 255)
    assert float((found.double() - exact).abs().max()) <= 0.5 + 1e-4
    assert float((found.double() == rounded(values, step, zero)).double().mean()) > 0.99


def some_weights(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(sum(shape))
    weight = torch.randint(-127, 128, shape, dtype=torch.int8, generator=rng)
    return weight, torch.rand(shape[0], generator=rng) * 0.01 + 1e-3, torch.randn(shape[0], generator=rng)


def steps_of(weight: Tensor, step: Tensor) -> Tensor:
    return weight.double() * step.double().unflatten(0, (-1, *[1] * (weight.ndim - 1)))


@pytest.mark.parametrize("sliding", [([1, 1], [1, 1], [1, 1], 1), ([2, 1], [0, 2], [1, 1], 2)])
def test_a_convolution(sliding):
    stride, padding, dilation, groups = sliding
    weight, step, bias = some_weights(24, 16 // groups, 3, 3)
    x = torch.randint(0, 256, (2, 16, 13, 9), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    found = int8_kernels.Convolution(weight, step, bias, sliding, 0.03, 0.4)(x)
    args = (stride, padding, dilation, groups)
    expected = F.conv2d(x.double() * 0.03, steps_of(weight, step), bias.double(), *args).relu()
    assert 0.2 < float((expected > 0).double().mean()) < 0.8 and float(found.max()) > 50
    check(found, expected, 0.4, 0)


def test_the_first_convolution():
    x, weight, bias = torch.randn(1, 3, 17, 12), torch.randn(8, 3, 3, 3), torch.randn(8)
    found = int8_kernels.FirstConvolution(weight, bias, ([1, 1], [1, 1], [1, 1], 1), 0.05)(x)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
    assert float(found.max()) == 255 and float((expected / 0.05).max()) > 256  # what is beyond the last step becomes it
    check(found, expected, 0.05, 0)


@pytest.mark.parametrize("rows", [0, 1, 7, 512])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("came", "out", "relu"),
    [((0.02, 0), (0.5, 0), True), ((0.02, MIDDLE), (0.5, 0), True), ((0.02, 0), (0.5, MIDDLE), False)],
)
def test_a_product(rows, bias, came, out, relu):
    weight, step, offset = some_weights(40, 90)
    x = torch.randint(0, 256, (rows, 90), dtype=torch.uint8)
    found = int8_kernels.Product(weight, step, offset if bias else None, came, out, relu)(x)
    expected = (x.double() - came[1]) * came[0] @ steps_of(weight, step).T + (offset.double() if bias else 0)
    if rows:
        check(found, expected.relu() if relu else expected, *out)
    assert found.shape == (rows, 40)


def test_a_product_that_puts_out_float32_and_takes_it():
    weight, step, bias = some_weights(40, 90)
    x = torch.randn(30, 90) * 2
    found = int8_kernels.Product(weight, step, bias, (0.02, MIDDLE), None, True)(x)
    taken = (rounded(x.double(), 0.02, MIDDLE) - MIDDLE) * 0.02
    assert float(taken.abs().max()) == pytest.approx(2.56)  # cut off to the last step
    expected = (taken @ steps_of(weight, step).T + bias).relu()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0)  # a middle here or there


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_max_pooling_is_torchs(height, width, channels):
    x = torch.from_numpy(np.random.default_rng(height).integers(0, 256, (1, channels, height, width), np.uint8))
    expected = F.max_pool2d(x.float(), 2, 2, ceil_mode=True)
    assert torch.equal(int8_kernels.MaxPool()(x).float(), expected)
