"""Batch norm folded into the convolution before it: same features, fewer passes over memory."""

from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norm(tower: nn.Module, example: torch.Tensor) -> nn.Module:
    """`tower` with every batch norm folded that reads a convolution's output.

    Which norm follows which convolution is seen in one forward pass, so that any architecture of open_clip or timm
    is served without tracing. Folded are `Conv2d` → `BatchNorm2d` and timm's `BatchNormAct2d`, whose activation is
    kept. The result is compared with the original on `example`, and given up where they differ.

    Args:
        tower: an image tower in eval mode, in float32.
        example: (N, 3, H, W) float32.

    Returns:
        A folded copy; or `tower` itself, where it has nothing to fold.

    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules()):
        return tower
    folded = deepcopy(tower)
    with torch.no_grad():
        pairs, expected = _pairs(folded, example)
        for name, norm, convolution in pairs:
            assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101 (for mypy)
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            parent, _, leaf = name.rpartition(".")
            setattr(folded.get_submodule(parent), leaf, getattr(norm, "act", nn.Identity()))
        agreement = torch.cosine_similarity(expected, folded(example), dim=-1)
    folded.requires_grad_(False)
    return folded if bool((agreement > 0.99999).all()) else tower


def _pairs(tower: nn.Module, example: torch.Tensor) -> tuple[list[tuple[str, nn.BatchNorm2d, nn.Conv2d]], torch.Tensor]:
    """The norms with their names and the convolutions before them, and what the tower gives for the example."""
    made_by: dict[int, nn.Conv2d] = {}
    kept: list[object] = []  # the outputs stay alive, so that no id is given twice
    pairs: list[tuple[str, nn.BatchNorm2d, nn.Conv2d]] = []
    names = {module: name for name, module in tower.named_modules()}

    def after(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
            kept.append(output)

    def before(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and id(inputs[0]) in made_by:
            pairs.append((names[module], module, made_by[id(inputs[0])]))

    hooks = [m.register_forward_hook(after) for m in names if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before) for m in names if isinstance(m, nn.BatchNorm2d)]
    features: torch.Tensor = tower(example)
    for hook in hooks:
        hook.remove()
    return pairs, features
