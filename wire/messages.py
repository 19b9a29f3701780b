"""The messages that cross the wire, as frozen dataclasses: what a server may ask of a vault and
what a vault may answer.

Nothing else crosses. Labels travel as indices into the task's public label list. Every request
carries a `message_id`; a vault that is asked twice with the same id answers with what it answered
the first time and pays nothing again.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

# of runs and models: sites name folders after them
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_ID = 512  # characters [O]; sites write message ids to their ledger

FEEDBACK = ("none", "votes", "gaussian")  # how scores are protected; clients/vault/feedback.py


def is_name(text: str) -> bool:
    """Whether `text` may name a run or a model: 1 to 64 of A-Z, a-z, 0-9, `.`, `-` and `_`, the
    first a letter or digit."""
    return _NAME.fullmatch(text) is not None


def _check_names(message: Introduce | Synthesize | Score | Learn | Evaluate | Answer) -> None:
    """Raises ValueError for a message id or a name that could mean another place than the one it is
    for."""
    if not (0 < len(message.message_id) <= _LONGEST_ID and message.message_id.isprintable()):
        raise ValueError(
            f"message_id: found {message.message_id[:40]!r}; allowed: 1 to {_LONGEST_ID} printable"
            " characters"
        )
    for key in ("run", "model", "start"):
        name = getattr(message, key, None)
        if name is not None and not is_name(name):
            raise ValueError(
                f"{key}: found {name[:80]!r}; allowed: 1 to 64 letters, digits, dots, dashes and"
                " underscores, not a dot first"
            )
    scope = getattr(message, "scope", "own")
    if scope not in ("own", "pooled"):
        raise ValueError(f"scope: found {scope!r}; allowed: own, pooled")


@dataclass(frozen=True)
class Receipt:
    """What a release cost: the mechanism that ran and the guarantee the site's ledger composed for
    it.

    `epsilon` and `delta` are of this release alone, `epsilon_total` of everything the site's ledger
    holds, this release and what its plan paid for ahead included, at the same delta, against a
    server that adapts. `math.inf` stands for "no formal guarantee".
    """

    mechanism: str  # e.g. "dp-sgd", "gaussian-votes", "none"
    epsilon: float
    delta: float
    epsilon_total: float
    released: int  # how many texts, scores or arrays left with it
    noise_multiplier: float = 0.0
    sample_rate: float = 0.0
    steps: int = 0
    clip: float = 0.0
    # n, how many units there are, public by our choice: the sample rate states it anyway
    records: int = 0
    accountant: str = "pld, gdp filter"
    # what the guarantee is for: one "record", or one "user" with all their records
    unit: str = "record"
    # `epsilon_total` had every plan been fixed beforehand; smaller, and no guarantee
    epsilon_fixed: float = 0.0
    # the check of the ledger's line: whoever keeps receipts sees a ledger that lost lines
    ledger_head: str = ""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with label indices and, optionally, a weight and soft label for each; all lists are of
    one length."""

    texts: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # empty: all 1
    # empty: none; else one row of class probabilities a text
    soft_labels: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = {
            "labels": len(self.labels),
            "weights": len(self.weights),
            "soft_labels": len(self.soft_labels),
        }
        for name, size in sizes.items():
            if size != len(self.texts) and (size or name == "labels"):
                raise ValueError(f"LabelledTexts: {len(self.texts)} texts but {size} {name}")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Introduce:
    """Ask who is there; nothing is read or released."""

    message_id: str
    run: str

    def __post_init__(self) -> None:
        _check_names(self)


@dataclass(frozen=True)
class Introduced:
    """A site's public name and the wording of its domain."""

    client: str
    domain: str


@dataclass(frozen=True)
class Synthesize:
    """Ask for DP-synthetic demonstrations: the same public number for every label."""

    message_id: str
    run: str
    round: int  # 0-based
    rounds: int  # the budget is planned over all of them together
    per_label: int
    # for the whole run; math.inf asks for an unprotected release, which only a site's policy can
    # grant
    epsilon: float
    delta: float | None = None  # None: the site's own
    # of the generator's new adapter and of sampling, both public; coins and noise never come from
    # it
    seed: int = 0
    # further texts of each label where they cost no privacy, as samples of a generator do not
    extra: int = 0

    def __post_init__(self) -> None:
        _check_names(self)
        if self.extra < 0:
            raise ValueError(f"extra: found {self.extra}; allowed: 0 or more")


@dataclass(frozen=True)
class Synthesized:
    """The only texts that leave a site: post-processing of a DP model."""

    data: LabelledTexts
    receipt: Receipt
    # rule -> how many generated texts it dropped
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """Ask how well each text fits its label, in the eyes of a site's records."""

    message_id: str
    run: str
    model: str  # feedback "none": the site's kept SLM that scores
    data: LabelledTexts
    # for the whole run, of "votes" and "gaussian"; "none" has no guarantee, whatever stands here
    epsilon: float
    round: int = 0  # 0-based
    rounds: int = 1  # of scoring: the budget of "votes" is planned over all of them together
    feedback: str = "none"  # FEEDBACK says which there are
    delta: float | None = None  # None: the site's own
    # a baseline that would have asked for more: only a simulation answers, on a ledger of its own
    counterfactual: bool = False

    def __post_init__(self) -> None:
        _check_names(self)
        if self.feedback not in FEEDBACK:
            raise ValueError(f"feedback: found {self.feedback!r}; allowed: {', '.join(FEEDBACK)}")


@dataclass(frozen=True)
class Scored:
    """One score in [0, 1] for each text, in their order; "votes" say 0.5 for no opinion, the others
    are a probability of the label."""

    scores: list[float]
    receipt: Receipt


