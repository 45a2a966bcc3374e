"""Where the network runs."""

import logging
from functools import cache
from pathlib import Path

import torch

from fastrcnn.config import CudaConfig
from fastrcnn.errors import FastRCNNError
from fastrcnn.ranks import ALONE, Ranks

log = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")  # Linux alone has it
INSTRUCTIONS = {  # of x86, any of which makes products of this type faster than those of float32
    "bfloat16": {"avx512_bf16", "amx_bf16"},
    "float16": {"avx512_fp16", "amx_fp16"},
}


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; of several ranks on a machine each has a GPU of its own.

    Raises FastRCNNError for a device that cannot be used.

    That is one that is not there, or has no float64, in which boxes and RoI coordinates are computed (Apple's mps).
    """
    if name == "auto" and (ranks.world == 1 or not torch.cuda.is_available()):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith(("auto", "cuda")) and ranks.world > 1:
        name = _own_gpu(name, ranks)
    if name.split(":")[0] == "mps":
        raise FastRCNNError(f"device: {name!r} cannot be used: it has no float64, which boxes need; use cpu")
    try:
        device = torch.device(name)
        (torch.ones(1, dtype=torch.float64, device=device) + 1).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as e:
        raise FastRCNNError(f"device: {name!r} cannot be used ({str(e).splitlines()[0]}); use auto or cpu") from None
    return device


def _own_gpu(name: str, ranks: Ranks) -> str:
    if name not in ("auto", "cuda"):
        raise FastRCNNError(f"device: {name!r} is one GPU for {ranks.world} ranks; use cuda, and each has its own")
    there = torch.cuda.device_count()
    if ranks.local_world > there:
        raise FastRCNNError(
            f"device: {ranks.local_world} ranks were started on a machine with {there} GPUs; use torchrun "
            f"--nproc-per-node {max(there, 1)}, or device=cpu"
        )
    return f"cuda:{ranks.local_rank}"


def set_cuda(config: CudaConfig) -> None:
    """Put torch's switches, which are global, where the configuration has them; left alone, torch lets convolutions
    round to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = config.cudnn_benchmark


@cache
def tell_of_slow_type(precision: str, device: str) -> None:
    """Once, one line in the log where an x86 processor has no instructions for a type: it works, and takes longer than
    float32. Where the processor does not tell, nothing is said."""
    if device != "cpu" or precision not in INSTRUCTIONS or not CPU_INFO.exists():
        return
    lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), None)
    if flags is not None and not flags & INSTRUCTIONS[precision]:
        log.warning(
            "precision: this processor has no instructions for %s, and takes longer than in float32; use float32",
            precision,
        )
