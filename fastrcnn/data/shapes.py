"""A made data set: textured shapes on cluttered backgrounds, in the layout of PASCAL VOC.

Small enough to train on from scratch within minutes, and a real task all the same: shapes turn, overlap and come in
many sizes, and the clutter has edges, gradients and all their colours. All sizes are image pixels.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator

from fastrcnn.annotations.records import make_record
from fastrcnn.annotations.voc_xml import write_voc
from fastrcnn.errors import FastRCNNError
from fastrcnn.files import atomic_write, write_json

logger = logging.getLogger(__name__)

IMAGE_SIDES = (160, 192, 224, 256)  # few, so that images of one size recur: convolutions prepare once for each size
OBJECT_SIZE = (24, 110)  # longer side of an object's box
MAX_OBJECTS = 5
MAX_HIDDEN = 0.3  # part of an object that others may hide before it is hard to recognise
DIFFICULT_HIDDEN = (0.5, 0.8)  # hidden part of an object marked difficult
MAX_IOU = 0.25  # of two boxes in an image; below the usual NMS threshold, 0.3, so that NMS removes no object
DIFFICULT_IMAGES = 0.12  # part of the images in which one object is hidden on purpose
MIN_CONTRAST = 80.0  # distance in RGB of an object's mean colour from what is around it
KEY_FILE = "shapes.json"


def _regular(corners: int) -> np.ndarray:
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack((np.cos(angles), np.sin(angles)), axis=1)


def _star(points: int, inner: float) -> np.ndarray:
    return _regular(2 * points) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


def _cross(arm: float) -> np.ndarray:
    """A plus sign whose arms are `arm` of its width."""
    quarter = np.array([(1, -arm), (1, arm), (arm, arm)])
    turns = (np.array([(1, 0), (0, 1)]), np.array([(0, 1), (-1, 0)]))
    return np.concatenate([quarter @ sign @ turn for sign in (np.eye(2), -np.eye(2)) for turn in turns])


OUTLINES = {  # polygons [V, 2] about the origin
    "disc": _regular(64),
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _star(5, inner=0.45),
    "cross": _cross(arm=0.36),
}
CLASSES = tuple(OUTLINES)
# Besides its outline each class has a texture and a range of hues (centre in degrees) of its own, so that three minutes
# suffice to learn it: a network this small has no weights to start from. Clutter has gradients, in any hue.
LOOKS = {
    "disc": ("stripes", 0),
    "square": ("checks", 72),
    "triangle": ("speckle", 144),
    "star": ("rings", 216),
    "cross": ("waves", 288),
}
HUE_SPREAD = 30  # degrees to either side: neighbouring classes nearly meet


@dataclass(frozen=True)
class DrawnShape:
    """One object: class name, whole mask (hidden parts too) bool [H, W], the part of it that is in sight (0..1)."""

    name: str
    mask: np.ndarray
    visible: float
    difficult: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The mask's bounds, half open (x1, y1, x2, y2)."""
        return _bounds(self.mask)


