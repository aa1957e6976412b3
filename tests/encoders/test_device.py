"""Devices, threads and precision: what is chosen, with the hardware made up, and what happens when memory runs out."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ood_audit
from ood_audit.encoders import clip, cpu, device, fusing
from ood_audit.encoders.clip import load_encoder
from ood_audit.encoders.fusing import fuse
from ood_audit.errors import EncoderError
from ood_audit.store.parts import iter_features
from tests.conftest import EXAMPLES
from tests.encoders.test_clip import MODELS, save

PHOTOS = sorted((EXAMPLES / "images" / "butterfly").iterdir())[:6]
CPU = torch.device("cpu")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small model of its own for each test, as it is changed."""
    monkeypatch.setattr(clip, "bf16_in_hardware", lambda: False)  # whatever the tests run on
    return load_encoder(save(tmp_path / "model", MODELS["vit"]), device="cpu")


@pytest.fixture
def pixels(small):
    return [small.prepare(Image.open(path).convert("RGB")) for path in PHOTOS]


# Threads


@pytest.mark.parametrize(
    ("cores", "torch_threads", "expected"),
    [
        (1, 1, (1, 1)),
        (2, 2, (2, 1)),
        (2, 8, (2, 1)),  # a container's share of a large machine
        (8, 1, (1, 1)),  # OMP_NUM_THREADS=1
        (8, 8, (8, 1)),
        (12, 12, (6, 2)),
        (64, 64, (8, 8)),
    ],
)
def test_passes_side_by_side_use_the_cores_once(monkeypatch, cores, torch_threads, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads)
    assert device.forward_threads(CPU, cores) == expected
    assert device.forward_threads(torch.device("cuda"), cores)[0] == 2


def test_a_container_s_share_is_respected(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert cpu.worker_count() == 1


def test_the_threads_of_the_caller_are_left_as_they_were(small, pictures):
    from ood_audit.embedding.pipeline import Pipeline
    from ood_audit.images.sources import file_uri

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Pipeline(small, cores=2) as pipeline:
            futures = [pipeline.submit([file_uri(str(path))]) for path in sorted(pictures.rglob("*.jpg"))]
            assert all(future.result()[1] is not None for future in futures)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_cuda_is_every_gpu_and_a_number_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert device.all_devices(torch.device("cuda")) == ["cuda:0", "cuda:1", "cuda:2"]
    assert device.all_devices(torch.device("cuda:1")) == ["cuda:1"]
    assert device.all_devices(CPU) == ["cpu"]


# bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("Features : fp asimd bf16 i8mm\n", True),  # Arm
        ("flags : fpu avx2 avx512f avx512_vnni\n", False),  # it would be emulated
        ("processor : 0\n", False),
        (None, False),  # no such file: another system
    ],
)
def test_whether_the_processor_has_bf16(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(cpu, "_CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu.bf16_in_hardware() is expected


def test_bf16_is_not_there_where_onednn_is_told_to_leave_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "_CPU_FACTS", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f avx512_bf16\n")
    for limit, expected in ("avx512_core_vnni", False), ("AVX512_CORE_BF16", True), ("", True):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert cpu.bf16_in_hardware() is expected


def bf16_machine(monkeypatch, encoder, *, seconds=0.5, error=0.0):
    """A processor with bfloat16, where a pass takes `seconds` instead of 1 and moves features by `error`."""
    monkeypatch.setattr(clip, "bf16_in_hardware", lambda: True)
    encode, clock = encoder.encode_images, [0.0]

    def encode_images(pixels):
        clock[0] += 1.0 if encoder.precision == "fp32" else seconds
        features = encode(pixels)
        if encoder.precision == "bf16" and error:
            features = features + error * np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
            features /= np.linalg.norm(features, axis=1, keepdims=True)
        return features

    monkeypatch.setattr(encoder, "encode_images", encode_images)
    monkeypatch.setattr("ood_audit.encoders.clip.time.perf_counter", lambda: clock[0])


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([1.0] * 31 + [0.996], True),  # the mean is 0.99988
        ([1.0] * 31 + [0.994], False),
        ([0.9994] * 32, False),
        ([0.9996] * 32, True),
    ],
)
def test_features_agree_on_the_mean_and_at_the_least(cosines, expected):
    plain = np.tile(np.array([1, 0], np.float32), (len(cosines), 1))
    half = np.stack([cosines, np.sqrt(1 - np.square(cosines))], axis=1).astype(np.float32)
    assert clip.agree(plain, half) is expected


