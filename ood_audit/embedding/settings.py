"""How images are embedded."""

import importlib.util
from dataclasses import dataclass

from ood_audit.errors import UsageError
from ood_audit.text import printable

ENGINES = ("local", "ray")
CROPS = ("auto", "on", "off")


@dataclass(frozen=True)
class EmbedSettings:
    """The encoder, and where it runs.

    Attributes:
        model: An open_clip model as `ARCHITECTURE/TAG`, `starter`, `hf-hub:…` or `local-dir:…`; `auto` takes the
            store's own encoder where there is a store.
        weights: A checkpoint file for `model`.
        device: `auto`, `cpu`, `cuda` (all GPUs, with a process for each), `cuda:N` or `mps`.
        precision: `fp32`, `bf16`, `fp16` or `auto`, which is the store's own. For a new store it is bf16 with CUDA. On
            a CPU of this machine that has it in hardware it is bf16 for the starter, and for other models where some of
            the images have features alike, sooner. Else it is fp32.
        batch_size: Images in a forward pass; None for what suits the device.
        engine: `local`, or `ray`: the workers of a Ray cluster read and embed. Each must see the images at the same
            paths and be able to load the model; `device` is then `auto`, `cpu` or `cuda`. Ray is left running.
        crops: `auto`: each box of a dataset is an image of its own, beside the picture that it is in; `on`: the same,
            and an error where there are no boxes; `off`: pictures only.
        gps: Whether to keep where new and changed images were taken, as far as their EXIF says.

    Raises:
        UsageError: There is no such engine or way with boxes, or Ray is not installed.

    Example:
        >>> from ood_audit import EmbedSettings
        >>> EmbedSettings(device="cpu").precision
        'auto'

    """

    model: str = "auto"
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    engine: str = "local"
    crops: str = "auto"
    gps: bool = False

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise UsageError(f"`crops` {printable(self.crops)}: choose {', '.join(CROPS)}")
        if self.engine not in ENGINES:
            raise UsageError(f"`engine` {printable(self.engine)}: choose {' or '.join(ENGINES)}")
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise UsageError("`engine=ray` needs Ray: pip install 'ood-audit[ray]'")
