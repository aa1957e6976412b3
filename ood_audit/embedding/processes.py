"""One process for each device: it decodes and embeds its share of the batches, and this process hands out and collects.

Every process has a pipe of its own, so that one that is killed holds no lock that another waits for. What it had not
finished is given to the others.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ood_audit.encoders.cpu import worker_count
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.encoders.warn import warn_once, warnings_to
from ood_audit.errors import OodAuditError
from ood_audit.text import printable

if TYPE_CHECKING:
    from ood_audit.embedding.work import Results, Work
    from ood_audit.encoders.clip import Features
    from ood_audit.images.decode import Decoded

_Value = TypeVar("_Value")
_DEPTH = 4  # batches that a process has at hand: two that are computed, two that are decoded


@dataclass(frozen=True, slots=True)
class _Note:
    """What a process has to tell, on its way through the pipe."""

    text: str


# A batch with its facts and features, a note, or why the process can do no more.
_Message: TypeAlias = "tuple[int, list[Decoded], Features | None] | _Note | str"


class _Worker:
    """A process, its end of the pipe, and the batches that it has not given back."""

    def __init__(self, identity: EncoderIdentity, device: str, cores: int) -> None:
        context = get_context("spawn")
        self.device = device
        self.at_hand: dict[int, list[Work]] = {}
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, identity, device, cores), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def give(self, number: int, batch: "list[Work]") -> None:
        self.at_hand[number] = batch
        with suppress(OSError):  # it has just died, which `receive` will find
            self.pipe.send((number, [item.image.uri for item in batch]))

    def receive(self) -> "_Message":
        """A message; or, where the process is dead, why, as text."""
        try:
            message: _Message = self.pipe.recv()
            return message
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def embed_in_processes(
    batches: "Iterator[list[Work]]",
    identity: EncoderIdentity,
    devices: Sequence[str],
    on_note: Callable[[str], None],
) -> "Results":
    """Each batch with its facts and features, in the order in which they come back, exactly once.

    Args:
        batches: what to embed.
        identity: of the encoder that every process loads.
        devices: one process for each.
        on_note: called when a process has died, has halved its batches, or has given up its GPU.

    Raises:
        OodAuditError: no process is left.

    """
    cores = max(1, worker_count() // len(devices))
    workers: dict[Connection, _Worker] = {}
    again: deque[tuple[int, list[Work]]] = deque()  # of processes that died
    numbered = enumerate(batches)
    try:
        with _ctrl_c_is_ours():
            for device in devices:
                worker = _Worker(identity, device, cores)
                workers[worker.pipe] = worker
        while True:
            for _ in range(_DEPTH):  # in turn, so that the last batches are shared out too
                for worker in workers.values():
                    if len(worker.at_hand) < _DEPTH and (task := again.popleft() if again else next(numbered, None)):
                        worker.give(*task)
            if not any(worker.at_hand for worker in workers.values()):
                return
            for ready in wait(list(workers)):
                worker = workers[ready]  # type: ignore[index]  # wait gives what it was given
                message = worker.receive()
                if isinstance(message, str):
                    del workers[worker.pipe]
                    again.extend(worker.at_hand.items())
                    _check_left(worker, message, len(workers), on_note)
                elif isinstance(message, _Note):
                    on_note(message.text)
                else:
                    number, decoded, features = message
                    yield worker.at_hand.pop(number), decoded, features
    finally:
        for worker in workers.values():
            worker.process.terminate()  # it holds nothing that is not ours to write
        for worker in workers.values():
            worker.process.join()


def _check_left(worker: _Worker, reason: str, left: int, on_note: Callable[[str], None]) -> None:
    worker.process.join()
    what = f"the process for {worker.device} {reason}"
    if not left:
        raise OodAuditError(f"{what}, and none is left; finished work is kept, run the same command again to resume")
    on_note(f"{what}; its images go to the other{'s' * (left > 1)}")


@contextmanager
def _ctrl_c_is_ours() -> Iterator[None]:
    """Processes started in here never see Ctrl-C, not even while they start: this one ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, identity: EncoderIdentity, device: str, cores: int) -> None:
    """What a process does: batches in, facts and features out, until it is ended or the pipe is.

    It sends (number, facts, features) of a batch, a note, and a str before it gives up.
    """
    import torch

    from ood_audit.embedding.pipeline import Pipeline, halved
    from ood_audit.encoders.clip import load_same_encoder
    from ood_audit.images.noise import quiet_libraries

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked
    sending = Lock()
    limit: int | None = None

    def tell(note: str) -> None:
        with sending, suppress(OSError):
            pipe.send(_Note(note))

    def give_up(error: BaseException) -> None:
        text = str(error) if isinstance(error, OodAuditError) else f"{type(error).__name__}: {error}"
        with sending, suppress(OSError):
            pipe.send(f"failed: {printable(text)}")
        os._exit(1)

    def done(number: int, future: "Future[tuple[list[Decoded], Features | None]]") -> None:
        nonlocal limit
        try:
            decoded, features = future.result()
        except CancelledError:
            return
        except Exception as error:
            give_up(error)
            return
        if encoder.batch_limit not in (None, limit):
            limit = encoder.batch_limit
            tell(halved(encoder))
        with sending, suppress(OSError):
            pipe.send((number, decoded, features))

    try:
        torch.set_num_threads(min(cores, torch.get_num_threads()))
        # This GPU was chosen. Where it has no room after all, the others do the work; a CPU would only hold it up.
        encoder = load_same_encoder(identity, device=device, fall_back=False)
        with warnings_to(tell), quiet_libraries(), Pipeline(encoder, cores=cores) as pipeline:
            while True:
                number, uris = pipe.recv()
                pipeline.submit(uris).add_done_callback(partial(done, number))
    except (EOFError, OSError):
        return  # the one who asks is gone
    except Exception as error:
        give_up(error)


def call_apart(function: Callable[..., _Value], *arguments: object) -> _Value:
    """Call a function in a process that ends again. Its warnings and errors become those of this process.

    Raises:
        OodAuditError: the process was killed, or failed in a way that is none of the function's own errors.

    """
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    try:
        with _ctrl_c_is_ours():
            process.start()
        theirs.close()
        warned, value = pipe.recv()
    except EOFError as error:
        raise OodAuditError("the process that loads the model was killed; is there enough memory?") from error
    finally:
        process.terminate()
        process.join()
    for message in warned:
        warn_once(message)
    if isinstance(value, OodAuditError):
        raise value
    result: _Value = value
    return result


def _answer(pipe: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    warned: list[str] = []
    value: object
    with warnings_to(warned.append):
        try:
            value = function(*arguments)
        except OodAuditError as error:
            value = error
        except Exception as error:
            value = OodAuditError(printable(f"{type(error).__name__}: {error}"))
    pipe.send((warned, value))
