"""The built-in world: a seeded grammar that writes product reviews with opinions, negation,
contrast and domain words.

Everything here is ours. Public domains (and made-up ones) are what a stand-in LLM is pre-trained
on; the private domains' own words occur in no public document, so a model can only get them from
demonstrations.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeVar

from fedduet.conf.check import ConfigError, nearest
from fedduet.tasks.builtin import world_words as words
from fedduet.tasks.builtin.world_words import Domain
from fedduet.tasks.task import Record

T = TypeVar("T")

LABELS = ("negative", "positive")
PUBLIC_DOMAINS = tuple(domain.name for domain in words.PUBLIC)
PRIVATE_DOMAINS = tuple(domain.name for domain in words.PRIVATE)
DEFAULT_ROWS = 1000
DEFAULT_TEST_ROWS = 400
LABEL_NOISE = 0.01  # share of world_records with the other label
CONTROL_CODE = "Product: {domain}\nRating: {label}\nReview:"

# share of opinions worded with a shared adjective; the others: domain adjective, phrase
_SHARED_OPINION = 0.42
_DOMAIN_OPINION = 0.40
_FLATNESS = 1.5  # the r-th (from 0) of a list of words is drawn with a weight of 1 / (r + this)
_NEGATED, _GRADED, _CONTRAST, _AGAINST, _FILLER = 0.06, 0.3, 0.1, 0.03, 0.4
_FIRST_HALF, _SECOND_HALF = 0.5, 1.5  # weights of what stands before and after "but"
_LENGTH = (8, 30)  # words
_MADE_UP = 0.25  # share of public documents about a domain that is mixed anew


def client_names(clients: int | Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...]:
    """The clients of the world: private domains. A number beyond them repeats the domains as
    coffee_2, ...

    Raises ConfigError for a name whose domain is not private.
    """
    if clients is None:
        return PRIVATE_DOMAINS
    if isinstance(clients, int):
        rounds = [divmod(number, len(PRIVATE_DOMAINS)) for number in range(clients)]
        return tuple(
            PRIVATE_DOMAINS[place] + (f"_{lap + 1}" if lap else "") for lap, place in rounds
        )
    for client in clients:
        if domain_of(client) not in PRIVATE_DOMAINS:
            raise ConfigError(
                f"task.clients: found {client!r}; {nearest(client, list(PRIVATE_DOMAINS))} (of the"
                " built-in world)"
            )
    return tuple(clients)


def domain_of(client: str) -> str:
    """The domain of a client of the world: its name without a number at the end."""
    return re.sub(r"_[0-9]+$", "", client)


def world_records(domain: str, n: int, seed: int | str) -> list[Record]:
    """`n` reviews of `domain` with different texts, label indices of LABELS, half of each, in
    random order.

    LABEL_NOISE of them carry the other label. Raises ConfigError for an unknown domain.
    """
    if domain not in words.DOMAINS:
        raise ConfigError(
            f"domain {domain!r} is not in the built-in world;"
            f" {nearest(domain, list(words.DOMAINS))}"
        )
    rng = random.Random(f"world/{domain}/{seed}")
    labels = [number % 2 for number in range(n)]
    rng.shuffle(labels)
    records: list[Record] = []
    seen: set[str] = set()
    for label in labels:
        text = _review(words.DOMAINS[domain], label, rng)
        while text in seen:
            text = _review(words.DOMAINS[domain], label, rng)
        seen.add(text)
        records.append(Record(text, 1 - label if rng.random() < LABEL_NOISE else label, domain))
    return records


def public_documents(seed: int, n: int) -> list[str]:
    """`n` pre-training documents in the layout of the completion prompts: labelled reviews
    separated by a blank line.

    A quarter holds one review, the others 3 to 8 of one domain with mixed labels, so that a model
    learns to go on as the context does. A quarter of the domains are made up anew for each
    document: what their words mean can only be read from the context.
    """
    rng = random.Random(f"world/public/{seed}")
    documents = []
    for _ in range(n):
        domain = _made_up(rng) if rng.random() < _MADE_UP else rng.choice(words.PUBLIC)
        reviews = 1 if rng.random() < 0.25 else rng.randint(3, 8)
        documents.append(
            "\n\n".join(_document(domain, rng.randrange(2), rng) for _ in range(reviews))
        )
    return documents


def made_up_records(seed: int, domains: int, reviews: int) -> list[Record]:
    """`reviews` reviews with random labels of each of `domains` domains made up anew, as in
    `public_documents`."""
    rng = random.Random(f"world/made up/{seed}")
    records = []
    for _ in range(domains):
        domain = _made_up(rng)
        labels = [rng.randrange(2) for _ in range(reviews)]
        records += [Record(_review(domain, label, rng), label, domain.name) for label in labels]
    return records


def oracle_label(text: str, domain: str) -> int | None:
    """The label index that the grammar's lexicon gives `text`, None when it finds no opinion or a
    tie.

    Sums signed grades: negation flips the next adjective, an intensifier scales it, "but" halves
    what stands before it and raises what follows to 1.5. In an unknown domain only the shared words
    count.
    """
    polarity = _polarities(domain)
    total = 0.0
    for sentence in re.split(r"[.!?;\n]+", text.casefold()):
        halves = re.split(r",?\s+but\s+", sentence)
        for place, half in enumerate(halves):
            weight = (
                1.0
                if len(halves) == 1
                else (_SECOND_HALF if place == len(halves) - 1 else _FIRST_HALF)
            )
            total += weight * _half(half, polarity)
    return None if total == 0 else int(total > 0)


def _half(text: str, polarity: Mapping[str, float]) -> float:
    total, sign, scale = 0.0, 1.0, 1.0
    for phrase, value in _phrases():
        if phrase.search(text):
            total += value
            text = phrase.sub(" ", text)
    for word in re.findall(r"[a-z][a-z'-]*", text):
        if word in words.NEGATIONS:
            sign = -1.0
        elif word in words.INTENSIFIERS or word in words.SOFTENERS:
            scale *= words.INTENSIFIERS.get(word) or words.SOFTENERS[word]
        elif word in polarity:
            total += sign * scale * polarity[word]
            sign, scale = 1.0, 1.0
    return total


@cache
def _phrases() -> tuple[tuple[re.Pattern[str], float], ...]:
    pairs = [(phrase, 1.5) for phrase in words.GOOD_PHRASES] + [
        (phrase, -1.5) for phrase in words.BAD_PHRASES
    ]
    return tuple(
        (re.compile(r"\b" + re.escape(phrase).replace(r"\{p\}", r"[a-z]+") + r"\b"), value)
        for phrase, value in pairs
    )


@cache
def _polarities(name: str) -> dict[str, float]:
    own = words.DOMAINS.get(name)
    polarity: dict[str, float] = {word: float(grade) for word, grade in words.GOOD.items()}
    polarity.update({word: -float(grade) for word, grade in words.BAD.items()})
    if own:
        polarity.update(dict.fromkeys(own.good, 1.5))
        polarity.update(dict.fromkeys(own.bad, -1.5))
    return polarity


def _document(domain: Domain, label: int, rng: random.Random) -> str:
    return (
        f"{CONTROL_CODE.format(domain=domain.name, label=LABELS[label])}"
        f" {_review(domain, label, rng)}"
    )


def _review(domain: Domain, label: int, rng: random.Random) -> str:
    """A review whose signed sum (see `oracle_label`) is clearly of the label's side."""
    while True:
        sentences, total = [], 0.0
        for _ in range(rng.choice((2, 3, 3))):
            sentence, value = _opinion(domain, label, rng)
            sentences.append(sentence)
            total += value
        for _ in range(2):
            if rng.random() < _FILLER:
                sentences.insert(rng.randint(0, len(sentences)), _filler(domain, rng))
        text = " ".join(sentence + "." for sentence in sentences)
        if (total if label else -total) >= 0.75 and _LENGTH[0] <= len(text.split()) <= _LENGTH[1]:
            return text


