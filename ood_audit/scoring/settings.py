"""What a caller asks of a score: its method, its settings, and how those that are left open are chosen."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from ood_audit.errors import UsageError
from ood_audit.scoring import scores
from ood_audit.scoring.scores import Options, Score
from ood_audit.text import printable
from ood_audit.values import JsonObject

if TYPE_CHECKING:
    from ood_audit.classes.prompts import Prompts

CHOSEN = ("auto", "delta-energy", "best")  # methods whose settings are chosen on the data
PROTOTYPE_WEIGHT = 0.2  # as in `classes.prototypes`, which imports torch
T = TypeVar("T")
_SYMBOLS = {"temperature": "τ", "top_c": "c", "reset_to": "v"}


@dataclass(frozen=True)
class ScoreSettings:
    """How to score images. What is None is chosen on the data, or else is the score's own.

    Attributes:
        method: `auto` for ΔEnergy joined with other evidence, see `scoring.joining`; one of
            `ood_audit.scoring.scores.names()`, whose negative is `ood_score`; or `best`, chosen on the data.
        temperature: The temperature τ of the score, from 0.0001 to 10,000.
        top_c: How many of the largest similarities ΔEnergy resets, 1 or more.
        reset_to: The cosine that ΔEnergy resets them to, from -1 to 1.
        background: Whether the energies of ΔEnergy run over the background names, too.
        prototypes: Whether class prototypes count beside the class names, see `classes.prototypes`.
        novelty: How much it counts, for `auto`, that an image is unlike the rest of the folder: a weight from 0 to 100;
            True or None to choose it, False for none.
        prompts: Tuned prompts in place of the class names: `auto` for the newest that fit, `none`, or their name.
        auto: Whether what is None is chosen by leaving classes out, see `scoring.selection`. Otherwise, and where there
            is too little data, ΔEnergy takes the settings of the encoder, and other scores those of their source.
        seed: Random seed for choosing settings.

    Raises:
        UsageError: A setting is out of its range, or the method does not have it.

    Example:
        >>> from ood_audit import ScoreSettings
        >>> ScoreSettings(method="mcm", temperature=0.5).given()
        {'temperature': 0.5}

    """

    method: str = "auto"
    temperature: float | None = None
    top_c: int | None = None
    reset_to: float | None = None
    background: bool | None = None
    prototypes: bool | None = None
    novelty: float | bool | None = None
    prompts: str = "auto"
    auto: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature is not None and not 1e-4 <= self.temperature <= 1e4:
            raise UsageError(f"`temperature` {self.temperature}: choose between 0.0001 and 10000")
        if self.top_c is not None and self.top_c < 1:
            raise UsageError(f"`top_c` {self.top_c}: choose 1 or more")
        if self.reset_to is not None and not -1 <= self.reset_to <= 1:
            raise UsageError(f"`reset_to` {self.reset_to}: choose a cosine between -1 and 1")
        if self.novelty is not None and not 0 <= float(self.novelty) <= 100:
            raise UsageError(f"`novelty` {self.novelty}: choose auto, on, off, or a weight from 0 to 100")
        chosen = [name for name in ("temperature", "top_c", "reset_to") if getattr(self, name) is not None]
        if self.method == "best" and chosen:
            raise UsageError(f"`method` best chooses `{chosen[0]}` itself; leave it out, or name a score")
        if self.novelty is not None and self.method != "auto":
            raise UsageError(f"`method` {printable(self.method)} has no `novelty`; leave one of them out")

    def given(self, prompts: "Prompts | None" = None) -> Options:
        """The settings that are not left to be chosen, by name; prototypes as their weight.

        Args:
            prompts: The tuned prompts in use. Class prototypes are off where these were tuned to go without.

        """
        settings = {
            "temperature": self.temperature,
            "top_c": self.top_c,
            "reset_to": self.reset_to,
            "background": self.background,
            "prototypes": None if self.prototypes is None else PROTOTYPE_WEIGHT * self.prototypes,
            "novelty": None if self.novelty is None or self.novelty is True else float(self.novelty),
        }
        given = {name: value for name, value in settings.items() if value is not None}
        if prompts and not prompts.recipe["prototypes"]:
            given.setdefault("prototypes", 0.0)
        return given

    def request(self, prompts: "Prompts | None") -> JsonObject:
        """The settings as JSON: scores of the same images with an equal request are the same scores."""
        return {
            "method": self.method,
            "given": self.given(prompts),
            "auto": self.auto and self.method in CHOSEN,
            "seed": self.seed,
            "prompts": [prompts.name, prompts.recipe["created"]] if prompts else None,
        }


def taken(kind: type[T], options: dict[str, Any]) -> T:
    """Settings of the keyword arguments that are fields of `kind`, which are taken out of `options`."""
    names = [field.name for field in fields(kind) if field.name in options]  # type: ignore[arg-type]
    return kind(**{name: options.pop(name) for name in names})


def settings_of(method: str, function: Score | None, defaults: Options, given: Options | None = None) -> Options:
    """The settings of a score: those `given`, else its own, which for ΔEnergy are the encoder's.

    Raises:
        UsageError: one was given that the score does not have.

    """
    if method == "delta-energy" or function is None:
        own = {**defaults, "background": False, "prototypes": 0.0}
    else:
        own = {**scores.options(function), "prototypes": 0.0}
    if foreign := [f"`{name}`" for name in given or {} if name not in own]:
        raise UsageError(f"the score {method} has no {', '.join(foreign)}; leave it out")
    return {**own, **(given or {})}


def described(method: str, parameters: Options) -> str:
    """A score and its settings, for people: `ΔEnergy, τ = 1, c = 2, v = 0, background`."""
    method = parameters.get("score", method)
    words = ["ΔEnergy" if method in ("auto", "delta-energy") else method]
    for name, value in parameters.items():
        if isinstance(value, bool):
            words += [name] if value else []
        elif name != "score" and (name not in ("prototypes", "novelty", "pictures") or value):
            shown = f"{value:g}" if isinstance(value, (int, float)) else value  # others' scores may have words
            words.append(f"{_SYMBOLS.get(name, name)} = {shown}")
    return ", ".join(words)
