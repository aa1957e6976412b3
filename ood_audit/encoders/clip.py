"""Any image-text model of open_clip, as two functions: pixels → features and texts → features."""

import hashlib
import logging
import pickle
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torch.func import functional_call

from ood_audit.encoders import looks
from ood_audit.encoders.cpu import bf16_in_hardware, return_freed_memory, reuse_freed_memory
from ood_audit.encoders.device import (
    CPU,
    FP16_NEEDS_GPU,
    ForwardPool,
    autocast,
    cast_for,
    choose_device,
    choose_precision,
    is_out_of_memory,
    one_thread,
    release_memory,
    stack,
    to_device,
)
from ood_audit.encoders.folding import fold_batch_norm
from ood_audit.encoders.fusing import fuse
from ood_audit.encoders.identity import EncoderIdentity, ScoreDefaults
from ood_audit.encoders.openclip import (
    Compose,
    Normalize,
    PreprocessCfg,
    QuickGELU,
    Resize,
    ToTensor,
    image_transform_v2,
    open_clip,
)
from ood_audit.encoders.pixels import REDUCED, Pixels, resize_reduced, trim
from ood_audit.encoders.registry import ModelSource, bf16_is_measured, find_model, score_defaults
from ood_audit.encoders.warn import warn_once
from ood_audit.errors import EncoderError, UsageError
from ood_audit.text import printable
from ood_audit.values import JsonObject

Features = NDArray[np.float32]
_TEXT_BATCH = 256
_BATCH_SIZES = {"cpu": 6, "mps": 64}  # 256 on an Apple GPU would take 5 GB of the memory that it shares with the CPU
_BATCH_MULTIPLE = 32  # cuDNN tries its algorithms anew for each batch size, so there should be few
AGREEMENT = 0.999  # the least cosine between features that count as the same
# Between features in bf16 and in float32, over some pictures: what these cosines do to decisions is measured by
# `benchmarks.bf16`.
MEAN_AGREEMENT, LEAST_AGREEMENT = 0.9995, 0.995


