"""Fast R-CNN (Girshick 2015) on PyTorch: train, evaluate, detect.

>>> import fastrcnn
>>> found = fastrcnn.load("model.safetensors").detect("street.jpg")
>>> for name, score, box in found.above(0.999):
...     print(name, score, box)
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from fastrcnn.api import evaluate as evaluate
    from fastrcnn.api import train as train
    from fastrcnn.detect.detector import Detector
else:
    from fastrcnn import api, evaluate, train

    class _CalledPackage(ModuleType):
        """A sub-package that is also a function.

        `fastrcnn.train(config)` and `import fastrcnn.train.loop` want one name. An import sets the attribute to the
        sub-package, whatever was there, and finds modules through it; so a function of this name would either be
        replaced by the first import or hide the modules. A package that can be called serves both in any order.
        """

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.__wrapped__(*args, **kwargs)

    for _package, _function in ((train, api.train), (evaluate, api.evaluate)):
        _package.__class__, _package.__wrapped__, _package.__doc__ = _CalledPackage, _function, _function.__doc__


def load(weights: "str | Path", device: str = "auto", precision: str | None = None) -> "Detector":
    """A detector from a weights file, which is all it needs; a run's folder or a checkpoint will do, and an ONNX file
    of tools/export.py, which runs on the CPU in float32.

    >>> detector = fastrcnn.load("model.safetensors", precision="bfloat16")

    On Linux, set the environment variable THP_MEM_ALLOC_ENABLE=1 before torch is imported, as the tools do: large
    tensors then lie in huge pages. With glibc, MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=2147483647 before Python
    starts let it keep the memory that it frees. Without the two, convolutions take 17 to 46 % more time.

    `precision` (float32, bfloat16 or float16) overrides the one of training; of weights in int8, it is that of the
    little that is not in int8. Raises FastRCNNError for a file that is
    not whole or not a weights file, and a device that is not there.
    """
    from fastrcnn.detect.detector import Detector
    from fastrcnn.detect.onnx_detector import SUFFIX, load_onnx
    from fastrcnn.device import choose_device
    from fastrcnn.model.weights import load_model

    if str(weights).lower().endswith(SUFFIX):
        return load_onnx(weights, device, precision)
    place = choose_device(device)
    model, config = load_model(weights, precision, with_int8=True)
    return Detector(model, config, place)


def __getattr__(name: str) -> str:
    """`__version__`, read from the installed package when it is asked for: the import would slow every start."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fastrcnn")
    except PackageNotFoundError:
        return "0+clone"  # run from a clone that was not installed
