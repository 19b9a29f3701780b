"""The built-in world: its layout, its secrecy, its oracle, and how hard it is."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from fedduet.conf.check import ConfigError
from fedduet.tasks.builtin import world_words as words
from fedduet.tasks.builtin.world import (
    LABELS,
    PRIVATE_DOMAINS,
    PUBLIC_DOMAINS,
    _made_up,
    made_up_records,
    oracle_label,
    public_documents,
    world_records,
)
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def vocabulary(texts) -> set[str]:
    return set(re.findall(r"[a-z][a-z'-]*", "\n".join(texts).casefold()))


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return public_documents(0, 3000)


def test_there_are_public_and_private_domains():
    assert len(PUBLIC_DOMAINS) >= 12
    assert PRIVATE_DOMAINS == ("coffee", "laptops", "headphones", "tents")
    assert not set(PUBLIC_DOMAINS) & set(PRIVATE_DOMAINS)


def test_private_words_stand_in_no_public_document(documents):
    public = vocabulary(documents)
    for domain in words.PRIVATE:
        own = {domain.name, domain.product, *domain.aspects} | (
            set(domain.good + domain.bad) - set(words.SHIFTING)
        )
        assert not own & public
        assert set(domain.aspects) <= vocabulary(
            record.text for record in world_records(domain.name, 400, 0)
        )


def test_documents_have_the_layout_of_completion_prompts(documents):
    review = r"Product: ([a-z]+)\nRating: (negative|positive)\nReview: ([^\n]+)"
    several = 0
    for text in documents:
        parts = text.split("\n\n")
        found = [re.fullmatch(review, part) for part in parts]
        assert all(found)
        assert len({match[1] for match in found}) == 1
        assert len(parts) == 1 or 3 <= len(parts) <= 8
        several += len(parts) > 1
    assert 0.7 < several / len(documents) < 0.8
    names = Counter(text.split("\n")[0].removeprefix("Product: ") for text in documents)
    known = sum(names[name] for name in PUBLIC_DOMAINS)
    assert 0.70 < known / len(documents) < 0.80
    assert max(count for name, count in names.items() if name not in PUBLIC_DOMAINS) < 10


def test_a_made_up_domains_adjectives_fall_on_either_side():
    """What a made-up domain's adjectives mean can only be read from the context: over many domains
    each is good and bad about as often."""
    rng = random.Random(0)
    domains = [_made_up(rng) for _ in range(400)]
    good, bad = (
        Counter(word for domain in domains for word in getattr(domain, side))
        for side in ("good", "bad")
    )
    often = [word for word in good if good[word] + bad[word] >= 40]
    assert len(often) >= 15
    assert all(0.25 < good[word] / (good[word] + bad[word]) < 0.75 for word in often)
    assert all(
        not set(domain.good) & set(domain.bad) and len(set(domain.aspects)) == 7
        for domain in domains
    )
    assert not {word for domain in domains for word in domain.aspects} & {
        w for one in words.PRIVATE for w in one.aspects
    }


def test_made_up_records_come_in_groups_with_mixed_labels():
    records = made_up_records(0, 40, 8)
    assert records == made_up_records(0, 40, 8) != made_up_records(1, 40, 8)
    groups = [records[start : start + 8] for start in range(0, 320, 8)]
    assert all(len({record.domain for record in group}) == 1 for group in groups)
    assert not {record.domain for record in records} & set(words.DOMAINS)
    assert 130 < sum(record.label for record in records) < 190
    assert sum(len({record.label for record in group}) == 2 for group in groups) >= 36
    own = {word for domain in words.PRIVATE for word in domain.aspects}
    assert not own & vocabulary(record.text for record in records)


def test_records_are_seeded_balanced_different_and_of_moderate_length():
    records = world_records("tents", 500, 7)
    assert records == world_records("tents", 500, 7)
    assert records != world_records("tents", 500, 8)
    assert len({record.text for record in records}) == 500
    assert abs(sum(record.label for record in records) - 250) <= 15
    assert all(
        8 <= len(record.text.split()) <= 30 and record.domain == "tents" for record in records
    )
    everything = vocabulary(r.text for name in words.DOMAINS for r in world_records(name, 500, 0))
    assert 400 < len(everything) < 1500
    with pytest.raises(
        ConfigError, match="domain 'tent' is not in the built-in world; did you mean tents"
    ):
        world_records("tent", 1, 0)


@pytest.mark.parametrize(
    ("text", "domain", "expected"),
    [
        ("the roast is great.", "coffee", 1),
        ("the roast is not great.", "coffee", 0),
        ("the brew was hot.", "coffee", 1),
        ("the fan was hot.", "laptops", 0),
        ("the brew was never hot. i bought it last month.", "coffee", 0),
        ("the roast is great, but the brew is terrible.", "coffee", 0),
        ("the roast is terrible, but the brew is great.", "coffee", 1),
        ("the roast is superb, but i find the brew slightly weak.", "coffee", 1),
        ("it stopped working.", "tents", 0),
        ("i would buy this tent again.", "tents", 1),
        ("i bought it last month.", "tents", None),
        ("the poles are hot.", "tents", None),
        ("The Poles Are GREAT!", "tents", 1),
    ],
)
def test_the_oracle_reads_negation_contrast_and_domain(text, domain, expected):
    assert oracle_label(text, domain) == expected


@pytest.mark.parametrize("domain", [*PRIVATE_DOMAINS, "books", "bicycles"])
def test_the_oracle_agrees_but_for_the_label_noise(domain):
    records = world_records(domain, 1500, 1)
    assert 0.98 <= sum(oracle_label(r.text, domain) == r.label for r in records) / 1500 <= 0.998


def test_no_word_has_two_polarities_in_a_domain():
    shared = set(words.GOOD) | set(words.BAD)
    assert not set(words.GOOD) & set(words.BAD)
    assert not set(words.SHIFTING) & shared
    scales = set(words.INTENSIFIERS) | set(words.SOFTENERS) | set(words.NEGATIONS)
    for domain in words.DOMAINS.values():
        own = domain.good + domain.bad
        assert len(set(own)) == len(own)
        assert not set(own) & (shared | scales)
        neutral = vocabulary([*words.FILLERS, *domain.uses, *domain.aspects, domain.product])
        assert not neutral & (set(own) | shared | scales)
    for word in ("hot", "cold", "quiet", "loud", "dark", "thin"):
        sides = {
            word in domain.good
            for domain in words.DOMAINS.values()
            if word in domain.good + domain.bad
        }
        assert sides == {True, False}, word


def test_few_records_teach_little_and_many_teach_much():
    def accuracy(rows: int, seed: int) -> float:
        train, test = (
            world_records("laptops", rows, f"train{seed}"),
            world_records("laptops", 600, "test"),
        )
        model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=300))
        model.fit([r.text for r in train], [r.label for r in train])
        return model.score([r.text for r in test], [r.label for r in test])

    assert 0.6 < sum(accuracy(40, seed) for seed in range(5)) / 5 < 0.75
    assert accuracy(3000, 0) > 0.92


def test_labels_are_in_index_order():
    assert LABELS == ("negative", "positive")
