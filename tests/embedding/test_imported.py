"""`import`: vectors that others computed, in all their forms, and whatever may be wrong with them."""

import json
import re
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.embedding.imported import FeatureColumns, import_features, normalised
from ood_audit.embedding.vectors import open_vectors
from ood_audit.errors import StoreError, UsageError
from ood_audit.store import open_store
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke
from tests.helpers.made import problem, unit

CLASSES = ["cat", "dog", "electric guitar", "ship", "frog", "truck"]


@pytest.fixture
def data():
    """120 vectors of six classes and ten of none, with their labels and the vectors of the names."""
    features, labels, text = problem(6, 120, ood=10)
    names = [CLASSES[k] if k >= 0 else CLASSES[i % 6] for i, k in enumerate(labels)]
    return features, names, text


def paths(rows: int) -> list[str]:
    return [f"a/{i:04d}.jpg" for i in range(rows)]


def write_parquet(path: Path, features, columns=None, *, fixed=True):
    kind = pa.list_(pa.float32(), features.shape[1]) if fixed else pa.list_(pa.float64())
    table = {"path": paths(len(features)), "embedding": pa.array(list(features.astype(np.float64)), kind)}
    pq.write_table(pa.table({**table, **(columns or {})}), path)
    return path


def write_texts(path: Path, text, names=CLASSES):
    np.savez(path, names=np.array(names), texts=text.astype(np.float16))
    return path


def stored(store):
    """The features of a store by path."""
    from ood_audit.store.parts import iter_features

    return {
        path: row
        for batch in iter_features(open_store(store))
        for path, row in zip(batch.paths.to_pylist(), batch.features, strict=True)
    }


def as_parquet(folder, features, names):
    return write_parquet(folder / "f.parquet", features, {"label": names}), {"columns": FeatureColumns(label="label")}


def as_ragged_parquet(folder, features, names):
    return write_parquet(folder / "f.parquet", features, {"y": names}, fixed=False), {
        "columns": FeatureColumns(label="y")
    }


def as_parquet_folder(folder, features, names):
    (folder / "parts").mkdir()
    half = len(features) // 2
    for i, rows in enumerate((slice(0, half), slice(half, None))):
        write_parquet(folder / "parts" / f"{i}.parquet", features[rows], {"path": paths(len(features))[rows]})
    return folder / "parts", {}


def as_npz(folder, features, names):
    np.savez_compressed(folder / "f.npz", images=features.astype(np.float16), paths=np.array(paths(len(features))))
    return folder / "f.npz", {}


def as_npy(folder, features, names):
    np.save(folder / "f.npy", features.astype(np.float16))
    (folder / "paths.txt").write_text("\n".join(paths(len(features))) + "\n", encoding="utf-8")
    return folder / "f.npy", {"paths": folder / "paths.txt"}


def as_safetensors(folder, features, names):
    save_file({"v": features}, folder / "f.safetensors")
    (folder / "paths.txt").write_text("\n".join(paths(len(features))), encoding="utf-8")
    return folder / "f.safetensors", {"paths": folder / "paths.txt"}


def as_clip_retrieval(folder, features, names):
    out = folder / "out"
    for kind in ("img_emb", "metadata"):
        (out / kind).mkdir(parents=True)
    start = 0
    for i, size in enumerate((11, 50, 69)):  # more than nine parts are sorted by number, not by name
        number = (2, 10, 11)[i]
        rows = slice(start, start + size)
        np.save(out / "img_emb" / f"img_emb_{number}.npy", features[rows].astype(np.float16))
        table = pa.table({"image_path": paths(len(features))[rows], "caption": ["x"] * size})
        pq.write_table(table, out / "metadata" / f"metadata_{number}.parquet")
        start += size
    return out, {}


FORMS = [as_parquet, as_ragged_parquet, as_parquet_folder, as_npz, as_npy, as_safetensors, as_clip_retrieval]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_vectors(form, data, tmp_path):
    features, names, _ = data
    source, options = form(tmp_path, features, names)
    result = import_features(source, store=tmp_path / "store", **options)
    assert (result.added, result.changed, result.invalid, result.normalised) == (130, 0, 0, False)
    found = stored(tmp_path / "store")
    assert list(found) == paths(130)
    np.testing.assert_allclose(np.stack(list(found.values())), features, atol=2e-3)


