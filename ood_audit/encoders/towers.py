"""The starter's two towers as graphs of OpenVINO, made from its weights: no torch, and sooner than by torch.

OpenVINO multiplies in bfloat16 where it is asked to, fuses a convolution with what follows, and takes a fifth of a
second and 30 MB to import. The features are those of `clip.ClipEncoder`.
"""

import sys
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ood_audit.encoders import looks

# Importing OpenVINO reports to its makers, by a module that it can do without.
_REPORTS = "openvino_telemetry"
if _REPORTS not in sys.modules:
    sys.modules[_REPORTS] = None  # type: ignore[assignment]  # Python's own sign that a module is not to be found
try:
    import openvino as ov
    from openvino import opset13 as op
finally:
    if sys.modules[_REPORTS] is None:
        del sys.modules[_REPORTS]

# One for the process, and never freed. On Linux, the plugin of each `Core` gives the thread that first compiles by it
# an alternate stack for signals, and takes it away with the `Core`: of two that do not end in reverse order, the second
# leaves the thread the stack that was freed with the first, and the next signal, such as a Ctrl-C, is a segmentation
# fault (seen with 2026.4: `SigAltStackSetup`).
_CORE = ov.Core()

Weights: TypeAlias = "dict[str, NDArray[np.float32]]"
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage of EfficientNet-Lite0
_NORM_EPSILON = 1e-3  # of the image tower
_LAYER_EPSILON = 1e-5  # of the text tower


def compile_graph(model: ov.Model, precision: str, *, streams: int, threads: int) -> ov.CompiledModel:
    """A graph for so many requests at once (`streams`), which share so many threads, in `fp32` or `bf16`."""
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # the cores are shared with who decodes
    }
    return _CORE.compile_model(model, "CPU", settings)


def image_tower(weights: Weights, batch: int, size: int, mean: list[float], std: list[float]) -> ov.Model:
    """(batch, size, size, 3) uint8 → (batch, D + L) float32: features and looks, neither normalised to length 1.

    The batch is fixed: a pass of any size takes a seventh longer.
    """
    pixels = op.parameter([batch, size, size, 3], np.uint8, name="pixels")
    scaled = (op.convert(pixels, np.float32) - 255 * np.array(mean, np.float32)) / (255 * np.array(std, np.float32))
    trunk = _Trunk(weights)
    out = trunk.convolution(op.transpose(scaled, [0, 3, 1, 2]), "conv_stem", "bn1", stride=2)
    for stage, stride in enumerate(_STRIDES):
        block = 0
        while f"{trunk.prefix}blocks.{stage}.{block}.conv_pw.weight" in weights:
            out = trunk.block(out, f"blocks.{stage}.{block}.", stride if block == 0 else 1)
            block += 1
    pooled = op.reduce_mean(trunk.convolution(out, "conv_head", "bn2"), [2, 3])
    head = {name: _constant(weights[f"visual.head.mlp.{name}"]) for name in ("fc1.weight", "fc1.bias", "fc2.weight")}
    hidden = op.gelu(op.matmul(pooled, head["fc1.weight"], False, True) + head["fc1.bias"], "erf")
    features = op.matmul(hidden, head["fc2.weight"], False, True)
    signs = _constant(looks.signs(head["fc1.weight"].shape[1]))
    look = op.matmul(op.sqrt(pooled), signs, False, False)
    return ov.Model([op.concat([features, look], 1)], [pixels], "starter")


def _constant(values: NDArray[np.float32]) -> ov.Node:
    """Weights in a graph. Of a bare array, OpenVINO's operations make a list of Python's numbers first."""
    return op.constant(np.ascontiguousarray(values))


