"""Texts by private prediction: a public causal LM reads private contexts side by side, and each
token is drawn from scores on which every context has a bounded influence.

A batch is one public context and private ones, one for each unit. Token by token there are scores
phi_pub [V] and phi_i [V] (log-probabilities) for the text so far, and a `Rule` that draws the next
token from them. All that it shows is the token. Formulas are those of Vinod et al. 2025
(InvisibleInk, arXiv 2507.02974) for `ClippedDifferences` and of Tang et al. 2024 (arXiv 2309.11765)
for `NoisyArgmax`; the code is ours, and so is the proof below.

**Neighbours.** Data sets differ in one unit (a record, or a user) that is replaced by nothing. A
unit is alone in one context of one batch (`fedduet.lm.dp.contexts`), and which batch depends on
that unit and a secret alone. So of all that the LM reads one context becomes a null context, or a
null context one. A null context moves nothing, by definition.

**One token.** Let d_i = clip(phi_i - phi_pub, -C, C), entry by entry, d_i = 0 of a null context,
and phi = phi_pub + (1 / B) sum_i d_i. B is a public number, the contexts that a batch is expected
to have; how many there are stays inside. Given the text so far phi_pub is the same for neighbours,
and phi differs by a vector of entries within [-C / B, C / B]. The token v of a public set S is
drawn with probability proportional to exp(phi(v) / tau). The log-ratio of its probabilities is the
difference of phi at v, over tau, less a number that does not depend on v: its range over v is at
most eta = 2 C / (B tau). A mechanism of eta-bounded range is (eta^2 / 8)-zCDP (Cesar and Rogers
2021, arXiv 2004.07223: Hoeffding's lemma bounds the moments of a log-ratio of that range). So one
token costs

    rho = C^2 / (2 B^2 tau^2).

The constant is that of a context that becomes null. If it could become another one, as where two
units share a context or one moves up into another's place, entries would move by 2 C / B, and rho
would be four times as large.

**One text.** zCDP adds up over adaptive steps. How many tokens a text has is itself shown, so a
text of at most T tokens costs T rho, also where it ended earlier. k texts of one batch cost
k T rho. Texts of other batches cost this unit nothing: given the texts so far they do not depend on
it.

**The set S** is chosen by phi_pub alone: the tokens whose public score is at least the k-th largest
less 2 C / B (top-k+).

**Arithmetic.** The proof is about real numbers. Products may round a row differently in another
shape, so shapes are public as far as they can be: null contexts, computed as copies of the public
one, fill batches up, every prompt is padded to a public width that one row fills, and rows leave
when a text, which is released, has ended. Tokens are drawn by inversion in float64. Like other
floating-point mechanisms this one is not proven against attacks on the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from fedduet.lm.decoding.draw import draw
from fedduet.lm.models.batch import pad

if TYPE_CHECKING:
    from fedduet.lm.decoding.stepper import Stepper
    from fedduet.lm.randomness import NoiseSource

NO_NUMBERS = "the model's logits are not numbers; try precision fp32"


class Rule(Protocol):
    """How the next token is drawn from the contexts' scores, and what that costs."""

    contexts: int  # B, what sums are divided by

    @property
    def rho(self) -> float:
        """zCDP of one token, for one context that becomes null or a null one that becomes any."""
        ...

    def draw(
        self,
        public: torch.Tensor,
        private: torch.Tensor,
        present: torch.Tensor,
        randomness: NoiseSource,
    ) -> torch.Tensor:
        """Token ids int64 [n] for n texts, of log-probabilities `public` [n, V] and `private`
        [n, m, V]; `present` [n, m] bool: False for null contexts."""
        ...


