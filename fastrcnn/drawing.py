"""Pictures for the eye: detections drawn on images, sheets of many images, image files.

Images are uint8 RGB [H, W, 3]; boxes are half open, in image pixels.
"""

import colorsys
import contextlib
import functools
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.ft2font import FT2Font
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write

MIN_SIDE = 400  # pixels; a smaller image is enlarged, or its labels would hide it
CELL_SIDE = 480  # longest side of a contact sheet's cell, pixels
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

# Also where no font has a text's characters: they are drawn as empty frames.
OWN_FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")

Colour = tuple[int, int, int]  # RGB
PixelBox = tuple[int, int, int, int]  # first and last column and row as Pillow takes them: x1, y1, x2, y2, all inside


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"], boxes: ArrayLike, labels: Sequence[str], scores: ArrayLike
) -> UInt8[np.ndarray, "_ _ 3"]:
    """A copy of the image with boxes [D, 4], D scores and labels such as `dog 0.97`; the best score lies on top.

    >>> image = np.zeros((300, 400, 3), np.uint8)
    >>> drawn = draw_detections(image, [[20, 30, 200, 150]], ["dog"], [0.97])

    `labels` are the D class names: each name has its own colour, the same in every picture. An image whose longer side
    is below 400 pixels comes back enlarged by a whole factor. Raises ValueError where the lengths differ.
    """
    boxes, scores = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(scores, dtype=np.float64)
    if not len(boxes) == len(labels) == len(scores):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels and {len(scores)} scores must be equally many")
    order = np.argsort(-scores, kind="stable").tolist()
    texts = [f"{_one_line(labels[i])} {scores[i]:.2f}" for i in order]
    return draw_boxes(image, boxes[order], texts, [class_colour(labels[i]) for i in order])


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"], boxes: ArrayLike, texts: Sequence[str], colours: Sequence[Colour]
) -> UInt8[np.ndarray, "_ _ 3"]:
    """A copy of the image, enlarged as by draw_detections, with D boxes [D, 4]; the first lies on top.

    >>> drawn = draw_boxes(np.zeros((300, 400, 3), np.uint8), [[20, 30, 200, 150]], ["a dog"], [class_colour("dog")])

    Each has a text, none if it is "", and a colour.
    """
    height, width = image.shape[:2]
    factor = math.ceil(MIN_SIDE / max(height, width))
    picture = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    side = math.sqrt(picture.width * picture.height)
    line, text_size = max(2, round(side / 200)), max(12, round(side / 32))

    frames = _pixel_boxes(np.asarray(boxes, np.float64).reshape(-1, 4) * factor, *picture.size)
    placed: list[tuple[PixelBox, str, ImageFont.FreeTypeFont, Colour]] = []
    for frame, text, colour in zip(frames, map(_one_line, texts), colours, strict=True):
        if text:
            font = _fitting_font(text, text_size, picture.width)
            place = _label_place(frame, _text_size(text, font), picture.size, [other[0] for other in placed])
            placed.append((place, text, font, colour))
    for frame, colour in reversed(list(zip(frames, colours, strict=True))):
        draw.rectangle(frame, outline=colour, width=line)
    for place, text, font, colour in reversed(placed):
        draw.rectangle(place, fill=colour)
        draw.text((place[0] + _padding(font), place[1]), text, font=font, fill=_ink(colour), anchor="la")
    return np.asarray(picture)


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    columns: int,
    titles: Sequence[str] | None = None,
    cell_side: int = CELL_SIDE,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """All images in equal cells, row by row, each as large as its cell lets it be; with a title below each if given.

    >>> contact_sheet([np.zeros((300, 400, 3), np.uint8)] * 3, columns=2).shape
    (624, 824, 3)

    A cell is as wide as the widest and as high as the highest image, at most `cell_side` pixels each. Raises ValueError
    without images or columns, and for another number of titles than of images.
    """
    if not images or columns < 1 or (titles is not None and len(titles) != len(images)):
        raise ValueError(f"{len(images)} images in {columns} columns with titles {titles} make no sheet")
    gap, caption = 8, 0 if titles is None else cell_side // 20
    width = min(cell_side, max(image.shape[1] for image in images))
    height = min(cell_side, max(image.shape[0] for image in images))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    size = (columns * (width + gap) + gap, rows * (height + caption + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x = gap + i % columns * (width + gap)
        y = gap + i // columns * (height + caption + gap)
        sheet.paste(ImageOps.pad(Image.fromarray(image), (width, height), color="white"), (x, y))
        if titles is not None:
            text = _one_line(titles[i])
            font = _fitting_font(text, cell_side // 30, width)
            draw.text((x + width / 2, y + height + caption / 2), text, font=font, fill="black", anchor="mm")
    return np.asarray(sheet)


def write_image(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write a PNG or JPEG file (by the name's ending) atomically. Raises FastRCNNError for another ending.

    >>> write_image("black.png", np.zeros((300, 400, 3), np.uint8))
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise FastRCNNError(f"{path}: images are written as {', '.join(FORMATS)}; choose a name with such an ending")
    with atomic_write(path) as file:
        Image.fromarray(image).save(file, FORMATS[path.suffix.lower()], quality=92)


def class_colour(name: str) -> Colour:
    """The RGB colour of a class, from its name alone.

    >>> red, green, blue = class_colour("dog")
    """
    number = zlib.crc32(name.encode(errors="replace")) * 1758391127 % 2**32  # the factor keeps VOC's 20 classes apart
    hue, saturation, value = number % 360 / 360, (1.0, 0.55)[number // 360 % 2], (1.0, 0.7)[number // 720 % 2]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _ink(colour: Colour) -> str:
    """Black or white, whichever is read more easily on `colour` (luma of ITU-R BT.601)."""
    return "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 128 else "white"


def _pixel_boxes(boxes: Float[np.ndarray, "D 4"], width: int, height: int) -> list[PixelBox]:
    """Half-open boxes as first and last pixels, at least one pixel large and inside the image."""
    last = np.array([width - 1, height - 1])
    first = np.clip(np.round(boxes[:, :2]), 0, last)
    end = np.clip(np.round(boxes[:, 2:]) - 1, first, last)
    return [tuple(box) for box in np.concatenate((first, end), axis=1).astype(int).tolist()]


def _label_place(frame: PixelBox, size: tuple[int, int], image: tuple[int, int], taken: list[PixelBox]) -> PixelBox:
    """Where a label of `size` (width, height) goes: above, in or below its box, in the image, off others if it can."""
    width, height = size
    x = max(0, min(frame[0], image[0] - width))
    tops = [frame[1] - height, frame[1], frame[3] + 1, frame[3] + 1 - height]
    inside = [y for y in tops if 0 <= y <= image[1] - height] or [0]
    places = [(x, y, x + width - 1, y + height - 1) for y in inside]
    return next((p for p in places if not any(_meet(p, other) for other in taken)), places[0])


def _meet(a: PixelBox, b: PixelBox) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def shortened(text: str, length: int) -> str:
    """A text in one line, of at most so many characters.

    >>> len(shortened("aeroplane on a runway", 10))
    10
    """
    line = _one_line(text)
    return line if len(line) <= length else f"{line[: length - 1]}\u2026"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _padding(font: ImageFont.FreeTypeFont) -> int:
    return max(1, round(font.size / 4))


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    return math.ceil(font.getlength(text)) + 2 * _padding(font), sum(font.getmetrics())


def _fitting_font(text: str, size: int, width: int) -> ImageFont.FreeTypeFont:
    """A font that has the text's characters, at most `size` pixels high, smaller if the text is wider than `width`."""
    file = font_file(frozenset(text)) or OWN_FONT
    font = ImageFont.truetype(file, size)
    while _text_size(text, font)[0] > width and font.size > 1:
        font = ImageFont.truetype(file, font.size - 1)
    return font


@functools.cache
def font_file(characters: frozenset[str]) -> str | None:
    """The font that comes with matplotlib, or, for characters it lacks, the first on this system that has them all."""
    if _has_characters(OWN_FONT, characters):
        return OWN_FONT
    from matplotlib.font_manager import findSystemFonts  # here, since its import looks through all fonts

    return next((file for file in sorted(findSystemFonts()) if _has_characters(file, characters)), None)


def _has_characters(file: str, characters: frozenset[str]) -> bool:
    with contextlib.suppress(RuntimeError, OSError):  # a font that cannot be read
        font = FT2Font(file)
        return font.scalable and font.get_charmap().keys() >= {ord(c) for c in characters}
    return False
