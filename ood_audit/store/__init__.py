"""The audit on disk: Parquet parts (`parts`), their views (`views`), the FAISS index, and the paths (`layout`)."""

from ood_audit.store.layout import DEFAULT_STORE, Store, create_store, open_store, writing

__all__ = ["DEFAULT_STORE", "Store", "create_store", "open_store", "writing"]
