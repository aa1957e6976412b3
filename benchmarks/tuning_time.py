"""How long a residual takes for many classes, on made-up features of any dimension.

    python -m benchmarks.tuning_time [--classes 1000] [--shots 16] [--dimension 512] [--names 45000] [--threads 2]

The time is of `ood_audit.tuning.residual.fit` alone with its default settings: what `tune --method residual` adds to
reading the store and encoding the names. 1,000 classes with 16 shots are held to 5 seconds on two cores. A shot is an
image that is trained on; a quarter of the labelled ones is held out beside them.
"""

import argparse
import os
import time

import numpy as np
import torch

from benchmarks.made import Features
from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.tuning import residual
from ood_audit.tuning.settings import settings_of
from ood_audit.tuning.trainer import Beside

LIMIT = 5.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--names", type=int, default=45_000, help="background names")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    made = Features(options.classes, options.dimension)
    labels = np.arange(options.classes).repeat(-(-4 * options.shots // 3))
    images = made.unit(made.text[labels] + 1.5 * made.unit(made.draw(len(labels))[0]))
    names = Features(options.names, options.dimension, seed=1).text
    settings, defaults = settings_of(method="residual", shots=options.shots), ScoreDefaults(0.01, 1, 0.0)

    what = f"{options.classes:,} classes × {options.shots} shots × {options.dimension}, {options.names:,} names"
    print(f"{what}, {options.threads} threads; limit {LIMIT:.0f} s")
    for _ in range(2):  # the first imports what the optimizer needs as well
        wall, cpu = time.perf_counter(), sum(os.times()[:2])
        found = residual.fit(images, labels, made.text, defaults, settings, beside=Beside(names))
        wall, cpu = time.perf_counter() - wall, sum(os.times()[:2]) - cpu
        kept = f"epoch {found.epoch} of {found.history[-1].epoch} kept"
        print(
            f"{wall:.1f} s {'holds' if wall <= LIMIT else 'MISSED'}, {cpu:.1f} s of processor time, {kept}", flush=True
        )


if __name__ == "__main__":
    main()
