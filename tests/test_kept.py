"""What is kept of a large data set is what reading it again gives, and is not used for what has changed."""

import dataclasses
import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from made_annotations import CLASSES, draw, make_voc, thing, xml

from fastrcnn import files
from fastrcnn.annotations import kept, objects
from fastrcnn.annotations import read as read_module
from fastrcnn.annotations.read import read_each_data_set
from fastrcnn.annotations.records import Source, class_index
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

BOXES = [(11, 6, 20, 15), (2, 3, 30, 20)]
times = itertools.count(10**9)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small sets are kept too, and files that were made a moment ago."""
    monkeypatch.setattr(kept, "LARGE", 1)
    monkeypatch.setattr(files, "SETTLED", -(10**18))


@pytest.fixture
def opened(monkeypatch):
    """The pictures that are opened."""
    names, image_size = [], objects.image_size

    def noted(path):
        names.append(path.name)
        return image_size(path)

    monkeypatch.setattr(objects, "image_size", noted)
    return names


def voc(root):
    """Without objects, with two, with remarks, with a file that says it starts at 0."""
    mark = "<source><database>Roboflow</database></source>"
    texts = {
        "a": xml(thing("cat", BOXES[0]), thing("dog", BOXES[1], "<difficult>1</difficult>")),
        "b": xml(),
        "c": xml(thing("dog", (5, 5, 6, 6)), size=(41, 30)),
        "d": xml(thing(), header="").replace("<path>", f"<filename>d.jpg</filename>{mark}<path>"),
    }
    return make_voc(root, texts)


def coco(root):
    for name in ("x.jpg", "y.jpg"):
        draw(root / "day" / name)
    tree = {
        "images": [{"id": 1, "file_name": "x.jpg", "width": 40, "height": 30}, {"id": 2, "file_name": "day/y.jpg"}],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2, 10, 9.5], "iscrowd": 1}],
        "categories": [{"id": 3, "name": "dog"}],
    }
    (root / "all.json").write_text(json.dumps(tree))
    return DataSetConfig(format="coco", root=str(root))


def yolo(root):
    for name in ("x", "y"):
        draw(root / "images" / f"{name}.jpg")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text("1 0.5 0.5 0.25 0.1\n0 0.5 0.5 0.1 0.1 0.3 0.4 0.2 0.2\n")
    (root / "data.yaml").write_text("names: [cat, dog]\n")
    return DataSetConfig(format="yolo", root=str(root))


def read(dataset, classes=CLASSES, **data):
    """(all that is said of each image, problems); proposals that are not there are the place to keep it."""
    found = []
    dataset = dataset.model_copy(update={"proposals": str(Path(dataset.root) / "p.safetensors")})
    (records,) = read_each_data_set([dataset], DataConfig(**data), classes, found)
    plain = [
        {n: (v.dtype, v.tolist()) if isinstance(v, np.ndarray) else v for n, v in vars(record).items()}
        for record in records
    ]
    return plain, found


def change(path, text=None):
    """Another time, and perhaps another text."""
    if text is not None:
        path.write_text(text)
    now = next(times) * 10**9
    os.utime(path, ns=(now, now))


@pytest.mark.parametrize("make", [voc, coco, yolo])
def test_the_second_reading_opens_nothing_and_gives_the_same(tmp_path, opened, make):
    dataset = make(tmp_path)
    first, before = read(dataset), len(opened)
    assert before == len(first[0]) and any(record["boxes"][1] for record in first[0])
    (path,) = tmp_path.glob(".p.*")
    written = files.settled_stamp(path)
    assert read(dataset) == first and len(opened) == before and files.settled_stamp(path) == written
    if make is voc:
        assert first[1] and first[0][3]["stated"].origins


@pytest.mark.parametrize("make", [voc, coco, yolo])
def test_every_format_can_be_read_by_another_process(tmp_path, make):
    dataset = make(tmp_path)
    sources = read_module.FORMATS[dataset.format](dataset, DataConfig(), class_index(CLASSES)).sources
    for source, copy in zip(sources, pickle.loads(pickle.dumps(sources)), strict=True):
        (record, problems), (other, its_problems) = source.read(), copy.read()
        assert record.boxes.tolist() == other.boxes.tolist() and problems == its_problems


def test_processes_read_a_large_set_to_the_same(tmp_path, opened, monkeypatch):
    dataset = voc(tmp_path)
    monkeypatch.setattr(kept, "LARGE", 99)
    first = read(dataset)
    opened.clear()
    monkeypatch.setattr(read_module, "MANY", 1)
    monkeypatch.setattr(read_module, "cores", lambda: 2)
    assert read(dataset) == first and not opened
    assert read(dataset, workers=0) == first and opened


def test_what_changes_while_others_are_read_is_read_again(tmp_path, monkeypatch):
    dataset, image_size = voc(tmp_path), objects.image_size

    def changed_then(picture):
        if picture.name == "b.jpg":
            change(tmp_path / "Annotations" / "a.xml", xml(thing("dog", BOXES[1])))
        return image_size(picture)

    monkeypatch.setattr(objects, "image_size", changed_then)
    assert len(read(dataset)[0][0]["boxes"][1]) == 2
    assert read(dataset)[0][0]["boxes"][1] == [[1, 2, 30, 20]]


def test_two_runs_at_once_keep_one_whole_file(tmp_path, opened):
    dataset = voc(tmp_path).model_copy(update={"proposals": str(tmp_path / "p.safetensors")})
    data, index = DataConfig(), class_index(CLASSES)
    runs = [read_module.read_data_set(dataset, data, index, kept.KeptRecords(dataset, data, index)) for _ in range(2)]
    for _ in zip(*runs, strict=True):
        pass
    assert len(opened) == 8 and len(list(tmp_path.glob(".p.*"))) == 1
    read(dataset)
    assert len(opened) == 8


def test_only_what_changed_is_read_again(tmp_path, opened):
    dataset = voc(tmp_path)
    read(dataset)
    opened.clear()
    change(tmp_path / "Annotations" / "b.xml", xml(thing("dog", BOXES[1])))
    draw(tmp_path / "JPEGImages" / "d.jpg", (50, 60))
    change(tmp_path / "JPEGImages" / "d.jpg")
    records, problems = read(dataset)
    assert opened == ["b.jpg", "d.jpg"] and records[1]["boxes"][1] == [[1, 2, 30, 20]] and records[3]["width"] == 50
    assert {p.kind for p in problems} >= {"size differs", "box tiny"}
    opened.clear()
    assert read(dataset) == (records, problems) and not opened


@pytest.mark.parametrize(
    "settings",
    [{"xml_origin": 0}, {"on_bad_box": "clip"}, {"boxes_drawn_on": "stored"}, {"on_unknown_class": "ignore"}],
)
def test_other_settings_read_again(tmp_path, opened, settings):
    dataset = voc(tmp_path)
    read(dataset)
    opened.clear()
    read(dataset, **settings)
    assert len(opened) >= 4
    opened.clear()
    read(dataset, **settings, drop_empty=True, workers=3, limit=4)
    assert not opened


def test_other_classes_and_another_version_read_again(tmp_path, opened, monkeypatch):
    dataset = voc(tmp_path)
    first, _ = read(dataset)
    second, _ = read(dataset, CLASSES[::-1])
    assert [r["classes"][1] for r in first] == [[3 - n for n in r["classes"][1]] for r in second]
    monkeypatch.setattr(kept, "_code", lambda: "another")
    read(dataset, CLASSES[::-1])
    assert len(opened) == 12


def test_a_set_with_an_error_is_read_again(tmp_path, opened):
    dataset = voc(tmp_path)
    change(tmp_path / "Annotations" / "d.xml", xml(thing("bird")))
    for _ in range(2):
        with pytest.raises(FastRCNNError, match="bird"):
            read(dataset)
    assert len(opened) == 8


def test_other_classes_of_yolo_read_again(tmp_path):
    dataset = yolo(tmp_path)
    first, _ = read(dataset)
    change(tmp_path / "data.yaml", "names: [dog, cat]\n")
    second, _ = read(dataset)
    assert [r["classes"][1] for r in first] == [[2, 1]] * 2 and [r["classes"][1] for r in second] == [[1, 2]] * 2


def test_images_without_annotation_and_errors_are_not_kept(tmp_path, opened):
    """Whether the first is an error depends on the others' files."""
    dataset = make_voc(tmp_path, {"a": xml(thing()), "b": xml(thing())})
    (tmp_path / "Annotations" / "b.xml").unlink()
    for _ in range(2):
        read(dataset, on_unlabelled_image="empty")
    assert opened == ["a.jpg", "b.jpg", "b.jpg"]


