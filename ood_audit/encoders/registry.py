"""From `--model` and `--weights` to files on disk: which architecture, which weights, whose settings."""

import difflib
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.errors import EncoderError, UsageError
from ood_audit.text import printable
from ood_audit.values import JsonObject

STARTER = Path(__file__).parent / "starter"
CONFIG = "open_clip_config.json"
AUTO_ON_CUDA = "ViT-B-16/laion2b_s34b_b88k"
OFFLINE_REMEDY = "fetch it where there is a network and use `model=ARCH` `weights=FILE`, or use `model=starter`"


@dataclass(frozen=True)
class ModelSource:
    """What to hand to open_clip.

    `name` is open_clip's model name or `local-dir:` scheme, `weights` the file (None: in the local directory).
    """

    model: str
    name: str
    weights: str | None
    weights_option: str | None = None
    quick_gelu: bool = False
    preprocessing: JsonObject = field(default_factory=dict)


def find_model(model: str, weights: str | None, *, cuda: bool, recorded: JsonObject | None = None) -> ModelSource:
    """Resolve what the user typed; downloads weights that open_clip names and that are not cached yet.

    Args:
        model: `auto`, `starter`, `ARCH/TAG`, `ARCH`, `hf-hub:ORG/NAME` or `local-dir:DIR`.
        weights: a checkpoint file, with `ARCH` only.
        cuda: what `auto` depends on.
        recorded: the preprocessing that a store has been made with, for a checkpoint whose own cannot be known.

    Raises:
        UsageError: the name makes no sense.
        EncoderError: the weights could not be loaded, or their preprocessing cannot be known.

    """
    if model == "auto":
        model = AUTO_ON_CUDA if cuda and weights is None else "starter"
    scheme, _, rest = model.partition(":")
    if weights is not None and (model == "starter" or scheme in ("local-dir", "hf-hub") or "/" in model):
        raise UsageError(f"`weights` goes with a bare architecture (`model` ViT-B-16), not with `model` {model}")
    if model == "starter":
        return ModelSource("starter", f"local-dir:{STARTER}", None)
    if scheme == "local-dir":
        return _local_dir(rest)
    if scheme == "hf-hub":
        return _hub(model, rest)
    return _built_in(model, weights, recorded)


def score_defaults(model: str, logit_scale: float) -> ScoreDefaults:
    """The ΔEnergy settings on the model's card; for models without one, the temperature they were trained at."""
    if model == "starter":
        card = _card()
        return ScoreDefaults(**card["delta_energy"], duplicate=card["duplicate"])
    return ScoreDefaults(temperature=round(1.0 / logit_scale, 6), top_c=1, reset_to=0.0)


def bf16_is_measured(model: str) -> bool:
    """Whether the model's card says that its features in bf16 give the decisions of those in float32, sooner."""
    return model == "starter" and bool(_card().get("bf16"))


def _card() -> JsonObject:
    card: JsonObject = json.loads((STARTER / "card.json").read_text(encoding="utf-8"))
    return card


def _local_dir(directory: str) -> ModelSource:
    path = Path(directory).expanduser().resolve()
    if not (path / CONFIG).is_file():
        raise EncoderError(f"{printable(str(path))} holds no {CONFIG}; give a folder saved by open_clip")
    if not any(path.glob(f"*{suffix}") for suffix in (".safetensors", ".bin", ".pth")):
        raise EncoderError(
            f"{printable(str(path))} holds no weights; put open_clip_model.safetensors into the same folder"
        )
    return ModelSource(f"local-dir:{path}", f"local-dir:{path}", None)


def _hub(model: str, repository: str) -> ModelSource:
    from open_clip.pretrained import download_pretrained_from_hf

    _fail_fast_without_network()
    for filename in (CONFIG, None):  # None: the weights, safetensors first
        try:
            path = download_pretrained_from_hf(repository, filename=filename)
        except Exception as error:  # the hub's client raises many kinds
            wanted = filename or "the weights"
            raise EncoderError(_unavailable(f"{wanted} of {model}", f"huggingface.co/{repository}")) from error
    # Both lie in the same snapshot folder of the cache, with the tokenizer's files fetched on demand.
    del path
    return ModelSource(model, model, None)


