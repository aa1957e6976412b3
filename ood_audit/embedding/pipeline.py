"""Decoding and the forward pass side by side, in threads of one process: file names in, facts and features out."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from ood_audit.encoders import looks
from ood_audit.encoders.cpu import worker_count
from ood_audit.images.access import REMOTE_THREADS
from ood_audit.images.decode import Decoded, Loaded, Pixels, decode, load
from ood_audit.images.uri import Box, image_and_box, is_remote

if TYPE_CHECKING:
    from ood_audit.encoders.clip import Features
    from ood_audit.encoders.loading import Encoder


class Pipeline:
    """Takes batches of URIs and gives their features, several batches at once; a context manager.

    One thread for each core reads, decodes and resizes; more where images come over the network. The forward
    passes have the encoder's `forward_pool`. Threads wait for something most of the time, so that the cores and the GPU
    never do.

    Attributes:
        depth: how many batches to keep submitted, for nothing to run dry.

    """

    def __init__(self, encoder: "Encoder", *, cores: int | None = None) -> None:
        self._encoder = encoder
        cores = cores or worker_count()
        self._passes, passes = encoder.forward_pool(cores)
        self.depth = passes + 2
        self._loaded: tuple[str, Future[Loaded]] = "", Future()  # the last image with boxes, decoded once for all
        self._decoders = ThreadPoolExecutor(cores, thread_name_prefix="decode")
        self._remote = ThreadPoolExecutor(REMOTE_THREADS, thread_name_prefix="remote")  # started as they are needed

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoders.shutdown(cancel_futures=True)
        self._remote.shutdown(cancel_futures=True)
        self._passes.shutdown(cancel_futures=True)

    def submit(self, uris: Sequence[str]) -> "Future[tuple[list[Decoded], Features | None]]":
        """One batch → the facts of each image, without its pixels, and the (N, D) features of those without an error.

        There is nothing but facts where no image of the batch can be read.
        """
        encoder = self._encoder
        images = [image_and_box(uri) for uri in uris]
        with_boxes = {image for image, box in images if box is not None}
        pending = []
        for image, box in images:
            pool = self._remote if is_remote(image) else self._decoders
            if image not in with_boxes:
                pending.append(pool.submit(decode, image, encoder.prepare, at_least=encoder.decode_size, inspect=True))
                continue
            if image != self._loaded[0]:
                self._loaded = image, pool.submit(load, image, inspect=True)
            # Of one pool, which takes up the image first: none of its threads waits for what none has begun.
            pending.append(pool.submit(_part, self._loaded[1], box, encoder.prepare))
        return self._passes.submit(_encode, encoder, pending)


def _part(loading: Future[Loaded], box: Box | None, prepare: Callable[..., Pixels]) -> Decoded:
    return loading.result().part(box, prepare, inspect=True)


def _encode(encoder: "Encoder", pending: list[Future[Decoded]]) -> "tuple[list[Decoded], Features | None]":
    for last in pending[-1:]:  # first: waiting for each in turn would wake this thread as often
        last.result()
    decoded = [future.result() for future in pending]
    pixels = [image.pixels for image in decoded if image.pixels is not None]
    features, seen = encoder.encode(pixels) if pixels else (None, None)
    looked = iter([None] * len(pixels) if seen is None else map(looks.stored, seen))
    facts = [replace(image, pixels=None, look=None if image.pixels is None else next(looked)) for image in decoded]
    return facts, features


def halved(encoder: "Encoder") -> str:
    """What to say of an encoder that has a `batch_limit`."""
    return f"out of memory on {encoder.device}: continuing with {encoder.batch_limit} images in a forward pass"