@pytest.mark.parametrize("damage", [b"", b"no safetensors at all", None])
def test_a_damaged_or_absent_file_is_read_over(tmp_path, opened, damage):
    dataset = voc(tmp_path)
    first = read(dataset)
    (path,) = tmp_path.glob(".p.safetensors.*.kept")
    whole = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage or whole[:-5])
    opened.clear()
    assert read(dataset) == first and len(opened) == 4
    assert path.read_bytes() == whole  # made again


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path, opened, monkeypatch):
    def refuse(*_):
        raise kept.FastRCNNError("no room")

    monkeypatch.setattr(kept, "write_tensors", refuse)
    assert read(voc(tmp_path)) == read(voc(tmp_path)) and len(opened) == 8


def test_small_sets_and_new_files_are_not_kept(tmp_path, opened, monkeypatch):
    dataset = voc(tmp_path)
    monkeypatch.setattr(kept, "LARGE", 5)
    read(dataset)
    monkeypatch.setattr(kept, "LARGE", 1)
    monkeypatch.setattr(files, "SETTLED", 3 * 10**9)
    read(dataset)
    assert len(opened) == 8 and not list(tmp_path.glob(".p*"))


def test_a_stamp_is_of_all_that_a_system_tells(tmp_path, monkeypatch):
    path = tmp_path / "a"
    assert files.settled_stamp(path) is None
    path.write_bytes(b"one")
    stamps = [files.settled_stamp(path)]
    change(path)
    stamps.append(files.settled_stamp(path))
    path.write_bytes(b"four")
    stamps.append(files.settled_stamp(path))
    assert len({*stamps, None}) == 4
    monkeypatch.setattr(files, "SETTLED", 3 * 10**9)
    assert files.settled_stamp(path) is None
    later = files.time.time_ns() + 4 * 10**9
    monkeypatch.setattr(files.time, "time_ns", lambda: later)
    assert files.settled_stamp(path) == stamps[-1]


def test_a_source_is_known_by_all_that_its_record_is_made_from(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    source = Source(tmp_path / "a", lambda: (None, []), "id", tmp_path / "b", "about")
    others = [{"id": "other"}, {"about": "other"}, {"path": tmp_path / "b"}, {"annotation": tmp_path / "a"}]
    names = [kept._name(dataclasses.replace(source, **other)) for other in [{}, *others]]
    assert len({*names, None}) == 6
    assert kept._name(dataclasses.replace(source, annotation=None)) is None