def make_shapes(root: str | Path, train: int, test: int, seed: int) -> None:
    """Write a VOC-layout set under `root`: lists `train` and `test` with as many images as these arguments say.

    Image i (from 1, test images after the training images) depends on (seed, i) only. A finished set of the same
    arguments, drawn by this same module, is left alone; any other made set in `root`, and what a killed run left, is
    drawn again. Raises FastRCNNError for a count or seed that cannot be, and for a `root` that holds something else.
    """
    root = Path(root)
    if train < 1 or test < 0 or seed < 0:
        raise FastRCNNError(
            f"{root}: {train} training images, {test} test images and seed {seed} cannot be drawn; "
            "give at least 1 training image and no negative number"
        )
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    key = {"train": train, "test": test, "seed": seed, "source": source}
    if not _clear(root, key):
        return
    write_json(root / KEY_FILE, key | {"finished": False})
    records = []
    for i in range(1, train + test + 1):
        image, shapes = draw_image(seed, i)
        path = root / "JPEGImages" / f"{i:06d}.jpg"
        with atomic_write(path) as file:
            file.write(cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        objects = [(np.array(s.box, np.float32), CLASSES.index(s.name) + 1, s.difficult) for s in shapes]
        records.append(make_record(path.stem, path, image.shape[1], image.shape[0], objects, None))
    write_voc(records[:train], CLASSES, root, "train")
    write_voc(records[train:], CLASSES, root, "test")
    write_json(root / KEY_FILE, key | {"finished": True})
    logger.info("%s: drew %d training and %d test images", root, train, test)


def _clear(root: Path, key: dict) -> bool:
    """Make room for the set of `key`; False when it stands there already, finished. Deletes made sets only."""
    path = root / KEY_FILE
    if not path.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise FastRCNNError(f"{root}: holds something that was not drawn here; choose a new or an empty folder")
        return True
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if found == key | {"finished": True}:
        return False
    for folder in ("JPEGImages", "Annotations", "ImageSets"):
        shutil.rmtree(root / folder, ignore_errors=True)
    return True


def draw_image(seed: int, i: int) -> tuple[UInt8[np.ndarray, "H W 3"], list[DrawnShape]]:
    """Image i of the set, RGB, and its objects, those further back first; a function of (seed, i)."""
    rng = np.random.default_rng([seed, i])
    width, height = rng.choice(IMAGE_SIDES, size=2).tolist()
    image = _background(rng, width, height)
    names: list[str] = []
    masks: list[np.ndarray] = []
    sights: list[np.ndarray] = []  # what is in sight of each mask, bool [H, W]
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        name = CLASSES[rng.integers(len(CLASSES))]
        alpha = _place(rng, width, height, OUTLINES[name], masks, sights)
        if alpha is None:
            continue
        _paint(rng, image, alpha, *LOOKS[name], MIN_CONTRAST)
        mask = alpha >= 0.5
        sights = [sight & ~mask for sight in sights] + [mask]
        masks.append(mask)
        names.append(name)
    hidden = int(rng.integers(len(masks))) if rng.random() < DIFFICULT_IMAGES else None
    if hidden is not None:
        alpha = _cover(rng, masks, sights, hidden)
        if alpha is None:
            hidden = None
        else:
            _paint(rng, image, alpha, "gradient", None, MIN_CONTRAST)
            sights = [sight & ~(alpha >= 0.5) for sight in sights]
    grain = 4 * rng.standard_normal(image.shape, dtype=np.float32)
    picture = np.clip(image + grain, 0, 255).astype(np.uint8)
    shapes = [
        DrawnShape(name, mask, float(sight.sum() / mask.sum()), difficult=k == hidden)
        for k, (name, mask, sight) in enumerate(zip(names, masks, sights, strict=True))
    ]
    return picture, shapes


def _place(
    rng: Generator, width: int, height: int, outline: np.ndarray, masks: list[np.ndarray], sights: list[np.ndarray]
) -> np.ndarray | None:
    """A turned outline at a place where every object stays recognisable, as coverage [H, W]; None if none was found."""
    for attempt in range(40):
        low, high = OBJECT_SIZE
        size = low * (min(high, 0.6 * min(width, height)) / low) ** rng.random()  # as many small objects as large ones
        points = outline @ _turn(rng.uniform(0, 2 * np.pi))
        points -= points.min(axis=0)
        points *= size / points.max()
        room = np.array([width, height]) - points.max(axis=0)
        if masks and attempt < 20 and rng.random() < 0.5:  # close to another object: they are to overlap
            x1, y1, x2, y2 = _bounds(masks[rng.integers(len(masks))])
            corner = np.array([rng.uniform(x1, x2), rng.uniform(y1, y2)]) - points.max(axis=0) * rng.random(2)
        else:
            corner = room * rng.random(2)
        alpha = _coverage(points + np.clip(corner, 0, room), width, height)
        mask = alpha >= 0.5
        apart = all(_box_iou(_bounds(mask), _bounds(other)) <= MAX_IOU for other in masks)
        if apart and all(_hidden(mask, *other) <= MAX_HIDDEN for other in zip(masks, sights, strict=True)):
            return alpha
    return None


def _cover(rng: Generator, masks: list[np.ndarray], sights: list[np.ndarray], k: int) -> np.ndarray | None:
    """A patch of no class that hides most of object k and little of the others, as coverage [H, W]."""
    height, width = masks[k].shape
    x1, y1, x2, y2 = _bounds(masks[k])
    for _ in range(40):
        centre = np.array([rng.uniform(x1, x2), rng.uniform(y1, y2)])
        alpha = _coverage(_strip(rng, max(x2 - x1, y2 - y1)) + centre, width, height)
        hidden = [_hidden(alpha >= 0.5, *other) for other in zip(masks, sights, strict=True)]
        mine = hidden.pop(k)
        if DIFFICULT_HIDDEN[0] <= mine <= DIFFICULT_HIDDEN[1] and all(h <= MAX_HIDDEN for h in hidden):
            return alpha
    return None


def _background(rng: Generator, width: int, height: int) -> np.ndarray:
    """Clutter, float32 RGB [H, W, 3]: smooth noise, fine noise, long patches, blobs and lines, none of any class."""
    coarse = rng.standard_normal((*rng.integers(2, 6, size=2), 3), dtype=np.float32)
    image = _colour(rng) + rng.uniform(8, 30) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(2, 8)):
        centre = rng.random(2) * (width, height)
        _paint(rng, image, _coverage(_strip(rng, rng.uniform(10, 60)) + centre, width, height), "gradient", None, 0)
    for _ in range(rng.integers(3, 16)):
        start, end = (rng.uniform(-0.2, 1.2, size=(2, 2)) * (width, height)).astype(int).tolist()
        colour = _colour(rng).tolist()
        cv2.line(image, start, end, color=colour, thickness=int(rng.integers(1, 4)), lineType=cv2.LINE_AA)
    fine = rng.uniform(2, 14) * rng.standard_normal((height, width, 1), dtype=np.float32)
    return np.clip(image + fine, 0, 255)