def test_report_on_imported_vectors_needs_no_model(data, tmp_path):
    features, names, text = data
    source = write_parquet(tmp_path / "f.parquet", features, {"label": names})
    texts = write_texts(tmp_path / "t.npz", text)
    others = write_texts(
        tmp_path / "b.npz", unit(np.random.default_rng(3).normal(size=(40, 16))), [f"n{i}" for i in range(40)]
    )
    store = tmp_path / "store"
    done = invoke("import", source, "--store", store, "--label", "label", "--texts", texts, "--background", others)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "130 added, 0 changed, 0 invalid\n"
    assert "130 image files were not found" in done.stderr
    assert "next: ood-audit report" in done.stderr
    report = ood_audit.report(store, top=10)
    assert report.scores.vocabulary.names == CLASSES
    strange = {f"a/{i:04d}.jpg" for i in range(120, 130)}
    assert len({row["path"] for row in report.rows} & strange) >= 6
    rows = open_store(store).query("SELECT avg((label = folder)::INT) FROM report WHERE path < 'a/0120'").rows
    assert rows[0][0] > 0.9
    fewer = ood_audit.report(store, labels=["Electric_Guitar", "dog"], top=3)
    assert fewer.scores.vocabulary.names == ["Electric_Guitar", "dog"]
    with pytest.raises(UsageError, match=r"1 of 2 classes have no imported vector \(unicorn\)"):
        ood_audit.report(store, labels=["dog", "unicorn"])


def test_without_model_and_texts_the_report_says_what_is_missing(data, tmp_path):
    source = write_parquet(tmp_path / "f.parquet", data[0])
    import_features(source, store=tmp_path / "store")
    done = invoke("report", "--store", tmp_path / "store", "--labels", EXAMPLES / "classes.txt")
    assert done.returncode == 1
    assert "--texts FILE" in done.stderr and "--model" in done.stderr


def test_images_that_are_there_are_shown_and_others_have_a_placeholder(tmp_path, encoder):
    from ood_audit.images.decode import decode
    from ood_audit.images.uri import file_uri

    (tmp_path / "pictures").mkdir()
    pixels = []
    for i, picture in enumerate(sorted((EXAMPLES / "images" / "airplane").iterdir())[:4]):
        shutil.copy(picture, tmp_path / "pictures" / f"{i}.jpg")
        pixels.append(decode(file_uri(str(picture)), encoder.prepare).pixels)
    features = encoder.encode_images(pixels)
    np.savez(tmp_path / "f.npz", v=features, paths=np.array([*(f"{i}.jpg" for i in range(3)), "gone.jpg"]))
    result = import_features(tmp_path / "f.npz", store=tmp_path / "s", images=tmp_path / "pictures", model="starter")
    assert result.on_disk == 3
    report = ood_audit.report(tmp_path / "s", labels=["airplane", "dog"], top=4, settings=ScoreSettings(auto=False))
    page = report.html.read_text(encoding="utf-8")
    assert len(set(re.findall(r"data:image/jpeg;base64,[\w+/=]+", page))) == 3
    assert sum(row["label"] == "airplane" for row in report.rows) >= 2


def test_vectors_are_normalised_and_invalid_ones_are_rows_with_an_error(data, tmp_path):
    features = data[0].copy() * 7
    features[3, 0], features[5, 0], features[7] = np.nan, np.inf, 0
    source = write_parquet(tmp_path / "f.parquet", features)
    result = import_features(source, store=tmp_path / "s")
    assert (result.added, result.invalid, result.normalised) == (130, 3, True)
    rows = open_store(tmp_path / "s").query("SELECT path FROM images WHERE status = 'error' ORDER BY path").rows
    assert [path for (path,) in rows] == ["a/0003.jpg", "a/0005.jpg", "a/0007.jpg"]
    lengths = np.linalg.norm(np.stack(list(stored(tmp_path / "s").values())), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-3)


def test_importing_again_changes_and_adds(data, tmp_path):
    features = data[0]
    import_features(write_parquet(tmp_path / "f.parquet", features[:100]), store=tmp_path / "s")
    result = import_features(write_parquet(tmp_path / "f.parquet", features[::-1].copy()), store=tmp_path / "s")
    assert (result.added, result.changed) == (30, 100)
    found = stored(tmp_path / "s")
    assert len(found) == 130
    np.testing.assert_allclose(found["a/0000.jpg"], features[-1], atol=2e-3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("twice", r"1 paths occur more than once, such as a/0001\.jpg in rows 1 and 2"),
        ("ragged", r"row 3: a vector of 4 numbers, while the first has 16"),
        ("no vectors", r"has no column of vectors; it has path"),
        ("no such column", r"has no column nosuch; it has path, embedding"),
        ("truncated", r"cannot read the vectors in"),
    ],
)
def test_a_wrong_parquet_file_is_one_clear_line(spoil, message, data, tmp_path):
    options: dict[str, Any] = {}
    features, source = data[0], tmp_path / "f.parquet"
    if spoil == "twice":
        write_parquet(source, features, {"path": ["a/0001.jpg", *paths(len(features))[1:]]})
    elif spoil == "ragged":
        rows = [*features[:2].tolist(), [1.0] * 4]
        pq.write_table(pa.table({"path": paths(3), "v": pa.array(rows, pa.list_(pa.float32()))}), source)
    elif spoil == "no vectors":
        pq.write_table(pa.table({"path": paths(3)}), source)
    else:
        write_parquet(source, features)
        if spoil == "no such column":
            options["columns"] = FeatureColumns(label="nosuch")
    if spoil == "truncated":
        source.write_bytes(source.read_bytes()[:-30])
    with pytest.raises(UsageError, match=message):
        import_features(source, store=tmp_path / "s", **options)
    assert not (tmp_path / "s" / "store.json").exists()


