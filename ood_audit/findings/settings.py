"""What a report looks for beside its ranking."""

from dataclasses import dataclass

from ood_audit.errors import UsageError

TURNED_MOST = 400_000  # images that are compared with each other in all orientations


@dataclass(frozen=True)
class FindingSettings:
    """Which images are flagged, and which duplicates are looked for.

    Attributes:
        fdr: Flag images so that this share of the flagged ones are false alarms, as 0.05.
        false_alarms: Flag images so that this share of the in-distribution ones is flagged; None for 1%, or for `fdr`.
        near_duplicates: Whether to look for near duplicates; None to do so for up to 200,000 images, and to leave out
            those that are of one recording.
        read_text: Whether to read the text in pictures, of up to 2,000 of them: text that goes with one class or split,
            and names of other classes. It needs the extra `text`.

    Raises:
        UsageError: A share is not between 0 and 1, or both are given.

    Example:
        >>> from ood_audit import FindingSettings
        >>> FindingSettings(false_alarms=0.05)
        FindingSettings(fdr=None, false_alarms=0.05, near_duplicates=None, read_text=False)

    """

    fdr: float | None = None
    false_alarms: float | None = None
    near_duplicates: bool | None = None
    read_text: bool = False

    def __post_init__(self) -> None:
        for option, level in (("`fdr`", self.fdr), ("`false_alarms`", self.false_alarms)):
            if level is not None and not 0 < level < 1:
                raise UsageError(f"{option} {level}: choose between 0 and 1, as 0.05")
        if self.fdr is not None and self.false_alarms is not None:
            raise UsageError("give `fdr` or `false_alarms`, not both")
