"""Loads an encoder: by torch, or the starter on a CPU without it, which takes seconds and 500 MB less to start."""

import importlib.util
import platform
from typing import TYPE_CHECKING, Any, TypeAlias

from ood_audit.encoders.gpu import is_cpu
from ood_audit.encoders.identity import EncoderIdentity

if TYPE_CHECKING:
    from ood_audit.encoders.clip import ClipEncoder
    from ood_audit.encoders.light import StarterEncoder

Encoder: TypeAlias = "ClipEncoder | StarterEncoder"


def load_encoder(
    model: str = "auto",
    *,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> Encoder:
    """Load an encoder of images; see `clip.load_encoder` for arguments, further options and errors."""
    if _is_light(model, weights, device, precision):
        from ood_audit.encoders.light import StarterEncoder

        return StarterEncoder("fp32" if precision == "auto" else precision)
    from ood_audit.encoders import clip

    return clip.load_encoder(model, weights=weights, device=device, precision=precision, **options)


def load_same_encoder(identity: EncoderIdentity, *, device: str = "auto", fall_back: bool = True) -> Encoder:
    """The encoder that a store was made with; see `clip.load_same_encoder` for arguments and errors."""
    if _is_light(identity.model, identity.weights, device, identity.precision):
        from ood_audit.encoders.light import StarterEncoder

        encoder = StarterEncoder(identity.precision)
        identity.check_same(encoder.identity)
        return encoder
    from ood_audit.encoders import clip

    return clip.load_same_encoder(identity, device=device, fall_back=fall_back)


def _is_light(model: str, weights: str | None, device: str, precision: str) -> bool:
    """Whether it is the starter on a CPU of the kind that OpenVINO was measured on, where that is installed."""
    return (
        model in ("auto", "starter")
        and weights is None
        and precision != "fp16"
        and platform.machine() in ("x86_64", "AMD64")
        and importlib.util.find_spec("openvino") is not None
        and is_cpu(device)
    )
