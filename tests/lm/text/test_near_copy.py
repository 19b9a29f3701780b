"""Near-copies: against a brute-force comparison of all pairs, over scripts, and fast enough for a
run."""

import random
import time

import pytest
from fedduet.lm.text.near_copy import drop_near_copies, similarity
from fedduet.lm.text.words import cut_to_tokens, units
from hypothesis import given
from hypothesis import strategies as st


def brute_force(candidates, references, threshold):
    kept = []
    for index, text in enumerate(candidates):
        earlier = [*references, *(candidates[i] for i in kept)]
        if all(similarity(text, other) < threshold - 1e-12 for other in earlier):
            kept.append(index)
    return kept


def test_similarity_is_jaccard_of_word_trigrams():
    words = [f"w{i}" for i in range(20)]
    changed = [*words[:10], "other", *words[11:]]
    # 18 shingles each, 3 of them touched
    assert similarity(" ".join(words), " ".join(changed)) == 15 / 21
    assert similarity("one two three", "one two four") == 0.0
    assert similarity("", "  ") == 1.0 and similarity("", "a") == 0.0


@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join), max_size=14),
    st.lists(st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join), max_size=6),
    st.sampled_from([0.2, 0.5, 0.7, 1.0]),
)
def test_equals_comparing_all_pairs(candidates, references, threshold):
    assert drop_near_copies(candidates, references, threshold) == brute_force(
        candidates, references, threshold
    )


def test_equals_comparing_all_pairs_when_many_share_shingles():
    rng = random.Random(3)
    things, verbs, words = (
        ["the camera", "this lens", "it"],
        ["is", "was"],
        ["great", "bad", "poor"],
    )
    texts = [
        " . ".join(
            f"{rng.choice(things)} {rng.choice(verbs)} {rng.choice(words)}" for _ in range(4)
        )
        for _ in range(300)
    ]
    found = drop_near_copies(texts[:200], texts[200:], 0.5)
    assert found == brute_force(texts[:200], texts[200:], 0.5)
    assert 20 < len(found) < 180


def test_case_space_punctuation_and_full_width_make_no_difference():
    texts = [
        "Great camera, sharp pictures!",
        "great  CAMERA sharp\npictures",
        "ｇｒｅａｔ camera: sharp pictures",
        "awful camera, blurred pictures",
    ]
    assert drop_near_copies(texts) == [0, 3]


def test_scripts_without_spaces_are_compared_by_characters():
    one, near, other = (
        "这款相机的画质非常好我很喜欢它",
        "这款相机的画质非常好我很喜欢",
        "电池用了两天就坏了完全不推荐",
    )
    assert drop_near_copies([one, near, other]) == [0, 2]
    assert units("相机 is ดี") == ["相", "机", "is", "ด", "ี"]


def test_references_and_earlier_candidates_count_and_dropped_ones_do_not():
    words = [f"w{i}" for i in range(20)]
    first, second = list(words), list(words)
    first[5] = "x"
    second[5], second[14] = "x", "y"  # near `first` (15/21), not near the reference (12/24)
    texts = [" ".join(first), " ".join(second)]
    assert drop_near_copies(texts, [" ".join(words)]) == [1]
    assert drop_near_copies(texts, []) == [0]


def test_threshold_outside_its_range_is_refused():
    with pytest.raises(
        ValueError, match="near-copy threshold is 0, allowed is more than 0 and at most 1"
    ):
        drop_near_copies(["a"], [], 0)


def test_ten_thousand_against_ten_thousand_takes_seconds():
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(3000)]
    weights = [1 / (i + 1) for i in range(3000)]
    texts = [" ".join(rng.choices(vocabulary, weights, k=40)) for _ in range(20_000)]
    copies = [text.upper() for text in texts[10_000:10_100]]
    started = time.process_time()
    kept = drop_near_copies(texts[:9_900] + copies, texts[10_000:])
    assert time.process_time() - started < 15
    assert kept == list(range(9_900))


def test_cut_to_tokens_gives_the_longest_prefix_that_fits():
    count = lambda text: len(text.split())  # noqa: E731
    assert cut_to_tokens("one two  three four five", count, 3) == "one two  three"
    assert cut_to_tokens("one two", count, 3) == "one two"
    assert cut_to_tokens("one two three four", count, 0) == ""
    assert cut_to_tokens("这款相机的画质", len, 4) == "这款相机"
