import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import iou as slow_iou
from PIL import Image
from torchvision.datasets import VOCDetection

import fastrcnn
from fastrcnn import boxes as box_ops
from fastrcnn import config as configs
from fastrcnn.boxes import TargetStatistics
from fastrcnn.compress import compress_weights
from fastrcnn.detect.detector import Detector
from fastrcnn.detect.views import nearest_scale
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import image_scale, prepare_image, read_image
from fastrcnn.model.score_thresholds import ScoreThresholds, store_thresholds
from fastrcnn.model.weights import build, load_model, save_weights

PICTURE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def some_proposals(count=70):
    rng = np.random.default_rng(1)
    corner = rng.integers(0, 60, (count, 2))
    boxes = np.hstack((corner, corner + rng.integers(5, 30, (count, 2)))).astype(np.float32)
    return np.vstack((boxes, boxes[:20], [[0, 0, 120, 90]])).astype(np.float32)  # twenty share all their cells


@pytest.fixture
def saved(tree, tmp_path):
    """A network that is sure of something everywhere, its model and its weights file."""
    config = configs.from_dict(tree)
    model = build(config)
    torch.manual_seed(3)
    model.cls_score.weight.data.normal_(std=0.5)
    model.bbox_pred.weight.data.normal_(std=0.02)
    statistics = TargetStatistics(torch.zeros(6, 4), torch.full((6, 4), 0.5))
    save_weights(tmp_path / "model.safetensors", model, config, statistics)
    return model, statistics, tmp_path / "model.safetensors"


def test_detection_computes_what_training_computes(saved):
    """The training network on the same RoIs, its statistics unfolded by hand, gives the same scores and boxes."""
    model, statistics, path = saved
    detector = fastrcnn.load(path)
    rois = torch.from_numpy(some_proposals())
    scores, boxes = detector.classify(PICTURE, rois)
    scale = image_scale(120, 90, 96, 1000)
    pixels = prepare_image(PICTURE, scale, model.normalisation.mean, model.normalisation.std)
    with torch.no_grad():
        raw, deltas = model([model.frozen_features(pixels)], [rois], [scale], None)
    assert torch.allclose(scores, raw.softmax(dim=1), atol=1e-5)
    moved = box_ops.decode(rois, (deltas.reshape(-1, 6, 4) * statistics.std + statistics.mean).flatten(1))
    assert torch.allclose(boxes, box_ops.clip(moved, 120, 90), atol=1e-2)