@pytest.mark.parametrize(("machine", "chosen"), [("x86_64", "bf16"), ("aarch64", "fp32")])
def test_the_starter_needs_no_trial_where_it_was_measured(pictures, tmp_path, monkeypatch, machine, chosen):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f avx512_bf16\n")
    monkeypatch.setattr(cpu, "_CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr("platform.machine", lambda: machine)
    tried = []
    monkeypatch.setattr(clip.ClipEncoder, "try_bf16", lambda self, pixels: tried.append(len(pixels)))
    store = ood_audit.embed(pictures, store=tmp_path / "store", model="starter", device="cpu").store
    assert store.encoder.precision == chosen
    assert tried == ([] if chosen == "bf16" else [6])


@pytest.mark.parametrize(
    ("machine", "chosen"),
    [({}, "bf16"), ({"seconds": 1.5}, "fp32"), ({"error": 0.05}, "fp32")],
    ids=["pays", "slower", "other features"],
)
def test_bf16_is_chosen_where_it_pays_and_agrees(small, pixels, monkeypatch, machine, chosen):
    before = small.identity
    bf16_machine(monkeypatch, small, **machine)
    assert small.try_bf16(pixels) is (chosen == "bf16")
    assert small.precision == small.identity.precision == chosen
    assert [text.partition(" ")[0] for text in before.differences(small.identity)] == ["precision"] * (chosen == "bf16")
    assert small.try_bf16([]) is False


def test_bf16_casts_the_image_tower_once_and_a_failed_trial_leaves_it(monkeypatch):
    plain = load_encoder("starter", device="cpu", precision="fp32")
    pixels = [plain.prepare(Image.open(path).convert("RGB")) for path in PHOTOS]
    before = plain.encode_images(pixels)
    with monkeypatch.context() as patch:
        bf16_machine(patch, plain, error=0.05)
        assert plain.try_bf16(pixels) is False
    np.testing.assert_array_equal(plain.encode_images(pixels), before)
    half = load_encoder("starter", device="cpu", precision="bf16")
    assert {weight.dtype for weight in half._model.visual.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half._model.transformer.parameters()} == {torch.float32}
    features = half.encode_images(pixels)
    assert not np.array_equal(features, before)
    assert (features * before).sum(axis=1).min() > clip.AGREEMENT


def test_bf16_is_not_tried_without_the_hardware(small, pixels, monkeypatch):
    monkeypatch.setattr(clip, "bf16_in_hardware", lambda: False)
    monkeypatch.setattr(small, "encode_images", lambda pixels: pytest.fail("there is nothing to try"))
    assert small.try_bf16(pixels) is False
    assert small.identity.precision == "fp32"


def test_a_store_keeps_its_precision(small, pictures, tmp_path, monkeypatch):
    """A new store is of what was found to pay on its own pictures, one that is there of what it was made with."""
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: small)
    ood_audit.embed(pictures, store=tmp_path / "old", device="cpu")
    bf16_machine(monkeypatch, small)
    ood_audit.embed(pictures / "airplane", store=tmp_path / "asked", device="cpu", precision="fp32")
    assert ood_audit.open_store(tmp_path / "asked").encoder.precision == "fp32"
    assert not ood_audit.embed(pictures, store=tmp_path / "old", device="cpu").counts["added"]
    assert ood_audit.open_store(tmp_path / "old").encoder.precision == "fp32"
    ood_audit.embed(pictures, store=tmp_path / "new", device="cpu")
    assert ood_audit.open_store(tmp_path / "new").encoder.precision == "bf16"


# Memory


def short_of_memory(encoder, monkeypatch, fits, error=None):
    """The model's forward pass fails on more than `fits` images, as allocators do."""
    error = error or RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
    encode, sizes = encoder._model.encode_image, []

    def encode_image(images):
        sizes.append(len(images))
        if len(images) > fits:
            raise error
        return encode(images)

    monkeypatch.setattr(encoder._model, "encode_image", encode_image)
    return sizes


