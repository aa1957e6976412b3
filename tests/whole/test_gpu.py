"""Everything that runs on a GPU, run on the pretend one (`tests/helpers/pretend_cuda.py`) and compared with a CPU."""

import shutil
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ood_audit
from ood_audit import FindingSettings, ScoreSettings
from ood_audit.classes import background, pools, wordnet
from ood_audit.encoders import clip, device
from ood_audit.encoders.clip import load_encoder, load_same_encoder
from ood_audit.errors import EncoderError, UsageError
from ood_audit.scoring import metrics, scores, selection, similarity
from ood_audit.store import open_store
from ood_audit.store.parts import iter_features
from ood_audit.tuning.settings import TuneSettings
from ood_audit.tuning.trainer import fit
from tests.encoders.test_clip import MODELS, save
from tests.helpers.cli import invoke
from tests.helpers.pretend_cuda import pretend

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
    "yellow": (230, 220, 30),
    "purple": (150, 30, 160),
}
EACH = 9
TOTAL = EACH * len(COLOURS)
CPU_WORDS = "continuing on the CPU"


@pytest.fixture
def gpu():
    with pretend() as one:
        yield one


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small pools of real words that no other test has encoded, and few resamples."""
    monkeypatch.setenv("OOD_AUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(clip, "bf16_in_hardware", lambda: False)
    monkeypatch.setattr(background, "_PHYSICAL", ("noun.shape",))
    monkeypatch.setattr(background, "_words", lambda without: (wordnet.names("adj.ppl"), wordnet.names("noun.shape")))
    monkeypatch.setattr(pools, "_SHARE", 0.9)
    monkeypatch.setattr(background, "_CSP_NOUNS", ("{}", "the nice {}"))
    monkeypatch.setattr(background, "_CSP_ADJECTIVES", ("{}",))
    monkeypatch.setattr(selection, "select", partial(selection.select, rounds=2))
    original = metrics.bootstrap
    monkeypatch.setattr(metrics, "bootstrap", lambda *given, rounds: original(*given, rounds=3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "vit", MODELS["vit"])


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Pictures of seven colours in folders named as these; two of them differ by a little noise."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(EACH):
            pixels = np.clip(np.array(colour) + rng.normal(0, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    Image.fromarray(np.clip(pixels + rng.integers(0, 2, pixels.shape), 0, 255).astype(np.uint8)).save(
        root / name / f"{EACH - 2}.png"
    )
    return root


@pytest.fixture(scope="module")
def made(colours, model, tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "store"
    return ood_audit.embed(colours, store=root, model=model, device="cpu", precision="fp32").store.root


@pytest.fixture
def store(made, tmp_path):
    """A store in float32, made on the CPU."""
    return open_store(shutil.copytree(made, tmp_path / "store"))


def values(store, columns="path, ood_score, delta_energy, energy, max_cosine, confidence, distance, lead"):
    rows = store.query(f"SELECT {columns} FROM scores ORDER BY path").rows
    return [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float64)


def assert_alike(found, expected, method="auto"):
    """Arrays of `values` agree. The default joins ranks, of which near ties come either way by rounding."""
    joined = method == "auto"
    np.testing.assert_allclose(found[:, joined:], expected[:, joined:], atol=1e-4)
    np.testing.assert_allclose(found[:, :1], expected[:, :1], atol=0.2 if joined else 1e-4)


def features_of(store):
    batches = list(iter_features(store))
    paths = [path for batch in batches for path in batch.paths.to_pylist()]
    return dict(zip(paths, np.concatenate([b.features for b in batches]), strict=True))


def pixels_of(encoder, colours, count=6):
    paths = sorted(colours.rglob("*.png"))
    return [encoder.prepare(Image.open(path)) for path in paths[:: len(paths) // count][:count]]


# The double itself


def test_the_double_refuses_what_cuda_refuses(gpu):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.device == torch.device("cuda:0")
    assert float((there + 1).sum()) == 6
    assert (there.cpu() + here).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(TypeError, match=r"Tensor\.cpu"):
        there.numpy()
    with pytest.raises(RuntimeError, match="cannot pin"):
        there.pin_memory()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (there[None] @ there[:, None]).dtype == torch.bfloat16


# Embedding


@pytest.mark.parametrize(("capability", "precision"), [((8, 0), "bf16"), ((7, 5), "fp16")])
def test_embed(gpu, colours, model, store, tmp_path, capability, precision):
    gpu.capability = capability
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    result = ood_audit.embed([colours, tmp_path / "damaged.png"], store=tmp_path / "other", model=model)
    assert dict(+result.counts) == {"added": TOTAL, "unreadable": 1}
    assert result.store.encoder.precision == precision
    assert sum(gpu.passes) == TOTAL + 1  # and the probe
    expected, found = features_of(store), features_of(result.store)
    assert found.keys() == expected.keys()
    assert min(expected[path] @ found[path] for path in found) > 0.999


@pytest.mark.parametrize("kind", ["vit", "modified resnet"])
def test_weights_are_cast_once(gpu, tmp_path, colours, kind):
    encoder = load_encoder(save(tmp_path / "model", MODELS[kind]), device="cuda")
    assert {weight.dtype for weight in encoder._model.visual.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in encoder._model.transformer.parameters()} == {torch.float32}
    pixels = pixels_of(encoder, colours, 3)
    gpu.casts.clear()
    encoder.encode_images(pixels)
    assert {shape[0] for shape in gpu.casts if len(shape) > 1} == {3}  # images and their tokens, no matrices of weights


def test_convolutional_towers_have_few_batch_sizes(gpu, tmp_path, colours):
    """cuDNN tries its algorithms for each."""
    encoder = load_encoder(save(tmp_path / "model", MODELS["modified resnet"]), device="cuda", precision="fp32")
    assert torch.backends.cudnn.benchmark
    pixels = pixels_of(encoder, colours, 40)
    gpu.passes.clear()
    features = encoder.encode_images(pixels)
    assert gpu.passes == [64]
    np.testing.assert_allclose(features[:5], encoder.encode_images(pixels[:5]), atol=1e-5)
    assert gpu.passes == [64, 5]


def test_a_vit_leaves_cudnn_alone(gpu, model):
    load_encoder(model, device="cuda")
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_that_are_not_finite_are_an_error(colours, model, tmp_path, monkeypatch, precision):
    encode = clip.ClipEncoder.encode

    def overflow(encoder, pixels):
        features, looks = encode(encoder, pixels)
        features[0, 3] = np.nan if precision == "fp32" else np.inf
        if len(features) > 2:
            features[2] = 0
        return features, looks

    monkeypatch.setattr(clip.ClipEncoder, "encode", overflow)
    options: dict[str, Any] = {"model": model, "device": "cpu", "precision": precision, "batch_size": 21}
    result = ood_audit.embed(colours, store=tmp_path / "store", **options)
    assert dict(+result.counts) == {"added": TOTAL - 6, "unreadable": 6}
    rows = result.store.query("SELECT DISTINCT error FROM images WHERE status = 'error'").rows
    remedy = "choose another model" if precision == "fp32" else "embed into a new store with --precision fp32"
    assert rows == [(f"features are not finite in {precision}; {remedy}",)]
    assert np.isfinite(np.stack(list(features_of(result.store).values()))).all()


def test_text_features_that_are_not_finite_are_refused(model, monkeypatch):
    encoder = load_encoder(model, device="cpu")
    encoder._model.text_projection.data[0, 0] = torch.nan
    with pytest.raises(EncoderError, match="not finite: its weights are damaged"):
        encoder.encode_texts(["a photo"])


# Reports


@pytest.mark.parametrize("method", ["auto", *scores.names(), "best"])
def test_report(gpu, store, method):
    """Every score, with settings chosen on the data and a background."""
    ood_audit.score(store, settings=ScoreSettings(method=method, prototypes=True), device="cpu")
    expected = values(store)
    for path in store.scores.iterdir():
        path.unlink()
    gpu.calls.clear()
    report = ood_audit.report(store, settings=ScoreSettings(method=method, prototypes=True), device="auto")
    assert len(report.rows) == TOTAL
    assert gpu.calls["aten.mm.default"] > 0
    paths, found = values(store)
    assert paths == expected[0]
    assert_alike(found, expected[1], method)


@pytest.mark.parametrize("options", [{"background": True}, {"auto": False}, {"background": True, "prototypes": True}])
def test_report_with(gpu, store, options):
    ood_audit.score(store, device="cpu", settings=ScoreSettings(**options))
    expected = values(store)
    for path in store.scores.iterdir():
        path.unlink()
    ood_audit.score(store, device="cuda:0", settings=ScoreSettings(**options))
    assert_alike(values(store)[1], expected[1])


def test_near_duplicates(gpu, store):
    ood_audit.report(
        store, device="cuda", find=FindingSettings(near_duplicates=True), settings=ScoreSettings(auto=False)
    )
    kinds = [kind for (kind,) in store.query("SELECT kind FROM issues").rows]
    assert "near-duplicate" in kinds


def test_labels_suggest(gpu, store):
    gpu.calls.clear()
    assert ood_audit.suggest(store, device="cuda").images == TOTAL
    assert gpu.calls["aten.embedding.default"] > 0


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_evaluate(store, tmp_path, kind):
    paths = sorted(features_of(store))
    lines = [f"{path},{int(path.startswith('purple'))},{path.split('/')[0]}" for path in paths]
    (tmp_path / "truth.csv").write_text("\n".join(["path,is_ood,label", *lines]))
    every = ["auto", *scores.names(), "best"]
    options = {"truth": tmp_path / "truth.csv", "labels": list(COLOURS)[:6], "only": every}
    expected = {row["score"]: row for row in ood_audit.evaluate(store, device="cpu", **options).rows}
    with pretend(kind) as gpu:
        found = ood_audit.evaluate(store, device=kind, **options).rows
        assert gpu.calls["aten.mm.default"] > 0
    assert len(found) == len(expected) == len(every)
    for row in found:
        assert row["auroc"] == pytest.approx(expected[row["score"]]["auroc"], abs=0.01)
        assert row["accuracy"] == expected[row["score"]]["accuracy"]


def test_prototypes_are_moved_once_and_chunks_are_large(gpu, store, monkeypatch):
    monkeypatch.setattr(similarity, "_GPU_CHUNK_BYTES", 4 * len(COLOURS) * 10)
    dimension = store.encoder.dimension
    ood_audit.score(store, settings=ScoreSettings(method="mcm", prototypes=True), device="cuda")
    moved = [shape for shape in gpu.copied if shape == (dimension, dimension)]
    images = [shape[0] for shape in gpu.copied if len(shape) == 2 and shape[1] == dimension and shape[0] in (10, 3)]
    assert images == [10] * (TOTAL // 10) + [TOTAL % 10]
    assert len(moved) <= 5  # one a fold


def test_batches_are_joined_into_chunks(store, monkeypatch):
    target = similarity.Target(np.eye(5, store.encoder.dimension, dtype=np.float32))
    monkeypatch.setattr(similarity, "_GPU_CHUNK_BYTES", 4 * 5 * 20)
    batches = list(iter_features(store, batch_rows=7))
    joined = list(similarity._parts(iter(batches), target, torch.device("cuda")))
    assert [len(part.codes) for part in joined] == [20, 20, 20, 3]
    ids = [i for part in joined for i in part.image_ids.to_pylist()]
    assert ids == [i for batch in batches for i in batch.image_ids.to_pylist()]
    np.testing.assert_array_equal(np.concatenate([p.codes for p in joined]), np.concatenate([b.codes for b in batches]))
    assert [len(part.codes) for part in similarity._parts(iter(batches), target, None)] == [7] * 9


def test_chunks_on_a_gpu_are_bounded_for_the_widest_comparison(monkeypatch):
    """45,000 names: the cosines of a chunk have `_GPU_CHUNK_BYTES`, not eleven times as much."""
    import pyarrow as pa

    from ood_audit.store.parts import FeatureBatch

    ids = pa.array(["x"] * 5000)
    wide = similarity.Target(np.zeros((45_000, 2), np.float32))
    parts = similarity._parts(iter([FeatureBatch(ids, ids, ids, np.zeros((5000, 2)))]), wide, torch.device("cuda"))
    assert max(4 * 45_000 * len(part.codes) for part in parts) <= similarity._GPU_CHUNK_BYTES


# Tuning


@pytest.mark.parametrize("loss", ["coop", "ebm"])
def test_tune(gpu, store, loss):
    settings = TuneSettings(loss=loss, epochs=1, folds=1)
    expected = ood_audit.tune(store, settings=settings, name="cpu", device="cpu").tuned
    gpu.calls.clear()
    found = ood_audit.tune(store, settings=settings, name="gpu", device="cuda").tuned
    assert gpu.calls["aten.embedding.default"] > 0
    np.testing.assert_allclose(found.learned, expected.learned, atol=1e-4)
    assert found.epoch == expected.epoch
    report = ood_audit.report(store, device="cuda", settings=ScoreSettings(auto=False, prompts="gpu"))
    assert report.scores.prompts == "gpu"


# Out of memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("HIP out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"), True),
        (RuntimeError("CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp:838"), True),
        (RuntimeError("Invalid buffer size: 20.00 GB"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("Error: StandardGpuResources: alloc fail type TemporaryMemoryBuffer"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error, expected):
    assert device.is_out_of_memory(error) is expected


def test_other_words_for_out_of_memory_are_handled_alike(gpu, model, colours):
    encoder = load_encoder(model, device="cuda", precision="fp32")
    gpu.most_images, gpu.says = 2, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert len(encoder.encode_images(pixels_of(encoder, colours))) == 6
    assert encoder.device.type == "cuda"


@pytest.mark.parametrize("fits", [1, 3])
def test_images_are_halved(gpu, model, colours, fits):
    encoder = load_encoder(model, device="cuda", precision="fp32")
    pixels = pixels_of(encoder, colours)
    expected = encoder.encode_images(pixels)
    gpu.most_images = fits
    np.testing.assert_allclose(encoder.encode_images(pixels), expected, atol=1e-5)
    assert encoder.batch_limit is not None
    assert encoder.batch_limit <= fits
    assert encoder.device.type == "cuda"


def test_a_gpu_without_room_for_an_image_is_left_for_the_cpu(gpu, model, colours, caplog):
    encoder = load_encoder(model, device="cuda")
    pixels = pixels_of(encoder, colours)
    expected = encoder.encode_images(pixels)
    gpu.most_images = 0
    assert (encoder.encode_images(pixels) * expected).sum(axis=1).min() > 0.999
    assert encoder.device == device.CPU
    assert encoder.precision == encoder.identity.precision == "bf16"
    assert caplog.messages == [f"out of memory on cuda: it has no room for a single image; {CPU_WORDS}"]


def test_embedding_goes_on_on_the_cpu(gpu, model, colours, store, tmp_path, caplog):
    """The two threads of forward passes find the GPU full in the middle of the work."""
    encode = clip.ClipEncoder.encode
    calls = []

    def filling(encoder, pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            gpu.most_images = 0
        return encode(encoder, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip.ClipEncoder, "encode", filling)
        options: dict[str, Any] = {"model": model, "precision": "fp32", "batch_size": 4, "device": "auto"}
        result = ood_audit.embed(colours, store=tmp_path / "other", **options)
    assert dict(+result.counts) == {"added": TOTAL}
    expected, found = features_of(store), features_of(result.store)
    assert min(expected[path] @ found[path] for path in found) > 0.9999
    assert sum(CPU_WORDS in message for message in caplog.messages) == 1
    assert result.notes == caplog.messages


def test_a_model_that_does_not_fit_is_loaded_on_the_cpu(gpu, model, caplog):
    gpu.largest = 1000
    encoder = load_encoder(model, device="auto")
    assert encoder.device == device.CPU
    assert encoder.precision == "fp32"
    assert caplog.messages == [f"out of memory on cuda: it has no room for the model; {CPU_WORDS}"]
    with pytest.raises(EncoderError, match=r"no memory on cuda for `model` local-dir:.*; free some, or choose another"):
        load_same_encoder(encoder.identity, device="cuda", fall_back=False)


def test_texts_are_halved_and_then_encoded_on_the_cpu(gpu, model, caplog):
    encoder = load_encoder(model, device="cuda")
    texts = [f"a photo of {i} things" for i in range(300)]
    expected = encoder.encode_texts(texts)
    gpu.largest = 200_000  # bytes
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-5)
    assert encoder.text_limit < 256
    assert encoder.device.type == "cuda"
    assert not caplog.messages
    gpu.largest = 100
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-5)
    assert encoder.device == device.CPU
    assert caplog.messages == [f"out of memory on cuda: it has no room for a single text; {CPU_WORDS}"]


def test_chunks_are_halved_where_a_gpu_has_no_room(gpu, store, caplog):
    target = similarity.Target(np.eye(len(COLOURS), store.encoder.dimension, dtype=np.float32))
    gpu.largest = 2400  # bytes: 15 images of 24 dimensions take 1,440, and 31 take 2,976
    found = list(similarity.map_chunks(store, target, "cuda", lambda chunk: chunk.to_text.cpu()))
    assert [len(cosines) for cosines in found] == [15, 15, 15, 15, 3]
    expected = np.concatenate(list(similarity.map_chunks(store, target, "cpu", lambda chunk: chunk.to_text)))
    np.testing.assert_allclose(torch.cat(found), expected, atol=1e-5)
    assert not caplog.messages


def test_scoring_goes_on_on_the_cpu(gpu, store, caplog):
    ood_audit.score(store, settings=ScoreSettings(method="mcm"), device="cpu")
    expected = values(store)
    for path in store.scores.iterdir():
        path.unlink()
    gpu.largest = 300  # bytes: the text features take 672
    ood_audit.score(store, settings=ScoreSettings(method="mcm"), device="cuda:0")
    assert values(store)[0] == expected[0]
    assert_alike(values(store)[1], expected[1])
    assert caplog.messages == [f"out of memory on cuda:0: it has no room for scoring; {CPU_WORDS}"]


def test_memory_that_runs_out_in_the_middle_of_scoring(gpu, store, monkeypatch):
    """Each image is given once, in order, whichever device took it."""
    monkeypatch.setattr(similarity, "_GPU_CHUNK_BYTES", 4 * len(COLOURS) * 10)
    target = similarity.Target(np.eye(len(COLOURS), store.encoder.dimension, dtype=np.float32))
    seen: list[str] = []
    for ids, kind in similarity.map_chunks(store, target, "cuda", lambda chunk: (chunk.image_ids, type(chunk.to_text))):
        seen += ids
        gpu.full = len(seen) >= 25
        assert (kind is np.ndarray) == (len(seen) > 30)
    assert seen == [i for batch in iter_features(store) for i in batch.image_ids.to_pylist()]


@pytest.mark.parametrize(("largest", "on_gpu"), [(30_000, True), (100, False)], ids=["halved", "on the CPU"])
def test_tuning_is_halved_and_then_done_on_the_cpu(gpu, model, caplog, largest, on_gpu):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(28, 24)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels, classes = np.arange(28) % 7, [(name,) for name in COLOURS]
    settings = TuneSettings(epochs=1, folds=1)
    expected = fit(features, labels, classes, load_encoder(model, device="cpu"), settings)
    encoder = load_encoder(model, device="cuda")
    gpu.largest = largest
    encoder.text_limit = 16  # few classes: or several halvings would change nothing
    found = fit(features, labels, classes, encoder, settings)
    np.testing.assert_allclose(found.learned, expected.learned, atol=1e-4)
    assert (encoder.device.type, bool(caplog.messages)) == (("cuda", False) if on_gpu else ("cpu", True))


def test_a_whole_audit_without_memory(gpu, model, colours, tmp_path):
    """The command line, with a GPU whose memory others hold: it says so once a command, and does the work."""
    gpu.full = True
    done = invoke("embed", colours, "--store", tmp_path / "store", "--model", model)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: cuda has no free memory (other programs may hold it); using the CPU") == 1
    assert "fp32 on cpu" in done.stderr
    done = invoke("report", "--store", tmp_path / "store", "--no-auto")
    assert done.returncode == 0, done.stderr


# Which device, and which precision


def test_auto_leaves_a_gpu_without_kernels(gpu, caplog):
    gpu.kernels = False
    for _ in range(2):
        assert device.choose_device("auto") == device.CPU
    (message,) = caplog.messages
    assert message.startswith("this PyTorch has no kernels for cuda")
    assert message.endswith("using the CPU instead")
    with pytest.raises(UsageError, match=r"`device` cuda: this PyTorch has no kernels .*; use `device=auto` or cpu"):
        device.choose_device("cuda")


def test_auto_leaves_a_gpu_without_memory(gpu, caplog):
    gpu.full = True
    assert device.choose_device("auto") == device.CPU
    assert "has no free memory" in caplog.text


def test_auto_takes_a_gpu_that_works(gpu, caplog):
    assert device.choose_device("auto") == torch.device("cuda")
    assert not caplog.records


def test_precision_is_that_of_the_very_gpu(gpu):
    gpu.count, gpu.capability = 2, {0: (9, 0), 1: (7, 5)}
    chosen = {name: device.choose_precision("auto", torch.device(name)) for name in ("cuda:0", "cuda:1", "cuda", "cpu")}
    assert chosen == {"cuda:0": "bf16", "cuda:1": "fp16", "cuda": "fp16", "cpu": "fp32"}
    gpu.capability = (8, 6)
    assert device.choose_precision("auto", torch.device("cuda")) == "bf16"


@pytest.mark.parametrize("capability", [(8, 0), (7, 5)], ids=["bf16", "fp16"])
def test_a_store_of_half_precision_is_used_without_a_gpu(model, colours, tmp_path, capability):
    with pretend() as gpu:
        gpu.capability = capability
        made = ood_audit.embed(colours, store=tmp_path / "store", model=model).store
    precision = "bf16" if capability == (8, 0) else "fp16"
    assert made.encoder.precision == precision
    plain = load_encoder(model, device="cpu", precision="fp32")
    encoder = load_same_encoder(made.encoder, device="cpu")
    np.testing.assert_array_equal(encoder.encode_texts(["a cat", "a dog"]), plain.encode_texts(["a cat", "a dog"]))
    assert len(ood_audit.report(made, device="cpu", settings=ScoreSettings(auto=False)).rows) == TOTAL
    if precision == "fp16":
        with pytest.raises(UsageError, match="`precision` fp16 needs a GPU to encode images"):
            encoder.encode_images(pixels_of(encoder, colours, 1))
        Image.new("RGB", (40, 40)).save(tmp_path / "new.png")
        done = invoke("embed", tmp_path / "new.png", "--store", made.root, "--device", "cpu")
        assert done.returncode == 2
        assert "--precision fp16 needs a GPU to encode images" in done.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_texts_are_encoded_in_float32_on_every_device(gpu, model, precision):
    texts = ["a cat", "a photo of a dog."]
    expected = load_encoder(model, device="cpu", precision="fp32").encode_texts(texts)
    for where in ("cuda", "cpu") if precision != "fp16" else ("cuda",):
        found = load_encoder(model, device=where, precision=precision).encode_texts(texts)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fp16_on_a_cpu_is_refused_before_there_is_a_store(model, colours, tmp_path):
    with pytest.raises(UsageError, match="`precision` fp16 needs a GPU"):
        ood_audit.embed(colours, store=tmp_path / "store", model=model, device="cpu", precision="fp16")
    assert not (tmp_path / "store" / "store.json").exists()


# Apple's


def test_apple_gpu(model, colours, store, tmp_path, monkeypatch):
    emptied: list[bool] = []
    with pretend("mps") as gpu:
        monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append(True))
        assert device.forward_threads(torch.device("mps"), 8)[0] == 1
        with pytest.raises(TypeError, match="float64"):
            torch.ones(1, device="mps").double()
        encoder = load_encoder(model)
        assert (encoder.device.type, encoder.precision) == ("mps", "fp32")
        assert 32 <= encoder.batch_size <= 64
        gpu.most_images = 40
        result = ood_audit.embed(colours, store=tmp_path / "other", model=model)
        assert max(gpu.passes) <= 64
        assert len(ood_audit.report(result.store, device="mps").rows) == TOTAL
    assert emptied
    expected, found = features_of(store), features_of(result.store)
    assert min(expected[path] @ found[path] for path in found) > 0.9999
