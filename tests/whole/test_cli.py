"""The command line itself: formats, exit codes, environment, start-up."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pytest

from ood_audit.cli import COMMANDS
from tests.conftest import EXAMPLES, ROOT, run_cli, run_process


@pytest.fixture(scope="module")
def reported(tmp_path_factory, example_store):
    """The example store with a report, made by the command line; read only."""
    import shutil

    store = shutil.copytree(example_store, tmp_path_factory.mktemp("reported") / "store")
    done = run_cli("report", "--labels", EXAMPLES / "classes.txt", "--top", 12, "--format", "json", "--store", store)
    assert done.returncode == 0, done.stderr
    return store, done


def test_report_prints_the_ranking_and_says_where_the_page_is(reported):
    store, done = reported
    rows = json.loads(done.stdout)
    assert [row["rank"] for row in rows] == list(range(1, 13))
    assert all(row["ood_score"] == -row["delta_energy"] for row in rows)
    assert [row["ood_score"] for row in rows] == sorted((row["ood_score"] for row in rows), reverse=True)
    assert str(store / "reports" / "latest" / "report.html") in done.stderr
    with (EXAMPLES / "truth.csv").open() as file:
        planted = {row["path"] for row in csv.DictReader(file) if row["is_ood"] == "1"}
    found = {row["path"] for row in rows} & planted
    assert len(found) >= 6  # of 12; chance would give 2


def test_the_table_shows_no_number_twice_and_notes_name_options(reported, tmp_path):
    store = shutil.copytree(reported[0], tmp_path / "store")
    done = run_cli("report", "--top", 3, "--name", "shown", "--store", store)
    assert done.stdout.split("\n")[0].split() == ["rank", "path", "flagged", "p_value", "ood_score", "label", "label_2"]
    folders = run_cli("run", EXAMPLES / "images", "--store", store, "--name", "folders")
    assert "`labels" not in folders.stderr + done.stderr


def test_report_files_agree_with_each_other(reported):
    store, done = reported
    folder = store / "reports" / "latest"
    top = json.loads((folder / "report.json").read_text())
    with (folder / "report.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [row["path"] for row in top]
    assert [row["path"] for row in json.loads(done.stdout)] == [row["path"] for row in top]
    everything = duckdb.execute(f"SELECT rank, path, ood_score FROM '{folder}/report.parquet'").fetchall()
    assert [row[0] for row in everything] == list(range(1, 82))
    assert [row[1] for row in everything[:12]] == [row["path"] for row in top]
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["scored"], meta["unreadable"], meta["top"]) == (81, 1, 12)
    assert "chair/img_9999.jpg" in (folder / "report.html").read_text()


def test_views_have_the_columns_that_others_rely_on(reported):
    store, _ = reported
    columns = {
        "images": "image_id source path folder width height format size_bytes content_hash status error",
        "scores": "image_id path ood_score delta_energy energy max_cosine label label_2 margin",
        "report": "rank image_id path ood_score label source folder width height status",
        "labels": "label synonyms",
    }
    for view, names in columns.items():
        done = run_cli("query", f"SELECT {', '.join(names.split())} FROM {view} LIMIT 2", "--store", store)
        assert done.returncode == 0, done.stderr


def test_formats_hold_the_same_rows(reported):
    store, _ = reported
    sql = "SELECT rank, path, margin FROM report ORDER BY rank LIMIT 3"
    answers = {
        f: run_cli("query", sql, "--format", f, "--store", store).stdout for f in ("table", "csv", "json", "jsonl")
    }
    rows = json.loads(answers["json"])
    assert [json.loads(line) for line in answers["jsonl"].splitlines()] == rows
    assert [row["path"] for row in csv.DictReader(io.StringIO(answers["csv"]))] == [row["path"] for row in rows]
    assert answers["table"].splitlines()[0].split() == ["rank", "path", "margin"]
    assert len(answers["table"].splitlines()) == 5


def test_scores_are_kept_until_something_changes(reported, tmp_path):
    import shutil

    store = shutil.copytree(reported[0], tmp_path / "store")
    again = run_cli("report", "--top", 1, "--store", store)
    assert "(as scored before)" in again.stderr
    assert "8 classes last used" in again.stderr
    other = run_cli("report", "--top", 1, "--temperature", 0.01, "--top-c", 1, "--store", store)
    assert "τ = 0.01, c = 1" in other.stderr
    assert "as scored before" not in other.stderr


def test_folder_names_are_the_vocabulary_of_last_resort(store_copy):
    done = run_cli("report", "--top", 1, "--store", store_copy, "--template-set", "simple")
    assert done.returncode == 0
    assert "the 8 folder names" in done.stderr


def test_status(reported):
    done = run_cli("status", "--format", "json", "--store", reported[0])
    (status,) = json.loads(done.stdout)
    assert (status["images"], status["unreadable"], status["classes"], status["scored"]) == (81, 1, 8, 81)
    assert status["scores_in_step"] is True
    assert status["reports"] == "latest"


def test_environment_variables(reported):
    store, _ = reported
    done = run_cli("query", "SELECT 1 AS one", OOD_AUDIT_STORE=str(store), OOD_AUDIT_QUERY_FORMAT="csv")
    assert done.stdout == "one\n1\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command):
    done = run_cli(command, "--help")
    assert f"Example: ood-audit {command}" in done.stdout


HEAVY = ("torch", "open_clip", "faiss", "pyarrow", "numpy", "PIL")
# DuckDB 1, the last for Python 3.10, imports these and pandas by itself with the first parameter of a query.
_BY_DUCKDB = ("pyarrow", "numpy") if duckdb.__version__ < "2" else ()


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], (*HEAVY, "duckdb")),
        (["embed", "--help"], (*HEAVY, "duckdb")),
        (["status"], (*HEAVY, "duckdb")),
        (["query", "SELECT count(*) FROM report"], tuple(name for name in HEAVY if name not in _BY_DUCKDB)),
        (["report", "--top", "3"], ("torch", "open_clip", *(() if find_spec("umap") else ("sklearn", "scipy.stats")))),
    ],
)
def test_commands_start_without_heavy_imports(reported, arguments, unwanted):
    code = (
        "import sys\nfrom ood_audit.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as done: assert not done.code\n"
        f"print([name for name in {unwanted!r} if name in sys.modules], file=sys.stderr)"
    )
    environment = {"OOD_AUDIT_STORE": str(reported[0]), "PATH": "/usr/bin:/bin", "OOD_AUDIT_REPORT_AUTO": "0"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_output_into_a_closed_pipe_is_quiet(reported):
    command = f"{sys.executable} -m ood_audit query 'FROM range(200000)' --format csv --store '{reported[0]}' | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("range\n", "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells from /proc that the query runs")
@pytest.mark.parametrize(
    "sql",
    [
        # One task, of DuckDB's own thread or of Python's, as it happens; then one for each.
        "SELECT count(*) FROM range(100000000) a, range(1000) b WHERE a.range * b.range % 7 = 3",
        "WITH t AS MATERIALIZED (SELECT range AS r FROM range(10000000)) "
        "SELECT count(*) FROM t AS a, range(1000000) AS b WHERE a.r * b.range % 7 = 3",
    ],
)
def test_interrupting_a_long_query(reported, sql):
    running = subprocess.Popen(
        [sys.executable, "-m", "ood_audit", "query", sql, "--store", str(reported[0])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        while _processor_seconds(running.pid) < 1:  # starting takes a quarter of a second, whatever else is running
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=10)  # 0.1 s on an idle machine; the query would take hours
    finally:
        running.kill()
    assert (running.returncode, output) == (130, "")
    assert errors.strip() == "error: interrupted; finished work is kept, run the same command again to resume"


def _processor_seconds(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform == "win32", reason="waiting for a thread can't be interrupted there")
def test_an_interrupt_while_python_cleans_up_is_heeded(tmp_path):
    """As in the imports of `tune`: where a weak reference's callback is interrupted, Python prints it and goes on."""
    program = """
import signal, threading, weakref
from ood_audit import cli
from ood_audit.commands import status

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

class Lock: pass

def interrupted(_): raise KeyboardInterrupt

def slow(**options):
    lock = Lock()
    watched = weakref.ref(lock, interrupted)
    del lock
    threading.Event().wait()  # for a thread that never comes

status.command.callback = slow
cli.main(["status"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 130
    said = "error: interrupted; finished work is kept, run the same command again to resume"
    assert done.stderr.strip() == said


def test_an_interrupt_of_an_import_comes_when_its_locks_are_free(tmp_path):
    program = """
