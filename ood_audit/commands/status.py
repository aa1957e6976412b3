"""`ood-audit status`."""

import click

from ood_audit.commands.options import format_option, store_option
from ood_audit.commands.output import note_missing, print_rows
from ood_audit.store.files import read_json, shown
from ood_audit.store.store import Store, open_store


@click.command("status", epilog="Example: ood-audit status --store .ood-audit --format json")
@store_option
@format_option
def command(store: str, format: str) -> None:
    """Show what the store holds: images, encoder, classes, labelled images, scores and reports."""
    from ood_audit.store.sources import source_of
    from ood_audit.store.totals import scored, totals

    opened = open_store(store)
    found = totals(opened)
    known = list(map(source_of, found))
    encoder = opened.encoder
    runs = sorted(opened.runs.glob("*.json"))
    last = read_json(runs[-1]) if runs else None
    rows = [
        ("store", shown(opened.root)),
        (
            "model",
            encoder.model if encoder.weights is None else f"{encoder.model} --weights {encoder.weights}",
        ),
        ("precision", encoder.precision),
        ("dimension", encoder.dimension),
        ("images", sum(total.images for total in found)),
        ("unreadable", sum(total.unreadable for total in found)),
        ("sources", len(found)),
        ("missing_sources", sum(source.is_missing for source in known)),
        ("image_bytes", sum(total.size_bytes for total in found)),
        ("parts", len(opened.parts)),
        ("classes", len(opened.classes())),
        ("labelled_images", sum(read_json(path)["images"] for path in opened.root.glob("labelled/[!.]*.json"))),
        ("scored", scored(opened)),
        ("scores_in_step", _in_step(opened)),
        ("reports", ", ".join(sorted(path.name for path in opened.reports.glob("[!.]*")))),
        ("last_run", last.get("finished", "") if last else ""),
        ("last_run_interrupted", bool(last and last.get("interrupted"))),
    ]
    if format == "table":
        print_rows(["what", "value"], rows, format)
    else:
        print_rows([name for name, _ in rows], [[value for _, value in rows]], format)
    note_missing(known)


def _in_step(store: Store) -> bool:
    recipe = store.scores / f"{store.current().get('scores')}.json"
    return recipe.exists() and read_json(recipe).get("generation") == store.generation
