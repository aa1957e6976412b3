"""A convolution, its padding and the ReLU after it in one call of oneDNN, on a CPU: the same features, sooner.

timm pads for some convolutions by copying their input. torch clamps what comes out in a pass of its own, reorders the
weights in every pass, and makes matrix products of convolutions of one pixel where it has one thread. The kernels here
are those that torch's compiler would choose, but need no compiler.
"""

from collections import Counter
from copy import deepcopy

import torch
from torch import nn

from ood_audit.encoders.device import is_out_of_memory

_ENOUGH = 0.99999  # the cosine with the features of the plain tower
_SAME = "Conv2dSame"  # timm's, which pads as TensorFlow does: more after than before, where the sum is odd
_Pads = tuple[tuple[int, int], tuple[int, int]]  # before and after, of rows and of columns


def fuse(tower: nn.Module, example: torch.Tensor) -> nn.Module:
    """`tower` with its convolutions fused with what surrounds them, in whatever precision it is cast to later.

    What follows what is seen in one forward pass, so that any architecture is served without tracing. The result is
    compared with the original on `example`, and given up where they differ.

    Args:
        tower: an image tower in eval mode, in float32, on a CPU.
        example: (N, 3, H, W) float32, of the size that the tower is for.

    Returns:
        A copy; or `tower` itself, where there is nothing to fuse or torch has no such kernels.

    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return tower
    with torch.no_grad():
        pads, acts, expected = _watch(tower, example)
        if not pads:
            return tower
        fused = deepcopy(tower)
        try:
            for name, pad in pads.items():
                convolution = _Convolution(fused.get_submodule(name), pad)  # type: ignore[arg-type]
                if name in acts:
                    convolution.clamp(fused.get_submodule(acts[name]))
                    _replace(fused, acts[name], nn.Identity())
                _replace(fused, name, convolution)
            agreement = torch.cosine_similarity(expected, fused(example), dim=-1)
        except (AttributeError, NotImplementedError, RuntimeError):  # a torch whose kernels take other arguments
            return tower
    fused.requires_grad_(False)
    return fused if bool((agreement > _ENOUGH).all()) else tower


class _Convolution(nn.Module):
    """A convolution with its padding, and perhaps a clamp after it."""

    def __init__(self, plain: nn.Conv2d, pads: _Pads) -> None:
        super().__init__()
        # Zeros before the kernel move it, so that the padding is the same on both sides.
        (above, below), (left, right) = pads
        weight = nn.functional.pad(plain.weight, (right - left, 0, below - above, 0))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = plain.bias
        self.padding, self.stride = [below, right], list(plain.stride)
        self.rest = list(plain.dilation), plain.groups
        self.after: tuple[str, list[float]] = "none", []
        self._packed: torch.Tensor | None = None
        self._has_kernel = True

    def __getstate__(self) -> dict[str, object]:
        """For copies: packed weights can't be copied."""
        return {**self.__dict__, "_packed": None}

    def clamp(self, activation: nn.Module) -> None:
        """Do what a ReLU or ReLU6 does."""
        low_and_high = [activation.min_val, activation.max_val] if isinstance(activation, nn.Hardtanh) else []
        self.after = ("hardtanh" if low_and_high else "relu"), low_and_high

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.weight.dtype)  # autocast does not know this kernel
        if self._has_kernel:
            try:
                return self._in_one(images)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._has_kernel = False  # of this precision on this processor
        result = nn.functional.conv2d(images, self.weight, self.bias, self.stride, self.padding, *self.rest)
        return result if self.after[0] == "none" else result.clamp_(*(self.after[1] or [0.0]))

    def _in_one(self, images: torch.Tensor) -> torch.Tensor:
        shape = self.padding, self.stride, *self.rest
        packed = self._packed
        if packed is None or packed.dtype != self.weight.dtype:  # it has been cast since
            weight = self.weight.contiguous(memory_format=torch.channels_last)
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *shape, list(images.shape))
            self._packed = packed
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, packed, self.bias, *shape, *self.after, ""
        )
        return result


def _watch(tower: nn.Module, example: torch.Tensor) -> tuple[dict[str, _Pads], dict[str, str], torch.Tensor]:
    """The paddings of the convolutions that can be fused, the activations of some, by name, and the features."""
    names = {module: name for name, module in tower.named_modules()}
    pads: dict[str, _Pads] = {}
    made_by: dict[int, str] = {}
    kept: list[object] = []  # the outputs stay alive, so that no id is given twice
    acts: dict[str, str] = {}
    calls: Counter[nn.Module] = Counter()

    def after(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        found = _pads(module, inputs[0].shape)  # type: ignore[arg-type]
        if found is not None:
            pads[names[module]] = found
            made_by[id(output)] = names[module]
            kept.append(output)

    def before(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[module] += 1
        if (convolution := made_by.get(id(inputs[0]))) is not None:
            acts[convolution] = names[module]

    hooks = [m.register_forward_hook(after) for m in names if type(m) is nn.Conv2d or type(m).__name__ == _SAME]
    clamps = [m for m in names if type(m) in (nn.ReLU, nn.ReLU6)]
    hooks += [m.register_forward_pre_hook(before) for m in clamps]
    features: torch.Tensor = tower(example)
    for hook in hooks:
        hook.remove()
    once = {names[module] for module in clamps if calls[module] == 1}
    return pads, {convolution: act for convolution, act in acts.items() if act in once}, features


def _pads(module: nn.Conv2d, shape: torch.Size) -> _Pads | None:
    """What a convolution pads an input of this shape by; None for one that is left as it is."""
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    if type(module).__name__ != _SAME:
        (rows, columns) = module.padding
        return (rows, rows), (columns, columns)
    if module.dilation != (1, 1):
        return None
    found = []
    for size, kernel, stride in zip(shape[-2:], module.kernel_size, module.stride, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        found.append((total // 2, total - total // 2))
    return found[0], found[1]


def _replace(tower: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(tower.get_submodule(parent), leaf, module)