class ClipEncoder:
    """A frozen CLIP on one device.

    Attributes:
        identity: what makes its features comparable with others.
        score_defaults: the ΔEnergy settings that suit it.
        device: where it runs. It changes to the CPU if a GPU has no memory for a single image or text.
        batch_size: images a forward pass that suits the device. On a CPU a small batch stays in the caches.
        batch_limit: None, or what a forward pass was cut down to when memory ran out.
        text_limit: the largest number of texts a forward pass. It is halved when memory runs out.
        decode_size: a JPEG decoded to no fewer pixels than this on its shorter side has the features of the whole
            one (cosine ≥ `AGREEMENT`); None where the model's resizing is of an unknown kind.
        logit_scale: what the model was trained to multiply its cosines by.

    """

    def __init__(self, source: ModelSource, device: torch.device, precision: str) -> None:
        model = _load(source)
        self.device = device
        self.precision = precision
        self.batch_size = _BATCH_SIZES.get(device.type, 256)
        self.batch_limit: int | None = None
        self.text_limit = _TEXT_BATCH
        config: JsonObject = dict(model.visual.preprocess_cfg)
        self._moving = Lock()
        self._to_pil, mean, std = _split(image_transform_v2(PreprocessCfg(**config), is_train=False))
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
        self._signs: torch.Tensor | None = None
        if source.model == "starter":
            self._signs = torch.from_numpy(looks.signs(model.visual.trunk.num_features)).to(device)
        self._crops = config.get("resize_mode") == "shortest"
        self._tokenize = _tokenizer(source)
        height, width = (config["size"],) * 2 if isinstance(config["size"], int) else config["size"]
        resize = self._to_pil.transforms[0]
        self._resize = resize if isinstance(resize, Resize) else None
        self.decode_size = REDUCED * max(height, width) if self._resize else None
        activation = "quickgelu" if any(isinstance(m, QuickGELU) for m in model.modules()) else "gelu"
        weights_sha256 = _hash(model)
        self._layout = torch.contiguous_format
        if sum(isinstance(m, nn.Conv2d) for m in model.visual.modules()) > 3:  # a ViT has one, its patches
            self._layout = torch.channels_last
            with one_thread():
                example = torch.rand(1, 3, height, width)
                model.visual = fold_batch_norm(model.visual, example)
                if device.type == "cpu":
                    model.visual = fuse(model.visual, example)
            if device.type == "cuda":
                torch.backends.cudnn.benchmark = True
        model.visual = cast_for(model.visual, device, precision)
        self._model = model.to(device=device, memory_format=self._layout)
        with torch.inference_mode(), one_thread():
            probe = self._images(to_device(torch.zeros(1, height, width, 3, dtype=torch.uint8), device))
        return_freed_memory()
        self.logit_scale = float(model.logit_scale.exp().max())
        self.score_defaults: ScoreDefaults = score_defaults(source.model, self.logit_scale)
        self.identity = EncoderIdentity(
            model=source.model,
            weights=source.weights_option,
            architecture=source.name if not source.name.startswith("local-dir:") else _architecture(model),
            weights_sha256=weights_sha256,
            preprocessing={k: list(v) if isinstance(v, tuple) else v for k, v in sorted(config.items())},
            activation=activation,
            precision=precision,
            dimension=probe.shape[1] - (0 if self._signs is None else looks.DIMENSION),
        )

    def prepare(self, image: Image.Image, whole: tuple[int, int] | None = None) -> Pixels:
        """An upright RGB image → the model's own resize and crop, as (H, W, 3) uint8. Safe to call from threads.

        Where the image was decoded at reduced scale, `whole` is its size in full: the result is of the same
        rectangle, to a sixth of a pixel.
        """
        if whole is not None and self._resize is not None:
            sides = self._resize.size
            size = sides if isinstance(sides, int) else (sides[1], sides[0])
            image = resize_reduced(image, whole, size, Image.Resampling[self._resize.interpolation.name])
        if self._crops:
            image = trim(image)
        return np.asarray(self._to_pil(image), dtype=np.uint8)

    def encode_images(self, pixels: Sequence[Pixels]) -> Features:
        """`prepare`d pixels → (N, D) float32 features of length 1; see `encode`."""
        return self.encode(pixels)[0]

    def encode(self, pixels: Sequence[Pixels]) -> tuple[Features, Features | None]:
        """`prepare`d pixels → features and looks. Safe to call from threads.

        These are (N, D) and (N, L) float32 of length 1. The starter alone has looks, see `encoders.looks`.

        Where memory runs out, the batch is halved until it fits, now and from then on (`batch_limit`). A GPU without
        memory for a single image is given up for the CPU.

        Raises:
            UsageError: the features are of fp16, and the encoder is on a CPU.
            EncoderError: there is no memory for a single image.

        """
        found: list[Features] = []
        done = 0
        while done < len(pixels):
            with self._moving:
                device = self.device
            if device.type == "cpu" and self.precision == "fp16":
                raise UsageError(FP16_NEEDS_GPU)
            size = min(len(pixels) - done, self.batch_limit or len(pixels))
            try:
                with torch.inference_mode():
                    batch = stack(pixels[done : done + size], device, self._filled(size))
                    found.append(self._images(batch)[:size].cpu().numpy())
                done += size
                continue
            except (RuntimeError, MemoryError) as error:
                if self.device != device:
                    continue  # another thread has moved the model meanwhile
                if not is_out_of_memory(error):
                    raise
                if size == 1 and device.type == "cpu":
                    raise EncoderError(
                        f"no memory on {device} for a single image; free some, "
                        f"or choose another `device` or a smaller model than {self.identity.model}"
                    ) from error
            # Outside of `except`: the error holds the frames, and they the memory.
            release_memory(device)
            if size == 1:
                self.move_to_cpu("a single image")
            elif self.device == device:
                self.batch_limit = min(size // 2, self.batch_limit or size)
        both = np.concatenate(found)
        dimension = self.identity.dimension
        return both[:, :dimension], both[:, dimension:] if both.shape[1] > dimension else None

    def forward_pool(self, cores: int) -> tuple[ForwardPool, int]:
        """The threads for its forward passes, where so many cores may be used, and how many they are."""
        if self.device.type == "cpu":
            reuse_freed_memory()
        pool = ForwardPool(self.device, cores)
        return pool, pool.passes

    def move_to_cpu(self, lacking: str) -> None:
        """Give up a GPU for the CPU, for good, and warn that it has no memory for what is `lacking`.

        A forward pass of another thread fails, if it is in the middle of the model, and is repeated.
        """
        with self._moving:
            if self.device.type == "cpu":
                return
            self.batch_limit = None  # what fitted into the GPU
            device, self.device = self.device, CPU
            reuse_freed_memory()
            self._model.to(CPU)
            self._mean, self._std = self._mean.to(CPU), self._std.to(CPU)
            self._signs = None if self._signs is None else self._signs.to(CPU)
            self.batch_size, self.text_limit = _BATCH_SIZES["cpu"], _TEXT_BATCH
        release_memory(device)
        warn_once(f"out of memory on {device}: it has no room for {lacking}; continuing on the CPU")

    def _filled(self, size: int) -> int:
        """How many images to run for `size` of them: see `_BATCH_MULTIPLE`."""
        if self.device.type != "cuda" or self._layout != torch.channels_last or self.batch_limit is not None:
            return size
        return size if size < _BATCH_MULTIPLE else -(-size // _BATCH_MULTIPLE) * _BATCH_MULTIPLE

    @property
    def may_use_bf16(self) -> bool:
        """Whether `try_bf16` has anything to try."""
        return self.device.type == "cpu" and self.precision == "fp32" and bf16_in_hardware()

    @property
    def bf16_is_known(self) -> bool:
        """Whether these weights were measured to give the same decisions in bf16, sooner: it needs no trial.

        Measured were processors with x86's instructions; others are tried.
        """
        known = bf16_is_measured(self.identity.model) and platform.machine() in ("x86_64", "AMD64")
        return known and self.may_use_bf16

    def use_bf16(self) -> None:
        """Go over from float32 to bfloat16; the identity changes with it."""
        self._model.visual = cast_for(self._model.visual, self.device, "bf16")
        self.precision, self.identity = "bf16", replace(self.identity, precision="bf16")
        return_freed_memory()  # what the tower in float32 took is returned, unless a trial keeps it

    def try_bf16(self, pixels: Sequence[Pixels]) -> bool:
        """Go over from float32 to bfloat16, if on these pictures it gives features alike (`agree`), sooner.

        For a new store on a CPU that has it in hardware; others are left as they are.

        Args:
            pixels: some of the pictures to come, `prepare`d.

        Returns:
            Whether the encoder has changed, and its identity with it.

        """
        if not pixels or not self.may_use_bf16:
            return False
        plain, seconds = self._timed(pixels)
        tower, identity = self._model.visual, self.identity
        self.use_bf16()
        half, half_seconds = self._timed(pixels)
        if agree(plain, half) and half_seconds < seconds:
            return True
        self._model.visual, self.identity, self.precision = tower, identity, "fp32"
        return False

    def _timed(self, pixels: Sequence[Pixels]) -> tuple[Features, float]:
        """Features, and the seconds of the fastest of three passes over the first batch, as `embed` runs them."""

        def seconds() -> float:
            started = time.perf_counter()
            self.encode_images(pixels[: self.batch_size])
            return time.perf_counter() - started

        with ForwardPool(self.device) as pool:
            batches = [pixels[i : i + self.batch_size] for i in range(0, len(pixels), self.batch_size)]
            features = np.concatenate(list(pool.map(self.encode_images, batches)))
            return features, min(pool.submit(seconds).result() for _ in range(3))

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """Texts → (N, D) float32 features of length 1. Texts beyond the context length are cut, as in training.

        They are computed in float32 whatever the precision of the images, which are compared with them all the same.
        Half precision is no faster for texts on most CPUs. Short texts go together, and only as far as they matter:
        three times as fast for class names.

        Raises:
            EncoderError: there is no memory for a single text, or the features are not finite.

        """
        features: list[torch.Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(texts), 16 * _TEXT_BATCH):
                tokens = self._tokenize(list(texts[start : start + 16 * _TEXT_BATCH]))
                order = tokens.argmax(dim=1).argsort(stable=True)  # by the place of end-of-text, the highest id
                found = [self._texts(tokens[rows]) for rows in torch.split(order, _TEXT_BATCH)]
                features.append(torch.cat(found)[order.argsort()])
        result = torch.cat(features)
        if not result.isfinite().all():
            raise EncoderError(
                f"text features of `model` {self.identity.model} are not finite: its weights are damaged; "
                "get them again, or choose another model"
            )
        return result.numpy()

    def _texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, L) token ids → (N, D), both on the CPU. Halves its batches as `encode_images` does."""
        found: list[torch.Tensor] = []
        done = 0
        while done < len(tokens):
            rows = tokens[done : done + self.text_limit]
            try:
                found.append(self.text_features(to_device(rows, self.device)).cpu())
                done += len(rows)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.device.type == "cpu" and len(rows) == 1:
                    raise EncoderError(
                        f"no memory on {self.device} for a single text; free some, "
                        f"or choose a smaller model than {self.identity.model}"
                    ) from error
            self.shrink_texts(len(rows))  # outside of `except`: see `encode_images`
        return torch.cat(found)

    def shrink_texts(self, size: int) -> None:
        """After memory ran out with `size` texts: halve `text_limit`, or give up a GPU that has no room for one."""
        release_memory(self.device)
        if size > 1:
            self.text_limit = min(size, self.text_limit) // 2 or 1
        else:
            self.move_to_cpu("a single text")

    def tokenize(self, texts: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """(N, L) int64 token ids, on the CPU; L is the model's context length unless another is asked for."""
        tokens: torch.Tensor = self._tokenize(list(texts), context_length=context_length)
        return tokens

    @property
    def token_embedding(self) -> nn.Module:
        """The text tower's (N, L) token ids → (N, L, W) vectors; EncoderError where there is none to be found."""
        tower = self._text_tower
        if hasattr(tower, "token_embedding"):
            found: nn.Module = tower.token_embedding
        elif hasattr(tower, "transformer") and hasattr(tower.transformer, "get_input_embeddings"):
            found = tower.transformer.get_input_embeddings()  # Hugging Face
        else:
            raise EncoderError(f"the text tower of `model` {self.identity.model} has no token embedding to tune")
        return found

    def text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, L) token ids on the device → (N, D) unit features, differentiable.

        Most of a row is padding. A causal tower never looks at it, so there it is cut off, with the rows of the
        position embedding and of the attention mask that belong to it: the same features in half the time or less.
        """
        tower = self._text_tower
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))  # CLIP, TextTransformer
        causal = pool in ("argmax", "eos") and getattr(tower, "attn_mask", None) is not None
        if not causal or getattr(tower, "cls_emb", None) is not None:
            return _unit(self._model.encode_text(tokens))
        eos_id = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None)) if pool == "eos" else None
        # Where it is not told, end-of-text has the highest id.
        ends = tokens.argmax(dim=1) if eos_id is None else tokens.eq(eos_id).int().argmax(dim=1)
        length = int(ends.max()) + 1
        prefix = "" if tower is self._model else "text."
        shorter = {
            f"{prefix}positional_embedding": tower.positional_embedding[:length],
            f"{prefix}attn_mask": tower.attn_mask[:length, :length],
        }
        return _unit(functional_call(self._model, shorter, (), {"text": tokens[:, :length]})[1])

    @property
    def _text_tower(self) -> "open_clip.CLIP | open_clip.transformer.TextTransformer":
        return getattr(self._model, "text", self._model)  # CustomTextCLIP has a tower, CLIP is its own

    def _images(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 on the device → (N, D) there; for the starter (N, D + L), with the looks."""
        images = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._layout)
        images.div_(255.0).sub_(self._mean).div_(self._std)  # as ToTensor and Normalize do
        with autocast(batch.device, self.precision):
            if self._signs is None:
                return _unit(self._model.encode_image(images))
            pooled = self._model.visual.trunk(images)
            look = pooled.float().clamp(min=0).sqrt() @ self._signs
            return torch.cat([_unit(self._model.visual.head(pooled)), _unit(look)], dim=1)


