"""Pictures: size from the header, decoding to upright RGB, and the scaling that the network's input gets.

Pillow reads everything, so that one library decides about truncation, colour and EXIF for training and detection alike.
The EXIF orientation is applied in every function here: sizes and pixels are those of the upright picture, and boxes are
taken to be drawn on it, as labelling tools show it.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from jaxtyping import Real, UInt8
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from fastrcnn.errors import FastRCNNError

if TYPE_CHECKING:
    import torch

# Compare with Path.suffix.lower(). What is in a file its bytes say, whatever its suffix.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif")

RGB: TypeAlias = Sequence[float] | Real[np.ndarray, "3"]  # a number for each channel

# Named, because Pillow's other readers include some that start programs (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")

# EXIF tag 274 says how the stored picture must be turned to stand upright; 1 is upright already.
ORIENTATION = 274
NEW_SUBFILE_TYPE = 254  # tag of TIFF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, from the header only.

    Raises FastRCNNError naming the file when it is missing, not a single picture, or a decompression bomb.
    """
    with _reading(path), Path(path).open("rb") as file:
        image = Image.open(file, formats=FORMATS)
        _check_single(image, path)
        width, height = image.size
        return (height, width) if orientation(image) >= 5 else (width, height)


def image_orientation(path: str | Path) -> int:
    """EXIF orientation 1..8 of a picture, from the header only. Raises FastRCNNError as image_size does."""
    with _reading(path), Image.open(path, formats=FORMATS) as image:
        return orientation(image)


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """The upright picture as RGB.

    Grey is repeated, CMYK converted, 16 bits become the upper 8, and alpha is dropped, as cv2.imread in the original
    does. Raises FastRCNNError naming the file when it is missing, not a single picture, of more than 16 bits, cut
    short, or a decompression bomb.
    """
    with _reading(path):
        data = Path(path).read_bytes()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_single(image, path)
        if image.mode in ("I", "F"):
            raise FastRCNNError(f"{path}: has pixels of 32 bits; save it with 8 bits a channel")
        _check_end(data)
        return _upright_rgb(image)