class _Trunk:
    """The layers of EfficientNet-Lite, by the names that timm gives their weights."""

    prefix = "visual.trunk."

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def block(self, out: ov.Node, name: str, stride: int) -> ov.Node:
        """A block of depthwise convolution; all but the first widen their input before it."""
        into = out
        if f"{self.prefix}{name}conv_pwl.weight" in self.weights:
            out = self.convolution(out, f"{name}conv_pw", f"{name}bn1")
            out = self.convolution(out, f"{name}conv_dw", f"{name}bn2", stride=stride)
            out = self.convolution(out, f"{name}conv_pwl", f"{name}bn3", clamp=False)
        else:
            out = self.convolution(out, f"{name}conv_dw", f"{name}bn1", stride=stride)
            out = self.convolution(out, f"{name}conv_pw", f"{name}bn2", clamp=False)
        same = stride == 1 and into.output(0).partial_shape[1] == out.output(0).partial_shape[1]
        return into + out if same else out

    def convolution(self, out: ov.Node, name: str, norm: str, *, stride: int = 1, clamp: bool = True) -> ov.Node:
        """A convolution that pads as TensorFlow does, with the norm after it folded in, and ReLU6 unless told."""
        weight = self.weights[f"{self.prefix}{name}.weight"]
        scale, shift, mean, variance = (
            self.weights[f"{self.prefix}{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + np.float32(_NORM_EPSILON))
        weight = weight * scale[:, None, None, None]
        common = {"strides": [stride, stride], "pads_begin": [0, 0], "pads_end": [0, 0], "dilations": [1, 1]}
        if weight.shape[1] == 1:  # depthwise
            out = op.group_convolution(out, _constant(weight[:, None]), **common, auto_pad="same_upper")
        else:
            out = op.convolution(out, _constant(weight), **common, auto_pad="same_upper")
        out = out + _constant((shift - mean * scale)[None, :, None, None])
        return op.clamp(out, 0, 6) if clamp else out


def text_tower(weights: Weights, heads: int) -> ov.Model:
    """(N, L) int64 token ids and (N,) int64, where each text ends → (N, D) float32, not normalised to length 1."""

    def norm(values: ov.Node, name: str) -> ov.Node:
        centred = op.mvn(values, [-1], True, _LAYER_EPSILON, "inside_sqrt")
        return centred * _constant(weights[f"{name}.weight"]) + _constant(weights[f"{name}.bias"])

    def linear(values: ov.Node, name: str) -> ov.Node:
        weight, bias = _constant(weights[f"{name}weight"]), _constant(weights[f"{name}bias"])
        return op.matmul(values, weight, False, True) + bias

    tokens = op.parameter([-1, -1], np.int64, name="tokens")
    ends = op.parameter([-1], np.int64, name="ends")
    length = op.gather(op.shape_of(tokens), 1, 0)
    places = op.gather(_constant(weights["positional_embedding"]), op.range(0, length, 1, "i64"), 0)
    out = op.gather(_constant(weights["token_embedding.weight"]), tokens, 0) + places
    layer = 0
    while f"transformer.resblocks.{layer}.ln_1.weight" in weights:
        name = f"transformer.resblocks.{layer}"
        joined = op.reshape(linear(norm(out, f"{name}.ln_1"), f"{name}.attn.in_proj_"), [0, 0, 3, heads, -1], True)
        query, key, value = op.split(op.transpose(joined, [2, 0, 3, 1, 4]), 0, 3).outputs()
        attended = op.scaled_dot_product_attention(*(op.squeeze(part, 0) for part in (query, key, value)), causal=True)
        attended = op.reshape(op.transpose(attended, [0, 2, 1, 3]), [0, 0, -1], True)
        out = out + linear(attended, f"{name}.attn.out_proj.")
        hidden = op.gelu(linear(norm(out, f"{name}.ln_2"), f"{name}.mlp.c_fc."), "erf")
        out = out + linear(hidden, f"{name}.mlp.c_proj.")
        layer += 1
    last = op.gather(norm(out, "ln_final"), ends, 1, 1)
    projected = op.matmul(last, _constant(weights["text_projection"]), False, False)
    return ov.Model([projected], [tokens, ends], "starter texts")
