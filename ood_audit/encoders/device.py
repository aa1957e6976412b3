"""Everything that depends on the device: choosing it, its precision, and moving data to it."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from ood_audit.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` → a device that is there; UsageError where it is not."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: this machine has {count} CUDA devices; use --device auto")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: this machine has no Apple GPU; use --device auto")
    elif device.type != "cpu":
        raise UsageError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 (else fp16) on CUDA, where it is free, and fp32 elsewhere."""
    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise UsageError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16")
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for a forward pass; weights stay in float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor over; to CUDA through pinned memory, without waiting."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def worker_count() -> int:
    """How many threads decode images: one a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reuse_freed_memory() -> None:
    """Let glibc keep the memory that a forward pass frees, instead of returning and faulting it in at every layer.

    On a CPU this is worth a third of the time, more where decoding threads compete. What is kept is bounded by the
    largest batch. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, 1 << 30)