@pytest.mark.parametrize("kind", ["roi_align", "spp", "warp"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_features_of_rois_are_detected_by_as_trained_by(tree, kind, precision):
    tree["model"] |= {"roi_features": kind, "warp_size": 48, "pyramid": [3, 1], "pool_size": 3}
    config = configs.from_dict({**tree, "precision": precision})
    model = build(config)
    model.cls_score.weight.data.normal_(std=0.5)
    rois = torch.from_numpy(some_proposals(30))
    scores, boxes = Detector(model, config, torch.device("cpu")).classify(PICTURE, rois)
    pixels = prepare_image(PICTURE, 96 / 90, model.normalisation.mean, model.normalisation.std)
    with torch.no_grad():
        raw, deltas = model([model.frozen_features(pixels)], [rois], [96 / 90], None)
    assert torch.allclose(scores, raw.softmax(dim=1), atol=1e-5 if precision == "float32" else 0.1)
    assert torch.allclose(
        boxes, box_ops.clip(box_ops.decode(rois, deltas), 120, 90), atol=0.01 if precision == "float32" else 3
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_detector_leaves_the_model_as_it_is(saved, precision):
    """Two detectors on one model find the same, the model computes as before, and changing it changes no detector."""
    model, config = load_model(saved[2], precision)
    rois = torch.from_numpy(some_proposals())
    pixels = prepare_image(PICTURE, 96 / 90, model.normalisation.mean, model.normalisation.std)
    forward = lambda: model([model.frozen_features(pixels)], [rois], [96 / 90], None)  # noqa: E731
    with torch.no_grad():
        before = forward()
        first, second = (Detector(model, config, torch.device("cpu")) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(before, forward(), strict=True))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        found = [d.classify(PICTURE, rois) for d in (first, second)]
        for weight in model.parameters():
            weight.zero_()
    found.append(first.classify(PICTURE, rois))
    for scores, boxes in found[1:]:
        assert torch.equal(scores, found[0][0]) and torch.equal(boxes, found[0][1])
    assert torch.allclose(found[0][0], before[0].softmax(dim=1), atol=1e-5 if precision == "float32" else 0.05)


def test_a_configuration_of_other_classes_is_refused(saved, tree):
    model, _ = load_model(saved[2])
    with pytest.raises(FastRCNNError, match="has 1 classes, the model 5"):
        Detector(model, configs.from_dict({**tree, "classes": ["dog"]}), torch.device("cpu"))


def test_a_list_gives_a_list_in_order(saved, shapes):
    detector = fastrcnn.load(saved[2])
    path = next((shapes / "JPEGImages").iterdir())
    boxes = [some_proposals(), [], some_proposals(5)]
    found = detector.detect([PICTURE, path, PICTURE], boxes)
    assert [len(one) for one in found] == [len(detector.detect(PICTURE, b)) for b in boxes] and not len(found[1])
    assert detector.detect([]) == []
    assert np.array_equal(detector.detect((path,))[0].boxes, detector.detect(path).boxes)
    with pytest.raises(FastRCNNError, match="2 images need as many proposals, not 1"):
        detector.detect([PICTURE, PICTURE], [some_proposals()])


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "classes", "scores"))


def test_many_find_what_one_by_one_find(saved, shapes):
    detector = fastrcnn.load(saved[2])
    paths = sorted((shapes / "JPEGImages").iterdir())[:3]
    images = [*paths, str(paths[0]), Image.open(paths[1]), read_image(paths[2])]
    boxes = [None, some_proposals(), [], None, None, None]
    ids = [None, "x", None, None, paths[1].stem, "other"]
    expected = [detector.detect(*one) for one in zip(images, boxes, ids, strict=True)]
    for threads in (1, 2, 5):
        found = list(detector.detect_many(iter(images), iter(boxes), iter(ids), threads=threads))
        assert len(found) == len(expected) and all(map(same, found, expected))
    assert len(expected[0]) and not same(expected[4], expected[5]) and same(expected[0], expected[3])
    assert list(detector.detect_many([])) == []
    high = float(expected[0].scores.max()) - 1e-3
    [found] = detector.detect_many(paths[:1], score=high)
    assert 0 < len(found) < len(expected[0]) and same(found, detector.detect(paths[0], score=high))
    with pytest.raises(FastRCNNError, match="score is 2; it must be"):
        detector.detect_many(paths, score=2)


def test_many_take_no_more_than_a_few_ahead_and_leave_no_thread(saved):
    """An endless camera that fills the same array again."""
    detector, frame, taken = fastrcnn.load(saved[2]), np.empty((40, 60, 3), np.uint8), 0

    def shot(k):
        return np.random.default_rng(k).integers(0, 256, frame.shape, dtype=np.uint8)

    def camera():
        nonlocal taken
        while True:
            frame[:] = shot(taken)
            taken += 1
            yield frame

    for k, found in enumerate(detector.detect_many(camera(), threads=2)):
        assert k + 1 <= taken <= k + 1 + 2
        assert same(found, detector.detect(shot(k)))
        if k == 5:
            break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_error_comes_at_its_picture_after_the_results_before(saved, shapes, tmp_path):
    detector = fastrcnn.load(saved[2])
    good, boxes = next((shapes / "JPEGImages").iterdir()), some_proposals()

    def broken():
        yield PICTURE
        raise ZeroDivisionError

    for images, proposals, ids, kind, words in (
        ([good, tmp_path / "gone.jpg", good], [boxes] * 3, None, FastRCNNError, r"images\[1\]: .*gone.jpg: no such"),
        ([good, PICTURE[:0]], None, None, FastRCNNError, r"images\[1\]: has 120 x 0 pixels"),
        ([PICTURE, PICTURE], [boxes, [[1, 2, 1, 3]]], None, FastRCNNError, r"images\[1\]: proposals: some have no"),
        (iter([PICTURE, PICTURE]), [boxes], None, FastRCNNError, r"images\[1\]: has no proposals or id of its own"),
        (iter([PICTURE, PICTURE]), None, iter("a"), FastRCNNError, r"images\[1\]: has no proposals or id"),
        (broken(), None, None, ZeroDivisionError, None),
    ):
        found = detector.detect_many(images, proposals, ids)
        assert len(next(found)) > 0
        with pytest.raises(kind, match=words):
            next(found)
        with pytest.raises(StopIteration):
            next(found)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: d.detect_many("a.jpg"), "images: is one picture; give a list of them"),
        (lambda d: d.detect_many(PICTURE), "images: is one picture"),
        (lambda d: d.detect_many(torch.zeros(3, 5, 5)), "images: is one picture"),
        (lambda d: d.detect_many(Image.new("RGB", (4, 4))), "images: is one picture"),
        (lambda d: d.detect_many(None), "images: is of type NoneType"),
        (lambda d: d.detect_many([PICTURE], ids=["a", "b"]), "1 images need as many ids, not 2"),
        (lambda d: d.detect_many([PICTURE], proposals=3), "proposals: is of type int; give a list"),
        (lambda d: next(d.detect_many([PICTURE], threads=0)), "threads is 0; it must be at least 1"),
        (lambda d: d.detect(PICTURE for _ in range(2)), "image: is of type generator; .*; detect_many takes several"),
        (lambda d: d.detect([[PICTURE]]), r"images\[0\]: is of type list; give a path"),
        (lambda d: d.detect(PICTURE / 255), r"an array float64 .*; if it is in 0..1, \(255 \* array\)"),
    ],
)
def test_many_and_one_are_told_apart(saved, call, words):
    with pytest.raises(FastRCNNError, match=words):
        call(fastrcnn.load(saved[2]))


