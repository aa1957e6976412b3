"""Duplicates: what must be found, what must not be put together, and which one to keep."""

import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

import ood_audit
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import UsageError
from ood_audit.findings import copies, duplicates, listed, nearest
from ood_audit.findings.duplicates import Duplicates, find
from ood_audit.findings.fingerprints import (
    SHAPE,
    correlations,
    fingerprint,
    hash_distances,
    is_flat,
    turned,
    turned_hashes,
    word_distances,
    words,
)
from ood_audit.findings.nearest import OnGpu
from ood_audit.images.decode import decode
from ood_audit.images.sources import ScanNotes, scan
from ood_audit.store import Store, create_store
from ood_audit.store.parts import PartWriter
from ood_audit.text import storable
from tests.conftest import EXAMPLES
from tests.helpers.made import unit

DIMENSION = 8
PHOTOGRAPH = EXAMPLES / "images" / "butterfly" / "img_0008.jpg"


def store_of(folder: Path, features: dict[str, int] | None = None, *, inspect: bool = False) -> Store:
    """A store of the images in a folder. All have the same features, or, by name, those along an axis."""
    identity = EncoderIdentity("test", None, "test", "0", {}, "gelu", "fp32", DIMENSION)
    shutil.rmtree(folder.parent / "store", ignore_errors=True)
    store = create_store(folder.parent / "store", identity)
    with PartWriter(store, "run") as writer:
        for image in scan(str(folder), ScanNotes()):
            decoded = decode(image.uri, np.asarray, inspect=inspect)
            assert decoded.error is None
            vector = np.eye(DIMENSION, dtype=np.float32)[(features or {}).get(image.path, 0)]
            writer.add(image, decoded, vector, supersedes=False)
    return store


def clusters(found: Duplicates) -> list[set[str]]:
    """The paths in each cluster, sorted. The rows and the counts must agree."""
    by_number = defaultdict(list)
    for row in found.rows:
        by_number[row.cluster].append(row)
    assert list(by_number) == list(range(1, found.clusters + 1))
    assert (found.images, found.extra) == (len(found.rows), len(found.rows) - found.clusters)
    assert len({row.image_id for row in found.rows}) == found.images
    for rows in by_number.values():
        assert [row.keep for row in rows] == [True] + [False] * (len(rows) - 1)
        assert {row.kept_path for row in rows} == {rows[0].path}
    return sorted(({row.path for row in rows} for rows in by_number.values()), key=sorted)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture(scope="module")
def altered(tmp_path_factory):
    """Real pictures, real features, and altered copies of three of them; and the clusters that these make."""
    root = tmp_path_factory.mktemp("altered")
    expected = []
    for name in ("airplane", "chair", "electric guitar", "sunflower"):
        shutil.copytree(EXAMPLES / "images" / name, root / "images" / name)
    (root / "images" / "chair" / "img_9999.jpg").unlink()  # is damaged
    for name in ("airplane/img_0003.jpg", "electric guitar/img_0008.jpg", "sunflower/img_0007.jpg"):
        copies = root / "images" / "copies" / name.replace("/", " ")
        copies.mkdir(parents=True)
        picture = Image.open(root / "images" / name).convert("RGB")
        width, height = picture.size
        x, y = round(0.03 * width), round(0.03 * height)
        picture.save(copies / "recompressed.jpg", quality=60)
        picture.resize((round(0.8 * width), round(0.8 * height))).save(copies / "scaled.jpg", quality=90)
        picture.crop((x, y, width - x, height - y)).save(copies / "cropped.jpg", quality=90)
        picture.save(copies / "converted.png")
        ImageEnhance.Brightness(picture).enhance(1.15).save(copies / "lighter.jpg", quality=90)
        expected.append({name} | {f"copies/{copies.name}/{copy.name}" for copy in copies.iterdir()})
    shutil.copy2(root / "images" / "chair" / "img_0005.jpg", root / "images" / "again.jpg")
    expected.append({"chair/img_0005.jpg", "again.jpg"})
    store = ood_audit.embed(root / "images", store=root / "store", model="starter", device="cpu").store
    return store, sorted(expected, key=sorted)


