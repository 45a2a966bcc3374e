"""Views of a picture against a loop that looks at one RoI at a time, with a network that is a few lines of numpy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrcnn import config as configs
from fastrcnn.boxes import flip, iou
from fastrcnn.config import ConfigError
from fastrcnn.detect.views import look_at, nearest_scale

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def network(image, scale):
    """Probabilities and boxes that depend on what is left and right, above and below in a RoI, and on the scale."""

    def look(rois):
        scores, boxes = [], []
        for x1, y1, x2, y2 in rois.round().long().clamp(min=0).tolist():
            part = image[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].astype(float).mean(axis=2) / 255
            ramp = np.linspace(0, 1, part.shape[1])
            features = torch.tensor([part.mean(), (part * ramp).mean() * scale, part[0].mean()], dtype=torch.float32)
            scores.append((5 * features).softmax(dim=0))
            boxes.append(torch.tensor([x1, y1, x2, y2]) + 9 * (features[:, None] - torch.tensor([0.6, 0.5, 0.3, 0.2])))
        return torch.stack(scores), torch.stack(boxes)

    return look


def made(sides=(40,), **test) -> configs.Config:
    image = {"test_short_side": list(sides), "test_long_side": 1000}
    return configs.from_dict({"classes": ["a", "b"], "image": image, "test": test})


def look_oracle(image, rois, config) -> tuple[torch.Tensor, torch.Tensor]:
    """One RoI, one view at a time."""
    height, width = image.shape[:2]
    scales = [side / min(width, height) for side in config.image.test_short_side]
    scores, boxes = [], []
    for roi in rois:
        mine = scales if config.test.average_scales else [scales[int(nearest_scale(roi[None], scales))]]
        seen = [network(image, scale)(roi[None]) for scale in mine]
        if config.test.flip:
            turned = [network(np.fliplr(image).copy(), scale)(flip(roi[None], width)) for scale in mine]
            seen += [(p, flip(b, width)) for p, b in turned]
        if not config.test.bbox_regression:
            seen = [(p, roi.expand(1, p.shape[1], 4)) for p, _ in seen]
        clipped = [b.clamp(min=0).minimum(torch.tensor([width, height, width, height])) for _, b in seen]
        scores.append(sum(p for p, _ in seen) / len(seen))
        boxes.append(sum(clipped) / len(clipped))
    return torch.cat(scores), torch.cat(boxes)


@st.composite
def some_rois(draw):
    x, y = draw(st.integers(0, 50)), draw(st.integers(0, 30))
    return [x, y, draw(st.integers(x + 1, 60)), draw(st.integers(y + 1, 40))]


ROIS = st.lists(some_rois(), min_size=1, max_size=6).map(lambda rois: torch.tensor(rois, dtype=torch.float32))


@given(ROIS, st.booleans(), st.booleans(), st.sampled_from([(40,), (40, 90), (30, 40, 240)]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_rows_are_those_of_one_roi_and_one_view_at_a_time(rois, flips, average, sides, regression):
    config = made(sides, flip=flips, average_scales=average and len(sides) > 1, bbox_regression=regression)
    for got, expected in zip(look_at(network, PICTURE, rois, config), look_oracle(PICTURE, rois, config), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


@given(ROIS, st.sampled_from([None, 3]))
@settings(deadline=None, max_examples=40)
def test_with_flips_the_mirrored_picture_gives_the_mirrored_rows(rois, second_pass):
    """And so RoIs that mirror each other have equal rows in a picture that mirrors itself."""
    config = made(flip=True, second_pass=second_pass)
    scores, boxes = look_at(network, PICTURE, rois, config)
    turned_scores, turned_boxes = look_at(network, np.fliplr(PICTURE).copy(), flip(rois, 60), config)
    assert torch.allclose(turned_scores, scores, atol=1e-5)
    assert torch.allclose(flip(turned_boxes, 60), boxes, atol=1e-4)
    half = PICTURE[:, :30]
    symmetric = np.concatenate((half, half[:, ::-1]), axis=1)
    one, other = (look_at(network, symmetric, r, config)[0][: len(rois)] for r in (rois, flip(rois, 60)))
    assert torch.allclose(one, other, atol=1e-5)


def test_without_flips_the_mirrored_picture_gives_others():
    rois = torch.tensor([[3.0, 4, 40, 30]])
    scores, turned = (look_at(network, p, r, made())[0] for p, r in ((PICTURE, rois), (np.fliplr(PICTURE), rois)))
    assert not torch.allclose(scores, turned, atol=1e-3)


@given(ROIS, st.integers(1, 20), st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_second_pass_adds_the_best_boxes_moved_with_the_mean_of_both_scores(rois, count, flips):
    scores, boxes = look_at(network, PICTURE, rois, made(flip=flips))
    both_scores, both_boxes = look_at(network, PICTURE, rois, made(flip=flips, second_pass=count))
    assert torch.equal(both_boxes[: len(rois)], boxes)
    pairs = [(r, k) for r, k in itertools.product(range(len(rois)), (1, 2)) if iou(boxes[r, [k]], boxes[r, [k]]) > 0]
    pairs = sorted(pairs, key=lambda pair: (-scores[pair], pair))[:count]
    assert len(both_scores) == len(rois) + len(pairs)
    for pair, row, box in zip(pairs, both_scores[len(rois) :], both_boxes[len(rois) :], strict=True):
        again_scores, again_boxes = look_oracle(PICTURE, boxes[pair][None], made(flip=flips))
        assert torch.allclose(box, again_boxes[0], atol=1e-5)
        mean = (scores[pair] + again_scores[0, pair[1]]).item() / 2
        assert row[pair[1]] == both_scores[pair] == pytest.approx(mean, abs=1e-5)
        assert row.count_nonzero() == 1
        scores[pair] = both_scores[pair]
    assert torch.equal(both_scores[: len(rois)], scores)  # the others stay


def test_each_view_is_made_once_and_only_those_that_are_needed():
    seen = []

    def counting(image, scale):
        seen.append((image[0, 0].tolist() != PICTURE[0, 0].tolist(), scale))
        return network(image, scale)

    rois = torch.tensor([[3.0, 4, 40, 30]])
    look_at(counting, PICTURE, rois, made((40, 80), flip=True, average_scales=True, second_pass=5))
    assert seen == [(False, 1.0), (True, 1.0), (False, 2.0), (True, 2.0)]
    seen.clear()
    look_at(counting, PICTURE, rois, made((40, 80)))
    assert seen == [(False, 2.0)]
    look_at(counting, PICTURE, rois[:0], made(flip=True, second_pass=5))
    assert len(seen) == 1


def test_what_gives_no_box_has_no_second_pass():
    rois = torch.tensor([[3.0, 4, 40, 30]])
    for box, probability in ((5.0, 0.5), (float("nan"), 0.5), (float("inf"), float("nan"))):
        rows = torch.full((1, 3), probability), torch.tensor([0.0, 0, box, 0]).expand(1, 3, 4)
        scores, boxes = look_at(lambda image, scale, rows=rows: lambda rois: rows, PICTURE, rois, made(second_pass=9))
        assert len(scores) == len(boxes) == 1


def test_one_scale_has_no_mean():
    with pytest.raises(ConfigError, match="average_scales is True; it must be false, or image.test_short_side a list"):
        made(average_scales=True)
