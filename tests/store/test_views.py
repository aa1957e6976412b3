"""What a connection to a store's views makes of DuckDB's errors."""

import errno
import os

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
