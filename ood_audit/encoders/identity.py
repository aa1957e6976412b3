"""What makes features comparable: recorded in the store, and compared before anything is added to it."""

from dataclasses import asdict, dataclass

from ood_audit.errors import EncoderError
from ood_audit.values import JsonObject


@dataclass(frozen=True)
class EncoderIdentity:
    """One encoder, exactly.

    `model` and `weights` are what to type (`--model`, `--weights`) to load it again; the rest is what it was found
    to be. `weights_sha256` is over the loaded parameters, so the same weights in another file format are the same.
    """

    model: str
    weights: str | None
    architecture: str
    weights_sha256: str
    preprocessing: JsonObject
    activation: str
    precision: str
    dimension: int

    @property
    def is_imported(self) -> bool:
        """Whether the features were computed elsewhere, so that nothing is known of the encoder but its name."""
        return self.architecture == "imported"

    @classmethod
    def imported(cls, model: str | None, weights: str | None, dimension: int) -> "EncoderIdentity":
        """The identity of vectors that others computed, with the model that encodes the names, if one is known."""
        return cls(model or "imported", weights, "imported", "", {}, "", "fp32", dimension)

    def to_json(self) -> JsonObject:
        """Plain values, as in store.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: JsonObject) -> "EncoderIdentity":
        """The reverse of `to_json`."""
        return cls(**values)

    @property
    def prepares(self) -> str:
        """The preprocessing in words: `224 × 224, shortest, bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5`."""
        values = dict(self.preprocessing)
        size = values.get("size", "?")
        height, width = size if isinstance(size, list) else (size, size)
        words = [
            f"{width} × {height}",
            *(str(values[name]) for name in ("resize_mode", "interpolation") if name in values),
        ]
        for name in ("mean", "std"):
            words += [f"{name} {' '.join(f'{value:.4g}' for value in values[name])}"] if name in values else []
        return ", ".join(words)

    def differences(self, other: "EncoderIdentity") -> list[str]:
        """What would make features of the two incomparable; empty where they are the same encoder."""
        return [
            f"{name.replace('_', ' ')} {_short(mine)} here, {_short(theirs)} there"
            for name in (
                "architecture",
                "weights_sha256",
                "preprocessing",
                "activation",
                "precision",
                "dimension",
            )
            if (mine := getattr(self, name)) != (theirs := getattr(other, name))
        ]

    def check_same(self, loaded: "EncoderIdentity") -> None:
        """Raise an EncoderError if what was loaded under the name of a store's encoder is another one."""
        if differences := self.differences(loaded):
            raise EncoderError(
                f"the model {self.model} is no longer the one this store was made with ({'; '.join(differences)}); "
                "restore the old weights, or start another store with `store=DIR`"
            )


@dataclass(frozen=True)
class ScoreDefaults:
    """What suits an encoder.

    Attributes:
        temperature: τ of ΔEnergy.
        top_c: its c.
        reset_to: its v.
        duplicate: the cosine above which two images are near duplicates, so that one tells nothing about the other.

    """

    temperature: float
    top_c: int
    reset_to: float
    duplicate: float = 0.97


# For vectors of which only this is likely: that a CLIP model with a logit scale of 100 made them.
IMPORTED = ScoreDefaults(temperature=0.01, top_c=1, reset_to=0.0)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
