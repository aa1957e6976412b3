"""The encoder against plain open_clip, for each kind of model that open_clip has."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import ood_audit
from ood_audit.encoders import clip, openclip, registry
from ood_audit.encoders.clip import ClipEncoder, load_encoder
from ood_audit.encoders.folding import fold_batch_norm
from ood_audit.encoders.openclip import open_clip
from ood_audit.errors import EncoderError, UsageError
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke

PHOTOS = sorted((EXAMPLES / "images" / "butterfly").iterdir())[:4]
TEXTS = ["a photo of a butterfly.", "an airplane", "日本", ""]
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}


def save(folder: Path, model_cfg: dict[str, Any], **preprocess: object) -> str:
    """A small random model in open_clip's own folder format."""
    torch.manual_seed(0)
    custom = model_cfg.get("custom_text") or "hf_model_name" in model_cfg["text_cfg"]
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    arguments = {name: value for name, value in model_cfg.items() if name != "custom_text"}
    model = kind(**json.loads(json.dumps(arguments)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 2)
    folder.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def plain(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features by open_clip's own recipe."""
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(Image.open(p).convert("RGB")) for p in PHOTOS]))
        texts = model.encode_text(tokenizer(TEXTS))
    return tuple(nn.functional.normalize(x, dim=-1).numpy() for x in (images, texts))  # type: ignore[return-value]


def check(encoder: ClipEncoder, name: str) -> None:
    images, texts = plain(name)
    mine = encoder.encode_images([encoder.prepare(Image.open(p).convert("RGB")) for p in PHOTOS])
    np.testing.assert_allclose(mine, images, atol=2e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=2e-5)
    assert mine.dtype == np.float32
    assert encoder.identity.dimension == images.shape[1]


def test_starter_is_plain_open_clip(encoder):
    check(encoder, f"local-dir:{registry.STARTER}")
    assert encoder.score_defaults.top_c == 1
    assert encoder.identity.model == "starter"


MODELS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "quickgelu": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "custom text": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "custom_text": True},
    "siglip": {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "map",
            "timm_proj": "none",
        }
        | {"timm_model_pretrained": False},
        "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
    "modified resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_kinds_of_models(tmp_path, kind):
    name = save(tmp_path / "model", MODELS[kind], **(PREPROCESS if kind == "siglip" else {}))
    loaded = load_encoder(name, device="cpu")
    check(loaded, name)
    assert (
        loaded.identity.activation == ("quickgelu" if kind in ("quickgelu",) else "gelu") or kind == "modified resnet"
    )


TOWERS: dict[str, tuple[dict[str, Any], bool]] = {  # and whether texts can be shortened
    "end of text": (MODELS["vit"], True),
    "end of text by id": ({**MODELS["vit"], "text_cfg": TEXT | {"pool_type": "eos", "eos_id": 49407}}, True),
    "quickgelu": (MODELS["quickgelu"], True),
    "no causal mask": ({**MODELS["vit"], "text_cfg": TEXT | {"no_causal_mask": True}}, False),
    "last token": ({**MODELS["vit"], "text_cfg": TEXT | {"pool_type": "last"}}, False),
    "custom text": (MODELS["custom text"], True),
    "class token": ({**MODELS["custom text"], "text_cfg": TEXT | {"embed_cls": True}}, False),
    "siglip": (MODELS["siglip"], False),
}


@pytest.mark.parametrize("kind", [*TOWERS, "starter"])
def test_short_texts_are_encoded_short(tmp_path, monkeypatch, kind):
    """Sorted by length and cut where nothing is lost, the features are those of the full context, in order."""
    config, shortened = TOWERS.get(kind, ({}, True))
    name = f"local-dir:{registry.STARTER}" if kind == "starter" else save(tmp_path / "model", config)
    encoder = load_encoder("starter" if kind == "starter" else name, device="cpu")
    generator = np.random.default_rng(0)
    words = ["a", "photo", "of", "the nice", "sacred ibis", "supercalifragilistic", "日本", "."]
    texts = ["", *(" ".join(generator.choice(words, n)) for n in generator.integers(1, 50, 700)), "a photo"]
    lengths: list[int] = []
    encode_text = encoder._model.encode_text

    def recorded(tokens, normalize=False):
        lengths.append(tokens.shape[1])
        return encode_text(tokens, normalize)

    monkeypatch.setattr(encoder._model, "encode_text", recorded)
    monkeypatch.setattr(clip, "_TEXT_BATCH", 32)  # several blocks of texts that are sorted together
    mine = encoder.encode_texts(texts)
    model = open_clip.create_model(name).eval()
    tokens = open_clip.get_tokenizer(name)(texts)
    with torch.no_grad():
        full = nn.functional.normalize(model.encode_text(tokens), dim=-1)
    np.testing.assert_allclose(mine, full, atol=1e-5)
    assert max(lengths) == tokens.shape[1]
    assert (min(lengths) < tokens.shape[1]) == shortened
    for name, value in model.state_dict().items():
        assert name.startswith("visual.") or encoder._model.state_dict()[name].shape == value.shape


