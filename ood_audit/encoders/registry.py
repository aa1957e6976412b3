"""From `--model` and `--weights` to files on disk: which architecture, which weights, whose settings."""

import difflib
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.errors import EncoderError, UsageError
from ood_audit.text import printable

STARTER = Path(__file__).parent / "starter"
AUTO_ON_CUDA = "ViT-B-16/laion2b_s34b_b88k"
OFFLINE_REMEDY = "fetch it where there is a network and use --model ARCH --weights FILE, or use --model starter"


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
    preprocessing: dict[str, Any] = field(default_factory=dict)


def find_model(model: str, weights: str | None, *, cuda: bool) -> ModelSource:
    """Resolve what the user typed; downloads weights that open_clip names and that are not cached yet.

    Args:
        model: `auto`, `starter`, `ARCH/TAG`, `ARCH`, `hf-hub:ORG/NAME` or `local-dir:DIR`.
        weights: a checkpoint file, with `ARCH` only.
        cuda: what `auto` depends on.

    Raises:
        UsageError: the name makes no sense. EncoderError: the weights can't be had.

    """
    if model == "auto":
        model = AUTO_ON_CUDA if cuda and weights is None else "starter"
    scheme, _, rest = model.partition(":")
    if weights is not None and (model == "starter" or scheme in ("local-dir", "hf-hub") or "/" in model):
        raise UsageError(f"--weights goes with a bare architecture (--model ViT-B-16), not with --model {model}")
    if model == "starter":
        return ModelSource("starter", f"local-dir:{STARTER}", None)
    if scheme == "local-dir":
        return _local_dir(rest)
    if scheme == "hf-hub":
        return _hub(model, rest)
    return _built_in(model, weights)


def score_defaults(model: str, logit_scale: float) -> ScoreDefaults:
    """The ΔEnergy settings on the model's card; for models without one, the temperature they were trained at."""
    if model == "starter":
        card = json.loads((STARTER / "card.json").read_text(encoding="utf-8"))
        return ScoreDefaults(**card["delta_energy"])
    return ScoreDefaults(temperature=round(1.0 / logit_scale, 6), top_c=2, reset_to=0.0)


def _local_dir(directory: str) -> ModelSource:
    path = Path(directory).expanduser().resolve()
    if not (path / "open_clip_config.json").is_file():
        raise EncoderError(f"{printable(str(path))} holds no open_clip_config.json; give a folder saved by open_clip")
    if not any(path.glob(f"*{suffix}") for suffix in (".safetensors", ".bin", ".pth")):
        raise EncoderError(
            f"{printable(str(path))} holds no weights; put open_clip_model.safetensors beside the config"
        )
    return ModelSource(f"local-dir:{path}", f"local-dir:{path}", None)


def _hub(model: str, repository: str) -> ModelSource:
    from open_clip.pretrained import download_pretrained_from_hf

    _fail_fast_without_network()
    for filename in ("open_clip_config.json", None):  # None: the weights, safetensors first
        try:
            path = download_pretrained_from_hf(repository, filename=filename)
        except Exception as error:  # the hub's client raises many kinds
            wanted = filename or "the weights"
            raise EncoderError(_unavailable(f"{wanted} of {model}", f"huggingface.co/{repository}")) from error
    # Both lie in the same snapshot folder of the cache, with the tokenizer's files fetched on demand.
    del path
    return ModelSource(model, model, None)


def _built_in(model: str, weights: str | None) -> ModelSource:
    import open_clip
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    architecture, _, tag = model.partition("/")
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"--model {printable(model)}: open_clip has no architecture {printable(architecture)}{hint}")
    tags = list_pretrained_tags_by_model(architecture)
    if weights is not None:
        return _own_file(architecture, weights)
    if not tag:
        offer = f"--model {architecture}/TAG (TAG: {', '.join(tags)}), or " if tags else ""
        raise UsageError(f"--model {architecture} needs weights: {offer}--weights FILE")
    if tag not in tags:
        raise UsageError(f"--model {printable(model)}: no such weights; {architecture} has {', '.join(tags) or 'none'}")
    config = get_pretrained_cfg(architecture, tag)
    _fail_fast_without_network()
    try:
        path = download_pretrained(config)
    except Exception as error:  # the hub's client and urllib raise many kinds
        origin = f"huggingface.co/{config['hf_hub']}".rstrip("/") if config.get("hf_hub") else config.get("url", "")
        raise EncoderError(_unavailable(f"the weights of {model}", origin)) from error
    return ModelSource(model, architecture, path, None, bool(config.get("quick_gelu")), dict(config))


def _own_file(architecture: str, weights: str) -> ModelSource:
    """A checkpoint on disk. OpenAI's own carry the model's sizes as extra keys; they were trained with QuickGELU."""
    path = Path(weights).expanduser().resolve()
    if not path.is_file():
        raise EncoderError(f"--weights {printable(weights)}: no such file")
    known = _settings_of_known_file(architecture, path.name)
    return ModelSource(architecture, architecture, str(path), str(path), bool(known.get("quick_gelu")), known)


def _settings_of_known_file(architecture: str, filename: str) -> dict[str, Any]:
    """What open_clip knows of published weights, found by the name of the file that they are published as."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    for tag in list_pretrained_tags_by_model(architecture):
        config = get_pretrained_cfg(architecture, tag)
        if config.get("url") and config["url"].rsplit("/", 1)[-1] == filename:
            return dict(config)
    return {}


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