def test_altered_copies_are_found_and_nothing_else(altered):
    store, expected = altered
    found = find(store)
    assert clusters(found) == expected
    assert (found.unreadable, found.flat) == (0, 0)
    for row in found.rows:
        assert row.kind == ("exact" if row.path in ("again.jpg", "chair/img_0005.jpg") else "near")
        assert duplicates.COSINE <= row.cosine <= 1
        assert 0 <= row.hash_distance <= duplicates.BITS
        assert "scaled" not in row.kept_path
        assert "cropped" not in row.kept_path


def test_the_way_of_searching_does_not_change_the_answer(altered, monkeypatch):
    store, _ = altered
    expected = find(store)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    seen: list[tuple[int, int]] = []
    assert find(store, on_progress=lambda done, total: seen.append((done, total))) == expected
    assert seen == [(min(done, 59), 59) for done in range(7, 66, 7)]
    monkeypatch.setattr(duplicates, "_MATCHED", 20)  # pairs, of some 60
    assert find(store) == expected
    monkeypatch.setattr(listed, "EXACT", 10)
    by_lists = find(store)
    assert [(row.path, row.cluster, row.kind) for row in by_lists.rows] == [
        (row.path, row.cluster, row.kind) for row in expected.rows
    ]


class PlayedGpu(OnGpu):
    """A GPU played by the CPU, whose memory is full from a certain search on."""

    room = 10**9
    made: ClassVar[list["PlayedGpu"]] = []

    def __init__(self, batches, total, dimension, device):
        assert device == torch.device("cuda")
        super().__init__(batches, total, dimension, torch.device("cpu"))
        self.chunks: list[int] = []
        self.made.append(self)

    def _search(self, asked, k):
        self.chunks.append(self._chunk)
        if self._chunk > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super()._search(asked, k)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(duplicates, "_gpu", lambda device: torch.device("cuda") if device != "cpu" else None)
    monkeypatch.setattr("ood_audit.findings.nearest.OnGpu", PlayedGpu)
    monkeypatch.setattr(PlayedGpu, "made", [])
    return PlayedGpu


def test_a_gpu_compares_all_with_all_and_answers_alike(altered, gpu, monkeypatch):
    store, _ = altered
    expected = find(store, device="cpu")
    assert gpu.made == []
    monkeypatch.setattr(nearest, "_CHUNK", 16)
    monkeypatch.setattr(duplicates, "Listed", pytest.fail)  # nothing is looked for on the CPU
    told: list[str] = []
    found = find(store, on_note=told.append)
    assert [(row.path, row.cluster, row.kind, row.hash_distance) for row in found.rows] == [
        (row.path, row.cluster, row.kind, row.hash_distance) for row in expected.rows
    ]
    np.testing.assert_allclose([row.cosine for row in found.rows], [row.cosine for row in expected.rows], atol=1e-5)
    assert gpu.made[0].chunks == [16]
    assert told == []


@pytest.mark.parametrize(("room", "chunks"), [(4, [16, 8, 4]), (1, [16, 8, 4])])
def test_a_gpu_that_is_full_compares_fewer_at_a_time_then_the_cpu_goes_on(altered, gpu, monkeypatch, room, chunks):
    store, _ = altered
    expected = find(store, device="cpu")
    monkeypatch.setattr(nearest, "_CHUNK", 16)
    monkeypatch.setattr(nearest, "_SMALLEST_CHUNK", 4)
    monkeypatch.setattr(gpu, "room", room)
    told: list[str] = []
    found = find(store, on_note=told.append)
    assert [(row.path, row.cluster) for row in found.rows] == [(row.path, row.cluster) for row in expected.rows]
    assert gpu.made[0].chunks == chunks
    assert told == ([] if room == 4 else ["no memory left on cuda: looking for near duplicates on the CPU"])


def test_when_a_gpu_is_full_the_rows_keep_their_numbers(altered, gpu, monkeypatch):
    store, _ = altered
    expected = find(store, device="cpu")
    monkeypatch.setattr(listed, "EXACT", 10)
    monkeypatch.setattr(nearest, "_SMALLEST_CHUNK", 10**6)
    monkeypatch.setattr(gpu, "room", 1)
    found = find(store)
    assert [(row.path, row.cluster) for row in found.rows] == [(row.path, row.cluster) for row in expected.rows]


