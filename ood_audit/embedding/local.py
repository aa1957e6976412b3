"""The embedding job on one machine: in this process, or in processes that share its GPUs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ood_audit.embedding.pipeline import Pipeline, halved
from ood_audit.embedding.processes import call_apart, embed_in_processes
from ood_audit.embedding.sharing import by_cores
from ood_audit.embedding.work import Results, Work, write_batch
from ood_audit.encoders.cpu import worker_count
from ood_audit.encoders.gpu import is_cpu
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.images.sources import ImageRef
from ood_audit.store.parts import PartWriter

if TYPE_CHECKING:
    from ood_audit.encoders.clip import ClipEncoder
    from ood_audit.encoders.loading import Encoder

_WORTH_PROCESSES = 4096  # images: with fewer, starting processes for several GPUs takes longer than it saves
_WORTH_SHARING = 32_768  # images: as above, where several processes would share a single GPU


@dataclass(frozen=True)
class Workers:
    """An encoder that processes on the GPUs are to load, while this process keeps clear of them.

    Attributes:
        identity: what makes its features comparable with others.
        devices: the GPU of each process.
        batch_size: images a forward pass that suits them.

    """

    identity: EncoderIdentity
    devices: tuple[str, ...]
    batch_size: int

    @property
    def device(self) -> str:
        """For people."""
        return f"{', '.join(dict.fromkeys(self.devices))} ({len(self.devices)} processes)"


def load(loader: "Callable[..., Encoder]", device: str, images: int) -> "Encoder | Workers":
    """Load the encoder for so many images: in this process, or, where they are worth it, in processes on the GPUs.

    For the latter a process that ends again looks at the model and at a GPU. This one never uses CUDA, whose context
    would take half a gigabyte of the first GPU from those who embed.

    Args:
        loader: loads it on a `device`; can be pickled.
        device: as the command line names it.
        images: how many there are to embed.

    """
    gpus = _gpus(device)
    each = by_cores(worker_count() // len(gpus)) if gpus else 1
    if len(gpus) * each > 1 and images >= (_WORTH_PROCESSES if len(gpus) > 1 else _WORTH_SHARING):
        identity, batch_size, room = call_apart(_look, loader, device)
        devices = min(each, room) * gpus
        if len(devices) > 1:
            return Workers(identity, tuple(devices), batch_size)
    return loader(device=device)


def _gpus(device: str) -> list[str]:
    """The GPUs that the command line's `device` means."""
    if is_cpu(device) or device == "mps":
        return []
    import torch

    from ood_audit.encoders.device import all_devices

    return all_devices(torch.device("cuda" if device == "auto" else device)) if torch.cuda.is_available() else []


def _look(loader: "Callable[..., ClipEncoder]", device: str) -> tuple[EncoderIdentity, int, int]:
    """What an encoder is, its batch size, and how many processes with it fit on its GPU: 0 where it is on the CPU."""
    from ood_audit.encoders.memory import processes_that_fit

    encoder = loader(device=device)
    room = max(1, processes_that_fit(encoder)) if encoder.device.type == "cuda" else 0
    return encoder.identity, encoder.batch_size, room


def embed_images(
    work: Iterable[Work],
    encoder: "Encoder | Workers",
    writer: PartWriter,
    *,
    batch_size: int | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[tuple[str, ImageRef, str | None]]:
    """Decode and embed images, and write their rows.

    An unreadable image becomes a row with its error, unless the store holds that very row already.

    Args:
        work: the images.
        encoder: see `load`.
        writer: is written to by this process alone, whoever embeds.
        batch_size: images a forward pass; by default what suits the device.
        on_note: called with what the user should know of: a batch that was halved, a process that died.

    Yields:
        For each image its outcome (`added`, `changed` or `unreadable`), the image, and its error.

    Raises:
        EncoderError: there is no memory for a single image.
        OodAuditError: every process died.

    """
    batches = _batches(iter(work), batch_size or encoder.batch_size)
    if isinstance(encoder, Workers):
        results = embed_in_processes(batches, encoder.identity, encoder.devices, on_note)
    else:
        results = _embed_here(batches, encoder, on_note)
    for batch, decoded, features in results:
        yield from write_batch(writer, batch, decoded, features)


def _embed_here(batches: Iterator[list[Work]], encoder: "Encoder", on_note: Callable[[str], None]) -> Results:
    limit = None  # the last limit that was reported; `try_bf16` may have set one before
    with Pipeline(encoder) as pipeline:
        pending = deque(
            (batch, pipeline.submit([item.image.uri for item in batch])) for batch in islice(batches, pipeline.depth)
        )
        while pending:
            batch, future = pending.popleft()
            decoded, features = future.result()
            for following in islice(batches, 1):
                pending.append((following, pipeline.submit([item.image.uri for item in following])))
            if encoder.batch_limit not in (None, limit):
                limit = encoder.batch_limit
                on_note(halved(encoder))
            yield batch, decoded, features


def _batches(work: Iterator[Work], size: int) -> Iterator[list[Work]]:
    while batch := list(islice(work, size)):
        yield batch