def test_an_interrupted_encoding_leaves_the_model_whole(encoder, monkeypatch):
    def interrupt(tokens, normalize):
        assert encoder._model.positional_embedding.shape[0] == tokens.shape[1] < 32
        raise KeyboardInterrupt

    positions, mask = encoder._model.positional_embedding, encoder._model.attn_mask
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(encoder._model, "encode_text", interrupt)
        encoder.encode_texts(["a photo"])
    assert encoder._model.positional_embedding is positions
    assert encoder._model.attn_mask is mask


QUICK = """
import sys
from importlib import import_module

from ood_audit.encoders import clip, openclip

slow = {"torch._dynamo", "transformers"}
assert not slow & set(sys.modules), slow & set(sys.modules)
with openclip._compiler_later():
    import torch
    from torch._dynamo.utils import is_compile_supported

    @torch.compiler.disable(recursive=False)
    def double(x):
        '''Twice.'''
        return 2 * x

assert double.__name__ == "double"
assert not slow & set(sys.modules)
assert double(4) == 8
assert is_compile_supported("cpu") is import_module("torch._dynamo.utils").is_compile_supported("cpu")
assert torch.compiler.disable.__module__ == "torch.compiler"
"""


def test_importing_the_encoder_leaves_out_what_it_does_not_use():
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_can_not_be_imported_without_is_imported_whole(monkeypatch, tmp_path):
    (tmp_path / "needs_transformers.py").write_text(
        "import sys\nassert sys.modules.get('transformers', 1) is not None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    openclip._import("needs_transformers")
    assert sys.modules.pop("needs_transformers")


def test_hugging_face_text_tower(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "butterfly", "airplane", "an", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertConfig(vocab_size=len(words), **sizes).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "context_length": 16, "hf_proj_type": "linear"}
    name = save(folder, {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": text})
    check(load_encoder(name, device="cpu"), name)


def test_batch_norm_is_folded(encoder):
    assert not any(isinstance(m, nn.BatchNorm2d) for m in encoder._model.visual.modules())


def test_batch_norm_that_is_not_a_convolutions_own_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return (self.norm(y) + y).flatten(1)  # folding would change the second term

    tower = Shared().eval()
    nn.init.uniform_(tower.norm.weight, 2, 3)
    assert fold_batch_norm(tower, torch.rand(2, 3, 8, 8)) is tower


def test_same_weights_are_the_same_encoder_in_any_file(tmp_path):
    first = load_encoder(save(tmp_path / "a", MODELS["vit"]), device="cpu").identity
    folder = Path(save(tmp_path / "b", MODELS["vit"]).removeprefix("local-dir:"))
    state = open_clip.factory.load_state_dict(str(folder / "open_clip_model.safetensors"))
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    second = load_encoder(f"local-dir:{folder}", device="cpu").identity
    assert first.differences(second) == []
    state["visual.class_embedding"][0] += 1
    torch.save(state, folder / "pytorch_model.bin")
    assert "weights sha256" in first.differences(load_encoder(f"local-dir:{folder}", device="cpu").identity)[0]


def test_published_weights_come_with_their_settings(tmp_path, monkeypatch):
    """OpenAI's were trained with QuickGELU: as a tag, and as the file that they are published as."""
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda config: "/cache/weights.safetensors")
    monkeypatch.setattr(registry, "_fail_fast_without_network", lambda: None)
    assert registry.find_model("ViT-B-32/openai", None, cuda=False).quick_gelu
    assert not registry.find_model("ViT-B-32/laion2b_s34b_b79k", None, cuda=False).quick_gelu
    (tmp_path / "ViT-B-32.pt").write_bytes(b"")
    (tmp_path / "mine.pt").write_bytes(b"")
    assert registry.find_model("ViT-B-32", str(tmp_path / "ViT-B-32.pt"), cuda=False).quick_gelu
    assert not registry.find_model("ViT-B-32", str(tmp_path / "mine.pt"), cuda=False).quick_gelu


def of_file(architecture: str, path: Path, **options: Any) -> dict[str, Any]:
    """The preprocessing for a checkpoint at `path`."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    return registry.find_model(architecture, str(path), cuda=False, **options).preprocessing


@pytest.mark.parametrize(
    ("architecture", "resize_mode", "interpolation", "mean"),
    [
        ("ViT-B-16-SigLIP2-256", "squash", "bicubic", 0.5),
        ("MobileCLIP-S1", "shortest", "bilinear", 0.0),
        ("ViT-L-14-CLIPA", "squash", "bilinear", 0.485),
        ("ViT-H-14-378", "squash", "bicubic", 0.48145466),
        ("ViT-B-32", "shortest", "bicubic", 0.48145466),
    ],
)
def test_a_file_is_prepared_for_as_all_weights_of_its_architecture_are(
    tmp_path, architecture, resize_mode, interpolation, mean
):
    found = of_file(architecture, tmp_path / "open_clip_model.safetensors")
    assert (found["resize_mode"], found["interpolation"], found["mean"][0]) == (resize_mode, interpolation, mean)


def test_a_file_that_could_be_prepared_for_in_two_ways_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(
        EncoderError, match=r"model.safetensors: .*different preprocessing.*open_clip_config.json into the same folder$"
    ):
        of_file("ViT-L-14", path)
    assert of_file("ViT-L-14", tmp_path / "ViT-L-14.pt")["mean"][0] == 0.48145466  # known by the name of the file
    # A store that has been made with it goes on as it began.
    assert of_file("ViT-L-14", path, recorded={"size": 224, **PREPROCESS}) == PREPROCESS
    config = {"model_cfg": open_clip.get_model_config("ViT-L-14"), "preprocess_cfg": PREPROCESS}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert of_file("ViT-L-14", path) == PREPROCESS


def test_the_configuration_beside_a_file_goes_before_all_else(tmp_path):
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"preprocess_cfg": PREPROCESS, "model_cfg": {"quick_gelu": True}}))
    for name in ("ViT-B-32.pt", "mine.pt"):
        assert of_file("ViT-B-32", tmp_path / name) == PREPROCESS
        assert registry.find_model("ViT-B-32", str(tmp_path / name), cuda=False).quick_gelu
    (tmp_path / "blobs").mkdir()
    (tmp_path / "mine.pt").rename(tmp_path / "blobs" / "0a1b")  # as the hub's client keeps files
    (tmp_path / "mine.pt").symlink_to("blobs/0a1b")
    source = registry.find_model("ViT-B-32", str(tmp_path / "mine.pt"), cuda=False)
    assert source.preprocessing == PREPROCESS
    assert source.weights_option == str(tmp_path / "mine.pt")
    config.write_text(json.dumps({"model_cfg": open_clip.get_model_config("ViT-B-16-SigLIP2-256")}))
    with pytest.raises(EncoderError, match=r"of another model than ViT-B-32; use `model` local-dir:"):
        of_file("ViT-B-32", tmp_path / "mine.pt")
    for broken in ("{", "[]", '{"preprocess_cfg": 3}', '{"model_cfg": []}'):
        config.write_text(broken)
        with pytest.raises(EncoderError, match=r"not a configuration of open_clip; repair or remove it$"):
            of_file("ViT-B-32", tmp_path / "mine.pt")


def test_what_a_file_is_prepared_for_is_told_and_kept(tmp_path, monkeypatch):
    """Through `embed`: in a note, and in the store, which then goes on the same way without the configuration."""
    cfg = open_clip.get_model_config("ViT-S-32-alt")
    cfg = {**cfg, "vision_cfg": {**VIT, "image_size": 224, "patch_size": 32}, "text_cfg": TEXT}
    monkeypatch.setattr("open_clip.factory.get_model_config", lambda name: json.loads(json.dumps(cfg)))
    monkeypatch.setattr("open_clip.get_model_config", lambda name: cfg)
    monkeypatch.setattr("open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH", 16)
    save(tmp_path, cfg, **PREPROCESS)
    weights = tmp_path / "open_clip_model.safetensors"
    told = invoke(
        *("embed", PHOTOS[0], "--model", "ViT-S-32-alt", "--weights", weights, "--store", tmp_path / "store"),
        *("--device", "cpu", "--precision", "fp32"),
    )
    assert told.returncode == 0, told.stderr
    expected = "preprocessing: 224 × 224, squash, bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5\n"
    assert expected in told.stderr
    kept = ood_audit.open_store(tmp_path / "store").encoder
    assert {name: kept.preprocessing[name] for name in PREPROCESS} == PREPROCESS
    again = clip.load_same_encoder(kept, device="cpu")
    check(again, f"local-dir:{tmp_path}")


def test_auto_is_the_starter_without_cuda():
    assert registry.find_model("auto", None, cuda=False).model == "starter"


def test_models_without_a_card_use_their_own_temperature(tmp_path):
    defaults = load_encoder(save(tmp_path / "a", MODELS["vit"]), device="cpu").score_defaults
    assert defaults.temperature == pytest.approx(0.07, rel=1e-3)  # CLIP's logit scale before training


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trap was sprung"),))


def test_weights_never_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": Trap()}, tmp_path / "zipped.pt")
    for name in ("evil.pt", "zipped.pt"):
        with pytest.raises(EncoderError, match="run code"):
            load_encoder("ViT-B-32", weights=name, device="cpu")
    assert not (tmp_path / "trap was sprung").exists()


@pytest.mark.parametrize(
    ("model", "weights", "complaint"),
    [
        ("ViT-B-33/openai", None, "did you mean ViT-B-32"),
        ("ViT-B-32", None, "needs weights: `model` ViT-B-32/TAG"),
        ("ViT-B-32/nope", None, "ViT-B-32 has openai"),
        ("starter", "x.pt", "`weights` goes with a bare architecture"),
        ("local-dir:/nowhere", None, "no open_clip_config.json"),
        ("ViT-B-32", "/nowhere.pt", "no such file"),
    ],
)
def test_wrong_names_say_what_is_right(model, weights, complaint):
    with pytest.raises((UsageError, EncoderError), match=complaint):
        load_encoder(model, weights=weights, device="cpu")


def test_without_a_network_the_remedy_is_told(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nowhere")
    with pytest.raises(EncoderError, match=r"laion/CLIP-ViT-B-16-laion2B-s34B-b88K; fetch it where .* `weights=FILE`"):
        load_encoder("ViT-B-16/laion2b_s34b_b88k", device="cpu")
    with pytest.raises(EncoderError, match=r"hf-hub:org/name from huggingface\.co/org/name"):
        load_encoder("hf-hub:org/name", device="cpu")


def test_bf16_features_agree(encoder):
    half = load_encoder("starter", device="cpu", precision="bf16")
    pixels = [encoder.prepare(Image.open(p).convert("RGB")) for p in PHOTOS]
    assert (encoder.encode_images(pixels) * half.encode_images(pixels)).sum(axis=1).min() > 0.99
    assert encoder.identity.differences(half.identity) == ["precision fp32 here, bf16 there"]


def test_an_encoder_that_has_moved_is_named_once(tmp_path):
    import ood_audit

    (tmp_path / "in").mkdir()
    for photo in PHOTOS:
        (tmp_path / "in" / photo.name).write_bytes(photo.read_bytes())
    first = save(tmp_path / "a", MODELS["vit"])
    store = ood_audit.embed(tmp_path / "in", store=tmp_path / "store", model=first, device="cpu").store
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(EncoderError, match=r"no open_clip_config.*if it has moved, name its new place once"):
        ood_audit.report(store.root, labels=["cat", "dog"], device="cpu")
    again = ood_audit.embed(tmp_path / "in", store=store.root, model=f"local-dir:{tmp_path / 'b'}", device="cpu")
    assert again.counts["unchanged"] == len(PHOTOS)
    assert len(ood_audit.report(store.root, labels=["cat", "dog"], device="cpu").rows) == len(PHOTOS)