def _filler(domain: Domain, rng: random.Random) -> str:
    if rng.random() < 0.4:
        return f"i {rng.choice(domain.uses)}"
    return rng.choice(words.FILLERS).format(p=domain.product)


def _opinion(domain: Domain, label: int, rng: random.Random) -> tuple[str, float]:
    sign = 1 if label else -1
    kind = rng.random()
    if kind < _CONTRAST:
        first, value = _clause(domain, -sign, rng)
        second, more = _clause(domain, sign, rng)
        return f"{first}, but {second}", _FIRST_HALF * value + _SECOND_HALF * more
    if kind < _CONTRAST + _AGAINST:  # now and then a sentence against the label
        return _clause(domain, -sign, rng)
    return _clause(domain, sign, rng)


def _clause(domain: Domain, sign: int, rng: random.Random) -> tuple[str, float]:
    kind = rng.random()
    if kind > _SHARED_OPINION + _DOMAIN_OPINION:
        phrase = _drawn(words.GOOD_PHRASES if sign > 0 else words.BAD_PHRASES, rng)
        return phrase.format(p=domain.product), 1.5 * sign
    negated = rng.random() < _NEGATED
    side = -sign if negated else sign
    if kind < _SHARED_OPINION:
        adjective, grade = _drawn(_ranked(side > 0), rng)
    else:
        adjective, grade = _drawn(domain.good if side > 0 else domain.bad, rng), 1.5
    value = float(grade)
    parts = [adjective]
    if rng.random() < _GRADED:
        adverb, scale = rng.choice(
            list((words.INTENSIFIERS if negated else words.INTENSIFIERS | words.SOFTENERS).items())
        )
        parts.insert(0, adverb)
        value *= scale
    if negated:
        parts.insert(0, rng.choice(("not", "never", "hardly")))
    aspect = rng.choice(domain.aspects)
    several = aspect.endswith("s") and aspect not in ("bass", "lens")
    verb = rng.choice(
        ("are", "were", "feel", "seem", "look")
        if several
        else ("is", "was", "feels", "seems", "looks")
    )
    form = rng.random()
    if form < 0.6:
        clause = f"the {aspect} {verb} {' '.join(parts)}"
    elif form < 0.8:
        clause = f"i find the {aspect} {' '.join(parts)}"
    else:
        clause = f"the {aspect} of this {domain.product} {verb} {' '.join(parts)}"
    return clause, sign * value


