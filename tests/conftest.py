"""Shared fixtures. Everything runs offline on the CPU, with the bundled starter and the pictures in data/audit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import Done, invoke

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "tests" / "data" / "audit"  # small pictures of eight classes, with faults planted in them
# The same features on every processor, to four digits: for oneDNN and `bf16_in_hardware`, before torch is imported.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"
_OURS = {"OOD_AUDIT_STORE": "", "OOD_AUDIT_REPORT_AUTO": "0", "OOD_AUDIT_EVALUATE_AUTO": "0"}


def run_cli(*arguments: object, cwd: Path | None = None, **environment: str) -> Done:
    """The command line as in a fresh shell, but in this process: importing torch anew takes seconds.

    Settings are not chosen on the data unless a test asks for it: that takes a while in every new store.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**_OURS, **environment}.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        return invoke(*arguments)


def run_process(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `run_cli`, in a process of its own, for tests of what only a process shows."""
    return subprocess.run(
        [sys.executable, "-m", "ood_audit", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **_OURS, **environment},
        timeout=240,
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """The tests neither read nor write the cache folder of the person who runs them."""
    os.environ["OOD_AUDIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def encoder():
    from ood_audit.encoders.clip import load_encoder

    return load_encoder("starter", device="cpu")


@pytest.fixture(scope="session")
def example_store(tmp_path_factory):
    """A store of data/audit/images, made through the command line. Read only: copy it to change it."""
    store = tmp_path_factory.mktemp("example") / "store"
    done = run_cli("embed", EXAMPLES / "images", "--store", store)
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture
def store_copy(example_store, tmp_path):
    return Path(shutil.copytree(example_store, tmp_path / "store"))


@pytest.fixture
def pictures(tmp_path):
    """Six readable pictures in two folders, to add to and take from."""
    for folder in ("airplane", "sunflower"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for source in sorted((EXAMPLES / "images" / folder).iterdir())[:3]:
            shutil.copy(source, tmp_path / "pictures" / folder)
    return tmp_path / "pictures"


# The files that take longest, the longest first: the workers take whole files in turn (`--no-loadscope-reorder` keeps
# this order), and none is to be left with a long one at the end.
_LONGEST = (
    "embedding/test_ray",
    "whole/test_crash",
    "whole/test_soak",
    "whole/test_hostile",
    "actions/test_quarantine",
    "embedding/test_processes",
    "store/test_remote",
    "whole/test_gpu",
    "store/test_compaction",
    "embedding/test_adoption",
)


def pytest_collection_modifyitems(items):
    order = {f"{name}.py": place for place, name in enumerate(_LONGEST)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: order.get(item.path.relative_to(tests).as_posix(), len(order)))