def test_samples_of_torchvision_s_voc(saved, shapes, tmp_path):
    """Its pictures and their ids give what the files give."""
    shutil.copytree(shapes, tmp_path / "VOCdevkit" / "VOC2007")
    samples = VOCDetection(tmp_path, year="2007", image_set="test")
    detector = fastrcnn.load(saved[2])
    ids = [Path(target["annotation"]["filename"]).stem for _, target in samples]
    found = list(detector.detect_many((image for image, _ in samples), ids=ids))
    files = [shapes / "JPEGImages" / f"{name}.jpg" for name in ids]
    assert len(found) == 4 and all(map(same, found, detector.detect_many(files)))
    assert same(detector.detect(samples[0][0], image_id=ids[0]), found[0])


def test_all_given_proposals_are_used(saved):
    detector = fastrcnn.load(saved[2])
    rois = np.vstack([some_proposals()] * 30)
    assert len(rois) > 2000
    seen = []
    detector.classify = lambda pixels, rois: seen.append(len(rois)) or (torch.zeros(1, 6), torch.zeros(1, 6, 4))
    detector.detect(PICTURE, rois)
    assert seen == [len(rois)]


def test_detections_obey_their_settings(saved):
    detector = fastrcnn.load(saved[2])
    detector.config.test = configs.DetectionConfig(nms_iou=0.4, score_threshold=0.2, max_detections=15)
    found = detector.detect(PICTURE, some_proposals())
    assert 3 < len(found.boxes) <= 15 and found.boxes.dtype == np.float32
    assert (np.diff(found.scores) <= 0).all() and found.scores.min() > 0.2
    assert (found.boxes >= 0).all() and (found.boxes <= [120, 90, 120, 90]).all()
    assert found.names == [detector.config.classes[k - 1] for k in found.classes]
    for i in range(len(found.boxes)):
        for j in range(i):
            if found.classes[i] == found.classes[j]:
                assert slow_iou(found.boxes[i].tolist(), found.boxes[j].tolist()) < 0.4


def test_a_picture_finds_its_own_proposals_and_the_same_each_time(saved, shapes):
    detector = fastrcnn.load(saved[2])
    path = next((shapes / "JPEGImages").iterdir())
    first, second = detector.detect(path), detector.detect(str(path))
    assert len(first.boxes) and np.array_equal(first.boxes, second.boxes)
    assert np.array_equal(first.scores, second.scores)
    by_pixels = detector.detect(read_image(path), image_id=path.stem)
    assert np.array_equal(first.boxes, by_pixels.boxes)


