"""The starter on a CPU without torch: its towers by OpenVINO, with the features that `clip` gives."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ood_audit.encoders import tokens
from ood_audit.encoders.cpu import bf16_in_hardware, return_freed_memory, reuse_freed_memory, thread_count
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.encoders.pixels import REDUCED, Pixels, shortest
from ood_audit.encoders.registry import CONFIG, STARTER, score_defaults
from ood_audit.errors import EncoderError
from ood_audit.values import JsonObject

if TYPE_CHECKING:
    from ood_audit.encoders.towers import Weights

_BATCH = 4  # images a pass: of 2, 4, 6 and 8 the one that takes least time
_TEXT_BATCH = 256


class StarterEncoder:
    """The starter, on a CPU. What is asked of a `clip.ClipEncoder` it has as well, but for what tuning needs.

    Args:
        precision: `fp32` or `bf16`: that of the image tower.

    Attributes:
        identity: what makes its features comparable with others: those of a `clip.ClipEncoder` are.
        score_defaults: the ΔEnergy settings that suit it.
        precision: of the image tower.
        device: `cpu`.
        batch_size: images a forward pass.
        batch_limit: None: a pass takes so little memory that it is never cut down.
        decode_size: as `clip.ClipEncoder` has it.

    Raises:
        EncoderError: its weights are missing or damaged.

    Example:
        >>> encoder = StarterEncoder("fp32")
        >>> encoder.encode_images([np.zeros((224, 224, 3), np.uint8)]).shape
        (1, 384)

    """

    device: ClassVar[Literal["cpu"]] = "cpu"
    batch_size: ClassVar[int] = _BATCH
    batch_limit: ClassVar[None] = None

    def __init__(self, precision: str) -> None:
        config, weights = _read()
        self._size: int = config["model_cfg"]["vision_cfg"]["image_size"]
        self._preprocessing: JsonObject = config["preprocess_cfg"]
        self._text: JsonObject = config["model_cfg"]["text_cfg"]
        self._requests: SimpleQueue[Any] | None = None
        self._compiling = Lock()
        self.decode_size = REDUCED * self._size
        self.precision = precision
        self.score_defaults = score_defaults("starter", float(np.exp(weights["logit_scale"], dtype=np.float32)))
        self.identity = EncoderIdentity(
            model="starter",
            weights=None,
            architecture="CLIP (EfficientNet)",
            weights_sha256=_hash(weights),
            preprocessing={"fill_color": 0, "mode": "RGB", "size": [self._size] * 2, **self._preprocessing},
            activation="gelu",
            precision=precision,
            dimension=config["model_cfg"]["embed_dim"],
        )

    def prepare(self, image: Image.Image, whole: tuple[int, int] | None = None) -> Pixels:
        """An upright RGB image → (224, 224, 3) uint8, see `pixels.shortest`. Safe to call from threads."""
        return shortest(image, self._size, whole)

    def encode_images(self, pixels: Sequence[Pixels]) -> NDArray[np.float32]:
        """`prepare`d pixels → (N, D) float32 features of length 1. Safe to call from threads."""
        return self.encode(pixels)[0]

    def encode(self, pixels: Sequence[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `encode_images`, and the (N, L) looks of the images, see `encoders.looks`."""
        requests = self._compiled()
        batch = np.zeros((_BATCH, self._size, self._size, 3), np.uint8)
        found = []
        request = requests.get()
        try:
            for start in range(0, len(pixels), _BATCH):
                rows = pixels[start : start + _BATCH]
                np.stack(rows, out=batch[: len(rows)])
                request.infer([batch])
                found.append(request.get_output_tensor().data[: len(rows)].copy())
        finally:
            requests.put(request)
        both = np.concatenate(found)
        return _unit(both[:, : self.identity.dimension]), _unit(both[:, self.identity.dimension :])

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(N, L) token ids: what the text tower sees of each text, cut off at its context length."""
        return tokens.tokenize(texts, self._text["context_length"])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts → (N, D) float32 features of length 1. Short ones go together, and only as far as they matter."""
        ids = self.tokenize(texts)
        ends = ids.argmax(axis=1)  # the highest id
        found = np.empty((len(texts), self.identity.dimension), np.float32)
        order = ends.argsort(kind="stable")
        for start in range(0, len(texts), _TEXT_BATCH):
            rows = order[start : start + _TEXT_BATCH]
            self._text_request.infer([ids[rows, : ends[rows[-1]] + 1], ends[rows]])
            found[rows] = self._text_request.get_output_tensor().data
        return _unit(found)

    @cached_property
    def _text_request(self) -> Any:  # OpenVINO has no types
        from ood_audit.encoders import towers

        graph = towers.text_tower(_tower(images=False), self._text["heads"])
        compiled = towers.compile_graph(graph, "fp32", streams=1, threads=thread_count())
        del graph
        return_freed_memory()  # the graph, whose weights OpenVINO has laid out anew
        return compiled.create_infer_request()

    def forward_pool(self, cores: int) -> tuple[ThreadPoolExecutor, int]:
        """The threads for its forward passes, where so many cores may be used, and how many they are."""
        reuse_freed_memory()
        passes = min(cores, thread_count())
        return ThreadPoolExecutor(passes, "forward"), passes

    @property
    def may_use_bf16(self) -> bool:
        """Whether the processor has bfloat16, and the passes are in float32."""
        return self.precision == "fp32" and bf16_in_hardware()

    @property
    def bf16_is_known(self) -> bool:
        """As `clip.ClipEncoder` has it; measured were the processors that this class is for."""
        return self.may_use_bf16

    def use_bf16(self) -> None:
        """Go over from float32 to bfloat16; the identity changes with it."""
        with self._compiling:
            self.precision, self.identity = "bf16", replace(self.identity, precision="bf16")
            self._requests = None

    def begin(self) -> None:
        """Compile the image tower in a thread, so that it is there sooner when images are.

        That takes a fifth of a second, for most of which Python's lock is free.
        """
        thread = ThreadPoolExecutor(1, "compile")
        thread.submit(self._compiled)  # an error is raised again where the tower is needed
        thread.shutdown(wait=False)

    def _compiled(self) -> "SimpleQueue[Any]":
        """Requests of OpenVINO, one for each pass side by side, made when they are first asked for."""
        from ood_audit.encoders import towers

        with self._compiling:
            if self._requests is None:
                mean, std = self._preprocessing["mean"], self._preprocessing["std"]
                graph = towers.image_tower(_tower(images=True), _BATCH, self._size, mean, std)
                compiled = towers.compile_graph(graph, self.precision, streams=thread_count(), threads=thread_count())
                self._requests = SimpleQueue()
                for _ in range(thread_count()):
                    self._requests.put(compiled.create_infer_request())
            return self._requests


def _read() -> "tuple[JsonObject, Weights]":
    """The starter's configuration, and its weights as they are kept, in float16."""
    try:
        config: JsonObject = json.loads((STARTER / CONFIG).read_text(encoding="utf-8"))
        return config, load_file(STARTER / "open_clip_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise EncoderError(f"could not load `model` starter: {error}; install ood-audit again") from error


def _tower(images: bool) -> "Weights":
    """The weights of one of the towers, in float32."""
    return {name: of.astype(np.float32) for name, of in _read()[1].items() if name.startswith("visual.") is images}


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


def _hash(weights: "Weights") -> str:
    """As `clip` makes it of the model's parameters in torch."""
    digest = hashlib.sha256()
    for name, kept in sorted(weights.items()):
        values = kept.astype(np.float32) if kept.dtype == np.float16 else kept
        digest.update(f"{name} torch.{values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