def load_encoder(
    model: str = "auto",
    *,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    recorded: JsonObject | None = None,
    texts_only: bool = False,
    fall_back: bool = True,
) -> ClipEncoder:
    """Load an encoder as the command line names it. If a GPU has no memory for it, it is loaded on the CPU.

    Args:
        model: `auto`, `starter`, `ARCH/TAG`, `hf-hub:ORG/NAME`, `local-dir:DIR`, or `ARCH` with `weights`.
        weights: a checkpoint file: safetensors, or a state dict that loads without unpickling code.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Encoding uses one GPU; `embedding.processes` shares
            work among all.
        precision: `auto`, `fp32`, `bf16` or `fp16`: that of the image tower. fp16 needs a GPU.
        recorded: see `registry.find_model`.
        texts_only: accept fp16 on a CPU, which can encode texts and refuses images.
        fall_back: whether to load on the CPU if a GPU has no memory for the model.

    Raises:
        UsageError: a name makes no sense, or the device is not there or does not work.
        EncoderError: the weights are not available or do not fit, or there is no memory for them.

    """
    chosen = choose_device(device)
    source = find_model(model, weights, cuda=chosen.type == "cuda", recorded=recorded)
    known = texts_only and precision != "auto"
    try:
        return ClipEncoder(source, chosen, precision if known else choose_precision(precision, chosen))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if chosen.type == "cpu" or not fall_back:
            raise EncoderError(
                f"no memory on {chosen} for `model` {source.model}; free some, or choose another `device` or model"
            ) from error
    release_memory(chosen)  # outside of `except`: see `encode_images`
    warn_once(f"out of memory on {chosen}: it has no room for the model; continuing on the CPU")
    return load_encoder(
        model, weights=weights, device="cpu", precision=precision, recorded=recorded, texts_only=texts_only
    )


