"""Text in pictures, read by RapidOCR, whose models come inside its package: nothing is loaded from elsewhere."""

import numpy as np

from ood_audit.errors import UsageError
from ood_audit.images.decode import reduced

SIDE = 640  # pixels of the longer side: a picture is never scaled up, and its text is read in about a sixth of a second
_SETTINGS = {
    "Global.log_level": "critical",  # it warns of each picture without text
    "Global.use_cls": False,  # text that is upside down is not read
    "Det.limit_type": "max",
    "Det.limit_side_len": SIDE,
    # One thread for a picture, as several pictures are read at once.
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}


class TextReader:
    """Reads Latin letters with their accents, Chinese and Japanese, in print more than in handwriting.

    An instance may be called by several threads at once.

    Raises:
        UsageError: RapidOCR or ONNX Runtime is not installed.

    """

    def __init__(self) -> None:
        try:
            import onnxruntime  # noqa: F401  RapidOCR imports it when it reads
            from rapidocr import RapidOCR
        except ImportError as error:
            raise UsageError(f"`read_text` needs RapidOCR ({error}): pip install 'ood-audit[text]'") from error
        self._read = RapidOCR(params=_SETTINGS)

    def __call__(self, uri: str) -> list[str] | None:
        """The lines of text in a picture, from the top to the bottom; None where it can't be read."""
        picture = reduced(uri, SIDE)
        if picture is None:
            return None
        try:
            return list(getattr(self._read(np.asarray(picture)[:, :, ::-1]), "txts", None) or ())
        except Exception:  # as in `decode`: no picture may stop a report
            return None
