"""Private Evolution in one file (Lin et al. 2024, arXiv 2305.15560, as simple as it gets): the LLM
writes, the sites score, the best texts become the next examples, and again. No model is tuned."""

from collections.abc import Mapping, Sequence

import pydantic
from fedduet.strategies.baselines import Baselines, available, columns, run_baselines
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.spec import GuidedTexts, Spec
from fedduet.strategies.run.texts import Texts, shared_by_all
from fedduet.strategies.scores import aggregate, split
from fedduet.wire.messages import LabelledTexts


class EvolutionConfig(GuidedTexts, Baselines):
    """The section `strategy.settings`; `augment` says how many texts the LLM writes of a label."""

    KNOWN = tuple(name for name in available("writing") if name != "local")
    rounds: int = pydantic.Field(2, ge=1, description="Times that texts are written and scored.")
    survivors: int = pydantic.Field(4, ge=1, description="Best texts of a label and domain.")
    weight: float = pydantic.Field(1.0, ge=0, description="Of the LLM's texts in a site's loss.")
    order: str = "together"


def evolution(moves: Moves, config: EvolutionConfig) -> None:
    """Sites score by the SLM of their own records. `privacy.feedback` says how scores are
    protected; their budget is planned over all rounds together."""
    moves.learn("local")
    examples: Texts | None = None
    rows: list[dict] = []
    for round in range(config.rounds):
        texts = moves.augment(f"augment-{round}", examples)
        answers = moves.score(f"score-{round}", "local", texts, round=round, rounds=config.rounds)
        scores = {site: answer.scores for site, answer in answers.items()}
        rewards = split(aggregate(scores, {}, "uniform"), texts)
        examples = {
            site: best(data, rewards[site], config.survivors) for site, data in texts.items()
        }
        rows += judged(round, texts, rewards, examples, scores)
        moves.run.artefact("feedback", rows)  # what the report shows
    given = shared_by_all(examples)
    moves.learn("evolution", given, weight=config.weight, order=config.order)
    run_baselines(moves, config)


def best(data: LabelledTexts, rewards: Sequence[float], count: int) -> LabelledTexts:
    """The `count` texts of each label with the highest reward, the earlier first where equal."""
    order = sorted(range(len(data)), key=lambda place: -rewards[place])
    kept = [
        place
        for label in sorted(set(data.labels))
        for place in [one for one in order if data.labels[one] == label][:count]
    ]
    return LabelledTexts(
        [data.texts[place] for place in kept], [data.labels[place] for place in kept]
    )


def judged(
    round: int,
    texts: Texts,
    rewards: Mapping[str, Sequence[float]],
    kept: Texts,
    scores: Mapping[str, Sequence[float]],
) -> list[dict]:
    """A round's texts for feedback.jsonl; every site has scored all, in the order of their
    domains."""
    rows = [
        {
            "round": round,
            "client": site,
            "label": label,
            "reward": float(reward),
            "accepted": text in kept[site].texts,
            "text": text,
        }
        for site, data in sorted(texts.items())
        for text, label, reward in zip(data.texts, data.labels, rewards[site], strict=True)
    ]
    each = [
        {site: round_to(of[place]) for site, of in scores.items()} for place in range(len(rows))
    ]
    return [row | {"scores": of} for row, of in zip(rows, each, strict=True)]


def round_to(value: float) -> float:
    """Six digits."""
    return round(float(value), 6)


SPEC = Spec(
    name="evolution",
    config=EvolutionConfig,
    run=evolution,
    final="evolution",
    question="Do private SLMs get better by texts that evolve under the sites' scores?",
    contrasts=(("evolution", "zero_shot"),),
    columns=columns(
        ("local", *EvolutionConfig.KNOWN),
        {"evolution": "own records and the survivors of the last round"},
    ),
)