@dataclass(frozen=True)
class Learn:
    """Ask a site to train its SLM; the model is kept at the site under `model`."""

    message_id: str
    run: str
    model: str  # the name under which the site keeps the result, e.g. "fdkt"
    # generated data, empty for local training
    data: LabelledTexts = field(default_factory=LabelledTexts)
    private: bool = True  # train on the site's own records as well
    weight: float = 1.0  # lambda of L = CE(D_private) + lambda * CE(D_generated)
    order: str = "together"  # or "generated_first"
    start: str | None = None  # continue from this model of the site; None: the SLM's public start
    # of the steps that the site plans for such a training, after `begun` of them were taken in
    # earlier rounds: parts that add up to 1 are one training, to the step
    part: float = 1.0
    begun: float = 0.0
    share_weights: bool = False  # return the trainable weights (FedAvg); the policy must agree
    # "pooled": all sites' records together, an upper bound that only a simulation can measure
    scope: str = "own"
    seed: int = 0
    # the data has its domain in front of each text, so that the site's own texts get theirs, also
    # when the model is asked later
    domain_first: bool = False

    def __post_init__(self) -> None:
        _check_names(self)
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight: found {self.weight}; allowed: a finite number of 0 or more")
        if self.order not in ("together", "generated_first"):
            raise ValueError(f"order: found {self.order!r}; allowed: together, generated_first")
        if not (0 < self.part <= 1 and 0 <= self.begun < 1 and self.part + self.begun < 1 + 1e-9):
            raise ValueError(
                f"part: found {self.part} after {self.begun}; allowed: above 0, together at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a site says of a training: public numbers, no losses of private text. Passes: how often
    a row was seen on the mean, private ones by the public number that steps are planned for."""

    model: str
    private_units: int  # n: records, or users where these are the unit
    generated_rows: int
    steps: int  # from public numbers alone
    private_passes: float
    generated_passes: float
    checkpoint: str  # "last", or "accuracy": the best on validation rows
    seconds: float  # of a simulation; 0 at a real site, where time would tell of private texts
    receipt: Receipt | None = None  # present when weights left


@dataclass(frozen=True)
class Evaluate:
    """Ask for the test accuracy of one kept model: exactly, or (`epsilon`) with noise that is
    charged, planned over `rounds` such counts of the run."""

    message_id: str
    run: str
    model: str
    scope: str = "own"
    epsilon: float | None = None  # for the whole run; None: the exact count
    delta: float | None = None  # None: the site's own
    round: int = 0  # 0-based
    rounds: int = 1

    def __post_init__(self) -> None:
        _check_names(self)


@dataclass(frozen=True)
class Detail:
    """Counts behind a test accuracy, which only a simulated site gives.

    `confusion`, shape (K, K): rows of each label by what they were taken for. `confidence`: of each
    of the equally wide bins of the likeliest class's probability, its rows, those that were right,
    and the sum of the probabilities. `auroc` of two labels, or None.
    """

    confusion: list[list[int]]
    confidence: list[list[float]]
    auroc: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """Counts on the test split; a site's policy may refuse them.

    Where they are noisy, `total` counts units (users count once, by the share of their rows that
    are right), and `correct` is a whole number within 0 and `total`.
    """

    model: str
    correct: dict[str, int]  # test set name -> right answers; a site has one, named as the client
    total: dict[str, int]
    receipt: Receipt | None = None  # None in a simulation, whose counts nobody gets
    detail: Detail | None = None


@dataclass(frozen=True)
class Answer:
    """Ask a site to answer its test questions by one method, and to say how many were right and
    what that took (G-Boost).

    `method`: "search" or a baseline's name (clients/vault/answering/baselines.py). `search`:
    settings of clients/vault/answering/search.py `SearchConfig`. `samples`: solutions that a
    baseline may draw. No question, no answer and no step leaves with the reply.
    """

    message_id: str
    run: str
    model: str  # the private SLM, as `Learn` named it
    method: str
    search: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    samples: int = 1
    questions: int | None = None  # None: all of the site's test questions
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names(self)
        if not 1 <= self.samples <= 4096 or not (self.questions is None or self.questions >= 1):
            raise ValueError(
                f"samples: found {self.samples} (of questions {self.questions}); allowed: 1 to"
                " 4096, and 1 or more, or none"
            )


@dataclass(frozen=True)
class Answered:
    """Counts over the questions: right answers, tokens that LLM and SLMs took part in drawing,
    states rewarded, and how it went."""

    method: str
    right: int
    total: int
    llm_tokens: int
    slm_tokens: int
    reward_calls: int
    seconds: float  # of the whole batch, in a simulation; 0 at a real site
    unanswered: int = 0  # no number or choice in what was written
    degraded: int = 0  # steps that the private SLM wrote because the LLM did not
    bad_rewards: int = 0  # rewards that were no probabilities, taken as 0
    requests: int = 0  # to a remote LLM
    private_steps: int = 0  # of the steps of the answers, who wrote them
    collaborative_steps: int = 0
    receipt: Receipt | None = None  # None in a simulation, whose counts nobody gets


@dataclass(frozen=True)
class Refused:
    """A vault's no, with the reason in a sentence that a person can act on."""

    reason: str
    # "policy", "budget", "ledger", "data", "request", "waiting" (for a person's approval) or
    # "error"
    kind: str = "policy"


Asked = Introduce | Synthesize | Score | Learn | Evaluate | Answer
Replied = Introduced | Synthesized | Scored | Learned | Evaluated | Answered | Refused
