"""The memory of a process with all its children."""

import os
import threading
from pathlib import Path


def own_peak() -> float:
    """The most memory that this process has held, in MB. `getrusage` would count what its parent held at the start."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Watch(threading.Thread):
    """The most memory that a process and its children held together, in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.done = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.2):
            parents = {}
            for entry in os.listdir("/proc"):
                try:
                    if entry.isdigit():
                        parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    pass
            family, more = {self.pid}, True
            while more:
                more = bool(new := {p for p, parent in parents.items() if parent in family} - family)
                family |= new
            total = 0
            for pid in family:
                try:
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
                except OSError:
                    pass
            self.peak = max(self.peak, total)