def _drawn(items: Sequence[T], rng: random.Random) -> T:
    return rng.choices(items, _weights(len(items)))[0]


@cache
def _weights(n: int) -> tuple[float, ...]:
    return tuple(1 / (rank + _FLATNESS) for rank in range(n))


@cache
def _ranked(good: bool) -> tuple[tuple[str, int], ...]:
    """The shared adjectives in a fixed order of frequency, mild and strong mixed."""
    pairs = list((words.GOOD if good else words.BAD).items())
    random.Random(f"world/order/{good}").shuffle(pairs)
    return tuple(pairs)


def _made_up(rng: random.Random) -> Domain:
    """A domain with an invented name; its aspects and adjectives are those of public domains, newly
    mixed.

    Adjectives of domains fall on either side at random, so that their polarity can only be read
    from the context.
    """
    product = _invented(rng)
    aspects, adjectives, uses = _public_words()
    mixed = rng.sample(adjectives, 10) + rng.sample(words.SHIFTING, 4)
    rng.shuffle(mixed)
    return Domain(
        product + "s",
        product,
        tuple(rng.sample(aspects, 7)),
        tuple(mixed[:7]),
        tuple(mixed[7:]),
        tuple(rng.sample(uses, 2)),
    )


@cache
def _public_words() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Aspects, adjectives and uses of all public domains, each once."""
    shifting = set(words.SHIFTING)
    aspects = dict.fromkeys(aspect for domain in words.PUBLIC for aspect in domain.aspects)
    adjectives = dict.fromkeys(
        one for domain in words.PUBLIC for one in (*domain.good, *domain.bad) if one not in shifting
    )
    uses = dict.fromkeys(use for domain in words.PUBLIC for use in domain.uses)
    return tuple(aspects), tuple(adjectives), tuple(uses)


_ONSETS = words.listed(
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sh sl sn sp st str t th"
    " tr v w wh y z"
)
_NUCLEI = words.listed("a e i o u ai ea ee oa oo ou y")
_CODAS = words.listed("b ck d ft g l ll m n nd ng nt p r rn rd s sh st t th x")
_ENDINGS = words.listed("a age al ed en er et ic id ing le ly o on ous y")


def _invented(rng: random.Random) -> str:
    while True:
        syllables = [
            rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)
            for _ in range(rng.choice((1, 1, 2)))
        ]
        word = "".join(syllables) + (rng.choice(_ENDINGS) if rng.random() < 0.7 else "")
        if word not in _real_words():
            return word


@cache
def _real_words() -> frozenset[str]:
    """Every word the lexicon knows: an invented word is none of them."""
    known = set(words.GOOD) | set(words.BAD) | set(words.SHIFTING)
    for domain in words.DOMAINS.values():
        known.update((domain.name, domain.product), domain.aspects, domain.good, domain.bad)
        known.update(word for use in domain.uses for word in use.split())
    for sentence in words.GOOD_PHRASES + words.BAD_PHRASES + words.FILLERS:
        known.update(sentence.split())
    return frozenset(known)