def test_pairs_are_put_together_while_the_ids_are_read_again(altered, monkeypatch):
    """As when the GPU is full in the middle: threads are still at work on what it found before."""
    store, _ = altered
    expected = find(store)
    compare = duplicates._Search._alike

    def meanwhile(search, block):
        ids = search.image_ids.copy()
        search.image_ids.clear()
        try:
            return compare(search, block)
        finally:
            search.image_ids[:] = ids

    monkeypatch.setattr(duplicates._Search, "_alike", meanwhile)
    assert expected.rows
    assert find(store).rows == expected.rows


@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([-1.0, 0.0, 0.5]))
def test_the_nearest_are_those_near_enough_and_of_many_the_nearest(seed, k, least):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(30, 3))).astype(np.float16).astype(np.float32)  # as they are kept
    near, rows = listed.Listed(lambda: np.array_split(vectors, 4), 30, 3, least).search(vectors[:9], k)
    cosines = vectors[:9] @ vectors.T
    for own, found, all_ in zip(near, rows, cosines, strict=True):
        wanted = [row for row in np.argsort(-all_, kind="stable")[:k] if all_[row] >= least]
        assert found[: len(wanted)].tolist() == wanted and (found[len(wanted) :] == -1).all()
        np.testing.assert_allclose(own[: len(wanted)], all_[wanted], atol=1e-6)


def test_lists_find_what_is_near_and_know_how_much_of_it(monkeypatch):
    monkeypatch.setattr(listed, "EXACT", 100)
    rng = np.random.default_rng(0)
    vectors = unit(np.repeat(rng.normal(size=(30, 16)), 40, axis=0) + 0.3 * rng.normal(size=(1200, 16)))
    vectors = vectors.astype(np.float16).astype(np.float32)
    all_near = vectors @ vectors.T >= 0.9
    for keep_order, block in ((False, 1024), (True, 100)):
        monkeypatch.setattr(listed, "_BLOCK", block)  # with the smaller one, each core searches for some of them
        index = listed.Listed(lambda: np.array_split(vectors, 7), 1200, 16, 0.9, keep_order=keep_order)
        assert index.lists == 35 and 1 <= index.probes < 35 and index.recall >= 0.9
        np.testing.assert_array_equal(index.reconstruct_n(0, 1200), vectors[index.order])
        cosines, rows = index.search(index.reconstruct_n(100, 900), 60)
        found = np.zeros((900, 1200), bool)
        one, column = np.nonzero(rows >= 0)
        found[one, rows[one, column]] = True
        assert (found.sum(axis=1) == (rows >= 0).sum(axis=1)).all()  # none twice
        own = index.order[100:1000]
        expected = all_near[own][:, index.order]
        assert not (found & ~expected).any()
        assert found.sum() >= 0.9 * expected.sum()
        slow = (vectors[own] @ vectors[index.order].T)[one, rows[one, column]]
        np.testing.assert_allclose(cosines[one, column], slow, atol=1e-5)
        assert (np.diff(cosines, axis=1) <= 0).all()
    assert index.order.tolist() == list(range(1200))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lists_find_equal_vectors_however_many_there_are(monkeypatch, seed):
    monkeypatch.setattr(listed, "EXACT", 100)
    vectors = unit(np.random.default_rng(seed).normal(size=(3000, 64))).astype(np.float16).astype(np.float32)
    vectors[:2250] = vectors[0]  # k-means makes several equal centres of them
    index = listed.Listed(lambda: np.array_split(vectors, 3), 3000, 64, 0.95, keep_order=True)
    _, rows = index.search(vectors[:100], 10)
    assert (rows >= 0).all() and (rows < 2250).all()


def test_files_that_cannot_be_duplicates_are_not_read(altered, monkeypatch):
    store, _ = altered
    expected = find(store, cosine=0.0)
    read: list[str] = []

    def counted(uri, prepare):
        read.append(uri)
        return decode(uri, prepare)

    monkeypatch.setattr(duplicates, "decode", counted)
    assert find(store, cosine=0.0) == expected
    few = len(read)
    read.clear()
    monkeypatch.setattr(duplicates, "_STORED_MORE", 256)
    assert find(store, cosine=0.0) == expected
    assert few < len(read)


