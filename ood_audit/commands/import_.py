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
@click.option("--vector", metavar="NAME", help="Column or array that holds the vectors.  [default: the only one]")
@click.option(
    "--path", metavar="NAME", help="Column or array that holds the paths.  [default: path, image_path, file_name, …]"
)
@click.option("--label", metavar="NAME", help="Column or array that holds the class of each image.")
@click.option("--paths", metavar="FILE", help="Text file with one path on a line, for vectors without paths.")
@click.option(
    "--images", metavar="DIR", help="Folder that relative paths start from.  [default: the folder of FEATURES]"
)
@click.option("--model", metavar="MODEL", help="The open_clip model that made the vectors, to encode class names with.")
@click.option("--weights", metavar="FILE", help="Checkpoint for --model ARCH.")
@click.option("--texts", metavar="FILE", help="Class names with their vectors, in place of --model.")
@click.option(
    "--background", metavar="FILE", help="Background names with their vectors: things that are none of the classes."
)
def command(features: str, vector: str | None, path: str | None, label: str | None, **options: Any) -> None:
    """Make a store of image features that were computed elsewhere.

    FEATURES is a Parquet file or a folder of them, the output folder of clip-retrieval, or a .npz, .npy or .safetensors
    file. Vectors are normalised to length 1. The image files are not needed; reports show those that are there.
    """
    from ood_audit.embedding.imported import FeatureColumns, import_features

    with bars() as on_progress:
        result = import_features(
            features, columns=FeatureColumns(vector, path, label), on_progress=on_progress, **options
        )
    click.echo(f"{result.added} added, {result.changed} changed, {result.invalid} invalid")
    if result.normalised:
        note("the vectors were normalised to length 1")
    if result.invalid:
        note("to list the invalid ones: ood-audit query \"SELECT path, error FROM images WHERE status = 'error'\"")
    if missing := result.added + result.changed - result.on_disk:
        found = "image file was" if missing == 1 else "image files were"
        note(f"{missing} {found} not found; reports show a placeholder in place of each")
    if result.classes or result.background:
        classes = "1 class" if result.classes == 1 else f"{result.classes} classes"
        note(f"imported names: {classes}, {result.background} background names")
    note("next: ood-audit report" + ("" if result.classes else " --labels classes.txt"))
