"""Small changes of texts: how many places, what becomes of them, and the same for everyone."""

import random
import unicodedata

import pytest

from moecl_jax.data.lookalikes import HOMOGLYPHS, HOMOPHONES, NEIGHBOURS, SPLITS
from moecl_jax.data.perturbing import PERTURBATIONS, perturbed

ENGLISH = "Please send the money back before Tuesday, thanks a lot"
CHINESE = "我在家里看书,他说你好吗,明天加钱请你吃饭"


def changes(before, after):
    """Places at which two texts of one length differ."""
    assert len(before) == len(after)
    return [
        place for place, pair in enumerate(zip(before, after, strict=True)) if len(set(pair)) > 1
    ]


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_what_is_drawn_depends_on_text_and_kind_alone(kind):
    text = CHINESE if kind in ("homophones", "split") else ENGLISH
    random.seed(1)
    first = perturbed(text, kind, 0.3)
    random.seed(2)
    assert perturbed(text, kind, 0.3) == first != text
    assert perturbed(f"{text} {text}", kind, 0.3) != f"{first} {first}"


@pytest.mark.parametrize(("rate", "count"), [(0.01, 1), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_rate_is_a_part_of_the_places_and_at_least_one(rate, count):
    text = "aceo aceo 123"  # eight letters with a double
    assert len(changes(text, perturbed(text, "homoglyphs", rate))) == count


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("typos", "it is me 12345 我们"),  # no word of four Latin letters
        ("swaps", "a bb 1 2"),
        ("case", "123 我们 ß"),
        ("homoglyphs", "123 qz"),
        ("homophones", ENGLISH),
        ("split", ENGLISH),
        *((kind, "") for kind in PERTURBATIONS),
    ],
)
def test_a_text_without_a_place_stays_as_it_is(kind, text):
    assert perturbed(text, kind, 1.0) == text


def test_each_kind_changes_what_it_says():
    assert perturbed("ab cd", "swaps", 1.0) == "ba dc"
    assert perturbed("我们", "swaps", 1.0) == "们我"
    assert perturbed("aB c1", "case", 1.0) == "Ab C1"
    assert perturbed("好", "split", 1.0) == "女子"
    assert perturbed("信芯", "homophones", 1.0) in {f"{a}{b}" for a in "芯心新欣薪" for b in "信"}
    back = str.maketrans({double: letter for letter, double in HOMOGLYPHS.items()})
    assert perturbed(ENGLISH, "homoglyphs", 1.0).translate(back) == ENGLISH
    for seed in range(40):
        word = f"word{'xyz'[seed % 3]}" + "abcd"[seed % 4]
        typed = perturbed(word, "typos", 0.01)
        if len(typed) == len(word):
            (place,) = changes(word, typed)
            assert typed[place] in NEIGHBOURS[word[place]]
        else:
            shorter, longer = sorted((word, typed), key=len)
            assert len(longer) - len(shorter) == 1
            assert any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))


def test_the_lists_hold_what_they_say():
    for letter, others in NEIGHBOURS.items():
        assert letter not in others and all(letter in NEIGHBOURS[other] for other in others)
    assert NEIGHBOURS["g"] == "tyfhvb"
    for letter, double in HOMOGLYPHS.items():
        assert unicodedata.name(letter).startswith("LATIN")
        assert not unicodedata.name(double).startswith("LATIN")
    for character, others in HOMOPHONES.items():
        assert others and character not in others and len(set(others)) == len(others)
        assert all(character in HOMOPHONES[other] for other in others)
    assert all(len(parts) == 2 and parts not in SPLITS for parts in SPLITS.values())
