"""The rule filter for generated text."""

import pytest
from fedduet.lm.text.rules import (
    Rules,
    clean,
    control_heads,
    filter_texts,
    is_repetitive,
    last_sentence_end,
)
from hypothesis import given
from hypothesis import strategies as st

HEADS = ("Product:", "Rating:", "Review:")


def words(text):
    return len(text.split())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("good\x00 camera\x1b[0m", "good camera[0m"),
        ("zero\u200bwidth \ufeffmark\ufffd", "zerowidth mark"),
        ("fine!!!!!!! really??", "fine!!! really??"),
        ("tokenised . . . . . dots", "tokenised ... dots"),
        ("_____ underscores", "___ underscores"),
        ('"I love this camera."', "I love this camera."),
        ('"Great" is not the "word"', '"Great" is not the "word"'),
        ('"left open', "left open"),
        ("left open too”", "left open too"),
        ("'I don't like it'", "I don't like it"),
        ("5000000000 photos", "5000000000 photos"),
        ("text<|endoftext|> more</s>", "text more"),
        ("a\n\n\n b \r\n c", "a\nb\nc"),
        ("good <br /> bad", "good bad"),
    ],
)
def test_junk_is_stripped(raw, expected):
    assert clean(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Product: camera\nRating: positive\nReview: sharp pictures", "sharp pictures"),
        ("review: sharp pictures", "sharp pictures"),
        ("Rating: positive\nsharp pictures", "sharp pictures"),
        ("sharp pictures\nProduct: camera\nRating: negative\nReview: blurred", "sharp pictures"),
        ("my review: sharp pictures", "my review: sharp pictures"),  # only at the start of a line
        ("Product: camera\nRating: positive", ""),
    ],
)
def test_leftovers_of_the_control_code_are_removed(raw, expected):
    assert clean(raw, HEADS) == expected


def test_control_heads_are_the_literal_words_of_the_code():
    assert control_heads("Product: {domain}\nRating: {label}\nReview:") == HEADS
    assert control_heads("[{domain}|{label}]") == ()
    assert control_heads("{label} {noun} {{x}}: ") == ()
    assert control_heads("} About {domain} }{ Text:") == ("} About", "}{ Text:")


def test_each_dropped_text_has_one_reason_and_indices_are_kept():
    texts = [
        "one two",
        "a fine small camera for travel.",
        "no end here",
        "Ends here it does. And then",
        "A fine  SMALL camera for travel.",
        "",
    ]
    finished = [True, True, False, False, True, True]
    result = filter_texts(texts, words, Rules(min_tokens=3), finished)
    assert result.kept == ((1, "a fine small camera for travel."), (3, "Ends here it does."))
    assert result.dropped == {"too_short": 2, "unfinished": 1, "repetitive": 0, "duplicate": 1}
    assert result.cut == 1


def test_unfinished_text_is_cut_dropped_or_kept_as_asked():
    def run(how):
        return filter_texts(["It is good. It is the"], words, Rules(3, unfinished=how), [False])

    assert run("cut").kept == ((0, "It is good."),)
    assert run("drop").kept == () and run("drop").dropped["unfinished"] == 1
    assert run("keep").kept == ((0, "It is good. It is the"),)
    too_little = filter_texts(["No. It is the one that"], words, Rules(3), [False])
    assert too_little.kept == () and too_little.dropped["unfinished"] == 1


def test_sentence_ends_of_several_scripts_and_no_decimal_points():
    assert last_sentence_end("It costs 3.5 dollars") == ""
    assert last_sentence_end('He said "yes." and') == 'He said "yes."'
    assert last_sentence_end("很好。我喜欢") == "很好。"
    assert last_sentence_end("tokenised , too . and the") == "tokenised , too ."


def test_short_is_a_matter_of_tokens_not_of_white_space_words():
    """The public code counted white-space words, and so dropped every text of a script without
    spaces."""
    chinese = "这款相机的画质非常好我很喜欢"
    assert words(chinese) == 1
    assert filter_texts([chinese], len, Rules(min_tokens=5)).kept == ((0, chinese),)
    assert filter_texts(["good stuff!"], lambda text: 12, Rules(min_tokens=5)).kept == (
        (0, "good stuff!"),
    )


def test_repetition_is_found_by_share_and_by_distinct_trigrams():
    rules = Rules()
    assert is_repetitive(
        "the camera and it is good and it is good and it is good and it is good",
        rules.max_share,
        rules.min_distinct,
    )
    long_cycle = "one two three four five six seven eight nine ten " * 3
    assert is_repetitive(long_cycle, rules.max_share, rules.min_distinct)
    assert is_repetitive("好看好看好看好看好看好看", rules.max_share, rules.min_distinct)
    assert not is_repetitive(
        "the pictures are sharp , the zoom works well and the battery lasts all day",
        rules.max_share,
        rules.min_distinct,
    )
    assert not is_repetitive("good", rules.max_share, rules.min_distinct)


@given(st.lists(st.tuples(st.text(max_size=40), st.booleans()), max_size=8))
def test_kept_and_dropped_add_up_and_kept_text_is_clean(rows):
    result = filter_texts(
        [text for text, _ in rows], words, Rules(1), [ended for _, ended in rows], HEADS
    )
    assert len(result.kept) + sum(result.dropped.values()) == len(rows)
    for _, text in result.kept:
        assert text == text.strip() and "\n\n" not in text and "\x00" not in text
