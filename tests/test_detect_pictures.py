"""Folders of pictures: which are found, what is written for them, and that nothing of the user's is harmed."""

import json
import logging
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fastrcnn import config as configs
from fastrcnn.detect import pictures as pictures_module
from fastrcnn.detect.detector import Detector
from fastrcnn.detect.folders import find_pictures
from fastrcnn.detect.pictures import detect_pictures
from fastrcnn.detections import Detections, read_detections
from fastrcnn.errors import FastRCNNError
from fastrcnn.images import read_image
from fastrcnn.model.score_thresholds import ScoreThresholds
from fastrcnn.proposals.dense import find_proposals


class Finder(Detector):
    """Finds one dog in each picture without looking, and notes what it is given."""

    def __init__(self):
        self.config = configs.from_dict({"classes": ["cat", "dog"]})
        self.model = type("Model", (), {"precision": "float32"})
        self.seen, self.proposals = [], []

    def detect(self, image, proposals=None, image_id=None):
        self.seen.append(image_id)
        self.proposals.append(proposals)
        box = np.array([[1, 2, 30, 40.5]], np.float32)
        return Detections(box, np.array([2]), np.array([0.75], np.float32), ("cat", "dog"))


def picture(path, shade=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((60, 80, 3), shade, np.uint8)).save(path)
    return path


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_sub_folders_are_searched_and_mirrored(tmp_path):
    photos, found = tmp_path / "photos", tmp_path / "found"
    for name in ("a.jpg", "a.png", "sub/e.jpg", "sub/deep/f.PNG", ".hidden/g.jpg"):
        picture(photos / name)
    (photos / "._a.jpg").write_bytes(b"left by macOS")
    done = detect_pictures(Finder(), [photos], found)
    names = ["a.jpg", "a_2.jpg", "sub/deep/f.jpg", "sub/e.jpg"]
    assert done.drawn == [found / name for name in names] and not done.failed
    assert all(read_image(path).shape == (300, 400, 3) for path in done.drawn)
    class_list, images = read_detections(done.json)
    assert class_list == ["cat", "dog"] and [image.id for image in images] == ["a", "a", "sub/deep/f", "sub/e"]
    assert images[3].file == str(photos / "sub/e.jpg") and (images[3].width, images[3].height) == (80, 60)
    assert images[3].found.boxes.tolist() == [[1, 2, 30, 40.5]]


def test_what_is_not_read_is_counted_by_kind(tmp_path, caplog):
    for name in ("a.jpg", "b.JPEG", "sub/c.png"):
        picture(tmp_path / name)
    for name in ("a.xml", "sub/b.XML", "notes.txt", "README", ".DS_Store"):
        (tmp_path / name).write_text("")
    with caplog.at_level(logging.INFO):
        assert len(find_pictures([tmp_path])) == 3
    kinds = "2 .xml, 1 .txt, 1 without suffix"
    [line] = caplog.messages
    head, _, counted = line.partition("; skipped 4 files of other kinds: ")
    assert head == f"{tmp_path}: 3 pictures" and sorted(counted.split(", ")) == sorted(kinds.split(", "))


def test_a_folder_without_pictures_and_a_path_without_anything(tmp_path):
    (tmp_path / "a.xml").write_text("")
    (tmp_path / ".a.jpg").write_text("")
    with pytest.raises(FastRCNNError, match=r"holds no pictures \(.jpg, .*skipped 1 files of other kinds: 1 .xml"):
        find_pictures([tmp_path])
    with pytest.raises(FastRCNNError, match="nowhere: no such picture or folder"):
        find_pictures([tmp_path / "nowhere"])


