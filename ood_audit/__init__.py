"""What in this image dataset does not belong?

The commands as functions; each is imported when it is first used, so that `import ood_audit` is instant:

    import ood_audit

    ood_audit.embed(["./images"], store=".ood-audit")
    result = ood_audit.report(".ood-audit", labels="classes.txt", top=100)
    result.rows[0]["path"], result.html
    ood_audit.open_store(".ood-audit").query("SELECT count(*) FROM images").rows
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ood_audit.audit.export import export as export
    from ood_audit.audit.naming import suggest as suggest
    from ood_audit.audit.quarantine import quarantine as quarantine
    from ood_audit.audit.quarantine import restore as restore
    from ood_audit.embedding import embed as embed
    from ood_audit.errors import OodAuditError as OodAuditError
    from ood_audit.evaluation import evaluate as evaluate
    from ood_audit.reports import report as report
    from ood_audit.scoring import score as score
    from ood_audit.store import open_store as open_store
    from ood_audit.store.sources import forget as forget
    from ood_audit.store.sources import sources as sources
    from ood_audit.tuning.tune import tune as tune

_API = {
    "OodAuditError": "ood_audit.errors",
    "embed": "ood_audit.embedding",
    "evaluate": "ood_audit.evaluation",
    "export": "ood_audit.audit.export",
    "forget": "ood_audit.store.sources",
    "open_store": "ood_audit.store",
    "quarantine": "ood_audit.audit.quarantine",
    "report": "ood_audit.reports",
    "restore": "ood_audit.audit.quarantine",
    "score": "ood_audit.scoring",
    "sources": "ood_audit.store.sources",
    "suggest": "ood_audit.audit.naming",
    "tune": "ood_audit.tuning.tune",
}
__all__ = [
    "OodAuditError",
    "__version__",
    "embed",
    "evaluate",
    "export",
    "forget",
    "open_store",
    "quarantine",
    "report",
    "restore",
    "score",
    "sources",
    "suggest",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'ood_audit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_API[name]), name)
