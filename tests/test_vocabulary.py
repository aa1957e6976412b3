import numpy as np
import pytest

from ood_audit.errors import UsageError
from ood_audit.vocabulary import Vocabulary, check_templates, read_vocabulary, template_set


def write(tmp_path, content):
    path = tmp_path / "classes.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_comments_synonyms_and_windows_files(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf# animals\r\n cat | house  cat|kitty # pets\r\n\r\nC#\r\n\xc3\xa9clair\r\n")
    assert read_vocabulary(path).classes == (("cat", "house cat", "kitty"), ("C#",), ("éclair",))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("cat\ndog\nCat\n", "line 3: 'Cat' is already in line 1"),
        ("cat|feline\ndog\nfeline\n", "line 3: 'feline' is already in line 1"),
        ("cat|cat\n", "line 1: 'cat' is already in line 1"),
        ("cat\ndog||wolf\n", "line 2: an empty name"),
        (b"cat\ncaf\xe9\n", "line 2: not UTF-8"),
        ("", "names no class"),
        ("# nothing\n\n", "names no class"),
    ],
)
def test_refuses_with_the_line(tmp_path, content, complaint):
    with pytest.raises(UsageError, match=complaint):
        read_vocabulary(write(tmp_path, content))


def test_missing_file_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_vocabulary(tmp_path / "nowhere.txt")


def test_features_average_templates_and_synonyms():
    vectors = {
        "a cat": [1, 0],
        "the cat": [0, 1],
        "a kitty": [1, 0],
        "the kitty": [1, 0],
        "a dog": [0, 1],
        "the dog": [0, 1],
    }
    vocabulary = Vocabulary((("cat", "kitty"), ("dog",)), ("a {}", "the {}"))
    got = vocabulary.features(lambda texts: np.array([vectors[text] for text in texts], np.float32))
    np.testing.assert_allclose(got, [np.array([3, 1]) / np.sqrt(10), [0, 1]], rtol=1e-6)


def test_identity_depends_on_names_and_templates():
    one = Vocabulary((("cat",), ("dog",)))
    assert one.id == Vocabulary((("cat",), ("dog",))).id
    assert len({one.id, Vocabulary((("cat", "dog"),)).id, Vocabulary(one.classes, ("{}",)).id}) == 3


@pytest.mark.parametrize("template", ["a photo", "{} and {}", ""])
def test_templates_need_one_place(template):
    with pytest.raises(UsageError, match="once"):
        check_templates([template])


def test_names_with_braces_and_percent_are_literal():
    vocabulary = Vocabulary((("100% {cotton}",),), ("a {}.",))
    seen: list[str] = []

    def encode(texts):
        seen.extend(texts)
        return np.ones((len(texts), 2), np.float32)

    vocabulary.features(encode)
    assert seen == ["a 100% {cotton}."]


def test_template_sets_of_open_clip():
    assert len(template_set("openai-imagenet")) == 80
    assert "itap of a {}." in template_set("simple")