def test_a_folder_that_holds_itself_is_searched_once(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [found.id for found in find_pictures([tmp_path, tmp_path / "a.jpg"])] == ["a"]


def test_names_are_distinct_without_regard_to_case_and_normal_form(tmp_path):
    names = ["a/x.jpg", "b/X.jpg", "c/x_2.png", "d/é.jpg", "e/e\u0301.jpg"]
    found = find_pictures([picture(tmp_path / name) for name in names])
    assert [p.output for p in found] == ["x", "X_2", "x_2_2", "é", "é_2"]
    assert [p.id for p in found] == ["x", "X", "x_2", "é", "é"]


@pytest.mark.parametrize("spelling", ["photos", "./photos/../photos", "link", "photos/sub"])
def test_photographs_are_not_overwritten(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    for name in ("street.jpg", "two.png", "two.jpg", "sub/street.jpg"):
        picture(tmp_path / "photos" / name)
    (tmp_path / "photos/detections.json").write_text("{}")
    (tmp_path / "link").symlink_to("photos")
    before = files(tmp_path / "photos")
    with pytest.raises(FastRCNNError, match="is read; choose another|holds pictures to detect in; choose another"):
        detect_pictures(Finder(), ["photos"], spelling)
    assert files(tmp_path / "photos") == before


def test_no_file_that_was_there_is_overwritten(tmp_path):
    """Not one of the pictures to detect in, yet the user's."""
    mine = picture(tmp_path / "album/a.jpg", 20).read_bytes()
    with pytest.raises(FastRCNNError, match="a.jpg: is there already and not of an earlier detection"):
        detect_pictures(Finder(), [picture(tmp_path / "new/a.png")], tmp_path / "album")
    assert (tmp_path / "album/a.jpg").read_bytes() == mine
    proposals = tmp_path / "out/detections.json"
    proposals.parent.mkdir()
    proposals.write_text("{}")
    with pytest.raises(FastRCNNError, match="detections.json: would be written over"):
        detect_pictures(Finder(), [tmp_path / "new"], tmp_path / "out", proposals=proposals)


def test_an_output_below_the_pictures_is_left_out_the_next_time(tmp_path, caplog):
    picture(tmp_path / "a.jpg")
    for _ in range(2):
        with caplog.at_level(logging.INFO):
            assert len(detect_pictures(Finder(), [tmp_path], tmp_path / "found").images) == 1
    assert "found: holds earlier detections; left out" in caplog.text


def test_a_bad_picture_is_reported_and_the_others_are_done(tmp_path, caplog):
    picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    done = detect_pictures(Finder(), [tmp_path], tmp_path / "found")
    assert done.failed == [tmp_path / "b.jpg"] and [image.id for image in done.images] == ["a"]
    assert "b.jpg: cannot be decoded" in caplog.text
    with pytest.raises(FastRCNNError, match="none of the 1 pictures could be used"):
        detect_pictures(Finder(), [tmp_path / "b.jpg"], tmp_path / "none")


def test_stopped_on_the_way_the_same_call_resumes(tmp_path, monkeypatch):
    photos, found, weights = tmp_path / "photos", tmp_path / "found", tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    for name in "abcd":
        picture(photos / f"{name}.jpg")

    class Stopped(Finder):
        def detect(self, image, proposals=None, image_id=None):
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().detect(image, proposals, image_id)

    with pytest.raises(KeyboardInterrupt):
        detect_pictures(Stopped(), [photos], found, weights=weights)
    assert [image["id"] for image in json.loads((found / "detections.json").read_text())["images"]] == ["a", "b"]
    picture(photos / "b.jpg", 30)
    os.utime(photos / "b.jpg", (1, 1))  # changed since
    shutil.copytree(found, tmp_path / "other")
    detector = Finder()
    done = detect_pictures(detector, [photos], found, weights=weights)
    assert detector.seen == ["b", "c", "d"] and [image.id for image in done.images] == list("abcd")
    assert not (found / pictures_module.JOURNAL_NAME).exists()
    weights.write_bytes(b"other weights")
    detector = Finder()
    detect_pictures(detector, [photos], tmp_path / "other", weights=weights)
    assert detector.seen == list("abcd")


def test_labels_in_other_formats(tmp_path):
    photos, found = tmp_path / "photos", tmp_path / "found"
    picture(photos / "a.jpg"), picture(photos / "a.png")
    done = detect_pictures(Finder(), [photos], found, formats=["voc", "yolo", "csv"])
    assert done.labels == [found / "voc/JPEGImages", found / "yolo/images/detected", found / "csv/detections.csv"]
    assert {path.name for path in (found / "voc/Annotations").iterdir()} == {"a.xml", "a_2.xml"}
    (tmp_path / "new/yolo").mkdir(parents=True)
    with pytest.raises(FastRCNNError, match="new/yolo: is there already"):
        detect_pictures(Finder(), [photos], tmp_path / "new", formats=["yolo"])


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    picture(tmp_path / "photos/a.jpg")
    (tmp_path / "file").write_text("")
    detector = Finder()
    with pytest.raises(FastRCNNError, match="cannot be written"):
        detect_pictures(detector, [tmp_path / "photos"], tmp_path / "file")
    assert not detector.seen


def test_score_is_a_number_lower_than_the_configured_one_or_auto(tmp_path):
    """A lower number is asked of the detector; auto draws by class; the journal knows which it was."""
    photo, asked = picture(tmp_path / "a.jpg"), []

    class Asked(Finder):
        def detect(self, image, proposals=None, image_id=None, score=None):
            asked.append(score)
            return super().detect(image, proposals, image_id)

    for score in (0.5, 0.05, 0.01, None):
        detect_pictures(Asked(), [photo], tmp_path / "found", score)
    assert asked == [None, None, pytest.approx(0.01), None]
    drawn = {}
    for name, scores in (("on", {"dog": 0.75}), ("above", {"dog": 0.76}), ("without", {"cat": 0.9})):
        detector = Finder()
        detector.score_thresholds = ScoreThresholds(scores, "some", 3)
        done = detect_pictures(detector, [photo], tmp_path / name, "auto", formats=["csv"])
        drawn[name] = len(done.labels[0].read_text().splitlines()) - 1
        assert len(done.images[0].found) == 1  # detections.json holds all
    assert drawn == {"on": 1, "above": 0, "without": 1}


def test_auto_without_thresholds_is_refused_before_any_work(tmp_path):
    with pytest.raises(FastRCNNError, match="hold no score thresholds"):
        detect_pictures(Finder(), [picture(tmp_path / "a.jpg")], tmp_path / "found", "auto")
    assert not (tmp_path / "found").exists()


# ---- many pictures, which processes search


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A folder of nine pictures, the fourth of them cut off."""
    monkeypatch.setattr("fastrcnn.detect.ahead.cores", lambda: 2)
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 255, (6, 8, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    (tmp_path / "photos/3.png").write_bytes((tmp_path / "photos/3.png").read_bytes()[:200])
    return tmp_path / "photos"


def ids_in(folder):
    return [image["id"] for image in json.loads((folder / "detections.json").read_text())["images"]]


def test_many_pictures_have_the_same_boxes_in_the_same_order(many, tmp_path, caplog):
    detector, children = Finder(), []
    plain = detector.detect
    detector.detect = lambda *args: children.append(len(multiprocessing.active_children())) or plain(*args)
    done = detect_pictures(detector, [many], tmp_path / "found")
    assert detector.seen == ids_in(tmp_path / "found") == [str(i) for i in range(9) if i != 3]
    assert set(children) == {2} and not multiprocessing.active_children()
    assert done.failed == [many / "3.png"] and caplog.text.count("3.png: cannot be decoded") == 1
    assert all(path.is_file() for path in done.drawn) and len(done.drawn) == 8
    for name, boxes in zip(detector.seen, detector.proposals, strict=True):
        alone = find_proposals(read_image(many / f"{name}.png"), name, detector.config.proposals)
        assert len(alone) and boxes.tolist() == alone.tolist()


def test_ctrl_c_and_a_lost_process_keep_what_is_finished(many, tmp_path):
    class Stopped(Finder):
        def detect(self, image, proposals=None, image_id=None):
            if len(self.seen) == 2:
                self.stop()
            return super().detect(image, proposals, image_id)

    def interrupt():
        raise KeyboardInterrupt

    def kill():
        for process in multiprocessing.active_children():
            process.kill()

    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    detector = Stopped()
    detector.stop = interrupt
    with pytest.raises(KeyboardInterrupt):
        detect_pictures(detector, [many], tmp_path / "found", weights=weights)
    assert ids_in(tmp_path / "found") == ["0", "1"] and not multiprocessing.active_children()
    detector = Stopped()
    detector.stop = kill
    with pytest.raises(FastRCNNError, match="a process died, perhaps for lack of memory: free some, and run again"):
        detect_pictures(detector, [many], tmp_path / "other")
    assert ids_in(tmp_path / "other")[:2] == ["0", "1"] and not multiprocessing.active_children()
    detector = Finder()
    detect_pictures(detector, [many], tmp_path / "found", weights=weights)
    assert detector.seen[-6:] == list("245678") and len(detector.seen) <= 7 and len(ids_in(tmp_path / "found")) == 8


def test_a_full_disk_ends_the_work_and_all_that_is_drawn_is_told(tmp_path, monkeypatch):
    for name in "abcdefgh":
        picture(tmp_path / f"photos/{name}.jpg")
    write = pictures_module.write_image

    def full(path, image):
        if path.stem == "c":
            raise FastRCNNError("the disk is full")
        write(path, image)

    monkeypatch.setattr(pictures_module, "write_image", full)
    monkeypatch.setattr("fastrcnn.detect.ahead.MANY", 99)
    detector = Finder()
    with pytest.raises(FastRCNNError, match="the disk is full"):
        detect_pictures(detector, [tmp_path / "photos"], tmp_path / "found")
    drawn = {path.stem for path in (tmp_path / "found").glob("*.jpg")}
    assert {"a", "b"} <= drawn <= set(ids_in(tmp_path / "found")) and len(detector.seen) <= 5
