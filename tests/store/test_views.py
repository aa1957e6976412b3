"""What a connection to a store's views makes of DuckDB's errors."""

import errno
import os
import signal

import duckdb
import pytest

from ood_audit.errors import StoreError
from ood_audit.store import open_store
from ood_audit.store.views import connect


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_told_with_a_remedy(example_store, code):
    store = open_store(example_store)
    told = f"cannot write to the store .*: {os.strerror(code).lower()}; finished work is kept, free some space"
    with pytest.raises(StoreError, match=told), connect(store):
        raise duckdb.IOException(f'Could not write file "{store.root}/x.parquet": {os.strerror(code)}')


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux's")
def test_what_duckdb_says_of_a_full_disk_is_understood(example_store):
    with pytest.raises(StoreError, match="free some space"), connect(open_store(example_store)) as db:
        db.execute("COPY (FROM range(100000)) TO '/dev/full' (FORMAT csv)")


class Interrupted:
    """Rows during whose binding a Ctrl-C comes."""

    def __arrow_c_schema__(self) -> object:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("no Ctrl-C")

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.__arrow_c_schema__()


def test_a_ctrl_c_that_duckdb_passes_on_as_an_error_of_its_own(example_store):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt) as raised, connect(open_store(example_store)) as db:
            db.register("interrupted", Interrupted())
            db.execute("FROM interrupted")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert isinstance(raised.value.__cause__, duckdb.Error)
    assert not isinstance(raised.value.__cause__, duckdb.InterruptException)  # as it is mostly
