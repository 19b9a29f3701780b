"""FDKT steps 1 and 2 without training: demonstrations that a public LM writes by private
prediction."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from fedduet.clients.vault.config import GeneratorConfig, SiteConfig
from fedduet.clients.vault.release.policy import Unit
from fedduet.clients.vault.release.releases import write_once
from fedduet.lm.decoding.sample import end_tokens
from fedduet.lm.decoding.stepper import stepper
from fedduet.lm.dp.contexts import deal_contexts
from fedduet.lm.dp.predicted_texts import Predicting, predict_texts, public_examples
from fedduet.lm.models.device import chosen_device
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.progress import report
from fedduet.lm.randomness import NoiseSource, SeededNoise, derive
from fedduet.lm.text.rules import Rules, filter_texts
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.task import Record, Task
from fedduet.tasks.wording.prompts import fill
from fedduet.wire.messages import LabelledTexts

MECHANISM = "private-prediction"
SECRET = "contexts.secret"  # in the site's folder


def predicting(
    config: GeneratorConfig, rho: float, units: int, labels: int, per_label: int
) -> Predicting:
    """The public numbers of a release whose texts cost one of `units` units `rho` together."""
    chosen = config.prediction
    return Predicting(
        rho=rho,
        units=units,
        labels=labels,
        per_label=per_label,
        rule=chosen.rule,
        contexts=chosen.contexts,
        batches=chosen.batches,
        tokens=chosen.tokens,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        prompt_tokens=chosen.prompt_tokens,
        rows=chosen.rows,
    )


def predict_demonstrations(
    records: Sequence[Record],
    unit: Unit,
    task: Task,
    domain: str,
    config: GeneratorConfig,
    asked: Predicting,
    randomness: NoiseSource,
    seed: int,
    secret: bytes,
) -> tuple[LabelledTexts, dict[str, int]]:
    """`asked.per_label` texts for every label, less those that no rule of the filter lets pass, and
    how many these were by rule.

    `secret`: the site's, by which units are dealt to batches. `seed` is public and draws the public
    examples alone. All that is returned is post-processing of tokens that were paid for.
    """
    path, device = resolve(config.path), str(chosen_device(config.device, "generator.device"))
    tokenizer = load_tokenizer(path, generates=True)
    model = load_causal_lm(path, device=device, tokenizer=tokenizer)
    run, ends = stepper(model), end_tokens(model, tokenizer)
    values = {"noun": task.noun, "domain": domain}
    headings = [fill(config.prediction.heading, label=label, **values) for label in task.labels]
    examples = public_examples(
        run,
        tokenizer,
        headings,
        config.prediction.examples,
        asked,
        ends,
        SeededNoise(derive(seed, "public examples")),
    )
    contexts = deal_contexts(
        [record.text for record in records],
        [record.label for record in records],
        [record.user for record in records] if unit == "user" else None,
        secret,
        asked.batches,
        config.records_per_user,
    )
    total = asked.labels * asked.batches * asked.texts
    written = predict_texts(
        run,
        tokenizer,
        headings,
        contexts,
        asked,
        ends,
        randomness,
        examples,
        lambda ready: report(MECHANISM, ready, total, "texts"),
    )
    dropped: Counter[str] = Counter()
    texts, labels = [], []
    for label, found in enumerate(written):
        filtered = filter_texts(
            [text for text, _ in found],
            lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            Rules(min_tokens=config.minimum_tokens),
            [finished for _, finished in found],
        )
        dropped.update(filtered.dropped)
        texts += [text for _, text in filtered.kept]
        labels += [label] * len(filtered.kept)
    return LabelledTexts(texts, labels), {rule: n for rule, n in dropped.items() if n}


def site_secret(config: SiteConfig) -> bytes:
    """The secret by which units are dealt to batches, made at first use; of a site with seeded
    noise, which is for tests, one that can be computed again."""
    if config.seeded_noise:
        return derive(config.seed, config.client, "contexts").to_bytes(8, "big")
    return write_once(config.folder / SECRET, os.urandom(32))
