import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrcnn.annotations.folders import Pictures, files_below
from fastrcnn.errors import FastRCNNError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_files_are_listed_with_their_folders_and_without_hidden_ones(tmp_path):
    touch(tmp_path, "b.jpg", "x/a.jpg", "x/y/c.txt", ".hidden.jpg", ".git/d.jpg", "x/._a.jpg")
    assert sorted(files_below(tmp_path)) == ["b.jpg", "x/a.jpg", "x/y/c.txt"]
    with pytest.raises(FastRCNNError, match="nowhere: no such folder"):
        list(files_below(tmp_path / "nowhere"))


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere", "a.jpg")
    touch(tmp_path / "set", "b.jpg")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    assert sorted(files_below(tmp_path / "set")) == ["b.jpg", "link/a.jpg"]


def test_the_longest_end_serves_then_the_nearest_folder(tmp_path):
    pictures = Pictures(touch(tmp_path, "x/a.jpg", "y/a.jpg", "y/x/a.jpg", "a.jpg", "z/only.jpg"))
    assert pictures.find("y/x/a.jpg") == ("y/x/a.jpg", tmp_path / "y/x/a.jpg")
    assert pictures.find("elsewhere/y/a.jpg") == ("y/a.jpg", tmp_path / "y/a.jpg")
    assert pictures.find("x/a.jpg", near=["y", ""]) == ("x/a.jpg", tmp_path / "y/x/a.jpg")
    assert pictures.find("a.jpg") == ("a.jpg", tmp_path / "a.jpg")
    assert pictures.find("D:\\photos\\only.jpg") == ("only.jpg", tmp_path / "z/only.jpg")
    for name, word in [("a.jpg", "or"), ("gone.jpg", "no such picture"), ("", "no such"), ("..", "no such")]:
        with pytest.raises(FastRCNNError, match=word):
            pictures.find(name, near=["z"])


def test_names_in_another_unicode_form_are_found(tmp_path):
    names = [unicodedata.normalize(form, "Zoë/Übung.jpg") for form in ("NFC", "NFD")]
    touch(tmp_path, names[1])
    found, path = Pictures(tmp_path).find(names[0])
    assert path.exists() and unicodedata.normalize("NFC", found) == names[0]


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map("/".join), st.data())
def test_every_file_is_found_by_its_own_path(tmp_path_factory, name, data):
    root = tmp_path_factory.mktemp("x")
    others = data.draw(st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3).map("/".join), max_size=5))
    touch(root, f"{name}.jpg", *(f"{other}/{name}.jpg".lstrip("/") for other in others))
    assert Pictures(root).find(f"{name}.jpg") == (f"{name}.jpg", root / f"{name}.jpg")