def test_duplicates_and_order_of_proposals_change_no_score(saved):
    detector = fastrcnn.load(saved[2])
    rois = torch.from_numpy(some_proposals())
    scores, _ = detector.classify(PICTURE, rois)
    assert torch.equal(scores[:20], scores[70:90])  # the same boxes twice
    order = torch.randperm(len(rois))
    assert torch.allclose(detector.classify(PICTURE, rois[order])[0], scores[order], atol=1e-5)


def test_no_proposals_give_no_detections(saved):
    found = fastrcnn.load(saved[2]).detect(PICTURE, np.zeros((0, 4), np.float32))
    assert found.boxes.shape == (0, 4) and found.names == []


def test_bfloat16_detections_are_near_those_of_float32(saved):
    exact, rough = (fastrcnn.load(saved[2], precision=p) for p in ("float32", "bfloat16"))
    assert rough.model.backbone.conv2.weight.dtype == rough.model.fc6.weight.dtype == torch.bfloat16
    assert rough.model.cls_score.weight.dtype == torch.float32
    rois = torch.from_numpy(some_proposals())
    (scores, boxes), (rough_scores, rough_boxes) = exact.classify(PICTURE, rois), rough.classify(PICTURE, rois)
    assert rough_scores.dtype == torch.float32
    assert (scores - rough_scores).abs().max() < 0.1 and (scores - rough_scores).abs().mean() < 0.01
    assert (boxes - rough_boxes).abs().mean() < 0.5


def test_a_compressed_network_of_full_rank_detects_the_same(saved, tmp_path):
    compress_weights(saved[2], tmp_path / "small.safetensors", {"fc6": 32, "fc7": 32})
    rois = torch.from_numpy(some_proposals())
    exact, small = (fastrcnn.load(p).classify(PICTURE, rois) for p in (saved[2], tmp_path / "small.safetensors"))
    assert torch.allclose(exact[0], small[0], atol=1e-4)


def test_several_scales_look_at_each_roi_in_the_nearest(saved):
    detector = fastrcnn.load(saved[2])
    rois = torch.from_numpy(some_proposals())
    single = {}
    for side in (96, 192):
        detector.config.image.test_short_side = [side]
        single[side] = detector.classify(PICTURE, rois)[0]
    detector.config.image.test_short_side = [96, 192]
    both = detector.classify(PICTURE, rois)[0]
    level = nearest_scale(rois, [96 / 90, 192 / 90])
    expected = torch.where(level[:, None] == 0, single[96], single[192])
    assert torch.allclose(both, expected, atol=1e-5) and len(level.unique()) == 1  # all small: the larger scale


def test_a_mirrored_view_is_that_of_the_mirrored_picture(saved):
    detector, rois = fastrcnn.load(saved[2]), torch.from_numpy(some_proposals())
    scores, boxes = detector.classify(PICTURE, rois)
    turned_scores, turned_boxes = detector.classify(PICTURE[:, ::-1].copy(), box_ops.flip(rois, 120))
    detector.config.test.flip = True
    both_scores, both_boxes = detector.classify(PICTURE, rois)
    assert torch.allclose(both_scores, (scores + turned_scores) / 2, atol=1e-5)
    assert torch.allclose(both_boxes, (boxes + box_ops.flip(turned_boxes, 120)) / 2, atol=1e-3)
    assert not torch.allclose(scores, turned_scores, atol=1e-3)


def test_all_keys_of_detection_together(saved):
    """Each on top of the others changes what is found, and the same is found again."""
    detector, results = fastrcnn.load(saved[2]), []
    detector.config.image.test_short_side = [96, 120]
    for key, value in {
        "score_threshold": 0.001,
        "flip": True,
        "average_scales": True,
        "second_pass": 50,
        "soft_nms": "gaussian",
        "box_voting": 0.5,
    }.items():
        setattr(detector.config.test, key, value)
        one, two = detector.detect([PICTURE, PICTURE], [some_proposals()] * 2)
        assert len(one) and np.array_equal(one.boxes, two.boxes) and np.array_equal(one.scores, two.scores)
        results.append((one.boxes.tolist(), one.scores.tolist()))
    assert all(a != b for a, b in zip(results, results[1:], strict=False))