def load_same_encoder(identity: EncoderIdentity, *, device: str = "auto", fall_back: bool = True) -> ClipEncoder:
    """The encoder that a store was made with. On a CPU, one of fp16 encodes texts, and refuses images.

    Raises:
        UsageError: see `load_encoder`.
        EncoderError: the encoder has changed since, is not available, or does not fit.

    """
    try:
        encoder = load_encoder(
            identity.model,
            weights=identity.weights,
            device=device,
            precision=identity.precision,
            recorded=identity.preprocessing,
            texts_only=True,
            fall_back=fall_back,
        )
    except EncoderError as error:
        raise EncoderError(
            f"{error}; this is the store's encoder: if it has moved, name its new place once, "
            "with --model or --weights of `ood-audit embed`"
        ) from error
    identity.check_same(encoder.identity)
    return encoder


def _load(source: ModelSource) -> open_clip.CLIP:
    logging.getLogger("open_clip").setLevel(logging.ERROR)
    logging.disable(logging.WARNING)  # open_clip talks through the root logger
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = open_clip.create_model(
                source.name,
                pretrained=source.weights,
                force_quick_gelu=source.quick_gelu,
                force_preprocess_cfg=source.preprocessing,
                require_pretrained=True,
                weights_only=True,
            )
    except Exception as error:  # open_clip, torch, safetensors and transformers each raise their own
        own = f" `weights` {printable(source.weights_option)}" if source.weights_option else ""
        raise EncoderError(f"could not load `model` {source.model}{own}: {_reason(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    if not hasattr(model, "encode_image") or not hasattr(model, "encode_text"):
        raise EncoderError(
            f"`model` {source.model} is not an image-text model; choose one with an image and a text encoder"
        )
    return model.eval().requires_grad_(False)


def _reason(error: Exception) -> str:
    text = " ".join(printable(str(error)).replace("\\n", " ").split()) or type(error).__name__
    if "TorchScript" in text:
        return "the file is a TorchScript archive, which holds code; convert its weights to safetensors"
    if "weights_only" in text or "Unpickl" in type(error).__name__ or "Weights only load failed" in text:
        return "the file would run code when it is unpickled; convert its weights to safetensors"
    if "pip install transformers" in text or "No module named 'transformers'" in text:
        return "its text tower needs transformers: pip install 'ood-audit[hf]'"
    if "state_dict" in text:
        return "the weights are of another architecture"
    if isinstance(error, (SafetensorError, EOFError, pickle.UnpicklingError)) or len(text) < 20:
        return f"the weights are damaged or no checkpoint ({text})"
    return text if len(text) <= 300 else f"{text[:300]}…"


def _tokenizer(source: ModelSource) -> Callable[..., torch.Tensor]:
    try:
        tokenize: Callable[..., torch.Tensor] = open_clip.get_tokenizer(source.name)
        return tokenize
    except Exception as error:  # as in _load; missing files, missing transformers
        hint = (
            "pip install 'ood-audit[hf]'"
            if isinstance(error, ImportError)
            else "it must lie in the folder of the weights"
        )
        raise EncoderError(
            f"could not load the tokenizer of `model` {source.model}: {_reason(error)}; {hint}"
        ) from error


def _split(transform: Compose) -> tuple[Compose, list[float], list[float]]:
    """open_clip's own transform, cut in two: the part on pictures (workers), mean and std (with the model)."""
    steps = list(transform.transforms)
    cut = next(i for i, step in enumerate(steps) if isinstance(step, ToTensor))
    normalize = next(step for step in steps[cut:] if isinstance(step, Normalize))
    return Compose(steps[:cut]), list(normalize.mean), list(normalize.std)


def agree(plain: Features, half: Features) -> bool:
    """Whether features in bf16 agree with those in float32 so far that decisions are the same, see MEAN_AGREEMENT."""
    cosines = (plain * half).sum(axis=1)
    return float(cosines.mean()) >= MEAN_AGREEMENT and float(cosines.min()) >= LEAST_AGREEMENT


def _unit(features: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(features.float(), dim=-1)


def _architecture(model: open_clip.CLIP) -> str:
    visual = model.visual
    trunk = getattr(visual, "trunk", visual)
    return f"{type(model).__name__} ({type(trunk).__name__})"


def _hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