def pillow_pixels(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The same of a picture that Pillow has opened or made, of any mode. Raises FastRCNNError if it cannot be had."""
    with _reading("image"):
        return _upright_rgb(image)


def _upright_rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    turn = UPRIGHT.get(orientation(image))
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    return np.array(image if turn is None else image.transpose(turn))


def used_range(path: str | Path) -> tuple[int, int] | None:
    """(lowest, highest) value of a picture of 16 bits that uses 12 or fewer; None for all others.

    Its upper 8 bits, which read_image takes, are dark or black. Raises FastRCNNError as read_image does.
    """
    with _reading(path), Path(path).open("rb") as file:
        image = Image.open(file, formats=FORMATS)
        if image.mode.startswith("I;16"):
            values = np.asarray(image)
            low, high = int(values.min()), int(values.max())
        elif image.mode in ("RGB", "RGBA") and image.tile and _raw_mode(image).endswith(("16B", "16L", "16N")):
            upper = np.asarray(image)[..., :3]  # Pillow keeps the upper 8 of 16 bits in colour
            low, high = int(upper.min()) << 8, int(upper.max()) << 8 | 255
        else:
            return None
        return (low, high) if high < 1 << 12 else None


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores a pixel, such as RGB;16B."""
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an opened, not yet decoded picture; 1 when absent or damaged.

    From the header only: Image.getexif would decode a whole PNG to look behind its pixels.
    """
    data = image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        value = exif.get(ORIENTATION)
        return value if value in UPRIGHT else 1
    except Exception:  # damaged EXIF raises anything from struct.error to TypeError, and says nothing of the pixels
        return 1


def _check_single(image: Image.Image, path: str | Path) -> None:
    """Raises FastRCNNError for an animation and for a file of several pages; which picture was labelled is not known.

    A JPEG may hold more pictures (MPO: depth, the other eye); the first is the photograph. A page of a TIFF may be
    marked as a smaller copy of the first (TIFF 6.0, NewSubfileType).
    """
    frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
    if frames == 1 or image.format == "MPO":
        return
    if not isinstance(image, TiffImageFile):
        raise FastRCNNError(f"{path}: is an animation of {frames} frames; save the one you mean as a picture")
    pages = 1
    for page in range(1, frames):
        image.seek(page)
        pages += not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1
    image.seek(0)
    if pages > 1:
        raise FastRCNNError(f"{path}: holds {pages} pages; save the one you mean as a picture")


def _check_end(data: bytes) -> None:
    """The end marker of a JPEG or PNG must be there: raises ValueError if not.

    Pillow finds a file that stops early, but not one whose tail a download never filled in: zeros decode as grey.
    """
    if data.startswith(b"\xff\xd8"):
        end, at = b"\xff\xd9", 2  # walk to the start of scan, over the EXIF thumbnail, which has markers of its own
        while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
            at += 1 if data[at + 1 : at + 2] == b"\xff" else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    elif data.startswith(b"\x89PNG"):
        end, at = b"IEND", 0
    else:
        return
    if data.find(end, at) < 0:
        raise ValueError("it is cut short: its end marker is missing")


@contextlib.contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """Turn whatever a decoder raises on wrong bytes into a FastRCNNError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, too: Pillow refuses twice as many
            yield
    except FastRCNNError:
        raise
    except FileNotFoundError:
        raise FastRCNNError(f"{path}: no such image; restore it or leave it out of the list") from None
    except (PermissionError, IsADirectoryError) as e:
        raise FastRCNNError(f"{path}: cannot be read: {e.strerror}; check its permissions") from None
    except Image.UnidentifiedImageError:
        raise FastRCNNError(f"{path}: is not a picture of a known kind; save it as JPEG or PNG") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise FastRCNNError(
            f"{path}: has more than {limit} pixels, which is refused as a decompression bomb; scale it"
        ) from None
    except Exception as e:  # Pillow's decoders raise anything from SyntaxError to struct.error
        reason = " ".join(str(e).split()) or type(e).__name__
        raise FastRCNNError(f"{path}: cannot be decoded: {reason}; fetch it again or leave it out") from e


def image_scale(width: int, height: int, short_side: int, long_side: int) -> float:
    """Scaled pixels per image pixel: the short side becomes `short_side` unless the long one would exceed `long_side`.

    (fast-rcnn lib/utils/blob.py, prep_im_for_blob)
    """
    scale = short_side / min(width, height)
    if round(scale * max(width, height)) > long_side:
        scale = long_side / max(width, height)
    return scale


def prepare_image(
    image: UInt8[np.ndarray, "H W 3"], scale: float, mean: RGB, std: RGB, flip: bool = False
) -> "torch.Tensor":
    """The network's input, float32 [3, h, w] in scaled pixels, from RGB.

    Mirrored left to right if `flip`, normalised with `mean` and `std` (RGB, in units of pixel values 0..255), and
    only then resized, in float32, by one scalar factor with linear interpolation (fast-rcnn lib/utils/blob.py and
    lib/roi_data_layer/minibatch.py). In memory the tensor lies as [h, w, 3], the channels_last layout of convolutions.
    """
    if flip:
        image = cv2.flip(image, 1)
    # 256 values a channel: as a table, subtracting and dividing cost one look-up a pixel.
    table = (np.arange(256)[:, None] - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
    normalised = cv2.LUT(image, table.astype(np.float32)[None])
    height, width = image.shape[:2]
    if min(round(width * scale), round(height * scale)) < 1:  # thinner than a scaled pixel: keep one
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        resized = cv2.resize(normalised, size, interpolation=cv2.INTER_LINEAR)
    else:
        resized = cv2.resize(normalised, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    import torch  # here, as processes that only read pictures do without it

    return torch.from_numpy(resized).permute(2, 0, 1)
