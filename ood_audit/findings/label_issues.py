"""Label issues: images that are labelled as one class, by their folder or by hand, and show another.

Confident learning (Northcutt et al., JAIR 2021, arXiv 1911.00068; cleanlab/cleanlab) with what a score run keeps of
each image: the probability of the nearest class k and that of the given one, g.

    t_k       the mean probability of k over the images labelled k
    belongs   = (d² o)^⅓, p-values: d the share of the images that agree with their label which lie as far from the
              pictures of their class, or farther, o of those that are as far out of distribution; o where there is no d
    x         = belongs · log(p_k / p_g)              label_issue = x / (1 + x)

An image is an issue where p_k ≥ t_k, p_k ≥ 3 p_g, and `belongs` ≥ 0.1: images of no class are out of distribution, not
mislabelled, and rank low. cleanlab itself wants the probabilities of all classes in
memory; two a row are enough for its off-diagonal counts, and let DuckDB do it for any number of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duckdb import DuckDBPyConnection

from ood_audit.images.notes import TOO_SMALL
from ood_audit.store.findings import Finding

if TYPE_CHECKING:
    import pyarrow as pa

# Chosen on photographs of 30 classes with other swaps than those of `benchmarks/labels.py`, which measures them.
BELONGS = 0.1
TIMES = 3
# A class with fewer images has the threshold of all, and is never taken for another one.
FEWEST = 5
# Where so many images of a class seem to be of another, it is the model that does not tell them apart, or the folder
# that is named after another thing than it holds; either is said once, not once an image.
_PART = 3  # one image in three
_BATCH = 4096

# Boxes that are too small for the model are judged by nothing.
CAN_BE_TOLD = f"image_id NOT IN (SELECT image_id FROM images WHERE starts_with(note, '{TOO_SMALL}'))"
# A CASE in place of FILTER, by which windows of DuckDB's take a hundred times as long.
_LABELLED = f"""
WITH given AS MATERIALIZED (
    SELECT image_id, given_label AS given, label, confidence::DOUBLE AS p,
           greatest(given_confidence, 1e-30)::DOUBLE AS p_given, distance, ood_score, label = given_label AS agrees
    FROM scores WHERE given_label IS NOT NULL AND {CAN_BE_TOLD}),
thresholds AS MATERIALIZED (
    SELECT given AS label, count(*) AS images, round(avg(p_given), 6) AS threshold FROM given GROUP BY 1),
compared AS (
    SELECT *,
           1 + count(CASE WHEN agrees THEN 1 END) OVER () AS n,
           (1 + count(CASE WHEN agrees THEN 1 END) OVER (ORDER BY distance DESC RANGE UNBOUNDED PRECEDING)) / n AS d,
           (1 + count(CASE WHEN agrees THEN 1 END) OVER (ORDER BY ood_score DESC RANGE UNBOUNDED PRECEDING)) / n AS o,
           CASE WHEN distance IS NULL THEN o ELSE (d * d * o) ^ (1 / 3) END AS belongs
    FROM given),
judged AS MATERIALIZED (
    SELECT *, belongs * ln(greatest(p / p_given, 1)) AS x,
           NOT agrees AND belongs >= {BELONGS} AND p >= {TIMES} * p_given AND p >= CASE
               WHEN t.images >= {FEWEST} THEN t.threshold
               ELSE (SELECT round(avg(p_given), 6) FROM given) END AS confident
    FROM compared LEFT JOIN thresholds AS t USING (label)),
confused AS (
    SELECT given, j.label, count(*) AS these, any_value(t.images) AS of_given
    FROM judged AS j JOIN thresholds AS t ON t.label = given
    WHERE confident GROUP BY given, j.label
    HAVING {_PART} * these > any_value(t.images) AND any_value(t.images) >= {FEWEST})
SELECT image_id, (x / (1 + x))::FLOAT AS label_issue, CASE WHEN NOT agrees THEN j.label END AS suggested_label,
       confident AND these IS NULL AS found, c.given AS confused_with, these, of_given
FROM judged AS j LEFT JOIN confused AS c ON confident AND c.given = j.given AND c.label = j.label
"""


@dataclass(frozen=True)
class LabelIssues:
    """What was found.

    Attributes:
        table: A row for each image that has a given label: image_id, label_issue (0 to 1; 0 where the given class is
            the nearest one), suggested_label (the nearest class; null there), and found (whether it is an issue).
        confused: Pairs of classes between which none is reported: (given, looks like, how many images seem to be of the
            second, how many are labelled as the first).

    """

    table: "pa.Table"
    confused: list[tuple[str, str, int, int]]

    @property
    def labelled(self) -> int:
        """How many images have a given label. Where none has, nothing is found."""
        return len(self.table)

    @property
    def found(self) -> int:
        """How many of them have a finding."""
        import pyarrow.compute as pc

        return pc.sum(self.table["found"]).as_py() or 0

    def notes(self) -> list[str]:
        """What a person should know about it; a sentence each."""
        if not self.labelled:
            return ["label issues: none looked for, as no image is in a folder named as a class, nor annotated"]
        return [
            f"label issues: {these} of the {images} images labelled {given} look like {label}; "
            "none of them is listed: is the folder named rightly, are both one class?"
            for given, label, these, images in self.confused
        ]


def find(db: DuckDBPyConnection) -> LabelIssues:
    """Judge the given labels. DuckDB does the work, and spills to disk what memory can't hold.

    Args:
        db: a connection with the view `scores`, see `store.views.connect`.

    """
    import pyarrow.compute as pc

    table = db.sql(_LABELLED).to_arrow_table()
    pair = ["confused_with", "suggested_label", "these", "of_given"]
    pairs = table.filter(pc.is_valid(table["these"])).group_by(pair).aggregate([]).select(pair)
    confused = [tuple(row.values()) for row in pairs.to_pylist()]
    return LabelIssues(table.drop_columns([pair[0], *pair[2:]]), sorted(confused, key=lambda row: (-row[2], *row)))


def findings(db: DuckDBPyConnection, report: str) -> Iterator[Finding]:
    """The label issues as rows of a report's findings, the worst first.

    Args:
        db: a connection with the view `report`.
        report: the report's name.

    """
    cursor = db.cursor()  # so that the caller may use `db` meanwhile
    cursor.execute(
        "SELECT image_id, uri, path, given_label, suggested_label, given_confidence, confidence, label_issue "
        "FROM report WHERE suggested_label IS NOT NULL ORDER BY label_issue DESC, ood_score DESC, path, image_id"
    )
    while rows := cursor.fetchmany(_BATCH):
        for image_id, uri, path, given, label, p_given, p, severity in rows:
            evidence = f"labelled {given}, looks like {label}: probability {p:.2f} against {p_given:.2f}"
            yield Finding(image_id, uri, path, "label", severity, evidence, label, report)
