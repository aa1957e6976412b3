"""The options that commands share, and their types."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypedDict, TypeVar

import click

from ood_audit.errors import UsageError
from ood_audit.store.findings import KINDS
from ood_audit.store.store import DEFAULT_STORE, Store

F = TypeVar("F", bound=Callable[..., object])
SEED = click.IntRange(0, 2**32 - 1)
_SELECTIONS = {
    "flagged": ("ood",),
    "shifted": ("covariate-shift",),
    "duplicates": ("exact-duplicate", "near-duplicate"),
    "label-issues": ("label",),
    "leaks": ("leak",),
    "quality": ("quality",),
    "shortcuts": ("shortcut",),
    "text": ("text",),
    "unreadable": ("unreadable",),
}

store_option = click.option(
    "--store",
    envvar="OOD_AUDIT_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="Folder of the store, or s3://BUCKET/FOLDER.",
)
labels_option = click.option(
    "--labels",
    metavar="FILE",
    help="List of classes: one on a line, with synonyms after |; or CSV, JSON or YAML.  "
    "[default: the last list used, else the folder names]",
)
format_option = click.option(
    "--format",
    type=click.Choice(["table", "csv", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="Output format.",
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="Where to compute: auto, cpu, cuda, cuda:N or mps.",
)


def as_options(message: str, command: click.Command | None) -> str:
    """The message of an error with the options of a command in place of the API's parameters.

    A parameter is `` `name` ``, or `` `name=value` `` where a remedy gives its value. What the command lacks is an
    option of another one.
    """
    options = {"method": "--score", "templates": "--template"} | (_options(command) if command is not None else {})

    def spelled(found: re.Match[str]) -> str:
        name, value = found.groups()
        option = options.get(name, "--" + name.strip("_").replace("_", "-"))
        return option if value is None else f"{option} {value}"

    return re.sub(r"`([a-z][a-z0-9_]*)(?:=([^`\s]+))?`", spelled, message)


def _options(command: click.Command) -> dict[str, str]:
    """The options and arguments of a command and its subcommands by the name of their parameter."""
    options: dict[str, str] = {}
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        options |= _options(below)
    for param in command.params:
        options[str(param.name)] = (
            max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name
        )
    return options


class AutoNumber(click.ParamType[float | bool | None]):
    """A number, or `auto`, which is None: the option's default."""

    name = "auto|number"

    def __init__(self, kind: type[int] | type[float], *, on_off: bool = False) -> None:
        self._kind = kind
        self._words = {"on": True, "off": False} if on_off else {}

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | bool | None:
        """None for `auto`."""
        if value is None or isinstance(value, self._kind):
            return value
        word = str(value).strip().lower()
        if word == "auto":
            return None
        if word in self._words:
            return self._words[word]
        try:
            return self._kind(word)
        except ValueError:
            kind = "a whole number" if self._kind is int else "a number"
            self.fail(f"{value!r} is neither {kind} nor 'auto'", param, ctx)


class Share(click.ParamType[float]):
    """A share of the images: 1% or 0.01."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As a number from 0 to 1."""
        try:
            text = str(value).strip()
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a share; write 1% or 0.01", param, ctx)
        return share


def comparison_options(command: F) -> F:
    """How settings are chosen, and prompts."""
    options = [
        click.option(
            "--prompts",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="Tuned prompts to use: auto, none or a name.",
        ),
        click.option(
            "--auto/--no-auto",
            default=True,
            show_default=True,
            help="Choose the settings that you don't give, by leaving classes out. Needs 6 classes and 60 images.",
        ),
        click.option(
            "--seed", type=SEED, metavar="N", default=0, show_default=True, help="Random seed for choosing settings."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def selection_options(command: F) -> F:
    """The options that select findings, `--paths` and `--report`; `selection` takes the former two."""
    for option in (
        click.option("--report", metavar="NAME", help="Report whose findings to use.  [default: the last one]"),
        click.option(
            "--paths", metavar="FILE", help="Select the images that a file lists, one path on a line; - reads stdin."
        ),
        click.option(
            "--kind",
            "kind",
            type=click.Choice(KINDS),
            multiple=True,
            help="Select one kind of finding. Can be repeated.",
        ),
        *(
            click.option(
                f"--{name}", is_flag=True, help=f"Select the kind{'s' * (len(kinds) > 1)} {' and '.join(kinds)}."
            )
            for name, kinds in reversed(_SELECTIONS.items())
        ),
    ):
        command = option(command)
    return command


class Chosen(TypedDict, total=False):
    """What `export` and `quarantine` are about: kinds of findings, or images by their ids."""

    kinds: Collection[str]
    images: Mapping[str, str | None]


def selection(store: Store, paths: str | None, kind: Sequence[str], **flags: bool) -> Chosen:
    """What the options select: `kinds` of findings, or `images` by their ids."""
    chosen = [name for flag, names in _SELECTIONS.items() if flags[flag.replace("-", "_")] for name in names]
    if paths is None:
        if not chosen and not kind:
            named = ", ".join(f"--{flag}" for flag in _SELECTIONS)
            raise UsageError(f"select findings: {named} or --kind; or images: --paths")
        return {"kinds": list(dict.fromkeys([*chosen, *kind]))}
    if chosen or kind:
        raise UsageError("give --paths or kinds of findings, not both")
    from ood_audit.findings.records import listed

    return {"images": dict.fromkeys(listed(store, paths))}