def _built_in(model: str, weights: str | None, recorded: JsonObject | None) -> ModelSource:
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    from ood_audit.encoders.openclip import open_clip

    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"`model` {printable(model)}: open_clip has no architecture {printable(architecture)}{hint}")
    tags = list_pretrained_tags_by_model(architecture)
    if weights is not None:
        return _own_file(architecture, weights, recorded)
    if not tag:
        offer = f"`model` {architecture}/TAG (TAG: {', '.join(tags)}), or " if tags else ""
        raise UsageError(f"`model` {architecture} needs weights: {offer}`weights=FILE`")
    if tag not in tags:
        raise UsageError(f"`model` {printable(model)}: no such weights; {architecture} has {', '.join(tags) or 'none'}")
    config = get_pretrained_cfg(architecture, tag)
    _fail_fast_without_network()
    try:
        path = download_pretrained(config)
    except Exception as error:  # the hub's client and urllib raise many kinds
        origin = f"huggingface.co/{config['hf_hub']}".rstrip("/") if config.get("hf_hub") else config.get("url", "")
        raise EncoderError(_unavailable(f"the weights of {model}", origin)) from error
    return ModelSource(model, architecture, path, None, bool(config.get("quick_gelu")), dict(config))


def _own_file(architecture: str, weights: str, recorded: JsonObject | None) -> ModelSource:
    """A checkpoint on disk, which does not say how its pictures were prepared.

    The first of these that is there says it: an open_clip_config.json beside the file; the weights that open_clip
    publishes under the file's name; all published weights of the architecture, if they agree; and the store that the
    encoder is for. Where nothing is published for an architecture, it is open_clip's default.
    """
    path = Path(os.path.abspath(Path(weights).expanduser()))  # not resolved: a cache links to files without neighbours
    if not path.is_file():
        raise EncoderError(f"`weights` {printable(weights)}: no such file")
    beside = _config_beside(architecture, path)
    published = _published(architecture)
    known = next((tag for tag in published if tag.get("url", "").rsplit("/", 1)[-1] == path.name), {})
    quick_gelu = bool(known.get("quick_gelu") or beside.get("model_cfg", {}).get("quick_gelu"))
    preprocessing = _preprocessing(beside.get("preprocess_cfg") or known) or _agreed(published, recorded)
    if preprocessing is None:
        raise EncoderError(
            f"`weights` {printable(weights)}: the weights of {architecture} were trained with different preprocessing, "
            f"and the file does not say how its own are; put its {CONFIG} into the same folder"
        )
    return ModelSource(architecture, architecture, str(path), str(path), quick_gelu, preprocessing)


def _agreed(published: list[JsonObject], recorded: JsonObject | None) -> JsonObject | None:
    """The preprocessing of all published weights, if it is one; else the one that is recorded, if there is any."""
    kinds = list(map(_preprocessing, published))
    if all(kind == kinds[0] for kind in kinds):
        return kinds[0] if kinds else {}
    return None if recorded is None else _preprocessing(recorded)


def _published(architecture: str) -> list[JsonObject]:
    """What open_clip knows of the weights that it publishes, or that are published with it."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    return [get_pretrained_cfg(architecture, tag) for tag in list_pretrained_tags_by_model(architecture)]


def _preprocessing(config: JsonObject) -> JsonObject:
    """What of a configuration is about preprocessing, but for the size, which is the architecture's."""
    names = ("mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
    return {name: config[name] for name in names if config.get(name) is not None}


def _config_beside(architecture: str, path: Path) -> JsonObject:
    """The configuration in the folder of a checkpoint; empty where there is none."""
    from ood_audit.encoders.openclip import open_clip

    beside = path.with_name(CONFIG)
    if not beside.is_file():
        return {}
    try:
        config: JsonObject = json.loads(beside.read_text(encoding="utf-8"))
        own, theirs = (_size(of) for of in (config.get("model_cfg", {}), open_clip.get_model_config(architecture)))
        config.get("preprocess_cfg", {}).items()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise EncoderError(
            f"{printable(str(beside))} is not a configuration of open_clip; repair or remove it"
        ) from error
    if any(mine != other for mine, other in zip(own, theirs, strict=True) if mine is not None):
        raise EncoderError(
            f"{printable(str(beside))} is of another model than {architecture}; "
            f"use `model` local-dir:{printable(str(path.parent))} instead, or move the weights to a folder of their own"
        )
    return config


def _size(model: JsonObject) -> tuple[object, object]:
    """The dimension of a model's features and the size of its pictures, where it says so."""
    size = model.get("vision_cfg", {}).get("image_size")
    return model.get("embed_dim"), [size, size] if isinstance(size, int) else size


def _unavailable(what: str, origin: str) -> str:
    return f"could not get {what} from {origin}; {OFFLINE_REMEDY}"


def _fail_fast_without_network() -> None:
    """Without a network the hub's client retries for a minute; with this it looks in its cache and says so at once."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