def test_a_gpu_without_room_for_the_features_is_not_used(altered, monkeypatch):
    class Full:
        def __init__(self, *arguments):
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(duplicates, "_gpu", lambda device: torch.device("cuda"))
    monkeypatch.setattr("ood_audit.findings.nearest.OnGpu", Full)
    store, expected = altered
    told: list[str] = []
    assert clusters(find(store, on_note=told.append)) == expected
    assert told == ["no memory left on cuda: looking for near duplicates on the CPU"]


def test_blocked_products_are_those_of_the_slow_way(monkeypatch):
    monkeypatch.setattr(nearest, "_CHUNK", 70)
    vectors = unit(np.random.default_rng(0).normal(size=(300, 24)))
    index = OnGpu(iter(np.array_split(vectors, 4)), 300, 24, torch.device("cpu"))
    half = vectors.astype(np.float16).astype(np.float32)
    cosines, rows = index.search(index.reconstruct_n(20, 50), 65)
    slow = half[20:70] @ half.T
    order = np.argsort(-slow, axis=1)[:, :65]
    np.testing.assert_allclose(cosines, np.take_along_axis(slow, order, axis=1), atol=2e-3)
    np.testing.assert_allclose(cosines, np.take_along_axis(slow, rows, axis=1), atol=1e-6)
    assert (rows[:, 0] == np.arange(20, 70)).all()
    np.testing.assert_array_equal(index.reconstruct_batch(np.array([7, 250])), half[[7, 250]])
    assert index.search(half[:2], 300)[1].shape == (2, 300)


def test_how_many_are_compared_by_default_depends_on_the_device(altered, monkeypatch):
    store, _ = altered
    asked: list[bool] = []

    def found(*arguments, near, **options):
        asked.append(near)
        return Duplicates([], 0, 0, 0, 0, 0)

    monkeypatch.setattr(duplicates, "find", found)
    monkeypatch.setattr(copies, "MOST", 10)
    free, dimension = 12 << 30, store.encoder.dimension
    monkeypatch.setattr(nearest, "free_bytes", lambda device: free)
    assert nearest.most_on(torch.device("cuda"), 768) == 4_000_000
    assert nearest.most_on(torch.device("cuda"), 2048) == (10 << 30) // 4096
    assert nearest.most_on(torch.device("cpu"), dimension) == nearest.most_on(torch.device("mps"), dimension) == 0
    monkeypatch.setattr(copies, "choose_gpu", lambda device: None if device == "cpu" else torch.device(device))
    for device in ("cpu", "cuda"):
        copies.current(store, device=device)
        (store.root / "duplicates.parquet").unlink()
    free = (2 << 30) + 2 * dimension * 10  # there is no room for more than 10
    copies.current(store, device="cuda")
    (store.root / "duplicates.parquet").unlink()
    assert asked == [False, True, False]


def test_the_same_bytes_under_hostile_names(folder):
    names = ["plain.jpg", "two\nlines.jpg", "it's; DROP TABLE images --.jpg", "\u202egpj.jpg", "=1+1.jpg"]
    paths = [os.fsencode(f"{folder}/{name}") for name in names] + [os.fsencode(folder) + b"/not \xff text.jpg"]
    for path in paths:
        Path(os.fsdecode(path)).write_bytes(PHOTOGRAPH.read_bytes())
        os.utime(path, (2e9, 2e9))
    os.utime(paths[2], (1e9, 1e9))
    found = find(store_of(folder))
    assert clusters(found) == [{storable(os.fsdecode(os.path.basename(path))) for path in paths}]
    assert found.rows[0].path == names[2]
    assert {(row.kind, row.cosine, row.hash_distance) for row in found.rows} == {("exact", 1.0, 0)}


def test_the_one_to_keep_has_the_most_pixels_then_is_the_oldest_then_the_first_by_name(folder):
    picture = Image.open(PHOTOGRAPH)
    picture.resize((400, 387)).save(folder / "large.png")
    for name, quality in (("c.jpg", 90), ("b.jpg", 80), ("a.jpg", 70)):
        picture.resize((400, 387)).save(folder / name, quality=quality)
    picture.save(folder / "old.jpg")
    for path in folder.iterdir():
        os.utime(path, (2e9, 2e9))
    os.utime(folder / "old.jpg", (1e9, 1e9))
    os.utime(folder / "large.png", (1.5e9, 1.5e9))
    assert find(store_of(folder)).rows[0].path == "large.png"
    os.utime(folder / "large.png", (2e9, 2e9))
    assert find(store_of(folder)).rows[0].path == "a.jpg"


