"""Runs of `embed` and the rows that they leave in the store."""

import ood_audit


def run(sources, store, **options):
    """One `embed` on the CPU; its counts without zeros."""
    return dict(+ood_audit.embed(sources, store=store, device="cpu", **options).counts)


def rows(store, columns="path, status", where="true"):
    return ood_audit.open_store(store).query(f"SELECT {columns} FROM images WHERE {where} ORDER BY ALL").rows