import signal, time
from types import SimpleNamespace as Of
from ood_audit import cli
from ood_audit.commands import status

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

def import_something(**options):
    signal.getsignal(signal.SIGINT)(signal.SIGINT, Of(f_code=Of(co_filename="<frozen importlib._bootstrap>")))
    print("imported")
    time.sleep(60)

status.command.callback = import_something
cli.main(["status"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert (done.returncode, done.stdout) == (130, "imported\n")
    said = "error: interrupted; finished work is kept, run the same command again to resume"
    assert done.stderr.strip() == said


@pytest.mark.parametrize("becomes", ["RuntimeError('bad file')", "OSError('bad file')", "EncoderError('bad file')"])
def test_an_interrupt_that_becomes_another_exception_is_heeded(tmp_path, becomes):
    """As libraries make of it what else goes wrong in what they do, such as that a file of weights is damaged."""
    program = f"""
import signal
from ood_audit import cli
from ood_audit.commands import status
from ood_audit.errors import EncoderError

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

def load(**options):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise {becomes} from error

status.command.callback = load
cli.main(["status"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 130
    said = "error: interrupted; finished work is kept, run the same command again to resume"
    assert done.stderr.strip() == said


def test_an_interrupt_after_the_work_is_done_ends_the_process_as_it_would_have_ended(tmp_path):
    """As where a model is still being loaded in a thread, for images that turned out to be unreadable."""
    program = """
import signal, sys, threading, time
from ood_audit import cli
from ood_audit.commands import status

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

def leave_a_thread(**options):
    threading.Thread(target=time.sleep, args=(60,)).start()
    threading._register_atexit(signal.raise_signal, signal.SIGINT)
    print("done")

status.command.callback = leave_a_thread
sys.argv[1:] = ["status"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_full_disk_is_told_also_after_an_interrupt(tmp_path):
    """As where `tune`, ended by a Ctrl-C, saves the best prompts so far: they are not kept."""
    program = """
import errno, signal
from ood_audit import cli
from ood_audit.commands import status
from ood_audit.errors import StoreError

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

def train_and_save(**options):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    raise StoreError("no space left") from OSError(errno.ENOSPC, "No space left on device")

status.command.callback = train_and_save
cli.main(["status"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (1, "error: no space left\n")


@pytest.mark.skipif(duckdb.__version__ < "2", reason="it makes no enumerations while it is loaded")
def test_an_interrupt_while_a_library_is_loaded_comes_after(tmp_path):
    """DuckDB's would abort the process where its enumerations are made."""
    program = """
import enum, signal, time
from ood_audit import cli
from ood_audit.commands import status

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored

def load(**options):
    make, left = enum.EnumType.__call__, [1]
    def interrupted(*arguments, **names):
        if left: left.pop(), signal.raise_signal(signal.SIGINT)
        return make(*arguments, **names)
    enum.EnumType.__call__ = interrupted
    import duckdb
    assert not left
    print("loaded")
    time.sleep(60)

status.command.callback = load
cli.main(["status"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (130, "loaded\n")


def test_a_second_interrupt_while_the_first_is_told(tmp_path):
    program = """
import signal
from ood_audit import cli
from ood_audit.commands import status

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
tell = cli._interrupted
cli._interrupted = lambda: (tell(), signal.raise_signal(signal.SIGINT))
status.command.callback = lambda **options: signal.raise_signal(signal.SIGINT)
cli.main(["status"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 130
    assert done.stderr.strip() == "error: interrupted; finished work is kept, run the same command again to resume"


def test_a_process_ends_without_tearing_down_but_does_what_is_to_be_done_at_exit(tmp_path):
    program = """
import atexit, os, sys
from ood_audit import cli
from ood_audit.commands import status

class Large:
    def __del__(self, write=os.write): write(1, b"freed")

large = Large()

def register(**options):
    atexit.register(print, "at exit")
    return 3

status.command.callback = register
sys.argv[1:] = ["status"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "at exit\n", "")


def test_an_error_of_ours_is_one_line_and_debug_shows_it(reported):
    (arguments := ["query", "SELECT nope", "--store", str(reported[0])])
    done = run_cli(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "images(image_id, source, path" in done.stderr
    assert "Traceback" in run_process("--debug", *arguments).stderr


def test_python_api_mirrors_the_commands(store_copy):
    import ood_audit

    made = ood_audit.report(store_copy, labels=["airplane", "butterfly", "chair"], top=5, name="mine")
    assert made.html.exists()
    assert len(made.rows) == 5
    assert made.scores.vocabulary.names == ["airplane", "butterfly", "chair"]
    store = ood_audit.open_store(store_copy)
    assert store.query("SELECT count(*) FROM report").rows == [(81,)]
    assert {name for name in ood_audit.__all__ if not hasattr(ood_audit, name)} == set()