def test_exact_copies_of_a_near_copy_are_in_its_cluster(folder):
    shutil.copy(PHOTOGRAPH, folder / "original.jpg")
    shutil.copy(PHOTOGRAPH, folder / "original again.jpg")
    Image.open(PHOTOGRAPH).resize((200, 193)).save(folder / "small.jpg")
    shutil.copy(folder / "small.jpg", folder / "small again.jpg")
    rows = find(store_of(folder)).rows
    assert {row.path: row.kind for row in rows if not row.keep} == {
        next(iter({"original.jpg", "original again.jpg"} - {rows[0].path})): "exact",
        "small.jpg": "near",
        "small again.jpg": "near",
    }
    assert rows[0].kind == "near"


def test_many_exact_copies_do_not_hide_a_near_one(folder):
    for number in range(duplicates._NEIGHBOURS + 6):
        shutil.copy(PHOTOGRAPH, folder / f"{number}.jpg")
    Image.open(PHOTOGRAPH).resize((200, 193)).save(folder / "near.jpg")
    found = find(store_of(folder))
    assert (found.clusters, found.extra) == (1, duplicates._NEIGHBOURS + 6)


def test_a_chain_of_small_steps_does_not_join_its_ends(folder):
    """Each crop matches the one before, the last does not match the first."""
    picture = Image.open(PHOTOGRAPH).resize((600, 580))
    for step in range(4):
        x, y = round(0.05 * step * 600), round(0.05 * step * 580)
        picture.crop((x, y, 600 - x, 580 - y)).save(folder / f"{step}.png")
    assert clusters(find(store_of(folder))) == [{"0.png", "1.png"}, {"2.png", "3.png"}]


def test_flat_pictures_are_duplicates_only_with_the_same_bytes(folder):
    for name, colour in {"white.png": "white", "black.png": "black", "red.png": "red"}.items():
        Image.new("RGB", (64, 64), colour).save(folder / name)
    Image.new("RGB", (64, 64), (250, 0, 0)).save(folder / "nearly red.png")
    noise = np.random.default_rng(0).normal(128, 1, (64, 64)).round().astype(np.uint8)
    Image.fromarray(noise).save(folder / "faint noise.png")
    shutil.copy(folder / "red.png", folder / "red again.png")
    found = find(store_of(folder))
    assert clusters(found) == [{"red.png", "red again.png"}]
    assert found.flat == 5


def test_plain_shapes_and_other_colours_are_not_the_same_picture(folder):
    """Their hashes are close: shapes have few frequencies, and hashes see no colour."""
    for name, edge in (("half", 128), ("third", 86)):
        picture = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(picture).rectangle((0, 0, edge, 256), "black")
        picture.save(folder / f"{name}.png")
    for colour in ("#c81e1e", "#1e1ec8"):
        picture = Image.new("RGB", (256, 256), "white")
        draw = ImageDraw.Draw(picture)
        draw.polygon([(60, 40), (196, 40), (240, 100), (180, 120), (180, 230), (76, 230), (76, 120), (16, 100)], colour)
        picture.save(folder / f"shirt {colour}.png")
    half, blue, red, third = (fingerprint(Image.open(path))[None] for path in sorted(folder.iterdir()))
    assert hash_distances(half, third) <= duplicates.BITS
    assert hash_distances(blue, red) <= duplicates.BITS
    assert clusters(find(store_of(folder))) == []


def test_pictures_with_other_features_are_not_compared(folder):
    shutil.copy(PHOTOGRAPH, folder / "a.jpg")
    Image.open(PHOTOGRAPH).save(folder / "b.jpg", quality=60)
    assert clusters(find(store_of(folder, {"b.jpg": 1}))) == []
    assert clusters(find(store_of(folder, {"b.jpg": 0}))) == [{"a.jpg", "b.jpg"}]


