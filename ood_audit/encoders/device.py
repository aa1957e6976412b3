"""Everything that depends on the device: choosing it, its precision, and moving data to it."""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ood_audit.encoders.cpu import side_by_side, worker_count
from ood_audit.encoders.warn import warn_once
from ood_audit.errors import UsageError
from ood_audit.text import printable

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")
FP16_NEEDS_GPU = "`precision` fp16 needs a GPU to encode images; on a CPU use fp32 or bf16, with a store of its own"
# What PyTorch's allocators, cuBLAS, cuDNN and FAISS say. cuBLAS also fails to initialize where memory is full.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "alloc_failed",  # of cuBLAS, cuDNN, cuSOLVER, cuSPARSE and cuFFT
    "allocation_failed",  # of cuDNN 9
    "cublas_status_not_initialized",  # where there is no room for the workspaces of these two
    "cudnn_status_not_initialized",
    "insufficient_resources",
    "unable to find an engine",  # of cuDNN, as each needs more memory than there is
    "nvml_success == r",  # PyTorch's allocator, where it cannot even say how much there is
    "invalid buffer size",  # of MPS
    "alloc fail",  # of FAISS
)


def choose_device(name: str) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda`, `cuda:N` or `mps` to a device that works.

    `auto` takes a GPU only if it can compute a small product; otherwise it logs a warning and takes the CPU.

    Raises:
        UsageError: the device does not exist, or it was named and does not work.

    """
    if name == "auto":
        return _automatic_device()
    device = _named_device(name)
    if device.type != "cpu" and (reason := why_unusable(device)):
        raise UsageError(f"`device` {name}: {reason}; use `device=auto` or cpu")
    return device


def _automatic_device() -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda")
    elif torch.backends.mps.is_available():
        device = torch.device("mps")
    else:
        return CPU
    if reason := why_unusable(device):
        warn_once(f"{reason}; using the CPU instead")
        return CPU
    return device


@lru_cache(maxsize=64)
def why_unusable(device: torch.device) -> str | None:
    """Try a small product on a GPU, once per process. Returns None if it works, otherwise the reason in words."""
    try:
        ones = torch.ones(8, 8, device=device)
        if float((ones @ ones).sum().cpu()) == 512:
            return None
        return f"{device} computes wrong results"
    except Exception as error:  # PyTorch, CUDA and the driver each raise their own
        if is_out_of_memory(error):
            return f"{device} has no free memory (other programs may hold it)"
        if "no kernel image" in str(error):
            return f"this PyTorch has no kernels for {device} (the GPU is too old or too new for it)"
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"{device} does not work ({printable(lines[0])[:200]})"


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"`device` {name}: choose auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"`device` {name}: this machine has {count} CUDA devices; use `device=auto`")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("`device` mps: this machine has no Apple GPU; use `device=auto`")
    elif device.type != "cpu":
        raise UsageError(f"`device` {name}: choose auto, cpu, cuda, cuda:N or mps")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """The precision in which images are encoded. Texts are always encoded in float32.

    `auto` is fp32 on CPUs (but see `ClipEncoder.use_bf16` and `try_bf16`) and Apple GPUs. On CUDA it is bf16 if every
    GPU that shares the work has it in hardware, from compute capability 8.0 on, and fp16 otherwise.
    `torch.cuda.is_bf16_supported` does not tell: it counts emulation.

    Raises:
        UsageError: fp16 on a CPU.

    """
    if name == "fp16" and device.type == "cpu":
        raise UsageError(FP16_NEEDS_GPU)
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    capability = min(torch.cuda.get_device_capability(one) for one in all_devices(device))
    return "bf16" if capability >= (8, 0) else "fp16"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Mixed precision for a forward pass, whatever the weights are in; see `cast_for`."""
    if _is_float32(device, precision):
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def cast_for(tower: torch.nn.Module, device: torch.device, precision: str) -> torch.nn.Module:
    """A copy of the tower whose weights are cast once, for `autocast` to run.

    Otherwise autocast casts them anew in every pass: half of all kernels on a GPU, and longer than everything else on a
    CPU, where batches are small. The copy also takes half of the memory.
    """
    if _is_float32(device, precision):
        return tower
    return copy.deepcopy(tower).to(PRECISIONS[precision])


def _is_float32(device: torch.device, precision: str) -> bool:
    """An encoder of fp16 on a CPU encodes texts only, so its image tower is left as it is."""
    return precision == "fp32" or (precision == "fp16" and device.type == "cpu")


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor over; to CUDA through pinned memory, without waiting."""
    if device.type == "cuda" and batch.device.type == "cpu":  # CUDA tensors cannot be pinned
        pinned = batch if batch.is_pinned() else batch.pin_memory()
        return pinned.to(device, non_blocking=True)
    return batch.to(device)


def stack(pixels: Sequence[NDArray[np.uint8]], device: torch.device, size: int | None = None) -> torch.Tensor:
    """(H, W, 3) arrays → one (N, H, W, 3) uint8 tensor on the device; for CUDA written into pinned memory at once.

    It has `size` rows, if that is more than there are arrays. What is in the others is undefined.
    """
    rows = max(size or 0, len(pixels))
    batch = torch.empty((rows, *pixels[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.stack(pixels, out=batch.numpy()[: len(pixels)])
    return to_device(batch, device)


def all_devices(device: torch.device) -> list[str]:
    """The devices that share the images: every visible GPU for `cuda`, else the one that is named."""
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(device)]


def is_out_of_memory(error: Exception) -> bool:
    """Whether something failed for lack of memory, on the device or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()  # the CPU's allocator, CUDA's libraries, FAISS and MPS raise plain RuntimeErrors
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give unused GPU memory back, before a smaller batch is tried."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def forward_threads(device: torch.device, cores: int) -> tuple[int, int]:
    """How many forward passes run side by side, and how many threads each of them has.

    On a CPU there is one pass for each core, as far as `cores` and torch's own setting (OMP_NUM_THREADS) allow. Threads
    that share a pass wait for each other at every layer, and keep their cores busy meanwhile, whenever a decoding
    thread has taken a core from one of them. Passes side by side never wait. With CUDA there are two, so that one batch
    is copied while the model runs on the other. On an Apple GPU there is one, because two threads crash in Metal
    (pytorch#197805).
    """
    if device.type != "cpu":
        return 2 if device.type == "cuda" else 1, torch.get_num_threads()
    return side_by_side(max(1, min(cores, torch.get_num_threads())))


def enter_forward_thread(device: torch.device, threads: int) -> None:
    """Make the calling thread one of `forward_threads`: its own share of the cores, its own CUDA stream.

    On a CPU it takes denormal numbers for zero: they are slow, and where a softmax underflows there are many.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
    elif device.type == "cuda":
        torch.cuda.synchronize(device)  # the stream does not wait for the one that the weights were copied on
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


class ForwardPool(ThreadPoolExecutor):
    """The threads of `forward_threads`. torch's own setting is afterwards what it was before."""

    def __init__(self, device: torch.device, cores: int | None = None) -> None:
        self._before = torch.get_num_threads()
        self.passes, threads = forward_threads(device, cores or worker_count())
        super().__init__(self.passes, "forward", enter_forward_thread, (device, threads))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        torch.set_num_threads(self._before)  # what a thread sets is also the default of new ones


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on the calling thread alone: for work so small that several would rather wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
