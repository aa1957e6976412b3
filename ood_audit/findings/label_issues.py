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

from duckdb import DuckDBPyConnection

from ood_audit.store.findings import Issue

# Chosen on photographs of 30 classes with other swaps than those of `benchmarks/labels.py`, which measures them.
BELONGS = 0.1
TIMES = 3
# A class with fewer images has the threshold of all, and is never taken for another one.
FEWEST = 5
# Where so many images of a class seem to be of another, it is the model that does not tell them apart, or the folder
# that is named after another thing than it holds; either is said once, not once an image.
_PART = 3  # a third
_BATCH = 4096

_TABLES = f"""
CREATE TABLE _given AS
SELECT image_id, given_label AS given, label, confidence::DOUBLE AS p,
       greatest(given_confidence, 1e-30)::DOUBLE AS p_given, distance, ood_score, label = given_label AS agrees
FROM scores WHERE given_label IS NOT NULL;

CREATE TABLE _thresholds AS
SELECT given AS label, count(*) AS images, round(avg(p_given), 6) AS threshold FROM _given GROUP BY 1;

CREATE TABLE _ranked AS
WITH compared AS (
    SELECT *,
           1 + count(*) FILTER (agrees) OVER () AS n,
           (1 + count(*) FILTER (agrees) OVER (ORDER BY distance DESC RANGE UNBOUNDED PRECEDING)) / n AS d,
           (1 + count(*) FILTER (agrees) OVER (ORDER BY ood_score DESC RANGE UNBOUNDED PRECEDING)) / n AS o,
           CASE WHEN distance IS NULL THEN o ELSE (d * d * o) ^ (1 / 3) END AS belongs
    FROM _given),
judged AS (
    SELECT *, belongs * ln(greatest(p / p_given, 1)) AS x,
           NOT agrees AND belongs >= {BELONGS} AND p >= {TIMES} * p_given AND p >= CASE
               WHEN t.images >= {FEWEST} THEN t.threshold
               ELSE (SELECT round(avg(p_given), 6) FROM _given) END AS confident
    FROM compared LEFT JOIN _thresholds AS t USING (label))
SELECT image_id, given, label, p, p_given, x / (1 + x) AS label_issue, confident FROM judged;

CREATE TABLE _confused AS
SELECT given, r.label, count(*) AS these, any_value(t.images) AS images
FROM _ranked AS r JOIN _thresholds AS t ON t.label = given
WHERE confident GROUP BY given, r.label
HAVING {_PART} * these > any_value(t.images) AND any_value(t.images) >= {FEWEST};

CREATE TABLE label_issues AS
SELECT image_id, given, p, p_given, label_issue::FLOAT AS label_issue,
       CASE WHEN given <> label THEN label END AS suggested_label,
       confident AND NOT EXISTS (FROM _confused AS c WHERE c.given = r.given AND c.label = r.label) AS found
FROM _ranked AS r;
DROP TABLE _given; DROP TABLE _thresholds; DROP TABLE _ranked
"""


@dataclass(frozen=True)
class Summary:
    """What was found.

    Attributes:
        labelled: how many images have a given label. Where none has, nothing is found.
        found: how many of them are label issues.
        confused: pairs of classes between which none is reported: (given, looks like, how many images seem to be of the
            second, how many are labelled as the first).

    """

    labelled: int
    found: int
    confused: list[tuple[str, str, int, int]]

    def notes(self) -> list[str]:
        """What a person should know about it; a sentence each."""
        if not self.labelled:
            return ["label issues: none looked for, as no image is in a folder named as a class, nor annotated"]
        return [
            f"label issues: {these} of the {images} images labelled {given} look like {label}; "
            "none of them is listed: is the folder named rightly, are both one class?"
            for given, label, these, images in self.confused
        ]


def find(db: DuckDBPyConnection) -> Summary:
    """Judge the given labels.

    DuckDB does the work, and spills to disk what memory can't hold. It makes the table `label_issues`, a row for each
    image that has a given label: image_id, given, p and p_given (the probabilities of the nearest class and of the
    given one), label_issue (0 to 1; 0 where they are one class), suggested_label (null there), and found (whether it
    is an issue).

    Args:
        db: a connection with the view `scores`, see `store.views.connect`.

    """
    db.execute(_TABLES)
    labelled, found = db.execute("SELECT count(*), count(*) FILTER (found) FROM label_issues").fetchall()[0]
    confused = db.execute(
        "SELECT given, label, these, images FROM _confused ORDER BY these DESC, given, label"
    ).fetchall()
    db.execute("DROP TABLE _confused")
    return Summary(labelled, found, confused)


def findings(db: DuckDBPyConnection, report: str) -> Iterator[Issue]:
    """The label issues as rows of a report's findings, the worst first; after `find` on the same connection.

    Args:
        db: the connection.
        report: the report's name.

    """
    cursor = db.cursor()  # so that the caller may use `db` meanwhile
    cursor.execute(
        "SELECT image_id, uri, path, given, suggested_label, p_given, p, label_issue "
        "FROM label_issues JOIN images USING (image_id) JOIN (SELECT image_id, ood_score FROM scores) USING (image_id) "
        "WHERE found ORDER BY label_issue DESC, ood_score DESC, path, image_id"
    )
    while rows := cursor.fetchmany(_BATCH):
        for image_id, uri, path, given, label, p_given, p, severity in rows:
            evidence = f"labelled {given}, looks like {label}: probability {p:.2f} against {p_given:.2f}"
            yield Issue(image_id, uri, path, "label", severity, evidence, label, report)
