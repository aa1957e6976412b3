"""A pretend CUDA device, for tests of what runs on a GPU on machines without one.

Its tensors say `device=cuda:0` and hold their values on the CPU. As on CUDA, an operation refuses to mix them with CPU
tensors, `numpy()` refuses them, they cannot be pinned, and autocast is CUDA's. It computes what the CPU computes, so a
test can compare the two. It can also play a GPU that is full (`largest`, `most_images`, `full`), one that PyTorch has
no kernels for (`kernels`), and Apple's (`kind="mps"`), which has no float64.

A dispatch mode belongs to a thread, so the threads of forward passes enter it when they start.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.cuda.amp.common
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from ood_audit.encoders import device as devices
from ood_audit.encoders import warn

aten = torch.ops.aten
_COPIES = {aten._to_copy.default, aten.copy_.default}
_PINS = {aten._pin_memory.default, aten.pin_memory.default}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
_MAY_RETURN_ITSELF = ("aten.to.", "aten.contiguous", "aten.lift_fresh", "aten._reshape_alias_copy", "aten.type_as")
_AUTOGRAD = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)
_NO_NUMPY = "can't convert {} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."


class PretendGpu:
    """What a test tells the device, and what it did.

    Attributes:
        kind: `cuda` or `mps`.
        count: the number of GPUs.
        capability: the compute capability, of all GPUs or by their number.
        largest: the largest tensor in bytes that there is memory for; None for any.
        most_images: the largest batch that an image tower has memory for; None for any.
        full: there is no memory at all, not even for one number.
        says: the words of the error when memory runs out; None for those of PyTorch's allocator.
        kernels: whether PyTorch has kernels for it.
        calls: how often each operation ran on the device.
        casts: the shapes of tensors that were cast on the device, in order.
        copied: the shapes of tensors that were copied to the device, in order.
        passes: the batch sizes that reached the first convolution of an image tower, in order.

    """

    def __init__(self, kind: str = "cuda") -> None:
        self.kind = kind
        self.count = 1
        self.capability: tuple[int, int] | dict[int, tuple[int, int]] = (8, 0)
        self.largest: int | None = None
        self.most_images: int | None = None
        self.full = False
        self.says: str | None = None
        self.kernels = True
        self.calls: Counter[str] = Counter()
        self.casts: list[tuple[int, ...]] = []
        self.copied: list[tuple[int, ...]] = []
        self.passes: list[int] = []

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0)

    def wrap(self, value: torch.Tensor) -> "PretendTensor":
        size = value.numel() * value.element_size()
        if self.full or (self.largest is not None and size > self.largest):
            raise self.out_of_memory(size)
        return PretendTensor(value, self)

    def out_of_memory(self, size: int) -> Exception:
        if self.says is not None:
            return RuntimeError(self.says)
        return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")

    def check(self, function: Any, args: tuple[Any, ...]) -> None:
        """Raise what the device would raise for an operation."""
        self.calls[str(function)] += 1
        if not self.kernels:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with …")
        if function is aten.convolution.default and args[0].shape[1] == 3:
            self.passes.append(len(args[0]))
            if self.most_images is not None and len(args[0]) > self.most_images:
                raise self.out_of_memory(args[0].numel() * 4)


class PretendTensor(torch.Tensor):
    """A tensor on the pretend device."""

    held: torch.Tensor
    gpu: PretendGpu
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor, gpu: PretendGpu) -> "PretendTensor":
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=gpu.device,
        )
        made.held, made.gpu = held, gpu
        return made

    def __init__(self, held: torch.Tensor, gpu: PretendGpu) -> None:
        pass

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {}, None)

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype}, {self.gpu.device})"

    # Autograd in C++ asks a CUDA tensor for its stream, so it is the held tensors that have gradients.

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        return self.held.requires_grad

    def requires_grad_(self, requires_grad: bool = True) -> "PretendTensor":
        self.held.requires_grad_(requires_grad)
        return self

    @property
    def grad(self) -> torch.Tensor | None:
        return None if self.held.grad is None else PretendTensor(self.held.grad, self.gpu)

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        self.held.grad = value.held if isinstance(value, PretendTensor) else value

    def backward(self, *_: Any, **__: Any) -> None:
        self.held.backward()

    # What C++ would do with a CUDA tensor needs CUDA, so the following are made of operations here.

    def __float__(self) -> float:
        return float(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    __index__ = __int__

    def item(self) -> Any:
        return self.held.item()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        return iter(torch.unbind(self, 0))

    def __invert__(self) -> Any:
        return aten.bitwise_not.default(self)

    def __getitem__(self, index: Any) -> Any:
        return _item(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.dim() and not isinstance(value, PretendTensor):
            raise RuntimeError("Expected all tensors to be on the same device, found cuda:0 and cpu")
        self.held[tree_map(_held, index)] = _held(value)

    def is_contiguous(self, *args: Any, **kwargs: Any) -> bool:
        return self.held.is_contiguous(*args, **kwargs)

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
        if self.held.is_contiguous(memory_format=memory_format):
            return self
        return self.clone(memory_format=memory_format)

    def nonzero(self, **_: Any) -> Any:
        return aten.nonzero.default(self)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(_NO_NUMPY.format(self.gpu.device))

    __array__ = numpy


def _item(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """`tensor[index]` for slices, numbers, None, lists and tensors."""
    parts = index if isinstance(index, tuple) else (index,)
    at = 0
    rows: list[torch.Tensor | None] = []
    for part in parts:
        if isinstance(part, slice):
            if part != slice(None):
                tensor = aten.slice.Tensor(tensor, at, part.start, part.stop, part.step or 1)
            rows.append(None)
            at += 1
        elif part is None:
            tensor = aten.unsqueeze.default(tensor, at)
            rows.append(None)
            at += 1
        elif isinstance(part, (list, range, torch.Tensor)):
            many = part if isinstance(part, torch.Tensor) else torch.tensor(list(part), dtype=torch.long)
            rows.append(many)
            at += many.dim() if many.dtype == torch.bool else 1
        else:
            tensor = aten.select.int(tensor, at, int(part))
    found: torch.Tensor = aten.index.Tensor(tensor, rows) if any(row is not None for row in rows) else tensor
    return found


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], gpu: PretendGpu | None) -> Any:
    """An operation as CUDA would run it: refused, or computed on the CPU and its result wrapped."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    gpu = ours[0].gpu if ours else gpu
    if gpu is None:
        return function(*args, **kwargs)
    if function in _PINS and ours:
        raise RuntimeError("cannot pin 'torch.cuda.ByteTensor' only dense CPU tensors can be pinned")
    if function in _PINS or function is aten.is_pinned.default:
        return tensors[0].clone() if function in _PINS else False
    name = str(function)
    copies = function in _COPIES or name.startswith("aten.to.")
    if ours and not copies:
        _refuse_mixed(function, args, tensors)
        gpu.check(function, args)
    wanted, args, kwargs = _where(function, args, {k: v for k, v in kwargs.items() if k != "pin_memory"}, gpu)
    to_gpu = bool(ours) if wanted is None else wanted
    if to_gpu and not copies and not ours:
        gpu.check(function, args)
    if copies and to_gpu:
        _record_copy(gpu, args, kwargs, bool(ours))
    with _autograd() if any(tensor.requires_grad for tensor in ours) else nullcontext():
        result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if gpu.kind == "mps" and to_gpu and any(of.dtype == torch.float64 for of in _tensors_of(result)):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    if not to_gpu:
        return result.detach() if ours and isinstance(result, torch.Tensor) else result
    if name.startswith(_MAY_RETURN_ITSELF) and ours and result is ours[0].held:
        return ours[0]
    wrapped = tree_map(lambda value: gpu.wrap(value) if isinstance(value, torch.Tensor) else value, result)
    if function._schema.is_mutable or any(value.alias_info is not None for value in function._schema.returns):
        try:
            return return_and_correct_aliasing(function, args, kwargs, wrapped)
        except Exception:
            return wrapped
    return wrapped


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd for what is called in `__torch_dispatch__`, where it is left out."""
    keys = [key for key in _AUTOGRAD if torch._C._dispatch_tls_is_dispatch_key_excluded(key)]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        yield
    finally:
        for key in keys:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, True)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendTensor) else value


def _tensors_of(result: Any) -> list[torch.Tensor]:
    return [value for value in tree_flatten(result)[0] if isinstance(value, torch.Tensor)]


def _refuse_mixed(function: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    """CUDA takes numbers and indices from the CPU, and nothing else."""
    others = tensors
    if function in _INDEXING:
        if not isinstance(args[0], PretendTensor):
            raise RuntimeError(f"{function}: indices should be on the same device as the indexed tensor (cpu)")
        others = [value for value in args[2:3] if isinstance(value, torch.Tensor)]
    if any(other.dim() > 0 and not isinstance(other, PretendTensor) for other in others):
        raise RuntimeError(f"{function}: Expected all tensors to be on the same device, found cuda:0 and cpu")


def _where(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], gpu: PretendGpu
) -> tuple[bool | None, tuple[Any, ...], dict[str, Any]]:
    """Whether the result is to be on the device, if the call says; and its arguments, with the CPU in its place."""
    wanted = None
    if kwargs.get("device") is not None:
        wanted = torch.device(kwargs["device"]).type == gpu.kind
        kwargs = {**kwargs, "device": devices.CPU}
    if function is aten.copy_.default:
        wanted = isinstance(args[0], PretendTensor)
    if str(function).startswith("aten.to."):
        for value in args[1:]:
            if isinstance(value, torch.device):
                wanted = value.type == gpu.kind
            elif isinstance(value, torch.Tensor):
                wanted = isinstance(value, PretendTensor)
        args = tuple(devices.CPU if isinstance(value, torch.device) else value for value in args)
    return wanted, args, kwargs


def _record_copy(gpu: PretendGpu, args: tuple[Any, ...], kwargs: dict[str, Any], from_gpu: bool) -> None:
    shape = tuple(args[0].shape)
    if not from_gpu:
        gpu.copied.append(shape)
    elif kwargs.get("dtype") not in (None, args[0].dtype):
        gpu.casts.append(shape)


class _Mode(TorchDispatchMode):
    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = kwargs.get("device") is not None or str(function).startswith("aten.to.") or kwargs.get("pin_memory")
        if not types and not named and function not in _PINS and function is not aten.is_pinned.default:
            return function(*args, **kwargs)  # nothing of ours
        return _run(function, args, kwargs, self.gpu)


@contextmanager
def pretend(kind: str = "cuda") -> Iterator[PretendGpu]:
    """Put a pretend GPU into this process."""
    gpu = PretendGpu(kind)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.data` cannot be set to another class
    try:
        with pytest.MonkeyPatch.context() as patch, _Mode(gpu):
            _patch(patch, gpu)
            yield gpu
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        _forget()


def _forget() -> None:
    devices.why_unusable.cache_clear()
    warn.log_once.cache_clear()
    warn._listeners.clear()  # of threads that an earlier test left behind


def _patch(patch: pytest.MonkeyPatch, gpu: PretendGpu) -> None:
    _forget()
    for name in ("tensor", "as_tensor", "ones"):
        patch.setattr(torch, name, _constructor(getattr(torch, name), gpu))
    to, nonzero = torch.Tensor.to, torch.nonzero

    def to_numbered(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """C++ would ask CUDA for the number of a device that is given without one."""
        args = tuple(_numbered(value, gpu) for value in args)
        return to(tensor, *args, **{name: _numbered(value, gpu) for name, value in kwargs.items()})

    patch.setattr(torch.Tensor, "to", to_numbered)
    patch.setattr(torch, "nonzero", lambda t: t.nonzero() if isinstance(t, PretendTensor) else nonzero(t))
    patch.setattr(torch, "inference_mode", torch.no_grad)  # its tensors cannot be wrapped
    patch.setattr(torch.backends.cudnn, "enabled", False)
    patch.setattr(torch.backends.cudnn, "benchmark", False)  # as it was, afterwards
    enter = devices.enter_forward_thread

    def enter_forward_thread(device: torch.device, threads: int) -> None:
        if device.type == gpu.kind:
            _Mode(gpu).__enter__()
        enter(device, threads)

    patch.setattr("ood_audit.encoders.device.enter_forward_thread", enter_forward_thread)
    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attention)
    if gpu.kind == "mps":
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.mps, "empty_cache", lambda: None)
        return

    def get_device_capability(device: Any = None) -> tuple[int, int]:
        if isinstance(gpu.capability, tuple):
            return gpu.capability
        return gpu.capability[torch.device(device).index or 0]

    patch.setattr(torch.cuda, "get_device_capability", get_device_capability)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: gpu.count)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0 if gpu.full else 60 << 30, 80 << 30))
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    for name in ("memory_reserved", "memory_allocated"):
        patch.setattr(torch.cuda, name, lambda device=None: 0)
    patch.setattr(torch.cuda, "Stream", _NoStream)
    for name in ("_lazy_init", "synchronize", "set_stream", "empty_cache"):
        patch.setattr(torch.cuda, name, lambda *_, **__: None)
    patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)


class _NoStream(torch.cuda.Stream):
    """A class, as torch._dynamo checks what it is when it is imported."""

    def __new__(cls, *_: Any, **__: Any) -> None:  # type: ignore[misc]
        return None


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **options: Any) -> Any:
    """C++ would look for a kernel of the device's own, and some versions ask CUDA's driver for it."""
    return aten._scaled_dot_product_attention_math.default(query, key, value, attn_mask, *rest, **options)[0]


def _numbered(value: Any, gpu: PretendGpu) -> Any:
    return gpu.device if isinstance(value, (str, torch.device)) and torch.device(value).type == gpu.kind else value


def _constructor(make: Callable[..., Any], gpu: PretendGpu) -> Callable[..., Any]:
    """Makes a tensor on the CPU and moves it: C++ would allocate it on the device, which needs CUDA."""

    def construct(*args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != gpu.kind:
            made = make(*args, device=device, **kwargs)
        else:
            made = make(*args, **kwargs).to(device)
        return made.requires_grad_() if requires_grad else made

    return construct
