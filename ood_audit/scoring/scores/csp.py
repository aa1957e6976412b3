"""CSP: NegLabel with a conjugated semantic pool. Chen et al., NeurIPS 2024, arXiv 2410.08611.

The formula is NegLabel's; the negatives are nouns without persons, quantities and groups, and adjectives made things
("red pattern"), and features are means over several prompts: see `ood_audit.classes.pools`, which follows
MengyuanChen21/NeurIPS2024-CSP. `ood_score` is minus the value, which is higher for more in-distribution.
"""

from ood_audit.arrays import Array
from ood_audit.scoring.scores.neglabel import grouped_share


def csp(
    cosines: Array,
    *,
    images: Array,
    csp_classes: Array,
    csp_negatives: Array,
    temperature: float = 0.01,
    groups: int = 100,
    seed: int = 0,
) -> Array:
    """CSP of each image; the arguments and the value are those of `neglabel`, under the prompts of CSP."""
    return grouped_share(images, csp_classes, csp_negatives, temperature, groups, seed)
