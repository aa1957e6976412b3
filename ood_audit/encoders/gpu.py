"""Whether there is a GPU to compute on. torch knows, and is imported only where there may be one."""

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_cpu(device: str) -> bool:
    """Whether `auto`, `cpu`, `cuda`, `cuda:N` or `mps` is the CPU."""
    if device != "auto":
        return device == "cpu"
    if sys.platform == "linux" and "torch" not in sys.modules and not _gpu_driver():
        return True
    import torch

    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def choose_gpu(device: str) -> "torch.device | None":
    """The GPU of `auto`, `cuda`, `cuda:N` or `mps`; None for the CPU. See `device.choose_device`, also for errors."""
    if is_cpu(device):
        return None
    from ood_audit.encoders.device import choose_device

    chosen = choose_device(device)
    return None if chosen.type == "cpu" else chosen


def _gpu_driver() -> bool:
    """Whether there is a driver of NVIDIA's or AMD's, without which torch finds no GPU."""
    if os.path.exists("/dev/kfd"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