def _strip(rng: Generator, width: float) -> np.ndarray:
    """The outline of a long rectangle or ellipse about the origin, [V, 2], `width` pixels across its narrow side."""
    outline = _regular(64) if rng.random() < 0.5 else _regular(4) @ _turn(np.pi / 4) * np.sqrt(2)
    return outline * (0.5 * width, 0.5 * width * rng.uniform(2.5, 5)) @ _turn(rng.uniform(0, np.pi))


def _paint(
    rng: Generator, image: np.ndarray, alpha: np.ndarray, texture: str, hue: int | None, min_contrast: float
) -> None:
    """Fill the place that `alpha` covers with a texture whose mean colour stands out from its surroundings."""
    x1, y1, x2, y2 = _bounds(alpha > 0)
    margin = 4
    window = slice(max(y1 - margin, 0), y2 + margin), slice(max(x1 - margin, 0), x2 + margin)
    place, alpha = image[window], alpha[window]  # a view: painting it paints the image
    colours = _colour(rng, 16) if hue is None else _colours_of(rng, hue, 16)
    around = place[(cv2.dilate(alpha, np.ones((2 * margin + 1,) * 2, np.uint8)) > 0) & (alpha == 0)]
    contrast = np.linalg.norm(colours - around.mean(axis=0), axis=1) if len(around) else np.zeros(16)
    enough = contrast >= min_contrast
    colour = colours[np.argmax(enough if enough.any() else contrast)]
    place += alpha[:, :, None] * (colour + _texture(rng, alpha.shape[0], alpha.shape[1], texture) - place)
    np.clip(place, 0, 255, out=place)


def _texture(rng: Generator, height: int, width: int, kind: str) -> np.ndarray:
    """A pattern in light and dark about 0, float32 [H, W, 1]."""
    x, y = (np.mgrid[:height, :width][::-1] - np.array([width, height])[:, None, None] / 2).astype(np.float32)
    cos, sin = _turn(rng.uniform(0, np.pi))[0].astype(np.float32)
    u, v = cos * x + sin * y, cos * y - sin * x
    wave = np.float32(2 * np.pi / rng.uniform(6, 10))
    pattern = {
        "stripes": lambda: np.sign(np.sin(wave * u)),
        "checks": lambda: np.sign(np.sin(wave * u) * np.sin(wave * v)),
        "speckle": lambda: 2 * cv2.GaussianBlur(rng.standard_normal((height, width), dtype=np.float32), (0, 0), 0.8),
        "rings": lambda: np.sign(np.sin(wave * np.hypot(u, v))),
        "waves": lambda: np.sign(np.sin(wave * u + 2 * np.sin(wave * v / 2))),
        "gradient": lambda: u / 40,
    }[kind]()
    return rng.uniform(30, 50) * pattern[:, :, None]


def _colour(rng: Generator, *shape: int) -> np.ndarray:
    return rng.uniform(20, 235, size=(*shape, 3)).astype(np.float32)


def _colours_of(rng: Generator, hue: float, count: int) -> np.ndarray:
    """Colours around a hue, float32 [count, 3], RGB."""
    hues = (hue + rng.uniform(-HUE_SPREAD, HUE_SPREAD, count)) % 360
    hsv = np.stack((hues, rng.uniform(0.4, 1, count), rng.uniform(0.4, 0.95, count)), axis=1).astype(np.float32)
    return 255 * cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def _turn(angle: float) -> np.ndarray:
    return np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])


def _coverage(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """How much of each pixel a polygon [V, 2] covers, float32 [H, W] in 0..1; a pixel's centre is at + 0.5."""
    fraction_bits = 4
    corners = np.round((points - 0.5) * 2**fraction_bits).astype(np.int32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [corners], 255, lineType=cv2.LINE_AA, shift=fraction_bits)
    return mask.astype(np.float32) / 255


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, x + width, y + height


def _hidden(cover: np.ndarray, mask: np.ndarray, sight: np.ndarray) -> float:
    """The part of an object's `mask` that is out of sight once `cover` lies over it."""
    return 1 - (sight & ~cover).sum() / mask.sum()


def _box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)
