"""Find the images of a dataset that do not belong, with CLIP and ΔEnergy.

`open` gives one object for one audit. The functions beside it are the commands, with the same names, but for
`import_features`:

    import ood_audit

    audit = ood_audit.open("audit")
    audit.embed("images")
    report = audit.report(classes=["cat", "dog"], top=50)
    report.to_pandas(), report.html
    audit.sql("SELECT label, count(*) FROM report GROUP BY 1").df()

Everything is imported when it is first used, so that `import ood_audit` is instant.
"""

from typing import TYPE_CHECKING

from ood_audit._version import __version__

if TYPE_CHECKING:
    from ood_audit.actions.datasets.write import ExportedDataset as ExportedDataset
    from ood_audit.actions.datasets.write import export_dataset as export_dataset
    from ood_audit.actions.export import Exported as Exported
    from ood_audit.actions.export import export as export
    from ood_audit.actions.quarantine import Outcome as Outcome
    from ood_audit.actions.quarantine import Result as Result
    from ood_audit.actions.quarantine import quarantine as quarantine
    from ood_audit.actions.quarantine import restore as restore
    from ood_audit.actions.verdicts import Applied as Applied
    from ood_audit.actions.verdicts import apply as apply
    from ood_audit.audit import Audit as Audit
    from ood_audit.audit import Findings as Findings
    from ood_audit.audit import Status as Status
    from ood_audit.audit import open as open
    from ood_audit.classes.labelled import LabelledSource as LabelledSource
    from ood_audit.embedding.imported import FeatureColumns as FeatureColumns
    from ood_audit.embedding.imported import ImportResult as ImportResult
    from ood_audit.embedding.imported import import_features as import_features
    from ood_audit.embedding.run import EmbedResult as EmbedResult
    from ood_audit.embedding.run import embed as embed
    from ood_audit.embedding.settings import EmbedSettings as EmbedSettings
    from ood_audit.errors import EncoderError as EncoderError
    from ood_audit.errors import OodAuditError as OodAuditError
    from ood_audit.errors import StoreError as StoreError
    from ood_audit.errors import UsageError as UsageError
    from ood_audit.findings.comparison import Comparison as Comparison
    from ood_audit.findings.comparison import Difference as Difference
    from ood_audit.findings.naming import suggest as suggest
    from ood_audit.findings.settings import FindingSettings as FindingSettings
    from ood_audit.reports.comparison import compare as compare
    from ood_audit.reports.run import Report as Report
    from ood_audit.reports.run import report as report
    from ood_audit.scoring.evaluation import Evaluation as Evaluation
    from ood_audit.scoring.evaluation import evaluate as evaluate
    from ood_audit.scoring.run import Scores as Scores
    from ood_audit.scoring.run import score as score
    from ood_audit.scoring.settings import ScoreSettings as ScoreSettings
    from ood_audit.store import open_store as open_store
    from ood_audit.store.findings import Finding as Finding
    from ood_audit.store.forget import forget as forget
    from ood_audit.store.sources import Source as Source
    from ood_audit.store.sources import sources as sources
    from ood_audit.tuning.settings import TuneSettings as TuneSettings
    from ood_audit.tuning.tune import TuneResult as TuneResult
    from ood_audit.tuning.tune import tune as tune

_API = {
    "Applied": "ood_audit.actions.verdicts",
    "Audit": "ood_audit.audit",
    "Comparison": "ood_audit.findings.comparison",
    "Difference": "ood_audit.findings.comparison",
    "EmbedResult": "ood_audit.embedding.run",
    "EmbedSettings": "ood_audit.embedding.settings",
    "EncoderError": "ood_audit.errors",
    "Evaluation": "ood_audit.scoring.evaluation",
    "Exported": "ood_audit.actions.export",
    "ExportedDataset": "ood_audit.actions.datasets.write",
    "FeatureColumns": "ood_audit.embedding.imported",
    "Finding": "ood_audit.store.findings",
    "FindingSettings": "ood_audit.findings.settings",
    "Findings": "ood_audit.audit",
    "ImportResult": "ood_audit.embedding.imported",
    "LabelledSource": "ood_audit.classes.labelled",
    "OodAuditError": "ood_audit.errors",
    "Outcome": "ood_audit.actions.quarantine",
    "Report": "ood_audit.reports.run",
    "Result": "ood_audit.actions.quarantine",
    "ScoreSettings": "ood_audit.scoring.settings",
    "Scores": "ood_audit.scoring.run",
    "Source": "ood_audit.store.sources",
    "Status": "ood_audit.audit",
    "StoreError": "ood_audit.errors",
    "TuneResult": "ood_audit.tuning.tune",
    "TuneSettings": "ood_audit.tuning.settings",
    "UsageError": "ood_audit.errors",
    "apply": "ood_audit.actions.verdicts",
    "compare": "ood_audit.reports.comparison",
    "embed": "ood_audit.embedding.run",
    "evaluate": "ood_audit.scoring.evaluation",
    "export": "ood_audit.actions.export",
    "export_dataset": "ood_audit.actions.datasets.write",
    "forget": "ood_audit.store.forget",
    "import_features": "ood_audit.embedding.imported",
    "open": "ood_audit.audit",
    "open_store": "ood_audit.store",
    "quarantine": "ood_audit.actions.quarantine",
    "report": "ood_audit.reports.run",
    "restore": "ood_audit.actions.quarantine",
    "score": "ood_audit.scoring.run",
    "sources": "ood_audit.store.sources",
    "suggest": "ood_audit.findings.naming",
    "tune": "ood_audit.tuning.tune",
}
__all__ = ["__version__", *_API]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name not in _API:
        raise AttributeError(f"module 'ood_audit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_API[name]), name)
