"""The memory of a GPU: how much is free, and for how many encoders that is enough."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ood_audit.encoders.clip import ClipEncoder

_BYTES_EACH = 2 << 30  # a CUDA context with its libraries, and two forward passes of 256 images through a ViT-B
_MARGIN = 0.9  # the share of the free memory that is planned with


def free_bytes(device: torch.device) -> int:
    """The memory of a CUDA device that this process can still get; what torch keeps for reuse counts as free."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def processes_that_fit(encoder: "ClipEncoder") -> int:
    """How many processes with this encoder fit on its GPU, once this process has ended.

    Other GPUs are taken to have as much room.
    """
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in encoder._model.state_dict().values())
    # The activations of a large model are large too, so that its weights stand for both.
    room = int((free_bytes(encoder.device) + weights) * _MARGIN)
    return room // int(_BYTES_EACH + 2 * weights)
