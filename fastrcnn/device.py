"""Where the network runs."""

import torch

from fastrcnn.errors import FastRCNNError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises FastRCNNError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise FastRCNNError(f"device: {name!r} cannot be used ({str(e).splitlines()[0]}); use auto or cpu") from None
    return device
