"""How many processes share a GPU.

Decoding and the launches of a forward pass need Python's lock, and a process has one lock. However many cores it has,
one process therefore prepares only a few thousand images a second, and a fast GPU waits. `benchmarks.feed` measures it.
"""

_CORES = 4  # with more cores, a process's threads and the launches of its forward pass wait for the lock
_MOST = 8  # processes on a GPU: each takes some gigabytes of its memory


def by_cores(cores: int) -> int:
    """How many processes should share a GPU that has this many cores to itself."""
    return min(_MOST, max(1, -(-cores // _CORES)))