@pytest.mark.parametrize("fits", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "error", [None, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_a_batch_halves_itself(small, pixels, monkeypatch, fits, error):
    expected = small.encode_images(pixels)
    sizes = short_of_memory(small, monkeypatch, fits, error)
    np.testing.assert_allclose(small.encode_images(pixels), expected, atol=1e-6)
    assert small.batch_limit is not None and small.batch_limit <= fits
    sizes.clear()
    np.testing.assert_allclose(small.encode_images(pixels), expected, atol=1e-6)
    assert max(sizes) <= fits  # it has learnt


def test_no_memory_for_a_single_image(small, pixels, monkeypatch):
    short_of_memory(small, monkeypatch, 0)
    with pytest.raises(EncoderError, match="no memory on cpu for a single image; free some"):
        small.encode_images(pixels)


def test_other_failures_are_no_lack_of_memory(small, pixels, monkeypatch):
    short_of_memory(small, monkeypatch, 1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        small.encode_images(pixels)
    assert small.batch_limit is None


@pytest.mark.parametrize("trial", [False, True], ids=["in force", "while bf16 is tried"])
def test_running_out_of_memory_loses_nothing_and_is_told_once(small, pictures, tmp_path, monkeypatch, trial):
    monkeypatch.setattr(clip, "bf16_in_hardware", lambda: trial)
    monkeypatch.setattr(clip, "MEAN_AGREEMENT", 2.0)  # so that bf16 is tried and turned down, however fast it is
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: small)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: small)
    plenty = ood_audit.embed(pictures, store=tmp_path / "plenty", device="cpu", precision="fp32").store
    short_of_memory(small, monkeypatch, 2)
    told: list[str] = []
    result = ood_audit.embed(pictures, store=tmp_path / "short", device="cpu", on_note=told.append)
    assert dict(+result.counts) == {"added": 6}
    assert result.notes == told
    assert len(told) == 1
    assert told[0].startswith("out of memory on cpu: continuing with ")
    (expected,), (got,) = iter_features(plenty), iter_features(result.store)
    assert got.paths == expected.paths
    np.testing.assert_allclose(got.features, expected.features, atol=1e-3)
    short_of_memory(small, monkeypatch, 0)
    with pytest.raises(EncoderError, match="no memory on cpu for a single image"):
        ood_audit.embed(pictures, store=tmp_path / "none", device="cpu")
    assert trial or ood_audit.open_store(tmp_path / "none").query("SELECT count(*) FROM images").rows == [(0,)]


# Kernels


def convolutions() -> torch.nn.Sequential:
    from timm.layers import create_conv2d

    torch.manual_seed(0)
    shared = torch.nn.ReLU(inplace=True)
    layers = [
        create_conv2d(3, 8, 3, stride=2, padding="same"),  # timm's, which pads odd sizes by one more
        torch.nn.ReLU6(inplace=True),
        create_conv2d(8, 8, 5, stride=(2, 1), padding="same", depthwise=True),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 1, bias=False),
        shared,
        torch.nn.Conv2d(8, 8, (3, 1), padding=(1, 0), dilation=(2, 1)),
        shared,
        torch.nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"),
        torch.nn.Flatten(),
    ]
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.weight, 0, 2.0)  # so that clamps matter
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def no_kernel() -> torch.Tensor:
    raise RuntimeError("mkldnn_convolution_pointwise: bf16 path needs the cpu support avx512bw")


@pytest.mark.parametrize("size", [(19, 18), (18, 19), (32, 32)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_kernel", [True, False])
def test_fused_convolutions_are_the_same(monkeypatch, size, precision, has_kernel):
    tower = convolutions()
    if not has_kernel:  # as for bf16 on processors without AVX-512
        monkeypatch.setattr(fusing._Convolution, "_in_one", lambda self, images: no_kernel())
    with torch.inference_mode():
        fused: Any = fuse(tower, torch.rand(1, 3, *size))
        kinds = [type(layer).__name__ for layer in fused]
        assert kinds.count("_Convolution") == 4
        assert [kinds[place] for place in (1, 3, 5, 7)] == ["Identity", "Identity", "ReLU", "ReLU"]
        images = torch.rand(5, 3, *size).to(precision).contiguous(memory_format=torch.channels_last)
        fused = deepcopy(fused).to(precision)  # it has been used by now
        expected = deepcopy(tower).to(precision)(images)
        least = 0.999999 if precision == torch.float32 else 0.999
        assert torch.cosine_similarity(fused(images).float(), expected.float()).min() > least
        assert torch.cosine_similarity(fused(images[:2]).float(), expected[:2].float()).min() > least


def test_convolutions_are_left_alone_where_fusing_would_change_them(monkeypatch):
    tower, example = convolutions(), torch.rand(1, 3, 19, 19)
    monkeypatch.setattr(fusing, "_pads", lambda module, shape: ((0, 0), (0, 0)))
    assert fuse(tower, example) is tower
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fuse(tower, example) is tower


def test_the_starter_s_convolutions_are_fused():
    kinds = [type(module).__name__ for module in load_encoder("starter", device="cpu")._model.visual.modules()]
    assert kinds.count("_Convolution") == 49
    assert not {"Conv2d", "Conv2dSame", "ReLU6"} & set(kinds)
