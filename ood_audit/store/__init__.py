"""The audit on disk: Parquet parts, their views in DuckDB, the FAISS index, durable files and locks."""

from ood_audit.store.locks import writing
from ood_audit.store.store import DEFAULT_STORE, Store, create_store, open_store

__all__ = ["DEFAULT_STORE", "Store", "create_store", "open_store", "writing"]
