"""What a report found, in about ten lines for a terminal."""

from collections.abc import Iterator

from ood_audit.reports.model import Group, Kind, Section
from ood_audit.reports.run import Report

_GROUPS = 4  # groups named for each kind
_SENTENCES: dict[Kind, tuple[str, str]] = {  # one, many
    "ood": ("belongs to no class", "belong to no class"),
    "label": ("looks mislabelled", "look mislabelled"),
    "leak": ("leaks between splits", "leak between splits"),
    "exact-duplicate": ("is an exact duplicate", "are exact duplicates"),
    "near-duplicate": ("is a near duplicate", "are near duplicates"),
    "quality": ("is of odd quality", "are of odd quality"),
    "text": ("has the name of another class in it", "have the name of another class in them"),
    "shortcut": ("shows what goes with its class", "show what goes with their class"),
    "covariate-shift": ("is perhaps in another style", "are perhaps in another style"),
}


def lines(report: Report) -> Iterator[str]:
    """Images and classes; what was found, by kind, with the largest groups by name; how sure it is; and the page.

    Example:
        >>> for line in lines(ood_audit.report("audit")): print(line)  # doctest: +SKIP
        707 images of 30 classes: airplane, motorcycle, car, leopard, …
        40 belong to no class: gun 9, trilobite 6, scorpion 4, others 21

    """
    names = report.scores.vocabulary.names
    shown = ", ".join(names[:_GROUPS]) + (", …" if len(names) > _GROUPS else "")
    yield f"{report.scores.images:,} images of {len(names):,} class{'' if len(names) == 1 else 'es'}: {shown}"
    for section in report.sections:
        if section.kind in _SENTENCES and section.count:
            one, many = _SENTENCES[section.kind]
            yield f"{section.count:,} {one if section.count == 1 else many}{_groups(section)}"
    if report.unreadable:
        yield f"{report.unreadable:,} cannot be read"
    if not report.unreadable and not any(section.count for section in report.sections if section.kind != "unusual"):
        yield "nothing was found"
    yield _certainty(report)
    yield f"page: {report.html}"


def _groups(section: Section) -> str:
    """`: gun 9, trilobite 6, others 21`, or `: 4 in crab look like lobster, others 2`."""
    named = [group for group in section.groups if group.name]
    if not named:
        return ""
    parts = [_named(section.kind, group) for group in named[:_GROUPS]]
    rest = section.count - sum(group.count for group in named[:_GROUPS])
    return ": " + ", ".join([*parts, *([f"others {rest:,}"] if rest else [])])


def _named(kind: Kind, group: Group) -> str:
    if kind == "label":
        given, seen = group.name
        return f"{group.count:,} in {given} look like {seen}"
    if kind == "shortcut":
        return f"{group.count:,} of {' '.join(group.name)}"
    (name,) = group.name
    return f"{group.count:,} in {name}" if kind == "text" else f"{name} {group.count:,}"


def _certainty(report: Report) -> str:
    flags = report.decisions.flags
    if flags is None or not flags["reachable"]:
        return f"how sure: {report.decisions.unflagged}"
    what = "false discoveries" if flags["rule"] == "fdr" else "false alarms"
    found = f"how sure: {_percent(flags['level'])} {what}, {flags['calibrated']}"
    return f"{found}; at most about {flags['expected']:.0f} of the {flags['flagged']:,} flagged are wrong"


def _percent(level: float) -> str:
    """`1%`, `0.5%`."""
    return f"{100 * level:.3g}%"
