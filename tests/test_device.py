import pytest
import torch

from fastrcnn import device as device_module
from fastrcnn.config import CudaConfig
from fastrcnn.device import choose_device, set_cuda, tell_of_slow_type
from fastrcnn.errors import FastRCNNError
from fastrcnn.ranks import Ranks


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for there, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == kind
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_mps_is_refused_by_name(name):
    with pytest.raises(FastRCNNError, match=f"device: '{name}' cannot be used: it has no float64.*use cpu"):
        choose_device(name)


@pytest.mark.parametrize("name", ["meta", "cuda:99", "gpu", "", "xla", "vulkan", "cpu:x", "privateuseone", "Ü"])
def test_a_device_that_cannot_compute_is_named_in_one_line(name):
    with pytest.raises(FastRCNNError, match=r"\Adevice: [^\n]* cannot be used \([^\n]+\); use auto or cpu\Z"):
        choose_device(name)


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.tensor([1.0]))
    assert [choose_device(name, Ranks(3, 4, 1, 2)) for name in ("cuda", "auto")] == [torch.device("cuda:1")] * 2
    assert choose_device("cpu", Ranks(3, 4, 1, 2)) == torch.device("cpu")
    with pytest.raises(FastRCNNError, match="'cuda:0' is one GPU for 4 ranks"):
        choose_device("cuda:0", Ranks(3, 4, 1, 2))
    with pytest.raises(FastRCNNError, match="4 ranks were started on a machine with 2 GPUs; .*--nproc-per-node 2"):
        choose_device("auto", Ranks(3, 4, 3, 4))


def test_cuda_rounds_only_where_the_configuration_says_so():
    """The last leaves torch's switches as every detector does."""
    for config, expected in (
        (CudaConfig(tf32=True), [True, True, False]),
        (CudaConfig(cudnn_benchmark=True), [False, False, True]),
        (CudaConfig(), [False, False, False]),
    ):
        set_cuda(config)
        cudnn = torch.backends.cudnn
        assert [torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark] == expected


@pytest.mark.parametrize(
    ("text", "precision", "device", "said"),
    [
        ("flags\t\t: fpu sse avx2 fma\n", "bfloat16", "cpu", True),
        ("model\t: 1\nflags\t\t: fpu avx512f avx512_bf16\n", "bfloat16", "cpu", False),
        ("flags\t\t: fpu avx512f avx512_bf16\n", "float16", "cpu", True),
        ("flags\t\t: fpu sse avx2 fma\n", "float32", "cpu", False),
        ("flags\t\t: fpu sse avx2 fma\n", "bfloat16", "cuda", False),
        ("Features\t: fp asimd\n", "bfloat16", "cpu", False),  # not x86
        (None, "bfloat16", "cpu", False),  # not Linux
    ],
)
def test_a_type_without_instructions_is_told_once(monkeypatch, tmp_path, caplog, text, precision, device, said):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(device_module, "CPU_INFO", tmp_path / "cpuinfo")
    tell_of_slow_type.cache_clear()
    for _ in range(2):
        tell_of_slow_type(precision, device)
    tell_of_slow_type.cache_clear()
    assert [f"no instructions for {precision}" in line for line in caplog.messages] == [True] * said
