"""The starter without torch: the same pictures, features and identity as with it, and when it is taken."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ood_audit.classes import background
from ood_audit.encoders import clip, gpu, loading
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import EncoderError
from ood_audit.images.decode import decode
from tests.conftest import EXAMPLES

pytest.importorskip("openvino")
light = pytest.importorskip("ood_audit.encoders.light")
towers = pytest.importorskip("ood_audit.encoders.towers")
types = pytest.importorskip("openvino.utils.types")

PHOTOS = sorted((EXAMPLES / "images").rglob("*.jpg"))


@pytest.fixture(scope="module")
def starter():
    return light.StarterEncoder("fp32")


def pixels_of(encoder):
    found = (decode(path.as_uri(), encoder.prepare, at_least=encoder.decode_size).pixels for path in PHOTOS)
    return [pixels for pixels in found if pixels is not None]


def test_features_and_identity_are_those_of_torch(starter, encoder):
    pixels = pixels_of(encoder)
    assert starter.identity == encoder.identity
    np.testing.assert_allclose(starter.encode_images(pixels), encoder.encode_images(pixels), atol=2e-6)


def test_looks_are_those_of_torch(starter, encoder):
    """Of length 1, and apart by as much as what they are a projection of, to its error."""
    pixels = pixels_of(encoder)
    features, mine = starter.encode(pixels)
    np.testing.assert_array_equal(features, starter.encode_images(pixels))
    np.testing.assert_allclose(mine, encoder.encode(pixels)[1], atol=5e-6)
    np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-5)
    pooled = []
    hook = encoder._model.visual.head.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    encoder.encode(pixels)
    hook.remove()
    whole = torch.nn.functional.normalize(pooled[0].float().sqrt(), dim=1).numpy()
    assert np.abs(mine @ mine.T - whole @ whole.T).max() < 0.3  # four standard deviations of 1/√192


def test_features_in_bf16_are_those_of_torch_in_bf16():
    """As near to them as different kernels of one precision are: nearer than either to float32."""
    half, torch_half = light.StarterEncoder("fp32"), clip.load_encoder("starter", device="cpu", precision="bf16")
    half.use_bf16()
    assert half.identity == torch_half.identity
    pixels = pixels_of(half)[:24]
    mine, theirs = half.encode_images(pixels), torch_half.encode_images(pixels)
    assert (mine * theirs).sum(axis=1).min() > clip.AGREEMENT


@pytest.mark.parametrize(
    "size", [(224, 224), (225, 224), (300, 225), (225, 301), (50, 40), (1001, 667), (3, 4000), (2500, 16)]
)
def test_pictures_are_prepared_as_torchvision_does(starter, encoder, size):
    dice = np.random.default_rng(0)
    photo = Image.fromarray(dice.integers(0, 256, (size[1], size[0], 3), np.uint8))
    np.testing.assert_array_equal(starter.prepare(photo), encoder.prepare(photo))
    if min(size) > 600:
        small = photo.reduce(2)
        np.testing.assert_array_equal(starter.prepare(small, size), encoder.prepare(small, size))


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_a_batch_of_any_size_gives_the_same_features(starter, count):
    pixels = pixels_of(starter)[:11]
    alone = np.concatenate([starter.encode_images([one]) for one in pixels])
    found = starter.encode_images(pixels[:count])
    np.testing.assert_allclose(found, alone[:count], atol=1e-6)


TEXTS = [
    "a photo of a cat.",
    "It's 12 o'clock &amp;amp; WE'RE fine",
    "straße naïve ＦＵＬＬ 中文 🙂 é İstanbul ﬁ",
    "",
    "a" * 300,
    "word " * 40,
    "<end_of_text> a <start_of_text>",
    "don’t “quote” \u200b mojibake â€™ \x00 1234 5.6-7_8",
]


def test_texts_are_read_as_open_clip_reads_them(starter, encoder):
    np.testing.assert_array_equal(starter.tokenize(TEXTS), encoder.tokenize(TEXTS).numpy())
    names = background.background_names()
    np.testing.assert_array_equal(starter.tokenize(names[::50]), encoder.tokenize(names[::50]).numpy())


def test_texts_have_the_features_of_torch(starter, encoder):
    """In batches, each cut off after its longest text."""
    texts = [*TEXTS, *(f"a photo of {i} {'very ' * (i % 20)}old cats" for i in range(300))]
    np.testing.assert_allclose(starter.encode_texts(texts), encoder.encode_texts(texts), atol=2e-6)
    assert starter.encode_texts([]).shape == (0, 384)
    assert starter.score_defaults == encoder.score_defaults


def test_neither_torch_is_imported_nor_what_reports_home(tmp_path, pictures):
    """Not by `embed`, nor by a first report, whose classes and background are encoded."""
    script = (
        "import sys, ood_audit\n"
        f"made = ood_audit.embed({str(pictures)!r}, store={str(tmp_path / 'store')!r}, device='cpu')\n"
        "ood_audit.report(made.store, labels=['butterfly', 'cup'], device='cpu')\n"
        "print([name for name in ('torch', 'open_clip', 'openvino_telemetry') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_store_may_go_on_with_the_other_engine(starter):
    kept = EncoderIdentity.from_json(starter.identity.to_json())
    assert isinstance(loading.load_same_encoder(kept, device="cpu"), light.StarterEncoder)
    assert clip.load_same_encoder(kept, device="cpu").identity == kept
    other = EncoderIdentity.from_json({**kept.to_json(), "weights_sha256": "0" * 64})
    with pytest.raises(EncoderError, match="no longer the one this store was made with"):
        loading.load_same_encoder(other, device="cpu")


def test_a_tower_that_was_begun_is_compiled_once_and_of_the_last_precision(monkeypatch, starter):
    some = [np.full((224, 224, 3), 99, np.uint8)]
    expected = starter.encode_images(some)
    made, compiled = [], towers.compile_graph

    def noted(graph, precision, **options):
        made.append(precision)
        return compiled(graph, precision, **options)

    monkeypatch.setattr(towers, "compile_graph", noted)
    encoder = light.StarterEncoder("fp32")
    encoder.begin()
    np.testing.assert_array_equal(encoder.encode_images(some), expected)
    assert made == ["fp32"]
    encoder.begin()
    encoder.use_bf16()
    assert not np.array_equal(encoder.encode_images(some), expected)
    assert made == ["fp32", "bf16"]


def test_damaged_weights_are_one_line(monkeypatch, tmp_path):
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / name).write_bytes((light.STARTER / name).read_bytes()[:5000])
    monkeypatch.setattr(light, "STARTER", tmp_path)
    with pytest.raises(EncoderError, match=r"could not load `model` starter: .*install ood-audit again"):
        light.StarterEncoder("fp32")


def test_what_goes_wrong_in_a_tower_that_was_begun_is_raised_where_it_is_needed(monkeypatch):
    encoder = light.StarterEncoder("fp32")
    monkeypatch.setattr(towers, "compile_graph", lambda *given, **options: 1 / 0)
    encoder.begin()
    with pytest.raises(ZeroDivisionError):
        encoder.encode_images([np.zeros((224, 224, 3), np.uint8)])


@pytest.mark.parametrize(
    ("change", "is_light"),
    [
        ({}, True),
        ({"model": "auto", "device": "auto"}, True),
        ({"model": "ViT-B-32"}, False),
        ({"weights": "file"}, False),
        ({"precision": "fp16"}, False),
        ({"device": "cuda"}, False),
    ],
)
def test_who_loads_the_starter(monkeypatch, change, is_light):
    asked = {"model": "starter", "weights": None, "device": "cpu", "precision": "auto", **change}
    assert loading._is_light(**asked) is is_light
    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "aarch64")
        assert not loading._is_light(**asked)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not loading._is_light(**asked)


def test_a_gpu_is_seen_before_torch_is_imported(monkeypatch):
    assert gpu.is_cpu("cpu")
    assert not gpu.is_cpu("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not gpu.is_cpu("auto")  # torch is imported, and knows
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(gpu, "_gpu_driver", lambda: False)
    assert gpu.is_cpu("auto")
    assert "torch" not in sys.modules


def test_no_weights_pass_through_lists(monkeypatch):
    """What OpenVINO makes constants of by itself, it makes a list of Python's numbers first: seconds and 200 MB."""
    sizes = [0]
    make = types.make_constant_node

    def counting(value, *arguments, **options):
        sizes.append(np.size(value))
        return make(value, *arguments, **options)

    monkeypatch.setattr(types, "make_constant_node", counting)
    encoder = light.StarterEncoder("fp32")
    encoder.encode_images([np.zeros((224, 224, 3), np.uint8)])
    encoder.encode_texts(["a cat"])
    assert max(sizes) < 10  # axes, and what three channels have


@pytest.mark.skipif(sys.platform == "win32", reason="stacks for signals are POSIX's")
def test_a_ctrl_c_after_several_encoders_is_no_crash():
    program = """
import signal
from ood_audit.encoders.light import StarterEncoder

first, second = StarterEncoder("fp32"), StarterEncoder("fp32")
for encoder in (first, second):
    encoder.encode_texts(["a cat"])
del first
del second, encoder
signal.signal(signal.SIGINT, lambda *_: print("heard"))
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
