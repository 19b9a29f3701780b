"""A real site on tiny models: vaults that share a folder, and a spy on what reaches training."""

from dataclasses import dataclass, field, replace

import pytest
from fedduet.clients.vault import slm, synthesis
from fedduet.clients.vault.config import SiteConfig, read_sites
from fedduet.clients.vault.vault import Vault
from fedduet.conf.check import check
from fedduet.tasks.config import TaskConfig

from fedduet import conf


@pytest.fixture
def site(overrides, tmp_path):
    """site(folder=, policy=, generator=, task=, **fields of SiteConfig): a vault of the coffee site
    as a real site would open it."""
    small = [
        "slm.max_steps=3",
        "slm.max_tokens=24",
        "slm.precision=fp32",
        "generator.max_tokens=24",
        "generator.precision=fp32",
    ]
    config = conf.compose([*overrides, *small, "privacy.counterfactual_baselines=false"])
    task = check(TaskConfig, config["task"], "task")
    part = read_sites(config)
    slm_config, generator_config, privacy = part.slm, part.generator, part.privacy

    def opened(folder="site", policy=None, generator=None, task_changes=None, **fields):
        return Vault(
            replace(
                SiteConfig(
                    "coffee",
                    tmp_path / folder,
                    task.model_copy(update=task_changes or {}),
                    slm_config,
                    generator_config.model_copy(update=generator or {}),
                    privacy.policy.model_copy(update=policy or {}),
                    seed=0,
                ),
                **fields,
            )
        )

    return opened


@dataclass
class LayerInput:
    """The arguments of every call of `train_generator` and `train_classifier`, and what they
    returned."""

    generator: list = field(default_factory=list)
    classifier: list = field(default_factory=list)
    reports: list = field(default_factory=list)
    # callables, run (and used up) before the next generator training
    before: list = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch):
    """The real trainings with a record of what went in and out."""
    seen = LayerInput()
    train_generator, train_classifier = synthesis.train_generator, slm.train_classifier

    def generator(*arguments, **named):
        seen.generator.append(arguments)
        while seen.before:
            seen.before.pop()()
        seen.reports.append(train_generator(*arguments, **named))
        return seen.reports[-1]

    def classifier(*arguments, **named):
        seen.classifier.append((arguments, named))
        return train_classifier(*arguments, **named)

    monkeypatch.setattr(synthesis, "train_generator", generator)
    monkeypatch.setattr(slm, "train_classifier", classifier)
    return seen
