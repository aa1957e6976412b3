"""What is scored, on which device, and how the caller hears of it."""

from collections.abc import Callable
from dataclasses import dataclass

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.progress import Progress, silent
from ood_audit.store import Store


@dataclass(frozen=True)
class Context:
    """What is scored, where, and how the caller hears of it.

    Attributes:
        store: The store.
        vocabulary: The classes.
        device: Where similarities are computed: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        note: Called with a sentence for each choice that the caller did not make.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    """

    store: Store
    vocabulary: Vocabulary
    device: str = "auto"
    note: Callable[[str], None] = lambda message: None
    on_progress: Progress = silent
