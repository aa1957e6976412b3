"""open_clip and torchvision's transforms, imported without what only others need of them.

open_clip imports transformers, for text towers of Hugging Face. torchvision and timm import torch's compiler, for
functions that may be compiled. Together they take longer than all the rest. Here the compiler is imported when such a
function is first called, and transformers by the first model that has such a tower, whoever makes it. What is imported
already stays.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any, TypeAlias

import torch

_UTILITIES = "torch._dynamo.utils"
_Function: TypeAlias = Callable[..., Any]  # of a library, whatever it takes and gives


@contextmanager
def _without_transformers() -> Iterator[None]:
    """Importing transformers fails, as if it were not installed."""
    if "transformers" in sys.modules:
        yield
        return
    sys.modules["transformers"] = None  # type: ignore[assignment]  # Python's own sign that a module is not to be found
    try:
        yield
    finally:
        del sys.modules["transformers"]


@contextmanager
def _compiler_later() -> Iterator[None]:
    """What asks torch's compiler to leave a function alone, or what it can do, imports it when it is called."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    disable: _Function = torch.compiler.disable

    def disable_later(fn: _Function | None = None, recursive: bool = True, **options: object) -> _Function:
        if fn is None:
            return lambda function: disable_later(function, recursive, **options)
        return wraps(fn)(_later(lambda: disable(fn, recursive, **options)))

    utilities = ModuleType(_UTILITIES)
    vars(utilities)["is_compile_supported"] = _later(lambda: importlib.import_module(_UTILITIES).is_compile_supported)
    vars(torch.compiler)["disable"] = disable_later
    sys.modules[_UTILITIES] = utilities
    try:
        yield
    finally:
        vars(torch.compiler)["disable"] = disable
        if sys.modules.get(_UTILITIES) is utilities:
            del sys.modules[_UTILITIES]


def _later(make: Callable[[], _Function]) -> _Function:
    """A function that calls what `make` gives, which is made at the first call."""
    made: list[_Function] = []

    def call(*arguments: object, **options: object) -> object:
        if not made:
            made.append(make())
        return made[0](*arguments, **options)

    return call


def _import(name: str) -> None:
    try:
        with _compiler_later(), _without_transformers():
            importlib.import_module(name)
    except Exception:  # of a version that can't do without
        importlib.import_module(name)


_import("torchvision")
_import("open_clip")

import open_clip as open_clip  # noqa: E402  (what follows is imported by now)
from open_clip import coca_model, hf_model  # noqa: E402
from open_clip.transform import PreprocessCfg as PreprocessCfg  # noqa: E402
from open_clip.transform import image_transform_v2 as image_transform_v2  # noqa: E402
from open_clip.transformer import QuickGELU as QuickGELU  # noqa: E402
from torchvision.transforms import Compose as Compose  # noqa: E402
from torchvision.transforms import Normalize as Normalize  # noqa: E402
from torchvision.transforms import Resize as Resize  # noqa: E402
from torchvision.transforms import ToTensor as ToTensor  # noqa: E402


def _with_transformers(owner: type, method: str, module: ModuleType) -> None:
    """Have a method of a class import its module anew before it is called, with transformers, if that is installed."""
    plain = getattr(owner, method)

    @wraps(plain)
    def called(*arguments: object, **options: object) -> object:
        if getattr(owner, method) is called:
            setattr(owner, method, plain)
            importlib.reload(module)  # into the same names, which is where the methods of the class look
        return plain(*arguments, **options)

    setattr(owner, method, called)


if hf_model.transformers is None and importlib.util.find_spec("transformers") is not None:
    _with_transformers(hf_model.HFTextEncoder, "__init__", hf_model)
    _with_transformers(coca_model.CoCa, "generate", coca_model)
