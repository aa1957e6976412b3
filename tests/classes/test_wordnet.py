"""The names of WordNet that are shipped, against facts about WordNet 3.0 and its own files' format."""

from importlib.resources import files as resources
from pathlib import Path

import pytest

from ood_audit.classes import wordnet
from ood_audit.classes.wordnet import build


def test_counts():
    """wnstats(7WN): 82,115 noun synsets; the lexicographer files are 26 of nouns and three of adjectives."""
    assert len(wordnet._nouns().names) == 82115
    assert len(wordnet.files()) == 29
    assert len(wordnet.names("noun.animal")) == 7362
    assert wordnet.names("noun.motive") == sorted(set(wordnet.names("noun.motive")))
    assert wordnet.names("noun.nothing") == wordnet.names() == []


def test_names_are_first_names():
    animals, adjectives = wordnet.names("noun.animal"), wordnet.names("adj.all", "adj.pert", "adj.ppl")
    assert "sacred ibis" in animals
    assert "threskiornis aethiopica" not in animals  # the second name of the sacred ibis
    assert not any("_" in name or name != name.lower() or name.endswith(")") for name in animals + adjectives)
    assert {"galore", "elect"} <= set(adjectives)  # galore(ip), elect(ip)


def test_ibis():
    ibis = wordnet.same_thing("ibis")
    assert {"ibis", "wood ibis", "sacred ibis", "threskiornis aethiopica"} <= ibis  # kinds, by all their names
    assert {"wading bird", "bird", "animal", "object", "entity"} <= ibis  # what it is a kind of
    assert (
        not {"stork", "heron", "crane", "eagle", "threskiornithidae"} & ibis
    )  # siblings, and the family it belongs to


def test_every_noun_sense_counts():
    crane = wordnet.same_thing("crane")
    assert {"whooping crane", "lifting device", "derrick"} <= crane  # the bird and the machine
    assert {"paris", "capital of france"} <= wordnet.same_thing("national capital")  # an instance, by @i


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Mice", "rodent"),  # irregular, and upper case
        ("oxen", "bovine"),
        ("butterflies", "insect"),
        ("watches", "timepiece"),
        ("firemen", "defender"),
        ("school buses", "bus"),
        ("butter knives", "table knife"),
        ("sun flowers", "helianthus"),
        ("golden_retriever", "dog"),
        ("teddy-bear", "plaything"),
        ("scissor", "edge tool"),
        ("bases on balls", "walk"),
    ],
)
def test_spellings(name, other):
    assert other in wordnet.same_thing(name)


def test_what_is_no_plural():
    assert "georgia" not in wordnet.same_thing("gas")  # "ga", a state
    assert "weaponry" not in wordnet.same_thing("arm")  # "arms", which is a noun of its own
    assert "spectacles" not in wordnet.same_thing("glass")


@pytest.mark.parametrize("name", ["", " ", "_", "zzz", "a' OR 1=1", "日本", "\x00", "photo of a dog on a sofa"])
def test_unknown_names(name):
    assert wordnet.same_thing(name) == set()


def test_looking_up_changes_nothing():
    first = wordnet.same_thing("butter knives")
    assert wordnet.same_thing("butter knives") == first
    assert wordnet._nouns().singulars["knives"] == ["knife"]


@pytest.mark.parametrize(
    ("wordnet_id", "names"),
    [
        ("n02691156", ("airplane", "aeroplane", "plane", "airplane (heavier-than-air craft)")),
        ("n02012849", ("crane", "crane (wading bird)")),
        ("n03126707", ("crane", "crane (lifting device)")),
        ("n01440764", ("tench", "tinca tinca", "tench (cyprinid)")),
        ("n00001740", ("entity",)),  # the first of all, below nothing
        ("n99999999", ()),
        ("n0269115", ()),
        ("a02691156", ()),
        ("dog", ()),
    ],
)
def test_names_by_id(wordnet_id, names):
    """ImageNet's ids are the offsets of WordNet 3.0, also for those whose names are of several things."""
    assert wordnet.named(wordnet_id) == names


def test_a_name_with_its_kind_is_known_by_the_name():
    assert "wading bird" in wordnet.same_thing("crane (wading bird)")
    assert "dog" in wordnet.same_thing("golden\u2010Retriever")


def test_the_licence_goes_with_it():
    licence = resources("ood_audit").joinpath("classes/wordnet/LICENSE").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert "ALL copies" in licence
    assert sum(path.stat().st_size for path in Path(wordnet.__file__).parent.glob("*.parquet")) < 1.5e6


def test_build_reads_the_format(tmp_path):
    """Lines as in data.noun and data.adj, the offsets made short."""
    (tmp_path / "nouns").write_text(
        "  1 the licence\n"
        "00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which is\n"
        "00000002 05 n 02 Wood_Ibis 0 wood_stork 1 003 @ 00000001 n 0000 #m 00000003 n 0000 + 00000009 v 0101 | x | y\n"
        "00000003 15 n 01 Paris 0 002 @i 00000001 n 0000 @ 00000002 n 0000 | z\n"
    )
    (tmp_path / "adjectives").write_text("00000001 44 a 02 Galore(ip) 0 rich 0 001 @ 00000002 a 0000 | w\n")
    assert build.synsets(tmp_path / "nouns", tmp_path / "adjectives").to_pylist() == [
        {"file": "noun.Tops", "names": ["entity"], "hypernyms": [], "offset": 1},
        {"file": "noun.animal", "names": ["wood ibis", "wood stork"], "hypernyms": [0], "offset": 2},
        {"file": "noun.location", "names": ["paris"], "hypernyms": [0, 1], "offset": 3},
        {"file": "adj.ppl", "names": ["galore"], "hypernyms": [], "offset": None},
    ]
    (tmp_path / "noun.exc").write_text("axes ax axis\nbases_on_balls base_on_balls\n")
    assert build.plurals(tmp_path / "noun.exc").to_pylist() == [
        {"plural": "axes", "singular": "ax"},
        {"plural": "axes", "singular": "axis"},
        {"plural": "bases on balls", "singular": "base on balls"},
    ]


def test_a_name_that_comes_twice_is_one():
    of, kinds = wordnet.senses(["dog", "xyzzy", "mouse", "xyzzy"])
    assert (of == 3).sum() == 1 and (of == 1).sum() == 0
    assert kinds.shape == (len(of), 4)
