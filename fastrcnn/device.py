"""Where the network runs."""

import torch

from fastrcnn.errors import FastRCNNError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises FastRCNNError for a device that cannot be used.

    That is one that is not there, or has no float64, in which boxes and RoI coordinates are computed (Apple's mps).
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] == "mps":
        raise FastRCNNError(f"device: {name!r} cannot be used: it has no float64, which boxes need; use cpu")
    try:
        device = torch.device(name)
        (torch.ones(1, dtype=torch.float64, device=device) + 1).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as e:
        raise FastRCNNError(f"device: {name!r} cannot be used ({str(e).splitlines()[0]}); use auto or cpu") from None
    return device
