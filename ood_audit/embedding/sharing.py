"""How many processes share a GPU.

Decoding and the launches of a forward pass need Python's lock, and a process has one lock. The more threads share it,
the longer each of them waits, and a fast GPU with them. `benchmarks.feed` measures it.
"""

_CORES = 2  # of a process; with more, the same cores decode fewer images
_MOST = 16  # processes on a GPU: each takes gigabytes of its memory, and of the machine's


def by_cores(cores: int) -> int:
    """How many processes should share a GPU that has this many cores to itself."""
    return min(_MOST, max(1, -(-cores // _CORES)))
