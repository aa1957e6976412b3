"""What is tuned for CPUs, each with what it gains.

Nothing here changes a result by more than the rounding of float32. None of it needs torch.
"""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import TypeVar

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")

_MOST_AT_ONCE = 8  # beyond it, Python's lock is what they wait for
_CPU_FACTS = Path("/proc/cpuinfo")
_ISA_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def worker_count() -> int:
    """How many threads decode images: one for each core that this process's affinity and container allow."""
    import joblib

    return int(joblib.cpu_count())


def thread_count() -> int:
    """How many threads compute: one for each core that this process may use, as far as OMP_NUM_THREADS allows."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(worker_count(), int(asked)) if asked.isdecimal() and int(asked) else worker_count()


def side_by_side(threads: int) -> tuple[int, int]:
    """How many computations run at once where there are so many threads, and how many threads each has."""
    each = -(-threads // _MOST_AT_ONCE)
    return threads // each, each


class _Blas:
    """The threads of NumPy's own. Their limit is one for the whole process, so the last of its users takes it back."""

    def __init__(self) -> None:
        self._changing, self._users, self._limits = Lock(), 0, ExitStack()

    @contextmanager
    def limited(self, threads: int) -> Iterator[None]:
        from threadpoolctl import threadpool_limits

        with self._changing:
            if not self._users:
                self._limits.enter_context(threadpool_limits(threads, "blas"))
            self._users += 1
        try:
            yield
        finally:
            with self._changing:
                self._users -= 1
                if not self._users:
                    self._limits.close()


_BLAS = _Blas()


def mapped(function: Callable[[_Item], _Value], items: Iterable[_Item]) -> Iterator[_Value]:
    """`function` of each item, in order, computed with NumPy: several at once, one for each core."""
    at_once, threads = side_by_side(thread_count())
    pool = ThreadPoolExecutor(at_once, "compute")
    pending: deque[Future[_Value]] = deque()
    with _BLAS.limited(threads):
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * at_once:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def bf16_in_hardware() -> bool:
    """Whether the processor multiplies bfloat16 itself: AVX512-BF16, AMX, or Arm's. Known on Linux only.

    Others emulate it, several times as slow as float32; so does oneDNN, which multiplies for torch, where
    ONEDNN_MAX_CPU_ISA has it leave these instructions alone.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISA_WITHOUT_BF16:
        return False
    try:
        lines = _CPU_FACTS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.partition(":")[2].split())


def reuse_freed_memory() -> None:
    """Let glibc keep the memory that a forward pass frees, instead of returning and faulting it in at every layer.

    On a CPU this is worth a third of the time, more where decoding threads compete. What is kept is bounded by the
    largest batch; what is free now is returned first. Other C libraries are left as they are. Only who embeds images
    calls it: a process that does anything else would keep the largest of all that it ever had.
    """
    return_freed_memory()
    if (library := _glibc()) is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            library.mallopt(option, 1 << 30)


def share_freed_memory() -> None:
    """Let glibc give what one thread has freed to others as well, from now on, where each would have its own.

    That takes no time, and a report of 5,000 images holds 60 MB less.
    """
    if (library := _glibc()) is not None:
        library.mallopt(-8, worker_count())  # M_ARENA_MAX


def return_freed_memory() -> None:
    """Return to the system what glibc holds of freed memory, such as after a model was loaded."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> "ctypes.CDLL | None":
    """The C library, where it is glibc."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError):
        return None
