"""The table of findings, its view, and choosing among them."""

import json
import math

import pyarrow.parquet as pq
import pytest

import ood_audit
from ood_audit.errors import StoreError, UsageError
from ood_audit.findings import records
from ood_audit.store import findings
from ood_audit.store.findings import Finding
from tests.conftest import run_cli
from tests.helpers.findings import write_findings

COLUMNS = ["image_id", "uri", "path", "kind", "severity", "evidence", "suggestion", "report"]
TYPES = ["VARCHAR", "VARCHAR", "VARCHAR", "VARCHAR", "FLOAT", "VARCHAR", "VARCHAR", "VARCHAR"]
CUP, CHAIR = "cup/img_0001.jpg", "chair/img_9999.jpg"


def test_view_has_its_columns_with_and_without_findings(store_copy):
    store = ood_audit.open_store(store_copy)
    described = "SELECT column_name, column_type FROM (DESCRIBE issues)"
    assert store.query(described).rows == list(zip(COLUMNS, TYPES, strict=True))
    assert store.query("FROM issues").rows == []
    write_findings(store_copy, {CUP: "ood"})
    assert store.query(described).rows == list(zip(COLUMNS, TYPES, strict=True))
    assert pq.read_schema(store.reports / "latest" / findings.FILE).names == COLUMNS


def test_what_is_written_is_read_and_queried(store_copy):
    rows = write_findings(store_copy, {CUP: ["label", "ood"], CHAIR: "unreadable"})
    store = ood_audit.open_store(store_copy)
    read = records.read(store)
    assert [(r.image_id, r.uri, r.path, r.kind, r.evidence, r.suggestion, r.report) for r in read] == [
        (r.image_id, r.uri, r.path, r.kind, r.evidence, r.suggestion, r.report) for r in rows
    ]
    assert [r.severity for r in read] == pytest.approx([r.severity for r in rows])
    sql = "SELECT path, kind FROM issues JOIN images USING (image_id, uri, path) ORDER BY ALL"
    done = run_cli("query", sql, "--store", store_copy, "--format", "json")
    assert [tuple(row.values()) for row in json.loads(done.stdout)] == [
        (CHAIR, "unreadable"),
        (CUP, "label"),
        (CUP, "ood"),
    ]


def test_more_findings_than_a_batch(store_copy, monkeypatch):
    monkeypatch.setattr(records, "_BATCH", 7)
    path = ood_audit.open_store(store_copy).reports / "latest" / findings.FILE
    records.write(path, (Finding(f"{i}", "", "", "ood", 0.5, "", "", "latest") for i in range(30)), generation=1)
    assert {row.image_id for row in records.read(ood_audit.open_store(store_copy))} == {str(i) for i in range(30)}


def test_no_findings_are_a_table_too(store_copy):
    write_findings(store_copy, {})
    assert records.read(ood_audit.open_store(store_copy)) == []


@pytest.mark.parametrize(("kind", "severity"), [("dup", 0.5), ("ood", 1.01), ("ood", -0.1), ("ood", math.nan)])
def test_what_is_no_finding_is_refused_and_leaves_the_old_table(store_copy, kind, severity):
    write_findings(store_copy, {CUP: "ood"})
    store = ood_audit.open_store(store_copy)
    path = store.reports / "latest" / findings.FILE
    with pytest.raises(ValueError, match="not a finding"):
        records.write(path, [Finding("1", "", "", kind, severity, "", "", "latest")], generation=1)
    assert [row.path for row in records.read(store)] == [CUP]
    assert [file.name for file in path.parent.iterdir()] == [findings.FILE]


def test_the_current_report_is_the_one_in_current_json(store_copy):
    store = ood_audit.open_store(store_copy)
    write_findings(store_copy, {CUP: "ood"})
    write_findings(store_copy, {CHAIR: "unreadable"}, report="mine")
    assert store.query("SELECT path FROM issues").rows == [(CUP,)]
    store.set_current(report="mine")
    assert store.query("SELECT path FROM issues").rows == [(CHAIR,)]
    assert [row.path for row in records.read(store)] == [CHAIR]
    assert [row.path for row in records.read(store, "latest")] == [CUP]


def test_a_report_that_is_not_there(store_copy):
    store = ood_audit.open_store(store_copy)
    with pytest.raises(StoreError, match="no findings to act on yet: run `ood-audit report`"):
        records.read(store)
    write_findings(store_copy, {CUP: "ood"}, report="mine")
    with pytest.raises(StoreError, match="no report latest with findings; there are: mine"):
        records.read(store, "latest")
    for name in ("../reports/mine", "", "min\n"):
        with pytest.raises(StoreError):
            records.read(store, name)


def test_a_damaged_table_is_an_error_of_the_store(store_copy):
    write_findings(store_copy, {CUP: "ood"})
    path = store_copy / "reports" / "latest" / findings.FILE
    path.write_bytes(path.read_bytes()[:-30])
    for arguments in (["query", "FROM issues"], ["export", "--flagged"], ["quarantine", store_copy / "q", "--flagged"]):
        done = run_cli(*arguments, "--store", store_copy)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert "damaged" in done.stderr


def test_selecting_names_its_kinds(store_copy):
    write_findings(store_copy, {CUP: "ood"})
    for kinds in ([], ["ood", "nothing"]):
        with (
            pytest.raises(UsageError, match="one or more of the kinds"),
            records.selecting(ood_audit.open_store(store_copy), kinds),
        ):
            pass
