"""What is installed, whether it fits together, and what to do where it does not."""

from __future__ import annotations

import importlib
import os
import platform
import warnings
from dataclasses import dataclass
from importlib import metadata

import torch

_REQUIRED = ("torch", "numpy", "safetensors", "pillow", "rich", "cyclopts", "scikit-learn", "matplotlib")
_OPTIONAL = {
    "onnx": ("onnx", "coterie[onnx]", "export to ONNX"),
    "onnxscript": ("onnxscript", "coterie[onnx]", "export to ONNX"),
    "onnxruntime": ("onnxruntime", "coterie[onnx]", "checking an ONNX export"),
    "tensorboard": ("torch.utils.tensorboard", "coterie[track]", "TensorBoard logs"),
    "datasets": ("datasets", "coterie[shards]", "packed images, data.name=shards"),
    "torchvision": ("torchvision", "coterie[vision]", "networks named torchvision/NAME"),
    "timm": ("timm", "coterie[vision]", "networks named timm/NAME"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report: a part, what was found of it, and a verdict that says what to do if anything."""

    part: str
    found: str
    verdict: str


def diagnose() -> list[Finding]:
    """Look at Python, required and optional packages, and devices; nothing is changed."""
    return [
        Finding(part="python", found=platform.python_version(), verdict="ok"),
        *(_required(name) for name in _REQUIRED),
        *(_optional(name, *rest) for name, rest in _OPTIONAL.items()),
        *_devices(),
    ]


def _required(name: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(part=name, found="missing", verdict=f"run: pip install {name}")
    if name == "torch" and tuple(map(int, version.split("+")[0].split(".")[:2])) < (2, 11):
        return Finding(part=name, found=version, verdict="too old; run: pip install --upgrade 'torch>=2.11'")
    return Finding(part=name, found=version, verdict="ok")


def _optional(name: str, module: str, install: str, use: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(part=name, found="not installed", verdict=f"optional, for {use}: pip install '{install}'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"does not fit torch {torch.__version__} ({reason}); install the build that matches your torch"
        return Finding(part=name, found=version, verdict=remedy)
    return Finding(part=name, found=version, verdict="ok")


def _devices() -> list[Finding]:
    cpu = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    found = [Finding(part="cpu", found=cpu, verdict="ok")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return [*found, Finding(part="accelerator", found="none", verdict="training runs on the CPU")]
    count = torch.accelerator.device_count()
    return [*found, Finding(part="accelerator", found=f"{count} x {accelerator.type}", verdict="ok")]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
