"""Splits by user: what one user brings moves no row of another."""

import pytest
from fedduet.conf.check import check
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.by_user import place, split_by_user
from fedduet.tasks.data.pools import Pool
from fedduet.tasks.task import Record

TASK = {
    "name": "t",
    "path": "unread.csv",
    "clients": ["a"],
    "labels": {"0": "bad", "1": "good"},
    "user_column": "who",
}
SHARED = tuple(f"a shared text {i}" for i in range(8))


def rows(users=40):
    """Users with two rows of their own each; u0 and u1 both wrote the eight shared texts."""
    found = [Record(text, i % 2, user="u0") for i, text in enumerate(SHARED)]
    for number in range(users):
        found += [Record(f"text {i} of {number}", i, user=f"u{number}") for i in range(2)]
    found += [Record(text, 1 - i % 2, user="u1") for i, text in enumerate(SHARED)]
    return tuple(found)


def split(pool, **changes):
    return split_by_user(check(TaskConfig, TASK | changes, "task"), pool, 2, 0, "a")[0]


def without(records, user):
    return tuple(record for record in records if record.user != user)


@pytest.mark.parametrize("own_test", [False, True])
def test_a_user_who_leaves_moves_no_row_of_another(own_test):
    """u0's repeats do not come back for u1, and nobody changes sides."""
    test = rows()[:30] if own_test else None
    whole = split(Pool(rows(), test))
    for user in [f"u{number}" for number in range(40)]:
        left = split(Pool(without(rows(), user), None if test is None else without(test, user)))
        for name in ("train", "validation", "test"):
            assert getattr(left, name) == without(getattr(whole, name), user)
    assert whole.train and whole.validation and whole.test


def test_each_user_is_in_one_split_only_and_keeps_every_text_once():
    whole = split(Pool((*rows(), *rows()), None))
    users = [{record.user for record in part} for part in (whole.train, whole.validation)]
    users.append({record.user for record in whole.test})
    assert not users[0] & users[1] and not users[0] & users[2] and not users[1] & users[2]
    together = [*whole.train, *whole.validation, *whole.test]
    assert sorted(map(repr, together)) == sorted(map(repr, set(rows())))
    for name in ("u0", "u1"):  # each keeps the texts that both wrote
        assert set(SHARED) <= {record.text for record in together if record.user == name}


def test_shares_are_about_as_wanted_and_no_validation_is_none():
    places = [place(0, "a", "test", f"u{number}") for number in range(2000)]
    assert min(places) >= 0 and max(places) < 1 and abs(sum(places) / 2000 - 0.5) < 0.02
    assert place(0, "b", "test", "u1") != place(0, "a", "test", "u1") != place(1, "a", "test", "u1")
    many = split(Pool(rows(1000), None), test_fraction=0.3)
    assert abs(len(many.test) / 2016 - 0.3) < 0.05
    assert abs(len(many.validation) / (2016 - len(many.test)) - 0.2) < 0.05
    assert split(Pool(rows(), None), validation_rows=0).validation == ()


def test_a_cut_takes_whole_users_but_one():
    kept = split(Pool(rows(), None), rows_per_client=11).train
    whole = split(Pool(rows(), None)).train
    assert len(kept) == 11 and set(kept) <= set(whole)
    part = [
        user
        for user in {record.user for record in kept}
        if sum(record.user == user for record in kept)
        < sum(record.user == user for record in whole)
    ]
    assert len(part) <= 1
