"""The embedding job on one machine: threads read, decode and resize while the model runs."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from ood_audit.encoders.clip import ClipEncoder
from ood_audit.encoders.device import worker_count
from ood_audit.images.decode import Decoded, decode
from ood_audit.images.sources import ImageRef
from ood_audit.images.storage import REMOTE_THREADS, is_remote
from ood_audit.store.parts import PartWriter


@dataclass(frozen=True, slots=True)
class Work:
    """An image to embed: new, changed, or unreadable so far (with the `known_error` in the store)."""

    image: ImageRef
    is_new: bool
    known_error: str | None = None


def embed_images(
    work: Iterable[Work], encoder: ClipEncoder, writer: PartWriter, *, batch_size: int | None = None
) -> Iterator[tuple[str, ImageRef, str | None]]:
    """Decode and embed images in order, and write their rows.

    An unreadable image becomes a row with its error, unless the store holds that very row already.

    Yields:
        For each image its outcome (`added`, `changed` or `unreadable`), the image, and its error.

    """
    batch_size = batch_size or encoder.batch_size
    decoded = _decode_ahead(work, encoder, ahead=batch_size + 4 * worker_count())
    while batch := list(islice(decoded, batch_size)):
        pixels = [result.pixels for _, result in batch if result.pixels is not None]
        features = iter(encoder.encode_images(pixels) if pixels else ())
        for item, result in batch:
            if result.pixels is not None:
                writer.add(item.image, result, next(features), supersedes=not item.is_new)
                yield "added" if item.is_new else "changed", item.image, None
            else:
                if result.error != item.known_error:
                    writer.add(item.image, result, None, supersedes=not item.is_new)
                yield "unreadable", item.image, result.error


def _decode_ahead(work: Iterable[Work], encoder: ClipEncoder, ahead: int) -> Iterator[tuple[Work, Decoded]]:
    """In order, with at most `ahead` decoded images waiting."""
    pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="decode")
    waiting = ThreadPoolExecutor(REMOTE_THREADS, thread_name_prefix="remote")  # for the network, more than for a core
    pending: deque[tuple[Work, Future[Decoded]]] = deque()
    try:
        for item in work:
            uri = item.image.uri
            pending.append((item, (waiting if is_remote(uri) else pool).submit(decode, uri, encoder.prepare)))
            if len(pending) >= ahead:
                oldest, future = pending.popleft()
                yield oldest, future.result()
        while pending:
            oldest, future = pending.popleft()
            yield oldest, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        waiting.shutdown(cancel_futures=True)
