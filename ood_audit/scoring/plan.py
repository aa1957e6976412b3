"""What a score run computes: what images are compared with, by which scores, and with which settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import Spanned
from ood_audit.classes import labelled as labelled_images
from ood_audit.classes import pools, prototypes, texts
from ood_audit.classes.labelled import Labelled
from ood_audit.classes.prompts import Prompts
from ood_audit.classes.vocabulary import Vocabulary, cached_features
from ood_audit.encoders.gpu import choose_gpu
from ood_audit.progress import counting
from ood_audit.scoring import joining, knows, pictures, references, scores, selection
from ood_audit.scoring.context import Context
from ood_audit.scoring.joining import Joint
from ood_audit.scoring.kinship import between, kinship
from ood_audit.scoring.pictures import Pictures
from ood_audit.scoring.references import Calibration
from ood_audit.scoring.scores import Options, Score
from ood_audit.scoring.settings import ScoreSettings, settings_of
from ood_audit.scoring.similarity import Target
from ood_audit.store import Store
from ood_audit.store.views import count_readable

Run = tuple[Score, Options]  # the function of a score, and its settings
_Encoder = Callable[[], texts.TextEncoder]
_JOINED_FROM = (
    0.5  # the least kinship of the labelled images with the others that has these compared with them one by one
)
_NO_NOVELTY = {
    True: "novelty does not count, as pictures show what the classes look like",
    False: "novelty does not count, as nothing is joined with ΔEnergy",
}
_OTHERS = 4096  # names to tell a known class by, where no score wants all of them: nearly as good, and a small product


@dataclass(frozen=True)
class Plan:
    """What to compute.

    Attributes:
        target: what images are compared with.
        runs: by method, its function and its settings.
        delta: the settings of the columns delta_energy and energy where the method is another.
        parts: of the store, so that every pass over the features reads the same images.
        joint: for `auto` where too little is labelled to choose by, what its evidence is joined from. Where settings
            were chosen and no pictures help, the energy alone is corrected as it has it.
        pictures: for `auto` where images of known classes help to tell others, what its evidence is joined from.
        doubt: a sentence where the encoder seems not to know the classes, else "".
        forecasts: by method, where its settings were chosen on images whose class is known.
        sharpness: the temperature at which the softmax of the similarities is a probability; see `references`.
        calibration: labelled images that nothing was learned from but prototypes that do not score them.
        given: the class that an image was labelled with, by its id; other than by its folder.
        folders: (F,) the classes that a folder is named as.

    """

    target: Target
    runs: dict[str, Run]
    delta: Options
    parts: list[Path]
    joint: Joint | None
    pictures: Pictures | None
    doubt: str
    forecasts: dict[str, float]
    sharpness: float
    calibration: Calibration | None
    given: dict[str, int]
    folders: NDArray[np.int64]


def prepare(context: Context, settings: ScoreSettings, methods: Sequence[str], prompts: Prompts | None = None) -> Plan:
    """Settle the settings of some scores, and bring together what they need.

    Args:
        context: What is scored.
        settings: What the caller asked for; `methods` stand in place of its method, and `prompts` of its prompts.
        methods: The scores.
        prompts: The tuned prompts in use; None for the class names.

    Raises:
        UsageError: A setting was given that a score does not have.

    """
    choose_gpu(context.device)  # an error about it comes first
    store, vocabulary, given = context.store, context.vocabulary, settings.given(prompts)
    novelty, parts, joint = given.pop("novelty", None), store.parts, None
    encoder = texts.encoder_of(store, context.device, context.on_progress)
    by_name = cached_features(store, vocabulary, encoder)
    defaults = texts.encoder_defaults(store, encoder)
    duplicate = defaults.pop("duplicate")
    context.on_progress("reading the features")
    labelled = _labelled(context, prompts)
    alike = _kinship(context, labelled, by_name, settings.seed)
    text = by_name if prompts is None else between(by_name, prompts.class_features, alike)
    names = _Names(context, encoder, None if prompts is None else prompts.move, alike)
    shown, known_images = references.collect(store, vocabulary, text, labelled, defaults, seed=settings.seed)
    sample = references.thinned(known_images, settings.seed)
    can_choose = selection.usable(sample) and len(text) >= selection.FEWEST_CLASSES
    # Presumed labels are those of confident images, which are too easy to choose anything by but a whole score.
    known = can_choose and not sample.presumed
    if settings.auto and "best" in methods and not can_choose:
        context.note("settings: the model's own (choosing them needs 60 images in 6 classes)")
    may_join = settings.auto and "auto" in methods and known and given.get("prototypes") != 0 and alike > _JOINED_FROM
    those = pictures.shown(known_images, duplicate, audited=count_readable(store)) if may_join else None
    choose = partial(names.select, sample, text, defaults, settings.seed, those)
    runs, forecasts, chosen = {}, {}, {}
    for method in methods:
        choosable = known if method in ("auto", "delta-energy") else method == "best" and can_choose
        if settings.auto and choosable:
            grid = selection.Grid.around(given, every_score=method == "best", encoder=defaults)
            best = chosen[method] = choose(grid)
            runs[method] = (scores.load(best.method), best.settings)
            if known:  # presumed labels forecast how easy confident images are
                forecasts[method] = best.forecast
        else:
            runs[method] = _own(method, given, defaults, with_background=settings.auto and names.has_background)
    if alike < 1 and "prototypes" not in given:
        runs = {method: (function, _weighed(own, alike)) for method, (function, own) in runs.items()}
    shows = None
    if those is not None:
        in_use = runs["auto"][1]  # perhaps with another weight of the prototypes
        best = chosen["auto"] if chosen["auto"].settings == in_use else choose(selection.Grid.only(in_use))
        if (joined := pictures.forecast(best.rounds, those.weight)) > best.forecast:
            shows, forecasts["auto"] = those, joined
    background = names.complete(runs)
    doubt = knows.doubt(sample.features, text, background, defaults["temperature"])
    # Where they are not wanted, there is no product with them either, which would cost more than that with the text.
    made = [] if given.get("prototypes") == 0 else prototypes.fit_folds(shown, text)
    calibration = references.apart(store, shown, labelled, text) if labelled else None
    if "auto" in methods and settings.auto and shows is None:
        context.on_progress("reading the features")
        joint = joining.read(store, text, duplicate, novelty, parts, calibration)
        if prompts is None:  # tuned ones may have been moved towards the images already
            runs["auto"], joint = _corrected(runs["auto"], joint, background, defaults if known else runs["auto"][1])
    if novelty and (known or joint is None):
        context.note(_NO_NOVELTY[settings.auto])
    return Plan(
        target=Target(text, shown, made, names.loaded, None if joint is None else joint.correction),
        runs=runs,
        delta=settings_of("delta-energy", None, defaults),
        parts=parts,
        joint=None if known else joint,
        pictures=shows,
        doubt=knows.sentence(doubt, vocabulary.names) if doubt else "",
        forecasts=forecasts,
        sharpness=references.sharpness(sample, text),
        calibration=calibration,
        given={i: int(k) for i, k in zip(labelled.image_ids, labelled.labels, strict=True) if i} if labelled else {},
        folders=_class_folders(store, vocabulary),
    )


def _corrected(run: Run, joint: Joint, background: Spanned | None, used: Options) -> tuple[Run, Joint]:
    """A run of ΔEnergy and what its evidence is joined from, with cosines corrected for the folder by τ as `used`."""
    function, own = run
    joint = joining.corrected(joint, background if own["background"] else None, used["temperature"])
    return (function, {**own, "corrected": joint.correction is not None}), joint


class _Names:
    """The names that images are compared with beside those of the classes, each pool loaded when it is first needed.

    Attributes:
        loaded: The pools by name.
        has_background: Whether there are background names for this encoder.

    """

    def __init__(self, context: Context, encoder: _Encoder, move: NDArray[np.float32] | None, alike: float) -> None:
        self._move, self._alike = move, alike  # of the background, beside tuned class features
        self.loaded: dict[str, pools.Pool] = {}
        self.has_background = pools.is_available(context.store, "background")
        self._context = context
        self._encoder = encoder

    def load(self, name: str) -> pools.Pool:
        """One pool, its names encoded where they are not yet."""
        if name not in self.loaded:
            context = self._context
            on_progress = counting(context.on_progress, "encoding names")
            pool = pools.load(context.store, context.vocabulary, name, self._encoder, on_progress, context.note)
            if name == "background" and self._move is not None:
                pool = pool.moved(self._move, self._alike)
            self.loaded[name] = pool
        return self.loaded[name]

    def select(
        self,
        sample: selection.Sample,
        text: NDArray[np.float32],
        defaults: Options,
        seed: int,
        shown: Pictures | None,
        grid: selection.Grid,
    ) -> selection.Selection:
        """Choose settings by leaving classes out; of each round the evidence by the pictures is kept as well."""
        if not self.has_background:
            grid = replace(grid, background=(False,))
        return selection.select(
            sample,
            text,
            defaults,
            grid=grid,
            background=self.load("background") if True in grid.background else None,
            seed=seed,
            on_progress=counting(self._context.on_progress, "choosing settings"),
            look=partial(pictures.evidence_in, pictures=shown) if shown else lambda played: (),
        )

    def complete(self, runs: dict[str, Run]) -> Spanned | None:
        """Load what the scores need; returns the background names where a score runs over them."""
        needed = set().union(*(scores.inputs(function) for function, _ in runs.values()))
        for name in ("neglabel", "csp"):
            if f"{name}_negatives" in needed:
                self.load(name)
        if any(settings.get("background") for _, settings in runs.values()):
            return self.load("background").spanned
        if others := self.loaded.pop("background", None):
            self.loaded["background"] = others.thinned(_OTHERS)  # for the column `lead`
        return None


def _own(method: str, given: Options, defaults: Options, *, with_background: bool) -> Run:
    """A score with the settings that were given, and else its own."""
    name = "delta-energy" if method in ("best", "auto") else method
    function = scores.load(name)
    settings = settings_of(name, function, defaults, given)
    if method in ("auto", "delta-energy") and "background" not in given and with_background:
        settings["background"] = True
    return function, settings


def _kinship(context: Context, labelled: Labelled | None, by_name: NDArray[np.float32], seed: int) -> float:
    """How much the labelled images shall count, see `kinship`; says so where that is little."""
    if labelled is None or any(labelled.image_ids):  # images under audit are like themselves
        return 1.0
    audited = references.features_of(context.store, seed)
    found = kinship(labelled.features, labelled.labels, audited, by_name)
    if found < 0.5:
        context.note(
            "the images look unlike the labelled images, so these and tuned prompts count "
            f"{'little' if found else 'for nothing'}; label images of this style"
        )
    return found


def _weighed(settings: Options, weight: float) -> Options:
    return {**settings, "prototypes": weight * settings["prototypes"]}


def _labelled(context: Context, prompts: Prompts | None) -> Labelled | None:
    """The registered images; where there are none, those that the prompts in use were tuned on."""
    registered = labelled_images.load(context.store, context.vocabulary, context.note)
    if registered is None:
        return prompts.labelled if prompts else None
    return labelled_images.apart_from(registered, prompts.labelled) if prompts else registered


def _class_folders(store: Store, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """(F,) the classes that a folder with readable images is named as."""
    folders = store.query("SELECT DISTINCT folder FROM images WHERE status = 'ok'").rows
    return np.array(sorted({k for (folder,) in folders if (k := vocabulary.class_of(folder)) is not None}), np.int64)
