"""Fused decoding with an LLM that is far away: SLMs draft several tokens, one request checks them
all, and the fused law is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

import torch
from fedduet.lm.decoding.decode import NOT_NUMBERS, Answer, Ask
from fedduet.lm.decoding.draw import draw
from fedduet.lm.decoding.stepper import Stepper
from fedduet.lm.models.batch import by_length, pad

LENGTH = 8  # tokens in a draft [O]
Rest = Literal["none", "base"]  # what is made of the tokens that a far LLM does not list


@dataclass(frozen=True)
class Following:
    """What an LLM says may stand at n successive places of a row: its k likeliest tokens there,
    int64 [n, k], and their log-probabilities, float32 [n, k]; a token that fills up a shorter list
    has -inf."""

    tokens: torch.Tensor
    logprobs: torch.Tensor


ScoreDrafts = Callable[[Sequence[tuple[int, ...]], Sequence[int]], Sequence[Following]]
"""`score_drafts(rows, heads)`: for each row of token ids what may stand at the places heads[i],
heads[i] + 1, ..., len(rows[i]), so that the last one is the place behind the row. May raise
anything (a remote LLM)."""


@dataclass(frozen=True)
class DraftedAnswer:
    """An answer and what it took: `looks` (requests to the LLM that the row took part in), tokens
    `drafted` and, of them, `kept`."""

    answer: Answer
    looks: int = 0
    drafted: int = 0
    kept: int = 0


@dataclass
class _Row:
    """A row on its way."""

    number: int
    ask: Ask
    random: torch.Generator
    new: list[int] = field(default_factory=list)
    looks: int = 0
    drafted: int = 0
    kept: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.ask.prompt, *self.new)


@dataclass(frozen=True)
class _Draft:
    """Drafts of B rows, at most M tokens each, and for the M + 1 places what the SLMs say there.

    `guess` [B, M, V]: the law each token was drawn from; `base` [B, M + 1, V]: z_base; `shift`:
    alpha * (z_tuned - z_base).
    """

    tokens: list[list[int]]
    guess: torch.Tensor
    base: torch.Tensor
    shift: torch.Tensor


@torch.inference_mode()
def decode_drafts(
    tuned: Stepper,
    base: Stepper,
    score_drafts: ScoreDrafts,
    asks: Sequence[Ask],
    ends: AbstractSet[int],
    alpha: float = 1.0,
    length: int = LENGTH,
    batch_size: int | None = 16,
    vocabulary: int | None = None,
    rest: Rest = "base",
    done: Callable[[int, DraftedAnswer], None] | None = None,
) -> list[DraftedAnswer]:
    """One answer for each ask, in their order, drawn from p = softmax((z_LLM + alpha (z_tuned -
    z_base)) / temperature), then top-p.

    Each round the SLMs draft up to `length` tokens from q, which is p with z_base in the place of
    z_LLM (alpha 1: the tuned SLM itself); one `score_drafts` shows the LLM's law at all drafted
    places and behind them. Speculative sampling (Leviathan et al. 2023, Alg. 1) keeps the longest
    prefix: a token d stays with probability min(1, p(d) / q(d)), the first that does not is drawn
    anew from (p - q)+ normalised, and when all stay the last place gives one more. Hence every
    answer has exactly the law of direct fused sampling, and at temperature 0 is the greedy fused
    answer.

    The one approximation is the LLM's, where `score_drafts` gives only its k likeliest tokens.
    `rest` "none": p is restricted to these k tokens and renormalised; everything else has
    probability 0, whatever the SLMs think of it. "base" [O]: the probability r that the LLM leaves
    to everything else is spread over it as the base SLM would: p_LLM(x) = r p_base(x) /
    p_base(everything else). With k the whole vocabulary both are exact.

    `vocabulary` cuts the SLMs' logits to that many tokens; the LLM's must lie below.
    `done(number, answer)` is called as each row ends, also when `score_drafts` raises later. A
    row's answer depends on its own seed and `length` only. `Ask.top_k` must be 0 (ValueError).
    """
    for number, ask in enumerate(asks):
        if not ask.prompt:
            raise ValueError(
                f"row {number}: found an empty prompt; a causal LM needs at least one token to"
                " continue from"
            )
        if ask.top_k:
            raise ValueError(
                f"row {number}: found top_k {ask.top_k}; drafts take temperature and top_p only"
            )
    if length < 1:
        raise ValueError(f"found drafts of {length} tokens; at least 1 is needed")
    answers: list[DraftedAnswer | None] = [None] * len(asks)

    def finish(row: _Row, how: str, error: str = "") -> None:
        answers[row.number] = DraftedAnswer(
            Answer(tuple(row.new), how, error), row.looks, row.drafted, row.kept
        )
        if done:
            done(row.number, answers[row.number])

    rows = [
        _Row(number, ask, torch.Generator().manual_seed(ask.seed & (2**63 - 1)))
        for number, ask in enumerate(asks)
    ]
    for row in rows:
        if row.ask.max_new_tokens < 1:
            finish(row, "length")
    waiting = [row for row in rows if row.ask.max_new_tokens >= 1]
    for batch in by_length([len(row.ask.prompt) for row in waiting], batch_size):
        live = [waiting[i] for i in batch]
        while live:
            uniform = torch.stack(
                [torch.rand(2 * length + 1, generator=row.random) for row in live]
            )
            draft = _draft(tuned, base, live, uniform[:, :length], ends, alpha, length, vocabulary)
            heads = [len(row.tokens) for row in live]
            seen = score_drafts(
                [(*row.tokens, *new) for row, new in zip(live, draft.tokens, strict=True)], heads
            )
            _check(seen, draft)
            kept, broken = _verify(seen, draft, live, uniform[:, length:], rest == "base")
            left = []
            for place, row in enumerate(live):
                row.looks, row.drafted = row.looks + 1, row.drafted + len(draft.tokens[place])
                if broken[place]:
                    finish(row, "error", NOT_NUMBERS)
                elif how := _append(row, kept[place], draft.tokens[place], ends):
                    finish(row, how)
                else:
                    left.append(row)
            live = left
    return answers  # type: ignore[return-value]


def _draft(
    tuned: Stepper,
    base: Stepper,
    live: Sequence[_Row],
    uniform: torch.Tensor,
    ends: AbstractSet[int],
    alpha: float,
    length: int,
    vocabulary: int | None,
) -> _Draft:
    """Draws a draft for every row: as long as fits, one token being left for the LLM's last place,
    or up to an end token."""
    most = [min(length, row.ask.max_new_tokens - len(row.new) - 1) for row in live]
    contexts = {tokens: i for i, tokens in enumerate(dict.fromkeys(row.tokens for row in live))}
    ids, mask = pad(list(contexts), 0, left=True)
    steps = max(most)
    first = [run.prefill(ids, mask, steps) for run in (tuned, base)]
    device = first[0].device
    if len(contexts) < len(live):
        shared = torch.tensor([contexts[row.tokens] for row in live])
        for i, run in enumerate((tuned, base)):
            here = shared.to(first[i].device)
            run.keep(here)
            first[i] = first[i][here]
    temperature, top_p = _settings(live, device)
    drafts: list[list[int]] = [[] for _ in live]
    closed = [limit < 1 for limit in most]
    guesses, bases, shifts = [], [], []
    z_tuned, z_base = (logits[:, :vocabulary].to(device) for logits in first)
    for step in range(steps + 1):
        bases.append(z_base)
        shifts.append(alpha * (z_tuned - z_base))
        if all(closed):
            break
        guesses.append(_law(z_base + shifts[-1], temperature, top_p))
        drawn = _drawn(guesses[-1], uniform[:, step].to(device))
        for place, token in enumerate(drawn.tolist()):
            if not closed[place]:
                drafts[place].append(token)
                closed[place] = token in ends or len(drafts[place]) == most[place]
        after = [
            run.step(drawn.to(part.device)) for run, part in zip((tuned, base), first, strict=True)
        ]
        z_tuned, z_base = (logits[:, :vocabulary].to(device) for logits in after)
    empty = shifts[0].new_zeros(len(live), 0, shifts[0].shape[1])
    guess = torch.stack(guesses, dim=1) if guesses else empty
    return _Draft(drafts, guess, torch.stack(bases, dim=1), torch.stack(shifts, dim=1))


def _verify(
    seen: Sequence[Following],
    draft: _Draft,
    live: Sequence[_Row],
    uniform: torch.Tensor,
    spread: bool,
) -> tuple[list[tuple[int, int]], list[bool]]:
    """For each row how many drafted tokens stay and the token behind them; and whether a law was
    not made of numbers.

    `uniform` [B, M' + 1]: one number for each test, the last for the token behind.
    """
    device, (rows, places, width) = draft.shift.device, draft.shift.shape
    fused = torch.full((rows, places, width), -math.inf, device=device)
    for i, following in enumerate(seen):
        tokens, logprobs = following.tokens.to(device), following.logprobs.to(device)
        n = len(tokens)
        if spread:
            fused[i, :n] = (
                _everything_else(tokens, logprobs, draft.base[i, :n]) + draft.shift[i, :n]
            )
        here = logprobs + draft.shift[i, :n].gather(1, tokens)
        # a token that fills up a list leaves the real one of its number
        fused[i, :n].scatter_reduce_(1, tokens, here, "amax")
        fused[i, n:] = 0.0  # never looked at
    temperature, top_p = _settings(live, device)
    flat = (temperature.repeat_interleave(places), top_p.repeat_interleave(places))
    distribution = _law(fused.view(rows * places, width), *flat).view(rows, places, width)
    count = torch.tensor([len(new) for new in draft.tokens], device=device)
    drafted = torch.zeros(rows, places - 1, dtype=torch.int64, device=device)
    for i, new in enumerate(draft.tokens):
        drafted[i, : len(new)] = torch.tensor(new, dtype=torch.int64)
    p, q = (
        part.gather(2, drafted[:, :, None])[:, :, 0] for part in (distribution[:, :-1], draft.guess)
    )
    passed = (uniform[:, : places - 1].to(device) * q < p) & (
        torch.arange(places - 1, device=device) < count[:, None]
    )
    last = passed.long().cumprod(dim=1).sum(dim=1)
    row = torch.arange(rows, device=device)
    behind = distribution[row, last]
    if places > 1:
        rest = (behind - draft.guess[row, last.clamp_max(places - 2)]).clamp_min(0.0)
        # all of the rest is lost to rounding only where p equals q
        refused = (last < count) & (rest.sum(dim=1) > 0)
        behind = torch.where(refused[:, None], rest, behind)
    tokens = _drawn(behind, uniform[:, -1].to(device))
    broken = [
        bool(distribution[i, : len(new) + 1].isnan().any()) for i, new in enumerate(draft.tokens)
    ]
    return list(zip(last.tolist(), tokens.tolist(), strict=True)), broken


def _everything_else(
    tokens: torch.Tensor, logprobs: torch.Tensor, z_base: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities [n, V] of the LLM outside `tokens` [n, k], spread as `z_base` [n, V] has
    it; -inf on `tokens`."""
    outside = z_base.log_softmax(dim=-1).scatter(1, tokens, -math.inf)
    left = (1 - logprobs.exp().sum(dim=-1, keepdim=True)).clamp_min(0.0)
    return outside.log_softmax(dim=-1).nan_to_num(-math.inf, neginf=-math.inf) + left.log()


def _append(row: _Row, kept: tuple[int, int], draft: Sequence[int], ends: AbstractSet[int]) -> str:
    """Writes the tokens that stay and the one behind them; why the row ends there, or "" when it
    goes on."""
    count, behind = kept
    for place, token in enumerate([*draft[:count], behind]):
        row.kept += place < count
        if token in ends:
            return "end"
        row.new.append(token)
        if row.ask.stopped and row.ask.stopped(row.new):
            return "stopped"
        if len(row.new) == row.ask.max_new_tokens:
            return "length"
    return ""


def _settings(live: Sequence[_Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Temperature [B] and top-p [B]."""
    return torch.tensor([row.ask.temperature for row in live], device=device), torch.tensor(
        [row.ask.top_p for row in live], device=device
    )


def _law(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Probabilities [B, V] that `fedduet.lm.decoding.draw.draw` draws from; all on the likeliest
    token at temperature 0."""
    greedy = temperature == 0
    distribution = torch.softmax(logits / torch.where(greedy, 1.0, temperature)[:, None], dim=-1)
    if bool((top_p < 1).any()):
        descending, order = distribution.sort(dim=-1, descending=True)
        outside = descending.cumsum(dim=-1) - descending >= top_p[:, None]
        outside[:, 0] = False
        distribution = distribution.masked_fill(outside.gather(1, order.argsort(dim=-1)), 0.0)
        distribution = distribution / distribution.sum(dim=-1, keepdim=True)
    if bool(greedy.any()):
        best = torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[1]).to(
            distribution.dtype
        )
        distribution = torch.where(greedy[:, None] & ~distribution.isnan(), best, distribution)
    return distribution


def _drawn(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens [B] drawn from weights [B, V], which need not add up to 1."""
    ones = torch.ones(len(weights), device=weights.device)
    return draw(torch.log(weights), uniform, ones, 0, ones)


def _check(seen: Sequence[Following], draft: _Draft) -> None:
    """Raises ValueError for laws of another shape, or of tokens that the SLMs do not have."""
    if len(seen) != len(draft.tokens):
        raise ValueError(f"found what may follow {len(seen)} rows; {len(draft.tokens)} were asked")
    for following, tokens in zip(seen, draft.tokens, strict=True):
        if (
            following.tokens.shape != following.logprobs.shape
            or len(following.tokens) != len(tokens) + 1
        ):
            found = (
                f"{tuple(following.tokens.shape)} tokens and {tuple(following.logprobs.shape)}"
                " log-probabilities"
            )
            raise ValueError(f"found {found}; {len(tokens) + 1} places were asked")
        if int(following.tokens.max()) >= draft.shift.shape[2]:
            raise ValueError(
                f"found the LLM's token {int(following.tokens.max())}; the SLMs know"
                f" {draft.shift.shape[2]} tokens"
            )
