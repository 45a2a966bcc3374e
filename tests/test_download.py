import functools
import hashlib
import http.server
import tarfile
import threading

import pytest
from made_annotations import expect_error, make_voc, read, thing, xml

from fastrcnn.config_data import DataSetConfig


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address under which this machine alone can fetch the files of tmp_path."""
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def make_archive(tmp_path, server, name, files, split):
    make_voc(tmp_path / name / "VOC2007", files, split)
    path = tmp_path / f"{name}.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / name / "VOC2007", "VOCdevkit/VOC2007")
    return {
        "url": f"{server}/{path.name}",
        "filename": path.name,
        "md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "base_dir": "VOCdevkit/VOC2007",
    }


@pytest.mark.parametrize("root", ["VOCdevkit/VOC2007", "here/VOC2007"])
def test_download_leaves_both_archives_of_a_year_at_root(tmp_path, monkeypatch, server, root):
    from torchvision.datasets import voc

    archives = {
        "2007": make_archive(tmp_path, server, "trainval", {"a": xml(thing())}, "trainval"),
        "2007-test": make_archive(tmp_path, server, "testing", {"b": xml(thing("dog"))}, "test"),
    }
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", archives)
    sets = [DataSetConfig(root=str(tmp_path / root), split=split, download=True) for split in ("trainval", "test")]
    records = read(sets)
    assert [(r.id, r.classes.tolist()) for r in records] == [("a", [1]), ("b", [2])]
    assert sorted(path.name for path in (tmp_path / root).parent.iterdir()) == ["VOC2007"]

    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", {})  # what is there is not fetched again
    assert [r.id for r in read(sets)] == ["a", "b"]


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch, server):
    from torchvision.datasets import voc

    archive = make_archive(tmp_path, server, "trainval", {"a": xml()}, "trainval")
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", {"2007": archive | {"url": f"{server}/nowhere.tar"}})
    dataset = DataSetConfig(root=str(tmp_path / "VOC2007"), split="trainval", download=True)
    expect_error(lambda: read(dataset), tmp_path / "VOC2007", "cannot be downloaded", "unpack")
    monkeypatch.setattr(voc, "DATASET_YEAR_DICT", {"2007": archive | {"md5": "0" * 32}})
    expect_error(lambda: read(dataset), "cannot be downloaded")
    dataset.root = str(tmp_path / "mine")
    expect_error(lambda: read(dataset), tmp_path / "mine", "named after its year")
