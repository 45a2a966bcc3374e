import json

import pytest
from PIL import Image

from fastrcnn.annotations.read import read_data_sets
from fastrcnn.annotations.recognise import READ, recognise
from fastrcnn.config_data import DataConfig, DataSetConfig
from fastrcnn.errors import FastRCNNError

COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
XML = "<annotation><object><name>cat</name></object></annotation>"
FOLDERS = {  # files of a data set in another format -> what is said
    "coco": ({"_annotations.coco.json": json.dumps(COCO)}, READ["coco"]),
    "coco, deeper": ({"annotations/x.json": "[1]", "annotations/y.json": json.dumps(COCO)}, READ["coco"]),
    "yolo": ({"classes.txt": "cat", "a.txt": ""}, READ["yolo"]),
    "yolo, no names": ({"a.txt": "0 0.375 0.469 0.417 0.5625\n"}, READ["yolo"]),
    "yolo, data.yaml": ({"data.yaml": "train: x\nnames: [cat]", "train/labels/a.txt": ""}, READ["yolo"]),
    "yolo, polygons": ({"labels/a.txt": "1 .1 .1 .5 .5 0 1\n"}, READ["yolo"]),
    "cvat": ({"annotations.xml": "<?xml version='1.0'?>\n<annotations><image/></annotations>"}, "CVAT for images"),
    "imglab": ({"set.xml": "<dataset>\n<images/></dataset>"}, "imglab"),
    "labelme": ({"a.json": '{"shapes": [], "imagePath": "a.jpg"}'}, "labelme2coco"),
    "via": ({"via.json": '{"a.jpg7": {"filename": "a.jpg", "regions": []}}'}, "export it from VIA as COCO"),
    "create ml": ({"ml.json": '[{"image": "a.jpg", "annotations": []}]'}, "Create ML"),
    "label studio": ({"export.json": '[{"data": {"image": "a"}, "annotations": []}]'}, "Label Studio"),
    "vott": ({"a-asset.json": '{"asset": {}, "regions": []}'}, "from VoTT as Pascal VOC"),
    "datumaro": ({"annotations/train.json": '{"info": {}, "categories": {}, "items": []}'}, "datum"),
    "results": ({"results.json": '[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]'}, "results"),
    "tfrecord": ({"train.tfrecord": "\0\1"}, "TFRecord"),
    "csv": ({"labels.csv": "filename,xmin"}, "table"),
}


def make(root, files):
    Image.new("RGB", (40, 30)).save(root / "a.jpg")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("name", FOLDERS)
def test_other_formats_are_recognised(tmp_path, name):
    files, words = FOLDERS[name]
    assert words in str(recognise(make(tmp_path, files), "voc"))


@pytest.mark.parametrize("name", ["coco", "coco, deeper", "yolo", "yolo, data.yaml", "labelme", "csv"])
@pytest.mark.parametrize(("format_name", "split"), [("folder", None), ("voc", "train")])
def test_errors_say_what_a_folder_holds_and_what_to_do(tmp_path, name, format_name, split):
    files, words = FOLDERS[name]
    dataset = DataSetConfig(format=format_name, root=str(make(tmp_path, files)), split=split)
    with pytest.raises(FastRCNNError) as error:
        read_data_sets([dataset], DataConfig(), ["cat"])
    assert str(error.value).count(words) == 1


def test_pictures_with_xml_and_voc_are_named_to_the_other_formats(tmp_path):
    assert recognise(make(tmp_path, {"a.xml": XML}), "yolo") == READ["folder"]
    assert recognise(tmp_path, "folder") is None
    make(tmp_path, {"JPEGImages/b.jpg": "", "Annotations/b.xml": XML, "ImageSets/Main/train.txt": "b"})
    assert recognise(tmp_path, "coco") == READ["voc"]
    with pytest.raises(FastRCNNError, match="set format: voc"):
        read_data_sets([DataSetConfig(format="yolo", root=str(tmp_path))], DataConfig(), ["cat"])


def test_unknown_files_are_not_guessed(tmp_path):
    files = {
        "notes.txt": "3 cats and 1 dog",
        "x.json": "{",
        "y.json": "3",
        "config.yaml": "classes: [a]",
        "z.xml": "<x/>",
    }
    assert recognise(make(tmp_path, files), "folder") is None
    assert recognise(tmp_path / "nowhere", "folder") is None
