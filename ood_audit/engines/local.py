"""The embedding job on one machine: threads read, decode and resize while the model runs."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from ood_audit.encoders.clip import ClipEncoder
from ood_audit.encoders.device import worker_count
from ood_audit.engines.work import Work, write_row
from ood_audit.images.decode import Decoded, decode
from ood_audit.images.sources import ImageRef
from ood_audit.store.parts import PartWriter


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
            yield write_row(writer, item, result, next(features) if result.pixels is not None else None)


def _decode_ahead(work: Iterable[Work], encoder: ClipEncoder, ahead: int) -> Iterator[tuple[Work, Decoded]]:
    """In order, with at most `ahead` decoded images waiting."""
    pool = ThreadPoolExecutor(worker_count(), thread_name_prefix="decode")
    pending: deque[tuple[Work, Future[Decoded]]] = deque()
    try:
        for item in work:
            pending.append((item, pool.submit(decode, item.image.uri, encoder.prepare)))
            if len(pending) >= ahead:
                oldest, future = pending.popleft()
                yield oldest, future.result()
        while pending:
            oldest, future = pending.popleft()
            yield oldest, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
