"""Every form of a picture gives the same pixels; what is none of them is refused in one sentence."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastrcnn.errors import FastRCNNError
from fastrcnn.inputs import as_pixels, as_rois

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = PICTURE[:, :, 0]


def test_every_form_is_the_same_picture(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    tensor = torch.from_numpy(PICTURE).permute(2, 0, 1)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), Image.fromarray(PICTURE)]
    forms += [PICTURE, PICTURE[::-1][::-1], tensor, tensor.float() / 255, (tensor.double() / 255).requires_grad_()]
    for form in forms:
        pixels = as_pixels(form)
        assert np.array_equal(pixels, PICTURE) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous


def test_grey_is_repeated():
    tensor = torch.from_numpy(GREY)[None]
    for form in (GREY, Image.fromarray(GREY), tensor, tensor.float() / 255):
        assert np.array_equal(as_pixels(form), np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_of_pillow(mode):
    image = Image.new(mode, (8, 6), 1)
    assert as_pixels(image).shape == (6, 8, 3)


def test_sixteen_bits_keep_the_upper_eight():
    assert (as_pixels(Image.fromarray(np.full((6, 8), 0x1234, np.uint16))) == 0x12).all()


def test_a_turned_picture_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(as_pixels(image), np.rot90(PICTURE, -1))
    assert np.array_equal(as_pixels(tmp_path / "a.png"), np.rot90(PICTURE, -1))


def test_a_file_cut_short_that_pillow_has_opened(tmp_path):
    Image.fromarray(PICTURE.repeat(20, 0)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with Image.open(tmp_path / "b.png") as image, pytest.raises(FastRCNNError, match="image: cannot be decoded"):
        as_pixels(image)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (PICTURE.astype(np.float32), r"an array float32 \[6, 8, 3\]; give a path"),
        (PICTURE.astype(np.int64), "an array int64"),
        (PICTURE[:, :, :2], r"an array uint8 \[6, 8, 2\]"),
        (PICTURE[None], r"an array uint8 \[1, 6, 8, 3\]"),
        (PICTURE[:, :0], "image: has 0 x 6 pixels"),
        (GREY[:0], "image: has 8 x 0 pixels"),
        (Image.new("RGB", (0, 6)), "image: has 0 x 6 pixels"),
        (torch.zeros(3, 0, 5), "image: has 5 x 0 pixels"),
        (torch.zeros(6, 8, 3), r"a tensor float32 \[6, 8, 3\]; give a path"),
        (torch.zeros(1, 3, 6, 8), r"a tensor float32 \[1, 3, 6, 8\]"),
        (torch.zeros(3, 6, 8, dtype=torch.int32), "a tensor int32"),
        (torch.full((3, 6, 8), float("nan")), "numbers from nan to nan; floats must be in 0..1"),
        (torch.full((3, 6, 8), 255.0), "numbers from 255 to 255"),
        (None, "image: is of type NoneType"),
        (b"a.png", "image: is of type bytes"),
    ],
)
def test_what_is_no_picture_is_refused(picture, words):
    with pytest.raises(FastRCNNError, match=words):
        as_pixels(picture)


def test_proposals_in_any_form():
    rows = [[0, 0, 4, 5], [1, 2, 3.5, 4]]
    for form in (rows, np.array(rows), torch.tensor(rows)):
        assert as_rois(form).tolist() == rows and as_rois(form).dtype == torch.float32
    for none in ([], np.zeros((0, 4)), torch.zeros(0, 4)):
        assert as_rois(none).shape == (0, 4)
    with pytest.raises(FastRCNNError, match="are not numbers"):
        as_rois([[0, 0, 1, 1], [0]])