@dataclass(frozen=True)
class ClippedDifferences:
    """InvisibleInk's rule: softmax((phi_pub + sum of clipped differences / B) / tau) on the public
    top-k+. Raises ValueError for values out of range."""

    contexts: int
    clip: float  # C, in log-probability
    temperature: float = 1.0  # tau
    top_k: int = 500  # wide: the LM's first hundred leave out the words of a domain [O]

    def __post_init__(self) -> None:
        _check_rule(self.contexts, self.top_k)
        for name in ("clip", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}: found {getattr(self, name)!r}; allowed: a finite number above 0"
                )

    @staticmethod
    def of_rho(rho: float, contexts: int, temperature: float, top_k: int) -> ClippedDifferences:
        """The rule whose tokens cost `rho` each: C = B tau sqrt(2 rho). Infinite: nothing is
        clipped."""
        clip = contexts * temperature * math.sqrt(2 * rho)
        return ClippedDifferences(contexts, min(clip, 1e6), temperature, top_k)

    @property
    def rho(self) -> float:
        return self.clip**2 / (2 * self.contexts**2 * self.temperature**2)

    def scores(
        self, public: torch.Tensor, private: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        """phi [n, V], -inf outside S."""
        difference = (private - public[:, None]).clamp_(-self.clip, self.clip)
        difference.mul_(present[:, :, None])
        combined = public + difference.sum(dim=1) / self.contexts
        return combined.masked_fill(~self.candidates(public), -torch.inf)

    def candidates(self, public: torch.Tensor) -> torch.Tensor:
        """S as bool [n, V], by the public scores alone."""
        least = public.topk(min(self.top_k, public.shape[1]), dim=-1).values[:, -1:]
        return public >= least - 2 * self.clip / self.contexts

    def draw(
        self,
        public: torch.Tensor,
        private: torch.Tensor,
        present: torch.Tensor,
        randomness: NoiseSource,
    ) -> torch.Tensor:
        phi = self.scores(public, private, present).double().cpu()
        uniform = torch.from_numpy(randomness.uniform(len(phi)))
        ones = torch.ones(len(phi), dtype=torch.float64)
        return draw(phi, uniform, self.temperature * ones, 0, ones)


@dataclass(frozen=True)
class NoisyArgmax:
    """Tang et al.'s rule: the contexts' next-token distributions, each restricted to the public
    top-k and normalised, are added and divided by B; N(0, (sigma / B)^2) is added to every entry,
    and the largest wins.

    A distribution has L2 norm at most 1 and a null context contributes 0, so the sum has
    sensitivity 1 and one token is (1 / (2 sigma^2))-zCDP (Bun and Steinke 2016, Proposition 6).
    Their drawing of records anew for each token, which buys amplification, is left out: every
    context takes part in every token [O].
    """

    contexts: int
    sigma: float  # the noise's deviation over the sensitivity
    top_k: int = 100

    def __post_init__(self) -> None:
        _check_rule(self.contexts, self.top_k)
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma: found {self.sigma!r}; allowed: a finite number above 0")

    @staticmethod
    def of_rho(rho: float, contexts: int, top_k: int) -> NoisyArgmax:
        """The rule whose tokens cost `rho` each: sigma = 1 / sqrt(2 rho)."""
        return NoisyArgmax(contexts, max(1 / math.sqrt(2 * rho), 1e-6), top_k)

    @property
    def rho(self) -> float:
        return 1 / (2 * self.sigma**2)

    def means(
        self, public: torch.Tensor, private: torch.Tensor, present: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean distributions [n, k] without noise, their token ids [n, k])."""
        tokens = public.topk(min(self.top_k, public.shape[1]), dim=-1).indices
        some = private.gather(2, tokens[:, None].expand(-1, private.shape[1], -1))
        votes = torch.softmax(some, dim=-1) * present[:, :, None]
        return votes.sum(dim=1) / self.contexts, tokens

    def draw(
        self,
        public: torch.Tensor,
        private: torch.Tensor,
        present: torch.Tensor,
        randomness: NoiseSource,
    ) -> torch.Tensor:
        means, tokens = self.means(public, private, present)
        means = means.float().cpu().contiguous()
        randomness.add_noise(means, self.sigma / self.contexts)
        return tokens.cpu().gather(1, means.argmax(dim=-1, keepdim=True))[:, 0]


@dataclass(frozen=True)
class Batch:
    """What `texts` texts are written from: token ids of the public prompt and of private ones, None
    for a null context."""

    public: tuple[int, ...]
    contexts: tuple[tuple[int, ...] | None, ...]
    texts: int = 1


@dataclass(frozen=True)
class Written:
    """One text: its tokens without the end token, and whether it ended by itself."""

    batch: int
    tokens: tuple[int, ...]
    finished: bool


def cost(rule: Rule, tokens: int, texts: int) -> float:
    """rho of all texts together for one unit: `texts` of its batch, of at most `tokens` tokens
    each, whatever they came to."""
    return rule.rho * tokens * texts


@torch.inference_mode()
def write_texts(
    run: Stepper,
    batches: Sequence[Batch],
    rule: Rule,
    tokens: int,
    width: int,
    ends: AbstractSet[int],
    randomness: NoiseSource,
    rows: int = 64,
    done: Callable[[int], None] | None = None,
) -> list[Written]:
    """All texts of all `batches`, in their order; each has at most `tokens` tokens and ends before
    the first of `ends`.

    `width`: a public number that no prompt is longer than (tokens). `rows`: contexts that the LM
    reads side by side, at least one text's; prompts of a batch are read once for all its texts that
    fit there. `done(number)` is called with the texts that are ready. The whole costs one unit
    `cost(rule, tokens, texts of its batch)`. Raises ValueError for a prompt that is empty or longer
    than `width`, RuntimeError when the model's logits are not numbers.
    """
    for batch in batches:
        for prompt in (batch.public, *batch.contexts):
            if prompt is not None and not 0 < len(prompt) <= width:
                raise ValueError(f"found a prompt of {len(prompt)} tokens; allowed: 1 to {width}")
    jobs = [number for number, batch in enumerate(batches) for _ in range(batch.texts)]
    group = 1 + max((len(batch.contexts) for batch in batches), default=0)
    size = max(1, (rows - 1) // group)
    written: list[Written] = []
    for start in range(0, len(jobs), size):
        written += _side_by_side(
            run, batches, jobs[start : start + size], group, rule, tokens, width, ends, randomness
        )
        if done:
            done(len(written))
    return written


def _side_by_side(
    run: Stepper,
    batches: Sequence[Batch],
    jobs: Sequence[int],
    group: int,
    rule: Rule,
    tokens: int,
    width: int,
    ends: AbstractSet[int],
    randomness: NoiseSource,
) -> list[Written]:
    """One text for each of `jobs`, numbers of batches; a batch is filled up to `group` rows."""
    read = list(dict.fromkeys(jobs))
    contexts = {
        number: [*batches[number].contexts, *[None] * group][: group - 1] for number in read
    }
    prompts: list[tuple[int, ...]] = [_filler(batches[read[0]].public, width)]
    for number in read:
        public = batches[number].public
        prompts += [public, *(prompt or public for prompt in contexts[number])]
    ids, mask = pad(prompts, 0, left=True)
    logits = run.prefill(ids, mask, tokens)
    device = logits.device
    rows = [0, *(1 + group * read.index(job) + place for job in jobs for place in range(group))]
    if rows != list(range(len(prompts))):
        run.keep(torch.tensor(rows, device=device))
        logits = logits[torch.tensor(rows, device=device)]
    present = torch.tensor(
        [[prompt is not None for prompt in contexts[job]] for job in jobs],
        dtype=torch.bool,
        device=device,
    )
    texts: list[list[int]] = [[] for _ in jobs]
    finished = [False] * len(jobs)
    live = list(range(len(jobs)))
    for step in range(tokens):
        scores = torch.log_softmax(logits[1:].float(), dim=-1).unflatten(0, (len(live), group))
        if scores.isnan().any():
            raise RuntimeError(NO_NUMBERS)
        drawn = rule.draw(scores[:, 0], scores[:, 1:], present[live], randomness).tolist()
        stay = []
        for place, (text, token) in enumerate(zip(live, drawn, strict=True)):
            if token in ends:
                finished[text] = True
            else:
                texts[text].append(token)
                stay.append(place)
        if not stay or step + 1 == tokens:
            break
        if len(stay) < len(live):
            kept = [0, *(1 + group * place + number for place in stay for number in range(group))]
            run.keep(torch.tensor(kept, device=device))
            live = [live[place] for place in stay]
        fed = [drawn[stay[0]], *(drawn[place] for place in stay for _ in range(group))]
        logits = run.step(torch.tensor(fed, device=device))
    return [
        Written(job, tuple(text), ended)
        for job, text, ended in zip(jobs, texts, finished, strict=True)
    ]


def _filler(public: tuple[int, ...], width: int) -> tuple[int, ...]:
    """A row as wide as any may be, so that no private prompt decides where a batch begins."""
    return (public * -(-width // len(public)))[:width]


def _check_rule(contexts: int, top_k: int) -> None:
    for name, value in (("contexts", contexts), ("top_k", top_k)):
        if value < 1:
            raise ValueError(f"{name}: found {value!r}; allowed: at least 1")
