"""Word problems of the built-in world: public ones, and those of sites with a notation of their own
that no public text explains.

A worked solution says what each colour of the notation stands for (private knowledge) and then does
the sum (a general skill): neither a model that knows only the notation nor one that can only
calculate gets far. Public questions in colours leave open what these mean.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from fedduet.conf.check import ConfigError, nearest
from fedduet.tasks.builtin.world_words import listed
from fedduet.tasks.reasoning import CLOSING, Question, document

LARGEST = 50  # of every number in between
_BY = range(2, 10)

PLAIN = {
    "add": "+",
    "get": "+",
    "find": "+",
    "buy": "+",
    "drop": "-",
    "lose": "-",
    "use": "-",
    "sell": "-",
}
COLOURS = listed(
    "amber black blue brown gold green grey ivory lime olive pink plum red rose ruby tan teal white"
)

Move = tuple[str, int]  # an operation and by how much

SITES: Mapping[str, Mapping[str, Move]] = {
    "bakery": {
        "red": ("+", 7),
        "blue": ("-", 4),
        "gold": ("+", 3),
        "lime": ("-", 6),
        "plum": ("+", 9),
        "tan": ("-", 8),
    },
    "shipyard": {
        "red": ("-", 5),
        "grey": ("+", 8),
        "teal": ("-", 2),
        "rose": ("+", 4),
        "blue": ("-", 7),
        "olive": ("+", 6),
    },
    "clinic": {
        "pink": ("+", 6),
        "blue": ("+", 2),
        "ruby": ("-", 3),
        "lime": ("+", 5),
        "white": ("-", 8),
        "red": ("-", 9),
    },
}
"""A client's notation: what each of its colours does to the number."""
CLIENTS = tuple(SITES)


def site_questions(client: str, n: int, seed: int | str) -> list[Question]:
    """`n` different questions in the notation of `client`, with worked steps. Raises ConfigError
    for an unknown client."""
    if client not in SITES:
        raise ConfigError(
            f"client {client!r} has no notation in the built-in world;"
            f" {nearest(client, list(SITES))}"
        )
    notation, rng = SITES[client], random.Random(f"arithmetic questions/{client}/{seed}")
    found: dict[str, Question] = {}
    while len(found) < n:
        said = [
            (f"a {colour}", notation[colour])
            for colour in rng.choices(list(notation), k=rng.choice((2, 3, 3)))
        ]
        if question := _question(rng, said, client, LARGEST):
            found[question.question] = question
    return list(found.values())


def public_questions(n: int, seed: int | str, largest: int = LARGEST) -> list[Question]:
    """`n` questions that a model may see: what happens is said in plain words, or in colours that
    mean something else in every question and are not explained, so that they teach how such
    questions are worked, and nothing of what a colour means."""
    rng = random.Random(f"arithmetic/public/{seed}")
    questions: list[Question] = []
    while len(questions) < n:
        said = []
        for _ in range(rng.choice((2, 3, 3))):
            if rng.random() < 0.4:
                word, by = rng.choice(list(PLAIN)), rng.choice(_BY)
                said.append((f"{word} {by}", (PLAIN[word], by)))
            else:
                said.append((f"a {rng.choice(COLOURS)}", (rng.choice("+-"), rng.choice(_BY))))
        if question := _question(rng, said, "", largest):
            questions.append(question)
    return questions


def public_documents(
    n: int, seed: int | str, drills: float = 0.5, largest: int = LARGEST
) -> list[str]:
    """Pre-training documents: worked public questions and, as the share `drills`, columns of
    sums."""
    rng = random.Random(f"arithmetic/documents/{seed}")
    sums = round(drills * n)
    documents = [document(question) for question in public_questions(n - sums, seed, largest)]
    for _ in range(sums):
        values = [(rng.randint(0, largest), rng.choice("+-"), rng.choice(_BY)) for _ in range(10)]
        documents.append(
            "\n".join(
                _sum(value, (kind, by))
                for value, kind, by in values
                if 0 <= _after(value, (kind, by)) <= largest
            )
        )
    rng.shuffle(documents)
    return documents


def follows(question: str, text: str) -> bool:
    """Whether a solution in this world's layout does what it says: a meaning for everything that
    happens (for a colour whichever), each followed by the right sum, and the answer. It needs no
    knowledge of a notation; a question in colours has many right solutions."""
    value, steps = int(re.search(r"start with (\d+)", question)[1]), text.split("\n")  # type: ignore[index]
    happens = re.findall(r"then (\w+ \w+)", question)
    if len(steps) != 2 * len(happens) + 1:
        return False
    for place, what in enumerate(happens):
        meaning = re.fullmatch(rf"{what} is ([+-]) (\d+)", steps[2 * place])
        word, _, by = what.partition(" ")
        if not meaning or (word in PLAIN and meaning.groups() != (PLAIN[word], by)):
            return False
        move = (meaning[1], int(meaning[2]))
        if steps[2 * place + 1] != _sum(value, move):
            return False
        value = _after(value, move)
    return steps[-1] == f"{CLOSING}{value}"


def _question(
    rng: random.Random, said: Sequence[tuple[str, Move]], client: str, largest: int
) -> Question | None:
    """With worked steps: what each thing that happens stands for, and the sum. None when a number
    in between is out of bounds."""
    start = value = rng.randint(5, largest - 10)
    steps = []
    for what, move in said:
        steps += [f"{what} is {move[0]} {move[1]}", _sum(value, move)]
        value = _after(value, move)
        if not 0 <= value <= largest:
            return None
    return Question(
        f"start with {start} . {' '.join(f'then {what} .' for what, _ in said)} how many ?",
        tuple(steps),
        str(value),
        client,
    )


def _sum(value: int, move: Move) -> str:
    return f"so {value} {move[0]} {move[1]} = {_after(value, move)}"


def _after(value: int, move: Move) -> int:
    return value + move[1] if move[0] == "+" else value - move[1]