def test_nearest_scale_by_hand():
    """224^2 is nearest: a box of 112 pixels at twice the size, one of 224 as it is."""
    boxes = torch.tensor([[0.0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 400, 400]])
    assert nearest_scale(boxes, [0.5, 1.0, 2.0]).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("image", "proposals", "words"),
    [
        (PICTURE, np.zeros((3, 5), np.float32), "give finite numbers"),
        (PICTURE, np.full((1, 4), np.nan, np.float32), "give finite numbers"),
        (PICTURE, np.array([[5, 5, 5, 9]], np.float32), "no width or height"),
        (PICTURE, [["a", 1, 2, 3]], "proposals: are not numbers"),
        (PICTURE[:0], None, "image: has 120 x 0 pixels"),
    ],
)
def test_wrong_input_is_refused(saved, image, proposals, words):
    with pytest.raises(FastRCNNError, match=words):
        fastrcnn.load(saved[2]).detect(image, proposals)


def test_a_device_that_is_not_there(saved):
    with pytest.raises(FastRCNNError, match="device: 'tpu9'"):
        fastrcnn.load(saved[2], device="tpu9")


def with_thresholds(path, scores):
    """A detector of the weights file with these score thresholds stored in it."""
    store_thresholds(path, ScoreThresholds(scores, "VOC2007 minival", 500))
    return fastrcnn.load(path)


def test_a_lower_score_gives_more_detections_and_a_higher_one_fewer(saved):
    detector = fastrcnn.load(saved[2])
    detector.config.test.score_threshold, detector.config.test.max_detections = 0.3, 1000
    found = {s: detector.detect(PICTURE, some_proposals(), score=s) for s in (None, 0.3, 0.5, 0.05, 0, 1)}
    assert len(found[1]) < len(found[0.5]) < len(found[None]) < len(found[0.05]) < len(found[0])
    assert found[0.3].to_json() == found[None].to_json()
    assert found[0.5].scores.min() > 0.5 and 0.05 < found[0.05].scores.min() <= 0.3
    both = detector.detect([PICTURE, PICTURE], [some_proposals()] * 2, score=0.5)
    assert [one.to_json() for one in both] == [found[0.5].to_json()] * 2


def test_auto_gives_what_reaches_the_threshold_of_its_class(saved, caplog):
    plain = fastrcnn.load(saved[2]).detect(PICTURE, some_proposals())
    common = max(set(plain.names), key=plain.names.count)
    first, *others = (name for name in plain.class_list if name != common)
    middle = float(np.sort(plain.of_class(common).scores)[len(plain.of_class(common)) // 2])
    scores = {common: middle, first: 1.0}
    detector = with_thresholds(saved[2], scores)
    with caplog.at_level("INFO"):
        found = [detector.detect(PICTURE, some_proposals(), score="auto") for _ in range(2)]
    kept = [s for name, s, _ in plain if s >= scores.get(name, 0)]
    assert found[0].scores.tolist() == found[1].scores.tolist() == kept
    assert 0 < len(kept) < len(plain) and middle in kept  # a score of exactly the threshold is enough
    assert detector.detect(PICTURE, some_proposals()).to_json() == plain.to_json()
    said = (
        "score thresholds measured on VOC2007 minival, 500 images; 0.05 for classes of which nothing was found there: "
    )
    assert [record.message for record in caplog.records] == [said + ", ".join(others)]


@pytest.mark.parametrize("score", [-0.1, 1.5, float("nan"), "automatic", "0.5", True])
def test_another_score_is_refused_before_any_work(saved, score):
    with pytest.raises(FastRCNNError, match="it must be auto or a number from 0 to 1"):
        with_thresholds(saved[2], {}).detect("nowhere.jpg", score=score)


def test_auto_without_thresholds_names_the_remedy(saved):
    with pytest.raises(FastRCNNError, match="hold no score thresholds.*tools/test.py CONFIG WEIGHTS"):
        fastrcnn.load(saved[2]).detect("nowhere.jpg", score="auto")
