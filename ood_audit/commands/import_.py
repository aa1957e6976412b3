"""`ood-audit import`."""

from typing import Any

import click

from ood_audit.commands.options import store_option
from ood_audit.commands.output import note
from ood_audit.progress import bars


@click.command(
    "import",
    epilog="Example: ood-audit import features.parquet --model ViT-B-32/openai --store audit",
)
@click.argument("features", metavar="FEATURES")
@store_option
@click.option("--vector", metavar="NAME", help="Column or array of the vectors.  [default: the only one]")
@click.option("--path", metavar="NAME", help="Column or array of the paths.  [default: path, image_path, file_name, …]")
@click.option("--label", metavar="NAME", help="Column or array of the class that each image is labelled with.")
@click.option("--paths", metavar="FILE", help="One path a line, for files of vectors that have no paths.")
@click.option("--images", metavar="DIR", help="Folder that relative paths start from.  [default: that of FEATURES]")
@click.option("--model", metavar="MODEL", help="open_clip model that made the vectors; it encodes the class names.")
@click.option("--weights", metavar="FILE", help="Checkpoint for --model ARCH.")
@click.option("--texts", metavar="FILE", help="Names of the classes and their vectors, in place of --model.")
@click.option("--background", metavar="FILE", help="Names of other things and their vectors, to compare with.")
def command(features: str, **options: Any) -> None:
    """Make a store of vectors that were computed elsewhere.

    FEATURES is a Parquet file or a folder of them, the output folder of clip-retrieval, or a .npz, .npy or .safetensors
    file. Vectors are brought to length 1. Images whose files are there are shown in reports; the files are not needed.
    """
    from ood_audit.embedding.imported import import_features

    with bars() as on_progress:
        result = import_features(features, on_progress=on_progress, **options)
    click.echo(f"{result.added} added, {result.changed} changed, {result.invalid} invalid")
    if result.normalised:
        note("the vectors were not of length 1; they have been normalised")
    if result.invalid:
        note("see the invalid ones: ood-audit query \"SELECT path, error FROM images WHERE status = 'error'\"")
    if missing := result.added + result.changed - result.on_disk:
        note(f"{missing} image files are not here; reports show a placeholder for them")
    if result.classes or result.background:
        note(f"names with vectors: {result.classes} classes, {result.background} background names")
    note("next: ood-audit report" + ("" if result.classes else " --labels classes.txt"))