def oriented(picture: Image.Image, turn: int) -> Image.Image:
    for bit, way in ((1, "FLIP_LEFT_RIGHT"), (2, "FLIP_TOP_BOTTOM"), (4, "TRANSPOSE")):
        picture = picture.transpose(Image.Transpose[way]) if turn & bit else picture
    return picture


def test_fingerprints_hash_as_imagehash_does():
    for size in ((240, 200), (700, 411), (31, 64)):
        picture = Image.open(PHOTOGRAPH).convert("RGB").resize(size)
        small = picture.copy()
        small.thumbnail((256, 256), Image.Resampling.BICUBIC)
        for found, trim in zip(fingerprint(picture), (0, 0.02, 0.04, 0.06), strict=True):
            x, y = round(trim * small.width), round(trim * small.height)
            expected = imagehash.phash(small.crop((x, y, small.width - x, small.height - y)), hash_size=16).hash
            np.testing.assert_array_equal(np.unpackbits(found[:32]), expected.ravel())


@pytest.mark.parametrize("turn", range(8))
def test_turned_fingerprints_are_those_of_turned_pictures(turn):
    picture = Image.open(PHOTOGRAPH).convert("RGB").resize((240, 200))
    found, expected = turned(fingerprint(picture), turn), fingerprint(oriented(picture, turn))
    assert np.unpackbits(found[:, :32] ^ expected[:, :32], axis=1).sum(axis=1).max() <= 32
    np.testing.assert_allclose(found[:, 32:].astype(int), expected[:, 32:].astype(int), atol=8)
    np.testing.assert_array_equal(turned_hashes(turned_hashes(found[:, :32], 1), 1), found[:, :32])
    still = words(turned_hashes(fingerprint(picture)[:, :32], turn & 4))[:, 0]
    np.testing.assert_array_equal(words(found[:, :32])[:, 0], still)


def test_turned_and_mirrored_copies_are_found_whatever_their_features(folder):
    picture = Image.open(PHOTOGRAPH).convert("RGB")
    for turn in range(8):
        copy = oriented(picture, turn)
        copy = copy.crop((turn, turn, copy.width - turn, copy.height - turn))
        copy.save(folder / f"{turn}.jpg", quality=70)
    shutil.copy(EXAMPLES / "images" / "chair" / "img_0005.jpg", folder / "8.jpg")
    features = {f"{turn}.jpg": turn % DIMENSION for turn in range(9)}
    found = find(store_of(folder, features, inspect=True))
    assert {row.path: row.turned for row in found.rows} == {f"{turn}.jpg": turn > 0 for turn in range(8)}
    assert {row.kept_path for row in found.rows} == {"0.jpg"}
    assert find(store_of(folder, features)).rows == []  # of an older version, without hashes


