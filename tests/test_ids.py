import pytest
from made_annotations import expect_error, kinds_of, make_folder, make_voc, read, thing, xml

from fastrcnn.annotations.read import read_each_data_set
from fastrcnn.config_data import DataConfig, DataSetConfig


@pytest.mark.parametrize(
    ("roots", "prefixes"),
    [
        (["d1", "d2"], ["d1", "d2"]),
        (["x/a/images", "x/b/images"], ["a", "b"]),
        (["x/a/one/images", "x/b/two/images"], ["a/one", "b/two"]),
        (["x", "x/x"], ["x", "x/x"]),
        (["day 1", "day 2", "night"], ["day 1", "day 2", "night"]),
    ],
)
def test_files_of_one_name_get_the_part_of_the_roots_that_differs(tmp_path, roots, prefixes):
    sets = []
    for i, root in enumerate(roots):
        make_folder(tmp_path / root, {"f": xml(thing("dog" if i % 2 else "cat"))})
    if roots == ["x", "x/x"]:  # a list keeps the outer set from reading the inner one
        (tmp_path / "outer.txt").write_text("f.jpg\n")
    for i, root in enumerate(roots):
        split = str(tmp_path / "outer.txt") if roots == ["x", "x/x"] and i == 0 else None
        sets.append(DataSetConfig(format="folder", root=str(tmp_path / root), split=split))
    problems = []
    each = read_each_data_set(sets, DataConfig(), ["cat", "dog"], problems)
    assert [record.id for records in each for record in records] == [f"{prefix}/f" for prefix in prefixes]
    assert [record.classes.tolist() for records in each for record in records] == [[1], [2], [1]][: len(roots)]
    assert [p.outcome for p in problems if p.kind == "same names"] == ["noted"]


def test_all_images_of_sets_that_clash_are_renamed_and_no_others(tmp_path):
    sets = [
        make_folder(tmp_path / name, files) for name, files in (("a", {"1": xml(), "2": xml()}), ("b", {"1": xml()}))
    ]
    sets.append(make_voc(tmp_path / "VOC2007", {"000005": xml()}))
    problems = []
    assert [r.id for r in read(sets, problems=problems)] == ["a/1", "a/2", "b/1", "000005"]
    assert "1 names" in kinds_of(problems)["same names"]
    assert [r.id for r in read(sets[1:])] == ["1", "000005"]


def test_a_file_that_is_listed_in_two_sets_is_an_error(tmp_path):
    dataset = make_voc(tmp_path, {"a": xml()})
    message = expect_error(lambda: read([dataset, dataset]), "a.jpg", "listed twice", "leave it out of one list")
    assert "rename" not in message
