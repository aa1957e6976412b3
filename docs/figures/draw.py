"""Draw the figures of docs/concepts.md: `python -m docs.figures.draw`. Their numbers come from the package itself."""

from pathlib import Path

import numpy as np
import torch

from ood_audit.findings.calibration import p_values
from ood_audit.scoring.scores.delta_energy import delta_energy

HERE = Path(__file__).parent
BLUE, RED, GREY, INK = "#4c78a8", "#e45756", "#c8ccd2", "#333333"
NAMES = ("cat", "dog", "horse", "sheep", "cow")
KNOWN, UNKNOWN = (0.31, 0.19, 0.17, 0.16, 0.15), (0.20, 0.19, 0.19, 0.18, 0.18)
SETTINGS = {"temperature": 0.05, "top_c": 1, "reset_to": 0.0}


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "start", colour: str = INK) -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def page(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole picture."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" role="img">'
    )
    return "\n".join([head, f"<title>{title}</title>", box(0, 0, width, height, "#ffffff"), *parts, "</svg>"]) + "\n"


def energy_bars(left: float, heading: str, cosines: tuple[float, ...]) -> list[str]:
    """The similarities of one image, the largest hatched out, and the ΔE that this costs."""
    change = float(delta_energy(torch.tensor([cosines]), **SETTINGS)[0])
    parts = [text(left, 28, heading, 15)]
    for row, (name, value) in enumerate(zip(NAMES, cosines, strict=True)):
        y = 48 + 28 * row
        parts += [
            text(left + 44, y + 15, name, anchor="end"),
            box(left + 52, y, 600 * value, 20, RED if row == 0 else BLUE),
        ]
        parts.append(text(left + 58 + 600 * value, y + 15, f"{value:.2f}", 12))
    parts.append(text(left, 214, f"reset the red one to 0: ΔE = {change:.2f}", 14))
    return parts


def flags() -> str:
    """The scores of labelled images, and the p-value of one image."""
    rng = np.random.default_rng(7)
    labelled = rng.normal(0, 1, 99)
    image = np.array([1.5])
    p = float(p_values(labelled, image)[0])
    counts, edges = np.histogram(labelled, bins=24, range=(-3.2, 3.2))

    def at(score: float) -> float:
        return 60 + (score + 3.2) / 6.4 * 560

    parts = [text(60, 28, "99 labelled images by their score, and one image under audit", 15)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        beyond = (low + high) / 2 >= image[0]
        parts.append(box(at(low), 190 - 8 * count, at(high) - at(low) - 2, 8 * count, RED if beyond else GREY))
    parts += [f'<path d="M{at(image[0]):.1f} 50V190" stroke="{INK}" stroke-width="2" stroke-dasharray="5 4"/>']
    parts += [text(at(image[0]) + 8, 72, f"this image: p = {p:.2f}", 14), text(60, 214, "in distribution", 12)]
    parts += [text(620, 214, "more out of distribution →", 12, "end")]
    parts.append(f'<path d="M60 191H620" stroke="{INK}"/>')
    return page(680, 230, "A conformal p-value", parts)


def shift() -> str:
    """The two questions that tell kinds of shift apart."""
    cells = [
        (220, 60, "in distribution", "p is not small", GREY),
        (220, 130, "covariate shift", "a known class in another style", BLUE),
        (440, 130, "semantic shift", "an unknown class", RED),
    ]
    parts = [text(330, 28, "Is the name of a class clearly the nearest name?", 14, "middle")]
    parts += [text(315, 50, "yes", 13, "middle"), text(535, 50, "no", 13, "middle")]
    parts += [
        text(200, 95, "like the labelled images", 13, "end"),
        text(200, 165, "unlike the labelled images", 13, "end"),
    ]
    for x, y, name, meaning, colour in cells:
        width = 410 if name == "in distribution" else 190
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="60" rx="6" fill="{colour}" fill-opacity="0.35"/>')
        parts += [text(x + 12, y + 26, name, 15), text(x + 12, y + 46, meaning, 12)]
    return page(680, 210, "Semantic and covariate shift", parts)


def main() -> None:
    """Write all figures."""
    energy = [*energy_bars(20, "a picture of a cat", KNOWN), *energy_bars(360, "a picture of a teapot", UNKNOWN)]
    drawn = {
        "delta-energy": page(680, 230, "ΔEnergy of two images", energy),
        "flags": flags(),
        "shift": shift(),
    }
    for name, svg in drawn.items():
        (HERE / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
