"""Two recipes by name: all that the author's two Fast R-CNN codes do differently, as values of keys.

They stand below what a configuration says itself. What both do is in the defaults of config.py. FRCN is
rbgirshick/fast-rcnn of 2015, PYF rbgirshick/py-faster-rcnn by its experiments/scripts/fast_rcnn.sh.
"""

from typing import Any

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "fast-rcnn": {
        "data": {"drop_difficult": False},  # lib/datasets/pascal_voc.py reads all objects
        "proposals": {"min_size": 1},  # all boxes of a file are used
        "model": {"size_to_last_pixel": True},  # lib/roi_data_layer/roidb.py, _compute_targets: cfg.EPS
        "sampling": {"aspect_grouping": False, "target_std": None},  # lib/roi_data_layer/layer.py, roidb.py
        "solver": {"bias_weight_decay": 0.0},  # decay_mult: 0 in models/VGG16/train.prototxt
        "test": {"detections_per_class": 40},  # lib/fast_rcnn/test.py, test_net: max_per_set
    },
    "py-faster-rcnn": {
        "data": {"drop_difficult": True},  # lib/datasets/pascal_voc.py: use_diff False
        "proposals": {"min_size": 2},  # lib/datasets/pascal_voc.py, with ds_utils.py (which asks more of the height)
        # lib/fast_rcnn/config.py: ASPECT_GROUPING; BBOX_NORMALIZE_TARGETS_PRECOMPUTED is on in its Faster R-CNN only.
        "sampling": {"aspect_grouping": True, "target_std": None},
        "model": {"size_to_last_pixel": False},  # lib/fast_rcnn/bbox_transform.py: + 1.0
        "solver": {"bias_weight_decay": None},  # no decay_mult in models/pascal_voc/VGG16/fast_rcnn/train.prototxt
        # lib/fast_rcnn/test.py, test_net: thresh, max_per_image
        "test": {"detections_per_class": None, "score_threshold": 0.05, "max_detections": 100},
    },
}


def with_recipe(tree: Any) -> Any:
    """A configuration's tree with the values of its `recipe`, if that is one, where it says nothing itself.

    >>> with_recipe({"recipe": "py-faster-rcnn", "data": {"drop_difficult": False}})["data"]
    {'drop_difficult': False}
    """
    recipe = RECIPES.get(str(tree.get("recipe"))) if isinstance(tree, dict) else None
    if recipe is None:
        return tree
    merged = dict(tree)
    for name, values in recipe.items():
        section = tree.get(name, {})
        merged[name] = {**values, **section} if isinstance(section, dict) else section
    return merged
