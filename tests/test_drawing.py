import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrcnn import drawing
from fastrcnn.drawing import class_colour, contact_sheet, draw_detections, write_image
from fastrcnn.errors import FastRCNNError

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()


def grey(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def frame_mask(height, width, box, line):
    x1, y1, x2, y2 = box
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = True
    mask[y1 + line : y2 - line, x1 + line : x2 - line] = False
    return mask


def bounds(mask):
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, x + width, y + height


def test_a_detection_changes_its_frame_and_a_label_above_it_and_nothing_else():
    image = grey(400, 600)
    drawn = draw_detections(image, np.array([[100, 150, 300, 350]]), ["cat"], np.array([0.9]))
    frame = frame_mask(400, 600, (100, 150, 300, 350), line=2)
    assert (image == 90).all() and drawn.dtype == np.uint8 and drawn.shape == image.shape
    assert (drawn[frame] == class_colour("cat")).all()
    label = (drawn != image).any(axis=2) & ~frame
    x1, y1, x2, y2 = bounds(label)
    assert (x1, y2) == (100, 150) and 12 <= y2 - y1 <= 30 and 30 <= x2 - x1 <= 120
    patch = drawn[y1:y2, x1:x2].reshape(-1, 3)
    assert (patch[:1] == class_colour("cat")).all() and len(np.unique(patch, axis=0)) > 2  # its background and letters


def test_boxes_are_half_open_and_cut_to_the_image():
    drawn = draw_detections(grey(420, 500), np.array([[-20.2, 200, 900, 420]]), ["cat"], np.array([0.9]))
    coloured = (drawn == class_colour("cat")).all(axis=2)
    assert coloured[200:, 0].all() and coloured[200:, 499].all() and coloured[419].all()
    assert not coloured[:, 250][202:418].any()


def test_small_images_are_enlarged_with_their_boxes():
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    drawn = draw_detections(image, np.array([[50, 40, 100, 80]]), ["cat"], np.array([0.9]))
    assert drawn.shape == (270, 450, 3)
    assert (drawn[frame_mask(270, 450, (150, 120, 300, 240), line=2)] == class_colour("cat")).all()


def test_without_detections_a_large_image_comes_back_as_it_was():
    image = np.random.default_rng(0).integers(0, 256, (500, 333, 3), dtype=np.uint8)
    drawn = draw_detections(image, np.zeros((0, 4)), [], np.zeros(0))
    assert np.array_equal(drawn, image)


def test_the_best_score_lies_on_top():
    box = np.array([[100, 100, 300, 300]] * 2)
    for scores in ([0.9, 0.2], [0.2, 0.9]):
        drawn = draw_detections(grey(400, 400), box, ["cat", "dog"], np.array(scores))
        assert tuple(drawn[299, 200]) == class_colour(("cat", "dog")[int(np.argmax(scores))])


def test_labels_of_the_same_box_do_not_cover_each_other():
    box = np.array([[100, 100, 300, 300]] * 3)
    alone = draw_detections(grey(400, 400), box[:1], ["cat"], np.array([0.5]))
    together = draw_detections(grey(400, 400), box, ["dog", "cat", "cow"], np.array([0.4, 0.5, 0.3]))
    assert np.array_equal(together[:100, :], alone[:100, :])  # the best one's label is whole and alone above the box
    inside, below = together[104:150, 104:150], together[300:, :]
    assert any((inside == class_colour(name)).all(axis=2).any() for name in ("dog", "cow"))
    assert any((below == class_colour(name)).all(axis=2).any() for name in ("dog", "cow"))


@settings(deadline=None, max_examples=200)
@given(
    frame=st.tuples(*[st.integers(0, 399)] * 4),
    size=st.tuples(st.integers(1, 400), st.integers(1, 40)),
)
def test_labels_stay_inside_the_image(frame, size):
    frame = (min(frame[0::2]), min(frame[1::2]), max(frame[0::2]), max(frame[1::2]))
    x1, y1, x2, y2 = drawing._label_place(frame, size, (400, 400), [])
    assert x1 >= 0 and y1 >= 0 and x2 < 400 and y2 < 400
    assert (x2 - x1 + 1, y2 - y1 + 1) == size


def test_a_label_wider_than_its_image_is_set_smaller():
    font = drawing._fitting_font("x" * 60 + " 0.97", 20, 300)
    assert drawing._text_size("x" * 60 + " 0.97", font)[0] <= 300
    assert drawing._fitting_font("x 0.97", 20, 300).size == 20


@pytest.mark.parametrize(
    "label", ["狗", "自行车 大", "собака", "كلب", "🐕", "a\nb", "a\0b", "", "\ud800", "w" * 300], ids=ascii
)
def test_any_class_name_can_be_drawn(label):
    image = grey(400, 500)
    drawn = draw_detections(image, np.array([[50, 80, 200, 300]]), [label], np.array([0.5]))
    label_changes = (drawn != image).any(axis=2) & ~frame_mask(400, 500, (50, 80, 200, 300), line=2)
    assert label_changes.any()


def test_characters_that_a_font_has_take_that_font():
    own = drawing.font_file(frozenset("dog 0.97"))
    assert own.endswith("DejaVuSans.ttf") and drawing.font_file(frozenset("собака")) == own
    assert drawing.font_file(frozenset("\U0010fffd")) is None  # no font has this one


def test_a_font_that_cannot_be_read_has_no_characters(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    assert not drawing._has_characters(str(tmp_path / "broken.ttf"), frozenset("a"))


@pytest.mark.parametrize("shape", [(1, 1), (400, 1), (1, 600), (30, 20), (700, 401)])
def test_any_image_and_any_box_can_be_drawn(shape):
    boxes = np.array([[0, 0, 1, 1], [-5, -5, 1e9, 1e9], [0, 0, 0, 0], [9, 9, 3, 3]])
    drawn = draw_detections(grey(*shape), boxes, ["cat", "dog", "cow", "狗"], np.array([0.9, 0.8, 0.7, 0.6]))
    assert drawn.shape[0] * shape[1] == drawn.shape[1] * shape[0] and (drawn != 90).any()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 boxes, 2 labels and 1 scores"):
        draw_detections(grey(400, 400), np.zeros((1, 4)), ["cat", "dog"], np.zeros(1))


def test_colours_are_stable_and_the_classes_of_voc_apart():
    colours = np.array([[class_colour(name) for name in VOC]], np.float32) / 255
    lab = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1000 * np.eye(len(VOC))
    assert distance.min() > 20
    assert class_colour("cat") == class_colour("cat") != class_colour("Cat")


def test_sheet_cells_are_equal_and_keep_the_aspect():
    images = [np.full((100, 200, 3), 10, np.uint8), np.full((100, 50, 3), 20, np.uint8), grey(50, 100)]
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (2 * 108 + 8, 2 * 208 + 8, 3)
    assert (sheet[8:108, 8:208] == 10).all()
    assert (sheet[8:108, 216 + 75 : 216 + 125] == 20).all() and (sheet[8:108, 216:290] == 255).all()
    assert (sheet[116:216, 8:208] == 90).all()  # enlarged to its cell
    assert (sheet[116:, 216:] == 255).all()  # the last cell stays empty


def test_sheet_bounds_large_cells_and_unused_columns():
    sheet = contact_sheet([grey(1000, 2000)], columns=4)
    assert sheet.shape == (480 + 16, 480 + 16, 3)
    assert (sheet[8 + 120 : 8 + 360, 8:488] == 90).all() and (sheet[8:126, 8:488] == 255).all()


def test_titles_stand_below_their_images():
    image = grey(100, 200)
    sheet = contact_sheet([image, image], 2, ["one 一", "a much longer title than there is room for below it"])
    assert sheet.shape == (100 + 24 + 16, 2 * 208 + 8, 3)
    caption = sheet[108:132]
    assert (caption[:, 8:208] < 128).any() and (caption[:, 216:416] < 128).any()
    assert (caption[:, :8] == 255).all() and (caption[:, 208:216] == 255).all() and (caption[:, 416:] == 255).all()
    assert (sheet[8:108, 8:208] == 90).all()


@pytest.mark.parametrize("images, columns, titles", [([], 2, None), ([grey(9, 9)], 0, None), ([grey(9, 9)], 1, [])])
def test_sheets_that_cannot_be(images, columns, titles):
    with pytest.raises(ValueError, match="no sheet"):
        contact_sheet(images, columns, titles)


def test_images_are_written_whole(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    write_image(tmp_path / "new/a.png", image)
    with Image.open(tmp_path / "new/a.png") as file:
        assert np.array_equal(np.asarray(file), image)
    flat = np.zeros((40, 60, 3), np.uint8) + np.array([200, 50, 10], np.uint8)
    write_image(str(tmp_path / "b.JPG"), flat)
    with Image.open(tmp_path / "b.JPG") as file:
        assert file.format == "JPEG" and np.abs(np.asarray(file).astype(int) - flat).max() < 6
    with pytest.raises(FastRCNNError, match="c.gif.*png"):
        write_image(tmp_path / "c.gif", image)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.png", "b.JPG"]
