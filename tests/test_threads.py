"""threads.py: where one thread works and where all do."""

import pytest
import torch
from test_detector import PICTURE, some_proposals

from fastrcnn import config as configs
from fastrcnn.detect import detector as detector_module
from fastrcnn.model.roi_features import RoIFeatures
from fastrcnn.model.weights import build
from fastrcnn.threads import all_threads, one_thread


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_are_as_before_after_any_nesting():
    with all_threads():
        assert torch.get_num_threads() == 3
    with one_thread():
        assert torch.get_num_threads() == 1
        with all_threads():
            assert torch.get_num_threads() == 3
            with one_thread():
                assert torch.get_num_threads() == 1
                with all_threads():
                    assert torch.get_num_threads() == 3
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_threads_are_as_before_after_an_error():
    with pytest.raises(ValueError), one_thread(), all_threads():
        raise ValueError
    assert torch.get_num_threads() == 3


def test_detection_pools_and_selects_on_one_thread_and_multiplies_on_all(tree, monkeypatch):
    config = configs.from_dict(tree)
    detector = detector_module.Detector(build(config), config, torch.device("cpu"))
    seen = {}

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            seen[name] = torch.get_num_threads()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(RoIFeatures, "_cells_of_map")
    watch(detector_module, "select_detections")
    for name in ("fc6", "fc7", "backbone"):
        layer = getattr(detector.model, name)
        for part in layer if name == "backbone" else [layer]:
            watch(part, "forward")
        detector.detect(PICTURE, some_proposals())
        assert seen.pop("forward") == 3
    assert seen == {"_cells_of_map": 1, "select_detections": 1}
    assert torch.get_num_threads() == 3
