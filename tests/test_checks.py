import hashlib
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrcnn import config as configs
from fastrcnn import config_files
from fastrcnn.annotations.problems import Problem
from fastrcnn.annotations.read import read_data_sets
from fastrcnn.config import Config, ProposalsConfig
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.data.check_report import report_text
from fastrcnn.data.checks import check, files_in_both
from fastrcnn.proposals.stored import StoredProposals, write_stored

SIZE = (40, 30)
GOOD = "<object><name>cat</name><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object>"
BOX = [10, 5, 20, 15]  # what GOOD becomes


def annotation(*objects, size=SIZE):
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def add_image(root, split, stem, text=None, **options):
    """An image unlike all others, its XML, and its line in the list."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(stem.encode(), "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    path = root / "JPEGImages" / f"{stem}.jpg"
    Image.fromarray(pixels).save(path, **options)
    (root / "Annotations" / f"{stem}.xml").write_text(annotation(GOOD) if text is None else text)
    with (root / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
        file.write(f"{stem}\n")
    return path


def write_proposals(path, boxes, sizes=None, digest=bytes(16)):
    """`boxes` is {image id: rows}."""
    rows = [np.array(value, np.float64).reshape(-1, 4) for value in boxes.values()]
    count = len(rows)
    stored = StoredProposals(
        ids=list(boxes),
        offsets=np.cumsum([0] + [len(r) for r in rows]),
        boxes=np.concatenate(rows),
        sizes=np.array(sizes or [SIZE] * count),
        digests=np.array([list(digest)] * count),
        made_by=configs.to_dict(ProposalsConfig()) | {"max_per_image": ProposalsConfig().search_cap},
    )
    write_stored(path, stored)


def make_config(root, **data):
    paths = {"root": str(root), "proposals": str(root / "proposals.safetensors")}
    sets = {part: [DataSetConfig(split=part, **paths)] for part in ("train", "test")}
    return Config(classes=["cat"], data=DataConfig(**sets, **data))


@pytest.fixture
def good(tmp_path):
    """A set with nothing wrong but that its proposals' digests are not the images'."""
    for split, stem in (("train", "a"), ("train", "b"), ("test", "c")):
        add_image(tmp_path, split, stem)
    write_proposals(tmp_path / "proposals.safetensors", {stem: [BOX] for stem in "abc"})
    return tmp_path


def found(config, kind):
    """What the report holds of a kind, as (file name, object number, outcome)."""
    report = check(config, processes=1)
    return [(p.file.name, p.object, p.outcome) for p in report.findings if p.kind == kind]


def put(root, stem, *objects, **options):
    (root / "Annotations" / f"{stem}.xml").write_text(annotation(*objects, **options))


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


def test_good_data_are_not_wrong(good):
    report = check(make_config(good), processes=1)
    assert {p.kind for p in report.findings} == {"proposals of another picture"}
    assert not report.wrong
    assert [(s.part, [r.id for r in s.records]) for s in report.sets] == [("train", ["a", "b"]), ("test", ["c"])]
    np.testing.assert_array_equal(report.sets[0].recall.best_iou, [1, 1])


def test_proposals_of_these_very_files_leave_nothing_to_report(good):
    (good / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (good / "ImageSets" / "Main" / "test.txt").write_text("")
    digest = hashlib.blake2b((good / "JPEGImages" / "a.jpg").read_bytes(), digest_size=16).digest()
    write_proposals(good / "proposals.safetensors", {"a": [BOX]}, digest=digest)
    config = make_config(good)
    config.data.test = config.data.train
    report = check(config, processes=1)
    assert {p.kind for p in report.findings} == {"image in train and test"}


# Bad pieces of annotation: objects of image b, the kind they give, and the number of the object.
BAD_OBJECTS = {
    "box outside": [GOOD, changed("<xmax>20", "<xmax>41")],
    "box inside out": [GOOD, changed("<xmax>20", "<xmax>2")],
    "box empty": [GOOD, changed("<xmax>20", "<xmax>10")],
    "box unreadable": [GOOD, changed("<xmax>20", "<xmax>many")],
    "unknown class": [GOOD, changed("cat", "yeti")],
}


@pytest.mark.parametrize("kind", BAD_OBJECTS)
def test_every_bad_object_is_an_error_with_its_number(good, kind):
    put(good, "a", *BAD_OBJECTS[kind])
    put(good, "b", *BAD_OBJECTS[kind][::-1])
    assert found(make_config(good), kind) == [("a.xml", 2, "error"), ("b.xml", 1, "error")]
    assert check(make_config(good), processes=1).wrong


def test_what_the_config_allows_is_a_remark(good):
    put(good, "a", *BAD_OBJECTS["box outside"])
    put(good, "b", *BAD_OBJECTS["unknown class"])
    config = make_config(good, on_bad_box="skip", on_unknown_class="ignore")
    report = check(config, processes=1)
    assert [(p.kind, p.outcome) for p in report.findings][:2] == [
        ("box outside", "skipped"),
        ("unknown class", "ignored"),
    ]
    assert not report.wrong


def test_tiny_boxes_wrong_sizes_and_empty_images_are_remarks(good):
    put(good, "a", changed("<xmax>20", "<xmax>12"))
    put(good, "b", size=(1, 1))
    config = make_config(good)
    assert found(config, "box tiny") == [("a.xml", 1, "noted")]
    assert found(config, "size differs") == [("b.xml", None, "noted")]
    assert found(config, "no objects") == [("b.xml", None, "noted")]
    assert not check(config, processes=1).wrong


def test_a_truncated_image_is_found_by_decoding(good):
    path = good / "JPEGImages" / "b.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert found(make_config(good), "unreadable image") == [("b.jpg", None, "error")]


def test_every_missing_or_unreadable_file_is_listed(good):
    (good / "JPEGImages" / "a.jpg").unlink()
    (good / "Annotations" / "b.xml").write_text("{}")
    (good / "Annotations" / "c.xml").unlink()
    report = check(make_config(good), processes=1)
    errors = {(p.kind, p.file.name) for p in report.findings if p.outcome == "error"}
    assert errors == {("missing image", "a.jpg"), ("unreadable annotation", "b.xml")}
    assert "no annotations" in {p.kind for p in report.findings if p.outcome == "noted"}  # the test set is c alone


def test_an_absent_list_and_an_empty_one_are_found(good):
    (good / "ImageSets" / "Main" / "train.txt").unlink()
    (good / "ImageSets" / "Main" / "test.txt").write_text("\n")
    files = found(make_config(good), "unreadable data set")
    assert files == [("train.txt", None, "error"), ("test.txt", None, "error")]


def test_an_id_that_stands_twice_is_an_error(good):
    config = make_config(good)
    config.data.train = config.data.train * 2
    assert found(config, "duplicate id") == [("a.jpg", None, "error"), ("b.jpg", None, "error")]


def test_the_same_picture_twice_is_a_remark_but_an_error_between_train_and_test(good):
    images = good / "JPEGImages"
    (images / "b.jpg").write_bytes((images / "a.jpg").read_bytes())
    config = make_config(good)
    assert found(config, "duplicate image") == [("b.jpg", None, "noted")]
    assert found(config, "image in train and test") == []
    (images / "c.jpg").write_bytes((images / "a.jpg").read_bytes())
    assert found(config, "image in train and test") == [("c.jpg", None, "error")]
    train = read_data_sets(config.data.train, config.data, config.classes)
    assert files_in_both(train, config) == []  # the quick part compares names only

    config.data.test = config.data.train
    assert [p.file.name for p in files_in_both(train, config)] == ["a.jpg", "b.jpg"]


def test_a_validation_picture_is_not_trained_on_and_in_the_test_set_a_remark(good):
    """Nor does a set that is not there yet hide what is known of another."""
    config = make_config(good)
    config.data.validation = config.data.train
    assert found(config, "image in train and validation") == [("a.jpg", None, "error"), ("b.jpg", None, "error")]
    config.data.validation = [config.data.test[0].model_copy()]
    assert found(config, "image in validation and test") == [("c.jpg", None, "noted")]
    assert check(config, processes=1).wrong is False
    train = read_data_sets(config.data.train, config.data, config.classes)
    assert [p.kind for p in files_in_both(train, config)] == ["image in validation and test"]
    config.data.test[0].root, config.data.validation = "/nowhere", config.data.train
    assert [p.kind for p in files_in_both(train, config)] == ["image in train and validation"] * 2


def test_a_validation_set_without_labels_is_wrong_and_a_test_set_is_not(good):
    (good / "Annotations/c.xml").unlink()
    config = make_config(good, on_unlabelled_image="empty")
    assert found(config, "no objects at all") == []
    config.data.validation, config.data.test = config.data.test, []
    assert found(config, "no objects at all") == [("data.validation", None, "error")]
    config.data.validation[0].root = "/nowhere"
    assert found(config, "unreadable data set") == [("JPEGImages", None, "error")]


def test_equal_pictures_with_other_labels_are_a_remark(good):
    (good / "JPEGImages" / "b.jpg").write_bytes((good / "JPEGImages" / "a.jpg").read_bytes())
    assert found(make_config(good), "equal pictures, other labels") == []
    put(good, "b", GOOD, changed("<xmax>20", "<xmax>25"))
    assert found(make_config(good), "equal pictures, other labels") == [("b.jpg", None, "noted")]


@pytest.mark.parametrize("rows", [[], [changed("cat", "yeti")], [changed("<xmax>20", "<xmax>90")]])
def test_a_set_without_any_object_is_wrong_once_and_nothing_that_follows_is_listed(good, rows):
    """Whatever the cause; an error that is listed already is the cause."""
    for stem in "ab":
        put(good, stem, *rows)
    for options in ({}, {"on_unknown_class": "ignore", "on_bad_box": "skip"}):
        report = check(make_config(good, **options), processes=1)
        assert report.wrong
        wanted = set() if rows and not options else {"no objects at all"}
        kinds = {p.kind for p in report.findings}
        assert kinds & {"no objects at all", "no objects", "class without objects"} == wanted


def test_refused_boxes_are_not_images_without_objects(good):
    add_image(good, "train", "d")
    put(good, "a", changed("<xmax>20", "<xmax>90"))
    put(good, "b")
    for on_bad_box in ("error", "skip"):
        config = make_config(good, on_bad_box=on_bad_box)
        assert found(config, "no objects") == [("b.xml", None, "noted")]


def test_names_in_files_count_refused_objects_and_join_spellings(good):
    put(good, "a", changed("cat", "CAT"), changed("cat", "Cat").replace("<xmax>20", "<xmax>90"), changed("cat", "Yeti"))
    put(good, "b", changed("cat", "yeti"))
    assert check(make_config(good), processes=1).names == {"cat": 3, "Yeti": 2}


def test_a_rotated_picture_is_a_remark(good):
    tags = Image.Exif()
    tags[274] = 8
    Image.new("RGB", SIZE, "red").save(good / "JPEGImages" / "b.jpg", exif=tags.tobytes())
    assert found(make_config(good), "EXIF rotation") == [("b.jpg", None, "noted")]


def test_missing_proposals_are_errors(good):
    write_proposals(good / "proposals.safetensors", {"a": [BOX], "c": [BOX]})
    config = make_config(good)
    report = check(config, processes=1)
    (missing,) = [p for p in report.findings if p.outcome == "error"]
    assert missing.kind == "proposals missing" and "image b" in str(missing)
    assert len(report.sets[0].recall.best_iou) == 1  # of the image that has some

    config.data.train[0].proposals = str(good / "none.json")
    assert found(config, "unreadable proposals") == [("none.json", None, "error")]


@pytest.mark.parametrize("proposals", [None, "none.safetensors"])
def test_proposals_that_are_not_made_yet_are_one_remark(good, proposals):
    config = make_config(good)
    for dataset in (*config.data.train, *config.data.test):
        dataset.proposals = proposals and str(good / proposals)
    report = check(config, processes=1)
    assert [(p.kind, p.file.name) for p in report.findings] == [("proposals not made yet", proposals or good.name)]
    assert not report.wrong and "recall" not in report_text(report)


def test_proposals_outside_their_image_are_errors(good):
    write_proposals(good / "proposals.safetensors", {"a": [BOX], "b": [[0, 0, 41, 9]], "c": [BOX]})
    report = check(make_config(good), processes=1)
    assert [p.kind for p in report.findings if p.outcome == "error"] == ["proposal outside"]
    assert report.sets[0].recall is None and report.sets[1].recall is not None


def test_images_without_foreground_proposals_are_remarks(good):
    hard = changed("<bndbox>", "<difficult>1</difficult><bndbox>").replace(">11<", ">31<").replace(">20<", ">40<")
    put(good, "a", GOOD)
    put(good, "b", GOOD, hard)  # only the difficult object is covered
    away = [0, 20, 9, 30]
    write_proposals(good / "proposals.safetensors", {"a": [away], "b": [[30, 5, 40, 15]], "c": []})
    config = make_config(good)
    assert found(config, "no foreground proposal") == [("a.jpg", None, "noted")]
    assert found(config, "no proposals") == [("c.jpg", None, "noted")]


def test_processes_find_what_one_finds(tmp_path):
    for i in range(128):
        path = add_image(tmp_path, "train", f"i{i}")
        if i % 50 == 7:
            path.write_bytes(path.read_bytes()[:-100])
    add_image(tmp_path, "test", "t")
    write_proposals(tmp_path / "proposals.safetensors", {f"i{i}": [BOX] for i in range(128)} | {"t": [BOX]})
    one, two = (check(make_config(tmp_path), processes=n).findings for n in (1, 2))
    assert one == two
    assert [p.file.name for p in one if p.kind == "unreadable image"] == ["i107.jpg", "i57.jpg", "i7.jpg"]


def test_the_report_groups_errors_first_and_shortens_long_lists(good):
    outside = [changed("<xmax>20", f"<xmax>{x}") for x in (41, 42, 43, 44)]
    put(good, "a", *outside, changed("<xmax>20", "<xmax>12"))
    report = check(make_config(good), processes=1)
    text = report_text(report, per_kind=2)
    assert text.index("box outside: 4 (error)") < text.index("box tiny: 1 (noted)")
    assert text.count("leaves the image") == 2 and "and 2 more; --all lists them" in text
    assert report_text(report, per_kind=None).count("leaves the image") == 4
    (row,) = [line.split() for line in text.splitlines() if line.startswith("cat ")][:1]
    assert row == ["cat", "2", "0", "2", "1", "0", "1"]
    assert isinstance(report.findings[0], Problem)


def test_the_tool_s_exit_code_tells_errors_from_remarks(good, monkeypatch, capsys):
    tools = Path(__file__).parent.parent / "tools"
    monkeypatch.syspath_prepend(str(tools))
    main = runpy.run_path(str(tools / "check_data.py"))["main"]
    config_files.save(make_config(good), good / "run.yaml")
    monkeypatch.setattr(sys, "argv", ["check_data.py", str(good / "run.yaml"), "--all"])
    assert main() == 0
    assert "recall of train" in capsys.readouterr().out

    put(good, "a", *BAD_OBJECTS["box outside"])
    assert main() == 1
    assert "a.xml: object 2" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["check_data.py", str(good / "run.yaml"), "data.on_bad_box=clip"])
    assert main() == 0


def test_a_training_set_without_any_object_is_one_error(good):
    config = make_config(good)
    config.classes = ["bird", "horse"]
    config.data.on_unknown_class = "ignore"
    report = check(config, processes=1)
    assert [(p.kind, str(p.file)) for p in report.findings if p.outcome == "error"] == [
        ("no objects at all", "data.train"),
        ("no objects at all", "data.test"),
    ]
    assert "class without objects" not in {p.kind for p in report.findings}


def test_a_test_set_without_annotations_lists_no_classes(good):
    (good / "Annotations" / "c.xml").unlink()
    report = check(make_config(good), processes=1)
    assert not report.wrong and "no annotations" in {p.kind for p in report.findings}
    assert not any("data.test" in str(p.file) for p in report.findings)
    assert "it has no objects to find" in report_text(report)


def test_dark_pictures_of_16_bits_are_noted(good):
    Image.fromarray(np.full((80, 100), 3000, np.uint16)).save(good / "JPEGImages" / "a.png")
    (good / "JPEGImages" / "a.jpg").unlink()
    (finding,) = [p for p in check(make_config(good), processes=1).findings if p.kind == "dark 16 bits"]
    assert "uses 3000 to 3000" in finding.text and finding.outcome == "noted"


def test_the_tool_draws_and_tries_what_it_is_asked_for(good, monkeypatch, capsys):
    tools = Path(__file__).parent.parent / "tools"
    monkeypatch.syspath_prepend(str(tools))
    main = runpy.run_path(str(tools / "check_data.py"))["main"]
    config_files.save(make_config(good), good / "run.yaml")
    asked = ["--pictures", str(good / "look"), "--proposals-sample", "1", "--processes", "1"]
    monkeypatch.setattr(sys, "argv", ["check_data.py", str(good / "run.yaml"), *asked])
    assert main() == 0
    said = capsys.readouterr().out
    assert "tried on 1 objects in 1 of your pictures" in said and "proposals.method=quality: recall" in said
    assert sorted(path.name for path in (good / "look").iterdir()) == ["batches.png", "histograms.png", "labels.png"]
