"""The embedding job on one machine: in this process, or in processes that share its GPUs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from ood_audit.embedding.pipeline import Pipeline
from ood_audit.embedding.sharing import by_cores
from ood_audit.embedding.work import Results, Work, write_batch
from ood_audit.encoders.clip import ClipEncoder
from ood_audit.encoders.device import all_devices, worker_count
from ood_audit.encoders.memory import leave_gpu, processes_that_fit
from ood_audit.images.sources import ImageRef
from ood_audit.store.parts import PartWriter

_WORTH_PROCESSES = 4096  # images: with fewer, starting processes for several GPUs takes longer than it saves
_WORTH_SHARING = 32_768  # the same, where several processes would share a single GPU


def embed_images(
    work: Iterable[Work],
    encoder: ClipEncoder,
    writer: PartWriter,
    *,
    batch_size: int | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[tuple[str, ImageRef, str | None]]:
    """Decode and embed images, and write their rows.

    An unreadable image becomes a row with its error, unless the store holds that very row already.

    Args:
        work: the images.
        encoder: runs where it was loaded. For `cuda`, every GPU gets one or more processes where the images are worth
            it, and this encoder moves to the CPU, so that it takes no memory of theirs.
        writer: is written to by this process alone, whoever embeds.
        batch_size: images a forward pass; by default what suits the device.
        on_note: called with what the user should know of: a batch that was halved, a process that died.

    Yields:
        For each image its outcome (`added`, `changed` or `unreadable`), the image, and its error.

    Raises:
        EncoderError: there is no memory for a single image.
        OodAuditError: every process died.

    """
    size = batch_size or encoder.batch_size
    work = iter(work)
    devices = all_devices(encoder.device)
    each = by_cores(worker_count() // len(devices)) if encoder.device.type == "cuda" else 1
    worth = _WORTH_PROCESSES if len(devices) > 1 else _WORTH_SHARING if each > 1 else 0
    first = list(islice(work, worth))
    batches = _batches(chain(first, work), size)
    if len(first) == worth > 0 and each > 1:
        each = max(1, min(each, processes_that_fit(encoder)))
    if len(first) == worth > 0 and each * len(devices) > 1:
        from ood_audit.embedding.processes import embed_in_processes

        leave_gpu(encoder)
        results = embed_in_processes(batches, encoder.identity, each * devices, on_note)
    else:
        results = _embed_here(batches, encoder, on_note)
    for batch, decoded, features in results:
        yield from write_batch(writer, batch, decoded, features)


def halved(encoder: ClipEncoder) -> str:
    """What to say of an encoder that has a `batch_limit`."""
    return f"out of memory on {encoder.device}: going on with {encoder.batch_limit} images a forward pass"


def _embed_here(batches: Iterator[list[Work]], encoder: ClipEncoder, on_note: Callable[[str], None]) -> Results:
    limit = None  # that is told of; also where the batch was halved before, by `try_bf16`
    with Pipeline(encoder) as pipeline:
        pending = deque(
            (batch, pipeline.submit([item.image.uri for item in batch])) for batch in islice(batches, pipeline.depth)
        )
        while pending:
            batch, future = pending.popleft()
            decoded, features = future.result()
            for following in islice(batches, 1):
                pending.append((following, pipeline.submit([item.image.uri for item in following])))
            if encoder.batch_limit != limit:
                limit = encoder.batch_limit
                on_note(halved(encoder))
            yield batch, decoded, features


def _batches(work: Iterator[Work], size: int) -> Iterator[list[Work]]:
    while batch := list(islice(work, size)):
        yield batch
