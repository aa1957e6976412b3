"""What in this image dataset does not belong?

The commands as functions; each is imported when it is first used, so that `import ood_audit` is instant:

    import ood_audit

    ood_audit.embed(["./images"], store=".ood-audit")
    result = ood_audit.report(".ood-audit", labels="classes.txt", top=100)
    result.rows[0]["path"], result.html
    ood_audit.open_store(".ood-audit").query("SELECT count(*) FROM images").rows
"""

from typing import TYPE_CHECKING, Any

from ood_audit._version import __version__

if TYPE_CHECKING:
    from ood_audit.actions.export import export as export
    from ood_audit.actions.quarantine import quarantine as quarantine
    from ood_audit.actions.quarantine import restore as restore
    from ood_audit.embedding.run import embed as embed
    from ood_audit.errors import OodAuditError as OodAuditError
    from ood_audit.findings.naming import suggest as suggest
    from ood_audit.reports.run import report as report
    from ood_audit.scoring.evaluation import evaluate as evaluate
    from ood_audit.scoring.run import score as score
    from ood_audit.store import open_store as open_store
    from ood_audit.store.sources import forget as forget
    from ood_audit.store.sources import sources as sources
    from ood_audit.tuning.tune import tune as tune

_API = {
    "OodAuditError": "ood_audit.errors",
    "embed": "ood_audit.embedding.run",
    "evaluate": "ood_audit.scoring.evaluation",
    "export": "ood_audit.actions.export",
    "forget": "ood_audit.store.sources",
    "open_store": "ood_audit.store",
    "quarantine": "ood_audit.actions.quarantine",
    "report": "ood_audit.reports.run",
    "restore": "ood_audit.actions.quarantine",
    "score": "ood_audit.scoring.run",
    "sources": "ood_audit.store.sources",
    "suggest": "ood_audit.findings.naming",
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


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'ood_audit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_API[name]), name)