def test_more_paths_than_vectors(data, tmp_path):
    source, options = as_npy(tmp_path, data[0], data[1])
    with options["paths"].open("a", encoding="utf-8") as file:
        file.write("one/more.jpg\n")
    with pytest.raises(UsageError, match="has 130 vectors, but there are 131 paths"):
        import_features(source, store=tmp_path / "s", **options)


def test_pickled_names_are_refused(data, tmp_path):
    np.savez(tmp_path / "f.npz", v=data[0], paths=np.array(paths(130), object))
    with pytest.raises(UsageError, match="pickled; save it as an array of strings"):
        import_features(tmp_path / "f.npz", store=tmp_path / "s")


def test_vectors_of_other_widths_do_not_mix(data, tmp_path):
    features, _, text = data
    source = write_parquet(tmp_path / "f.parquet", features)
    with pytest.raises(UsageError, match="the vectors of the classes have 8 numbers, those of the images 16"):
        import_features(source, store=tmp_path / "s", texts=write_texts(tmp_path / "t.npz", text[:, :8]))
    import_features(source, store=tmp_path / "s")
    with pytest.raises(StoreError, match="holds vectors of 16 numbers, these have 8"):
        import_features(write_parquet(tmp_path / "g.parquet", features[:, :8].copy()), store=tmp_path / "s")


def test_stores_of_embed_and_import_do_not_mix(store_copy, data, tmp_path):
    source = write_parquet(tmp_path / "f.parquet", data[0])
    with pytest.raises(StoreError, match="computed itself"):
        import_features(source, store=store_copy)
    import_features(source, store=tmp_path / "s")
    with pytest.raises(StoreError, match="holds imported vectors; add more with `ood-audit import`"):
        ood_audit.embed(EXAMPLES / "images" / "cup", store=tmp_path / "s", device="cpu")


def test_labels_that_are_numbers_point_into_the_names(data, tmp_path):
    features, names, _ = data
    numbers = np.array([CLASSES.index(name) for name in names], np.int16)
    np.savez(tmp_path / "f.npz", images=features, labels=numbers, names=np.array(CLASSES))
    import_features(tmp_path / "f.npz", store=tmp_path / "s", columns=FeatureColumns(label="labels"))
    rows = open_store(tmp_path / "s").query("SELECT DISTINCT folder FROM images ORDER BY 1").rows
    assert [folder for (folder,) in rows] == sorted(CLASSES)


def test_memory_holds_one_block_of_a_compressed_npz(data, tmp_path, monkeypatch):
    from ood_audit.embedding import vectors

    monkeypatch.setattr(vectors, "BLOCK_ROWS", 32)
    np.savez_compressed(tmp_path / "f.npz", images=data[0].astype(np.float16))
    blocks = [len(block.vectors) for block in open_vectors(tmp_path / "f.npz").blocks()]
    assert blocks == [32, 32, 32, 32, 2]


def test_normalised():
    unit_rows, valid, changed = normalised(np.array([[3, 4], [0, 0], [np.nan, 1]], np.float32))
    assert valid.tolist() == [True, False, False]
    np.testing.assert_allclose(unit_rows[0], [0.6, 0.8])
    assert changed


def test_status_tells_when_vectors_were_imported(data, tmp_path):
    np.save(tmp_path / "v.npy", data[0])
    import_features(tmp_path / "v.npy", store=tmp_path / "s")
    done = invoke("status", "--store", tmp_path / "s", "--format", "jsonl")
    (values,) = map(json.loads, done.stdout.splitlines())
    assert values["images"] == 130
    assert datetime.now(timezone.utc) - datetime.fromisoformat(values["last_run"]) < timedelta(minutes=5)
    assert not values["last_run_interrupted"]
