"""`ood-audit embed`."""

from typing import TYPE_CHECKING, Any

import click

from ood_audit.commands.options import device_option, store_option
from ood_audit.commands.output import note
from ood_audit.errors import UsageError
from ood_audit.progress import bars
from ood_audit.text import printable

if TYPE_CHECKING:
    from ood_audit.embedding.run import Encoder


@click.command(
    "embed",
    epilog="Example: ood-audit embed ./images annotations/instances_val2017.json --device cuda",
)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@store_option
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME=SOURCE",
    help="A source that is one split of the dataset, such as train or test. Can be repeated. Without it, folders named "
    "train, val (also valid, validation, dev) and test say so.",
)
@click.option(
    "--model",
    default="auto",
    show_default=True,
    metavar="MODEL",
    help="Encoder: starter (bundled), ARCH/TAG of open_clip, hf-hub:ORG/NAME, local-dir:DIR, or ARCH with --weights. "
    "auto is the encoder of the store; for a new store ViT-B-16 with CUDA, else starter.",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="Checkpoint for --model ARCH. Its preprocessing is read from open_clip_config.json in the same folder.",
)
@click.option(
    "--images",
    metavar="DIR",
    help="Folder of the images of a dataset.  [default: looked for beside its annotations]",
)
@click.option(
    "--crops",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Whether each box of a dataset is also embedded as an image of its own. auto and on embed pictures and boxes; "
    "on fails where there are no boxes.",
)
@device_option
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Precision of the encoder. auto is that of the store; for a new store bf16 where the hardware has it, "
    "else fp32.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where to run. ray takes the Ray cluster at RAY_ADDRESS or on this machine, else starts one. Every node needs "
    "ood-audit and the model, and the images at the same paths.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images in a forward pass.  [default: what suits the device]",
)
@click.option("--gps", is_flag=True, help="Keep where pictures were taken, as far as their EXIF says.")
def command(sources: tuple[str, ...], splits: tuple[str, ...], **options: Any) -> None:
    """Embed images and sync the store with their sources.

    SOURCE is a folder (searched recursively), a .tar or .zip file, an image, or a list of these: a .txt file, or a .csv
    or .parquet file with a column named path (and label, and split). It can be local or at s3://, gs://, hdfs:// or
    https://.

    SOURCE can also be a dataset with labels, splits and boxes: a COCO file (.json), a YOLO file (data.yaml), a Pascal
    VOC folder, Parquet with images as the Hugging Face Hub has it, an ImageFolder with metadata.csv or .jsonl, or a
    WebDataset; the first three and the ImageFolder also as a .zip file, and COCO, YOLO and Parquet at s3:// as well.
    Its classes are the vocabulary until --labels names another.

    Run the command again after images were added, changed or removed: only the difference is embedded. To resume an
    interrupted run, run it again, too. Files that were moved or renamed keep their features. A file that can't be read
    becomes a row with its error.
    """
    from ood_audit.embedding.run import OUTCOMES, embed
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.store import annotations

    pairs = [_split(text) for text in splits]
    if not sources and not pairs:
        raise click.MissingParameter(param_hint="'SOURCE...'", param_type="argument")
    with quiet_libraries(), bars() as on_progress:
        result = embed(sources, splits=pairs, on_start=_announce, on_progress=on_progress, on_note=_warn, **options)
    for folder, reason in result.unreadable_folders.items():
        note(f"warning: cannot read the folder {folder} ({reason.lower()}); its images in the store are unchanged")
    rare = ("moved", "relabelled")
    shown = [outcome for outcome in OUTCOMES if outcome not in rare or result.counts[outcome]]
    counts = ", ".join(f"{result.counts[outcome]} {outcome}" for outcome in shown)
    skipped = ", ".join(f"{n} {printable(kind)}" for kind, n in result.skipped.most_common(8))
    files = f"; skipped {result.skipped.total()} other files ({skipped})" if skipped else ""
    click.echo(f"{counts}{files}; {result.seconds:.1f} s")
    if result.counts["unreadable"]:
        note("to list the unreadable files: ood-audit query \"SELECT path, error FROM images WHERE status = 'error'\"")
    if any(result.counts[outcome] for outcome in ("added", "changed", "moved", "relabelled", "removed")):
        has_classes = result.store.current() or annotations.classes(result.store)
        note("next: ood-audit report" + ("" if has_classes else " --labels classes.txt"))


def _split(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals or not name or not source:
        raise UsageError(f"--split {printable(text)!r}: write NAME=SOURCE, such as test=./images/held-out")
    return name, source


def _announce(encoder: "Encoder") -> None:
    identity = encoder.identity
    note(
        f"model: {identity.model} ({identity.architecture}, {identity.activation}, {identity.dimension} dimensions), "
        f"{identity.precision} on {encoder.device}"
    )
    note(f"preprocessing: {identity.prepares}")


def _warn(text: str) -> None:
    note(f"warning: {text}")
