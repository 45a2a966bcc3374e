"""The machine that was measured, and the results as text."""

import platform
from pathlib import Path
from typing import Any


def machine(device: Any) -> dict[str, Any]:
    import torch
    import torchvision

    about = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in about if line.startswith("model name")]
    card: dict[str, Any] = {}
    if device.type == "cuda":
        version = torch.backends.cudnn.version()
        card = {"card": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "cudnn": version}
    return {
        **card,
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def as_text(result: dict[str, Any]) -> str:
    lines = [f"{name}: {value}" for name, value in result["machine"].items()]
    parts = result.get("parts", {"": result})
    return "\n".join(lines + [f"\n{what and f'== {what}'}\n{_of_part(part)}".rstrip() for what, part in parts.items()])


def _of_part(result: dict[str, Any]) -> str:
    lines = []
    for name, rate in result.get("rates", {}).items():
        lines.append(f"rate of a matrix product, {name}: {rate:.0f} GFLOP/s")
    for name, values in result["cases"].items():
        lines.append(f"\n{name}: " + ", ".join(f"{key} {number(value)}" for key, value in values.items()))
        for row in result.get("stages", {}).get(name, ()):
            line = f"  {row['stage']:<14}{row['ms']:>10.1f} ms {row['share']:>6.1%} {row['gflop']:>8.1f} GFLOP"
            lines.append(line + (f"{row['floor / measured']:>8.2f}" if "floor / measured" in row else ""))
    lines.append("")
    lines += [f"{name}: {number(value)}" for name, value in result.get("checks", {}).items()]
    return "\n".join(lines)


def number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