def test_turned_copies_of_very_many_images_are_looked_for_in_lists():
    """Not all with all, and yet nearly all of them are found."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, (200, 2, 256), np.uint8)
    bits = kinds[rng.integers(0, 200, 24_000)] ^ (rng.random((24_000, 2, 256)) < 0.3)
    stored = np.moveaxis(words(np.packbits(bits, axis=-1)), 0, -1)
    rows, index = duplicates._index_of(stored, np.ones(24_000, bool)) or pytest.fail("no index")
    assert index.nprobe < index.nlist / 4
    copies = np.packbits(bits[:500, 0] ^ (rng.random((500, 256)) < 0.14), axis=-1)  # 9 of 64 bits
    distances, entries = index.search(duplicates._bytes(words(copies)[:, 0]), 64)
    found = (rows[entries // 2] == np.arange(500)[:, None]) & (entries >= 0)
    assert found.any(axis=1).mean() > 0.9
    assert distances[found].mean() < 12


def test_files_that_are_gone_or_changed_are_passed_over_and_counted(folder):
    picture = Image.open(PHOTOGRAPH)
    shutil.copy(PHOTOGRAPH, folder / "original.jpg")
    for quality in (50, 60, 70, 80):
        picture.save(folder / f"{quality}.jpg", quality=quality)
    store = store_of(folder)
    (folder / "50.jpg").unlink()
    (folder / "60.jpg").write_bytes(b"no image")
    Image.open(EXAMPLES / "images" / "chair" / "img_0005.jpg").save(folder / "70.jpg")
    found = find(store)
    assert clusters(found) == [{"original.jpg", "80.jpg"}]
    assert found.unreadable == 3
    shutil.rmtree(folder)
    assert find(store) == Duplicates([], 0, 0, 0, unreadable=5, flat=0)


def test_the_last_copy_that_is_there_is_the_one_to_keep(folder):
    for age, name in enumerate(("c.jpg", "b.jpg", "a.jpg", "d.jpg")):
        shutil.copy(PHOTOGRAPH, folder / name)
        os.utime(folder / name, (1e9 + age, 1e9 + age))
    Image.open(PHOTOGRAPH).resize((200, 193)).save(folder / "small.jpg")
    store = store_of(folder)
    (folder / "c.jpg").unlink()
    (folder / "b.jpg").write_bytes(b"something else")
    found = find(store)
    assert [(row.path, row.kind) for row in found.rows] == [
        ("a.jpg", "near"),
        ("d.jpg", "exact"),
        ("small.jpg", "near"),
    ]
    assert found.unreadable == 2
    (folder / "d.jpg").unlink()
    (folder / "small.jpg").unlink()
    found = find(store)
    assert (found.rows, found.unreadable) == ([], 4)


def test_stores_with_nothing_to_compare(folder):
    store = store_of(folder)
    assert find(store) == Duplicates([], 0, 0, 0, 0, 0)
    shutil.copy(PHOTOGRAPH, folder)
    assert find(store_of(folder)) == Duplicates([], 0, 0, 0, 0, 0)


def test_removed_images_have_no_duplicates(folder):
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(PHOTOGRAPH, folder / name)
    store = store_of(folder)
    gone = next(image for image in scan(str(folder), ScanNotes()) if image.path == "b.jpg")
    with PartWriter(store, "later") as writer:
        writer.remove(gone)
    assert find(store).rows == []


@pytest.mark.parametrize("settings", [{"cosine": 1.01}, {"cosine": float("nan")}, {"bits": -1}, {"bits": 257}])
def test_thresholds_that_make_no_sense(folder, settings):
    with pytest.raises(UsageError):
        find(store_of(folder), **settings)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_fingerprints_compare_as_the_slow_way_does(count, seed):
    a, b = np.random.default_rng(seed).integers(0, 256, (2, count, *SHAPE), np.uint8)
    pairs = [(0, j) for j in range(SHAPE[0])] + [(j, 0) for j in range(SHAPE[0])]
    for n, (distance, correlation) in enumerate(zip(hash_distances(a, b), correlations(a, b), strict=True)):
        bits = [np.unpackbits(a[n, i, :32] ^ b[n, j, :32]).sum() for i, j in pairs]
        likeness = [np.corrcoef(a[n, i, 32:], b[n, j, 32:])[0, 1] for i, j in pairs]
        assert distance == min(bits)
        assert correlation == pytest.approx(max(likeness), abs=1e-5)
    assert (hash_distances(a, b) == hash_distances(b, a)).all()
    assert is_flat(a).shape == (count,)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2**32 - 1), st.sets(st.integers(0, 7), min_size=1))
def test_stored_hashes_compare_as_the_slow_way_does(count, seed, turns):
    """In some orientations; also a picture with its negative, of which all bits differ."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (count, 2, 32), np.uint8)
    b = np.concatenate([a[:1] ^ 255, rng.integers(0, 256, (max(0, count - 1), 2, 32), np.uint8)])
    slow = [
        min(int(np.unpackbits(x ^ y).sum()) for turn in turns for x in turned_hashes(one, turn) for y in other)
        for one, other in zip(a, b, strict=True)
    ]
    own, *theirs = (np.moveaxis(words(turned_hashes(hashes, turn)), 0, -1) for hashes, turn in ((a, 0), (b, 0), (b, 4)))
    found = [
        word_distances(own, others, [turn % 4 for turn in turns if turn // 4 == side])
        for side, others in enumerate(theirs)
    ]
    assert np.minimum(*found).tolist() == slow


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (4000, 3000)])
def test_pictures_of_any_shape_have_fingerprints(size):
    assert fingerprint(Image.new("RGB", size, "red")).shape == SHAPE
