"""FDKT steps 1 and 2: a generator trained with DP-SGD on the site's records, and the texts it
writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fedduet.clients.vault.config import GeneratorConfig
from fedduet.conf.check import ConfigError
from fedduet.lm.decoding.sample import sample_texts
from fedduet.lm.dp.dpsgd import TrainReport, prepare_generator, train_generator
from fedduet.lm.models.device import chosen_device
from fedduet.lm.models.load import load_causal_lm, load_tokenizer, merged
from fedduet.lm.models.save import keep_trained
from fedduet.lm.randomness import NoiseSource, derive
from fedduet.lm.text.rules import Rules, control_heads, filter_texts
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.task import Record, Task
from fedduet.wire.messages import LabelledTexts


def check_loads(config: GeneratorConfig) -> None:
    """Loads the generator's public start once, before anything is charged for it. Raises
    ConfigError where it is not there, or is no model."""
    path = resolve(config.path)
    try:
        load_causal_lm(path, tokenizer=load_tokenizer(path, generates=True))
    except (OSError, ValueError, RuntimeError) as failure:
        raise ConfigError(f"generator.path: {path} cannot be loaded: {failure}") from failure


def write_demonstrations(
    records: Sequence[Record],
    owners: Sequence[int],
    task: Task,
    domain: str,
    config: GeneratorConfig,
    noise_multiplier: float,
    per_label: int,
    randomness: NoiseSource,
    seed: int,
    keep: Path | None = None,
) -> tuple[LabelledTexts, dict[str, int], TrainReport]:
    """Train on `records` and sample `per_label` texts for every label, whatever the labels' private
    shares.

    `owners` are the records' units of privacy (`owners_of`). Returns the texts, how many samples
    each rule dropped, and what training ran. Fewer texts come back when `config.attempts` rounds of
    sampling did not yield enough that pass the rules. Everything returned but the report is
    post-processing of the DP model. `keep`: a folder that gets the trained generator: its adapter,
    or, of full training, all of it.
    """
    path, device = resolve(config.path), str(chosen_device(config.device, "generator.device"))
    tokenizer = load_tokenizer(path, generates=True)
    model = prepare_generator(
        load_causal_lm(path, device=device, tokenizer=tokenizer), config, derive(seed, "generator")
    )
    controls = [task.control(record.domain or domain, record.label) for record in records]
    report = train_generator(
        model,
        tokenizer,
        controls,
        [r.text for r in records],
        config,
        noise_multiplier,
        randomness,
        owners,
    )
    if keep:
        keep_trained(model, tokenizer, keep, path)
    writer = merged(model)
    heads = control_heads(task.control_code)
    texts: dict[int, list[str]] = {label: [] for label in range(len(task.labels))}
    dropped: Counter[str] = Counter()
    for attempt in range(config.attempts):
        wanted = [label for label, found in texts.items() for _ in range(per_label - len(found))]
        if not wanted:
            break
        samples = sample_texts(
            writer,
            tokenizer,
            [task.control(domain, label) for label in wanted],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=derive(seed, "samples", attempt),
            batch_size=config.sample_batch,
            precision=config.precision,
        )
        filtered = filter_texts(
            [sample.text for sample in samples],
            lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            Rules(min_tokens=config.minimum_tokens),
            [sample.finished for sample in samples],
            heads,
        )
        dropped.update(filtered.dropped)
        for index, text in filtered.kept:
            found = texts[wanted[index]]
            if text in found or len(found) >= per_label:
                dropped["duplicate"] += text in found
            else:
                found.append(text)
    flat = [(text, label) for label, found in texts.items() for text in found]
    data = LabelledTexts([text for text, _ in flat], [label for _, label in flat])
    return data, {rule: count for rule, count in dropped.items() if count}, report
