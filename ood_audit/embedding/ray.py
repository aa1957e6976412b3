"""The embedding job on a Ray cluster: Ray Data hands the images to workers, this process writes their rows.

The store has one writer here as on one machine: the process that runs `embed` lists, compares and writes; workers
read, decode and embed. So a row is written once, and a killed run can be resumed, on either engine.

The work lies in a file beside the parts, in pieces. A worker that dies (killed, out of memory, its node gone) is
started again by Ray, and its piece is redone. A piece that ends its worker again and again is tried image by image,
and the images that still do so become rows with that error.
"""

import logging
import math
import os
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from ood_audit._version import __version__
from ood_audit.embedding.sharing import by_cores
from ood_audit.embedding.work import Outcome, Work, write_batch
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import EncoderError, OodAuditError, UsageError
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.store import schema
from ood_audit.store.parts import PartWriter
from ood_audit.text import printable
from ood_audit.values import JsonObject, Row

if TYPE_CHECKING:
    import ray

    from ood_audit.embedding.pipeline import Pipeline
    from ood_audit.encoders.loading import Encoder

_Value = TypeVar("_Value")

_BATCH = {"cpu": 8, "cuda": 256}  # as in ClipEncoder
_PIECE_BATCHES = {"cpu": 32, "cuda": 8}  # a piece: what a dying worker costs, and what a message to one carries
_EACH = 4  # pieces that each worker should get at least, so that all end at about the same time
_PEEK = 100_000  # images: with more, there are enough whole pieces for all
_PIECES = 20_000  # at a time: Ray Data holds a task for each
_AT_ONCE = 2  # pieces that a worker has at hand: while the last batches of one pass, the next one is decoded
_FED = 8  # workers that one process reads pieces for: Ray Data takes a sixth of a second for each piece
_TRIES = 3  # of a piece whose worker dies; Ray's own are without end
_LOST = 16  # pieces that may be given up; with more, it is not the images
_FATAL = "ends the process that reads it"
_WORK = pa.schema(
    [
        ("uri", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("is_new", pa.bool_()),
        ("known_error", pa.string()),
    ]
)
_FACTS = [field.name for field in fields(Decoded) if field.name != "pixels"]
_RESULT = pa.schema(
    [
        ("piece", pa.int64()),
        *schema.arrow({name: kind for name, kind in schema.PARTS.items() if name in _FACTS}),
        ("embedding", pa.binary()),  # (D,) float32
        ("batch_limit", pa.int32()),  # what memory allows, where a batch was halved
        ("lost", pa.bool_()),  # the piece was given up
        ("failure", pa.string()),  # why the worker can't go on, whatever the image
    ]
)


@dataclass(frozen=True)
class Plan:
    """Where workers run, and what each of them gets.

    Attributes:
        kind: `cpu` or `cuda`.
        nodes: by the id of a node, its places for workers (GPUs, or cores where there are none) and its cores.
        sharing: how many workers share a GPU; 1 on CPUs.

    """

    kind: str
    nodes: dict[str, tuple[int, int]]
    sharing: int = 1

    @property
    def count(self) -> int:
        """How many workers there are."""
        return self.sharing * sum(places for places, _ in self.nodes.values())

    @property
    def cpus(self) -> float:
        """The cores that Ray sets aside for a worker: no more than any node has, so it may be a fraction."""
        share = min(cores / (places * self.sharing) for places, cores in self.nodes.values())
        return math.floor(share) if share >= 1 else math.floor(share * 1e4) / 1e4  # Ray counts in ten-thousandths

    @property
    def gpus(self) -> float:
        """The share of a GPU that Ray sets aside for a worker."""
        return 1 / self.sharing if self.kind == "cuda" else 0

    def cores_on(self, node: str) -> int:
        """The threads that decode for a worker on a node: its share of the cores there, whatever other nodes have."""
        places, cores = self.nodes.get(node, (1, 0))
        return max(1, cores // (places * self.sharing))


@dataclass(frozen=True)
class Workers:
    """The encoder of `identity` on every worker of the cluster, each with so many pieces of work at once."""

    identity: EncoderIdentity
    plan: Plan
    at_once: int = _AT_ONCE

    @property
    def device(self) -> str:
        """For people."""
        what = "GPU" if self.plan.kind == "cuda" else "CPU"
        return f"{self.plan.count} {what} worker{'s' * (self.plan.count != 1)} of a Ray cluster"


def load_encoder(
    model: str = "auto", *, weights: str | None = None, device: str = "auto", precision: str = "auto"
) -> Workers:
    """As `encoders.clip.load_encoder`, on a worker: `auto` is what suits the workers, not this machine.

    Raises:
        UsageError: Ray could not be imported, or has no such device.
        EncoderError: the model could not be loaded.
        OodAuditError: the cluster can't be reached.

    """
    plan = _plan(device)
    identity, room = _ask_a_worker(plan, _identify, model, weights, plan.kind, precision)
    return Workers(EncoderIdentity.from_json(identity), _at_most(plan, room))


def load_same_encoder(identity: EncoderIdentity, *, device: str = "auto") -> Workers:
    """The workers for a store's encoder. Each loads it when it starts, and compares."""
    plan = _plan(device)
    return Workers(identity, _at_most(plan, _ask_a_worker(plan, _room, identity)) if plan.sharing > 1 else plan)


def _at_most(plan: Plan, room: int) -> Plan:
    """A plan with no more workers a GPU than its memory has room for, but one."""
    return replace(plan, sharing=max(1, min(plan.sharing, room)))


def _ask_a_worker(plan: Plan, function: Callable[..., _Value], *arguments: object) -> _Value:
    """What a function gives on a worker that has a GPU to itself, if the workers have GPUs."""
    import ray

    ask = ray.remote(function).options(num_cpus=plan.cpus, num_gpus=int(plan.kind == "cuda"), max_retries=_TRIES)
    try:
        answer: _Value = ray.get(ask.remote(*arguments))
        return answer
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OodAuditError):
            raise error.cause from None
        raise _failed(error) from error
    except ray.exceptions.RayError as error:
        raise _failed(error) from error


def embed_images(
    work: Iterable[Work],
    encoder: Workers,
    writer: PartWriter,
    *,
    batch_size: int | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[Outcome]:
    """Decode and embed images on the cluster, and write their rows here, in the order in which they are done.

    Args:
        work: the images.
        encoder: the workers.
        writer: is written to by this process alone.
        batch_size: images a forward pass; by default what suits the device.
        on_note: called when a worker has halved its batches.

    Yields:
        For each image its outcome (`added`, `changed` or `unreadable`), the image, and its error.

    Raises:
        EncoderError: a worker can't load the encoder, or it is another there.
        OodAuditError: workers fail for another reason than an image, or die again and again.

    """
    batch_size = batch_size or _BATCH[encoder.plan.kind]
    path = writer.store.images / ".work.arrow.tmp"
    work, rows = _piece_rows(iter(work), encoder.plan, batch_size)
    try:
        while counts := _write_work(path, islice(work, rows * _PIECES), rows):
            pieces = [_Piece(number, 0, count) for number, count in enumerate(counts)]
            lost: list[_Piece] = []
            yield from _embed_pieces(path, pieces, encoder, writer, batch_size, on_note, lost)
            pieces = [_Piece(piece.batch, row, 1) for piece in lost for row in range(piece.count)]
            lost = []
            # One at a time: an image beside one that ends its worker must not be blamed for it.
            yield from _embed_pieces(path, pieces, replace(encoder, at_once=1), writer, 1, on_note, lost)
            for piece in lost:
                for item in _read_work(path, piece):
                    facts = Decoded(size_bytes=item.image.size_bytes, mtime_ns=item.image.mtime_ns, error=_FATAL)
                    yield from write_batch(writer, [item], [facts], None)
    finally:
        path.unlink(missing_ok=True)


def _piece_rows(work: Iterator[Work], plan: Plan, batch_size: int) -> tuple[Iterator[Work], int]:
    """The work, and how many images to put into a piece of it: fewer where there are few for so many workers."""
    first = list(islice(work, _PEEK))
    most = batch_size * _PIECE_BATCHES[plan.kind]
    rows = most if len(first) == _PEEK else min(most, max(batch_size, -(-len(first) // (_EACH * plan.count))))
    return chain(first, work), rows


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a record batch of the work file."""

    batch: int
    start: int
    count: int


def _embed_pieces(
    path: Path,
    pieces: Sequence[_Piece],
    encoder: Workers,
    writer: PartWriter,
    batch_size: int,
    on_note: Callable[[str], None],
    lost: list[_Piece],
) -> Iterator[Outcome]:
    """As `embed_images`. Each piece is written once, or added to `lost`."""
    import ray

    left = set(range(len(pieces)))
    arrived: dict[int, list[Row]] = defaultdict(list)
    limit = batch_size
    try:
        tables = _dataset(path, pieces, encoder, batch_size).iter_batches if pieces else _nothing
        for table in tables(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                if row["failure"]:
                    raise EncoderError(row["failure"])
                if row["piece"] in left:
                    arrived[row["piece"]].append(row)
            for number in [number for number, rows in arrived.items() if len(rows) == pieces[number].count]:
                left.remove(number)
                rows = arrived.pop(number)
                if rows[0]["lost"]:
                    lost.append(pieces[number])
                    continue
                smallest = min((row["batch_limit"] for row in rows if row["batch_limit"]), default=batch_size)
                if smallest < limit:
                    limit = smallest
                    on_note(f"out of memory on a worker: continuing with {limit} images in a forward pass")
                decoded = [Decoded(**{name: row[name] for name in _FACTS}) for row in rows]
                vectors = [np.frombuffer(row["embedding"], np.float32) for row in rows if row["embedding"] is not None]
                features = np.stack(vectors) if vectors else None
                yield from write_batch(writer, _read_work(path, pieces[number]), decoded, features)
            if len(lost) > _LOST:
                raise _dying(f"{len(lost)} pieces of work were given up")
    except ray.exceptions.RayError as error:
        raise _failed(error) from error
    if left:
        raise OodAuditError(f"Ray lost {len(left)} pieces of work; run the same command again to resume")


def _dataset(path: Path, pieces: Sequence[_Piece], encoder: Workers, batch_size: int) -> "ray.data.Dataset":
    """The pieces, as Ray Data sees them: read on this machine, embedded wherever there are workers."""
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class WorkFile(Datasource):  # type: ignore[misc]
        supports_distributed_reads = False  # it lies on this machine

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
            return [
                ReadTask(partial(_read_piece, path, number, piece), BlockMetadata(piece.count, None, None, None))
                for number, piece in enumerate(pieces)
            ]

    tries = ray.remote(_Tries).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(_TRIES)
    with _quiet(ray.data.DataContext.get_current()):
        readers = 1 + encoder.plan.count // _FED
        work = ray.data.read_datasource(WorkFile(), num_cpus=0, concurrency=readers, override_num_blocks=len(pieces))
        return work.map_batches(
            _Encoder,
            fn_constructor_args=(encoder, batch_size, tries, __version__),
            batch_size=max(piece.count for piece in pieces),
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(encoder.plan.count, len(pieces)),
                max_concurrent_calls_per_actor=encoder.at_once,
                enable_true_multi_threading=encoder.at_once > 1,
            ),
            num_cpus=encoder.plan.cpus,
            num_gpus=encoder.plan.gpus,
        )


class _Tries:
    """Counts how often each piece was begun, in a process of its own: what no worker survives to tell."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun: Counter[int] = Counter()

    def begin(self, pieces: list[int]) -> bool:
        """Whether to go on with them."""
        self._begun.update(pieces)
        return max(self._begun[piece] for piece in pieces) <= self._limit

    def end(self, pieces: list[int]) -> None:
        """They are done."""
        for piece in pieces:
            del self._begun[piece]


class _Encoder:
    """A worker: holds the encoder, and embeds pieces, each in a thread of its own."""

    def __init__(self, workers: Workers, batch_size: int, tries: "ray.actor.ActorHandle", version: str) -> None:
        from ood_audit.images.noise import quiet_libraries

        self._quiet = quiet_libraries()
        self._quiet.__enter__()  # this process is ours, and decodes until it ends
        self._batch_size = batch_size
        self._tries = tries
        self._submitting = Lock()
        self._failure = None
        try:
            if version != __version__:
                raise OodAuditError(f"it has ood-audit {__version__}, not {version}; install the same on every node")
            self._encoder, self._pipeline = self._load(workers)
        except OodAuditError as error:
            self._failure = f"a Ray worker on {socket.gethostname()} cannot embed: {error}"

    def __call__(self, work: pa.Table) -> pa.Table:
        """(uri, piece) → `_RESULT`, row by row."""
        import ray

        numbers = work["piece"].to_pylist()
        pieces = list(dict.fromkeys(numbers))
        rows: list[Row] = []
        if self._failure is None and not ray.get(self._tries.begin.remote(pieces)):
            rows = [{"lost": True}] * len(numbers)
        elif self._failure is None:
            try:
                rows = list(self._embed(work["uri"].to_pylist()))
            except Exception as error:  # from the model or the device, as `decode` raises nothing
                self._failure = (
                    f"a Ray worker on {socket.gethostname()} failed ({type(error).__name__}: "
                    f"{printable(str(error))[:300]}); finished work is kept, run the same command again to resume"
                )
        if self._failure is not None:
            rows = [{"failure": self._failure}] * len(numbers)
        self._tries.end.remote(pieces)
        return pa.Table.from_pylist(
            [row | {"piece": number} for number, row in zip(numbers, rows, strict=True)], schema=_RESULT
        )

    def _load(self, workers: Workers) -> tuple["Encoder", "Pipeline"]:
        """The encoder and its pipeline, with as many threads as the worker was given cores."""
        from ood_audit.embedding.pipeline import Pipeline
        from ood_audit.encoders.loading import load_same_encoder

        encoder = load_same_encoder(workers.identity, device=workers.plan.kind)
        if workers.plan.kind == "cpu" and "torch" in sys.modules:  # else the encoder does without it
            import torch

            torch.set_num_threads(_cores(workers))
        return encoder, Pipeline(encoder, cores=_cores(workers))

    def _embed(self, uris: list[str]) -> Iterator[Row]:
        starts = range(0, len(uris), self._batch_size)
        with self._submitting:  # so that the piece that came first is decoded first
            futures = [self._pipeline.submit(uris[start : start + self._batch_size]) for start in starts]
        for future in futures:
            decoded, features = future.result()
            rows = iter(() if features is None else features)
            for facts in decoded:
                row = {name: getattr(facts, name) for name in _FACTS} | {"batch_limit": self._encoder.batch_limit}
                yield row | {"embedding": next(rows).tobytes() if facts.error is None else None}


def _identify(model: str, weights: str | None, device: str, precision: str) -> tuple[JsonObject, int]:
    """The identity of an encoder, and how many workers with it can share a GPU; 1 without a GPU."""
    if device == "cpu":
        from ood_audit.encoders import loading

        return loading.load_encoder(model, weights=weights, device=device, precision=precision).identity.to_json(), 1
    from ood_audit.encoders.clip import load_encoder
    from ood_audit.encoders.memory import processes_that_fit

    encoder = load_encoder(model, weights=weights, device=device, precision=precision)
    return encoder.identity.to_json(), processes_that_fit(encoder)


def _room(identity: EncoderIdentity) -> int:
    """How many workers with an encoder can share a GPU."""
    from ood_audit.encoders.clip import load_same_encoder
    from ood_audit.encoders.memory import processes_that_fit

    return processes_that_fit(load_same_encoder(identity, device="cuda"))


def _write_work(path: Path, work: Iterable[Work], rows: int) -> list[int]:
    """Write the work in batches of so many rows; gives the rows of each."""
    counts = []
    items = iter(work)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, _WORK, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file,
    ):
        while some := list(islice(items, rows)):
            values = [asdict(item.image) | {"is_new": item.is_new, "known_error": item.known_error} for item in some]
            file.write_batch(pa.RecordBatch.from_pylist(values, schema=_WORK))
            counts.append(len(some))
    return counts


def _read_batch(path: Path, piece: _Piece) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(piece.batch).slice(piece.start, piece.count)


def _read_work(path: Path, piece: _Piece) -> list[Work]:
    return [
        Work(ImageRef(*image), is_new, known_error)
        for *image, is_new, known_error in zip(
            *(column.to_pylist() for column in _read_batch(path, piece)), strict=True
        )
    ]


def _read_piece(path: Path, number: int, piece: _Piece) -> list[pa.Table]:
    """What a worker is told: where the images are, and which piece it is."""
    uris = _read_batch(path, piece)["uri"]
    return [pa.table({"uri": uris, "piece": pa.array([number] * piece.count, pa.int64())})]


def _cores(workers: Workers) -> int:
    """The cores of a worker, where this runs."""
    import ray

    return workers.plan.cores_on(ray.get_runtime_context().get_node_id())


def _plan(device: str) -> Plan:
    """The workers that suit a cluster: some for each GPU, by the cores of its node; or one for each core."""
    _connect()
    import ray

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"`device` {printable(device)} with `engine` ray: choose auto, cpu or cuda (all GPUs)")
    nodes = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    cores = {node: int(has.get("CPU", 0)) for node, has in nodes}
    gpus = {node: (int(has["GPU"]), cores[node]) for node, has in nodes if has.get("GPU", 0) >= 1}
    if gpus and device != "cpu":
        return Plan("cuda", gpus, max(by_cores(count // places) for places, count in gpus.values()))
    if device == "cuda":
        raise UsageError("`device` cuda: the Ray cluster has no GPU; use `device=auto`")
    if not any(cores.values()):
        raise UsageError("the Ray cluster has no CPU and no GPU to embed on; start nodes with `ray start`")
    return Plan("cpu", {node: (count, count) for node, count in cores.items() if count})


def _connect() -> None:
    """Connect to the cluster of RAY_ADDRESS or of this machine; else start one here, that ends with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ code writes to the terminal
    try:
        import ray.data
    except ImportError as error:
        raise UsageError(f"`engine=ray` needs Ray ({error}): pip install 'ood-audit[ray]'") from error
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        remedy = "see `ray status` there, or unset RAY_ADDRESS to run on this machine"
        if address.startswith("ray://"):
            raise UsageError(
                f"RAY_ADDRESS={printable(address)} is a Ray client's: run on a node of the cluster, as with "
                "`ray job submit`"
            )
        try:
            _probe(address)
            with _hidden_stderr():
                ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at RAY_ADDRESS={printable(address)}" if address else "a Ray cluster"
            reason = printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            raise OodAuditError(f"cannot reach {where}: {reason}; {remedy}") from error


@contextmanager
def _hidden_stderr() -> Iterator[None]:
    """Ray's C++ announces its log level there. What goes wrong is raised."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _probe(address: str) -> None:
    """Ray itself tries for minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _quiet(context: "ray.data.DataContext") -> Iterator[None]:
    """Ray Data as we want it, for the data set that is made within: no bars, and a worker may die early."""
    for handler in logging.getLogger("ray.data").handlers:
        # Its log file has it. Handlers that it shares with the root logger are not Ray's to silence.
        if isinstance(handler, logging.StreamHandler) and handler not in logging.getLogger().handlers:
            handler.setLevel(logging.CRITICAL + 1)
    ours = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_consecutive_actor_init_deaths": _TRIES,
    }
    before = {name: getattr(context, name) for name in ours}
    for name, value in ours.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _failed(error: Exception) -> OodAuditError:
    text = str(error)
    if "No module named 'ood_audit'" in text:
        return OodAuditError("a Ray worker has no ood-audit; install the same version on every node of the cluster")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return _dying(printable(lines[0])[:300])


def _dying(what: str) -> OodAuditError:
    return OodAuditError(
        f"Ray workers die again and again ({what}); finished work is kept, run the same command again to resume; where "
        "memory is short, take a smaller `batch_size` or fewer workers a node"
    )


def _nothing(**_: object) -> Iterator[pa.Table]:
    return iter(())
