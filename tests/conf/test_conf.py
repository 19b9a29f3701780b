"""Every YAML of every group composes, is valid, and lists the keys of its section, so that
overrides need no `+`."""

import itertools
import re

import pytest
import yaml
from fedduet.clients.vault.answering.config import AnswersConfig, SearchConfig
from fedduet.clients.vault.config import GeneratorConfig, PredictionConfig, PrivacyConfig
from fedduet.clients.vault.release.policy import Policy
from fedduet.conf.check import ConfigError, Section, check
from fedduet.conf.sections import FederationConfig, RunSection, Top
from fedduet.lm.training.config import ExamplesConfig, PolicyConfig, RewardConfig, SLMConfig
from fedduet.scripts.reporting.trackers import TrackingConfig
from fedduet.server.llm.config import LLMConfig
from fedduet.server.measuring.general import GeneralConfig
from fedduet.server.strategy import chosen_strategy
from fedduet.server.writing.augment import AugmentConfig
from fedduet.server.writing.curate import CurateConfig
from fedduet.server.writing.write import WriteConfig
from fedduet.strategies import builtin, find
from fedduet.strategies.crosslm import CrossLMConfig
from fedduet.strategies.custom import CustomConfig
from fedduet.strategies.fdkt import FDKTConfig
from fedduet.strategies.gboost import GBoostConfig
from fedduet.tasks.config import PromptsConfig, TaskConfig
from fedduet.tasks.data.questions import QuestionsConfig, check_task
from omegaconf import OmegaConf

from fedduet import conf

SECTIONS = {
    "strategy": FDKTConfig,
    "task": TaskConfig,
    "answers": AnswersConfig,
    "llm": LLMConfig,
    "slm": SLMConfig,
    "generator": GeneratorConfig,
    "privacy": PrivacyConfig,
    "federation": FederationConfig,
}
NEEDED = {
    "llm": ["llm.path=x", "llm.model=m", "llm.script=s.yaml"],
    "task": ["task.labels={0: a, 1: b}", "task.path=x", "task.dataset=d"],
}


@pytest.mark.parametrize(
    ("group", "choice"),
    list(itertools.chain.from_iterable([(g, c) for c in conf.choices(g)] for g in SECTIONS)),
)
def test_every_choice_is_valid(group, choice):
    missing = [
        entry
        for entry in NEEDED.get(group, [])
        if choice in ("files", "hub", "transformers", "openai", "scripted")
    ]
    if choice == "questions":
        missing = ["task.path={a: x}"]
    plain = [entry if conf_has(group, choice, entry) else f"+{entry}" for entry in missing]
    config = conf.compose([f"{group}={choice}", *plain])
    if group == "strategy":
        if choice == "custom":
            assert check(CustomConfig, config["strategy"], "strategy").name == choice
        else:  # with the server's sections inside
            assert chosen_strategy(config["strategy"]).spec.name == choice
    elif group == "task":
        assert check_task(config["task"])
    else:
        check(SECTIONS[group], config[group], group)


def conf_has(group, choice, entry):
    from omegaconf import OmegaConf

    return entry.split("=")[0].split(".")[1] in OmegaConf.load(
        conf.FOLDER / group / f"{choice}.yaml"
    )


@pytest.mark.parametrize(
    "group", ["strategy", "slm", "generator", "privacy", "federation", "task", "answers"]
)
def test_the_default_choice_lists_every_key(group):
    values = conf.compose(["task=files"])[group]
    assert set(values) == set(SECTIONS[group].model_fields)


@pytest.mark.parametrize("choice", [*builtin(), "custom"])
def test_every_strategy_lists_every_key(choice):
    values = conf.compose([f"strategy={choice}"])["strategy"]
    section = CustomConfig if choice == "custom" else find(choice).config
    assert set(values) == set(section.model_fields)


def test_crosslm_composes_with_every_engine():
    for llm, more in (
        ("openai", "llm.model=m"),
        ("scripted", "llm.script=s.yaml"),
        ("transformers", "llm.path=x"),
    ):
        section = conf.compose(["strategy=crosslm", f"llm={llm}", more])["strategy"]
        # nothing is known of their neutral text
        assert chosen_strategy(section).tuning.general.texts is None
    section = conf.compose(["strategy=crosslm"])["strategy"]
    assert chosen_strategy(section).tuning.general.texts == "builtin:world"


def test_nested_sections_list_every_key_with_the_codes_defaults():
    values = conf.compose([])
    assert set(values["strategy"]["curate"]) == set(CurateConfig.model_fields)
    assert set(values["strategy"]["augment"]) == set(AugmentConfig.model_fields)
    assert set(values["privacy"]["policy"]) == set(Policy.model_fields)
    assert CurateConfig(**values["strategy"]["curate"]) == CurateConfig()
    crosslm = conf.compose(["strategy=crosslm"])["strategy"]
    # the objective is strategy.tuning
    assert set(crosslm["policy"]) | {"objective"} == set(PolicyConfig.model_fields)
    for name, section in (
        ("write", WriteConfig),
        ("examples", ExamplesConfig),
        ("general", GeneralConfig),
    ):
        assert set(crosslm[name]) == set(section.model_fields)


def test_a_run_config_of_flower_is_the_same_as_overrides():
    expected = conf.compose(["privacy.epsilon=4.0", "seed=3", "federation=inprocess"])
    assert (
        conf.from_run_config(
            {"overrides": "privacy.epsilon=4.0 seed=3 federation=inprocess", "config": ""}
        )
        == expected
    )
    assert (
        conf.from_run_config(
            {"overrides": "federation=inprocess", "privacy.epsilon": 4.0, "seed": 3}
        )
        == expected
    )
    assert conf.from_run_config({"config": conf.dump(expected)}) == expected


def test_a_section_error_names_key_found_and_allowed():
    class Toy(Section):
        rounds: int
        name: str = "x"

    with pytest.raises(
        ConfigError, match=r"toy\.rounds: found 'many'; input should be a valid integer"
    ):
        check(Toy, {"rounds": "many"}, "toy")
    with pytest.raises(ConfigError, match=r"toy\.rounds: missing"):
        check(Toy, {}, "toy")
    with pytest.raises(ConfigError, match=r"toy\.nmae: unknown key; did you mean name\?"):
        check(Toy, {"rounds": 1, "nmae": "y"}, "toy")


ON_PURPOSE = {  # a YAML's value that is not the code's, and why
    **dict.fromkeys(
        ("gboost.search.step_tokens", "gboost.search.max_steps", "gboost.search.solution_tokens",
         "gboost.search.llm_token_budget"),
        "short lines of the built-in arithmetic",
    ),
    **dict.fromkeys(
        ("dp.policy.minimum_records", "dp.policy.share_metrics", "dp.policy.share_scores",
         "dp.policy.share_questions"),
        "a simulated site grants what is to be measured; a real one starts closed",
    ),
    **dict.fromkeys(("openai.base_url", "openai.form", "openai.context"), "of this engine"),
    **dict.fromkeys(("scripted.form", "scripted.context"), "of this engine"),
    "auto.steps": "of the generator: few rows at a simulated site",
    "files.labels": "null stands for none",
}  # fmt: skip
REPEATS = {  # YAML file -> the section that it lists, and where the parts of it are
    "strategy/fdkt": {"": FDKTConfig, "curate": CurateConfig, "augment": AugmentConfig},
    "strategy/crosslm": {
        "": CrossLMConfig,
        "write": WriteConfig,
        "policy": PolicyConfig,
        "examples": ExamplesConfig,
        "general": GeneralConfig,
    },
    "strategy/gboost": {"": GBoostConfig, "search": SearchConfig},
    "privacy/dp": {"": PrivacyConfig, "policy": Policy},
    "slm/auto": {"": SLMConfig},
    "generator/auto": {"": GeneratorConfig, "prediction": PredictionConfig},
    "answers/auto": {"": AnswersConfig},
    "federation/simulation": {"": FederationConfig},
    "federation/inprocess": {"": FederationConfig},
    "llm/transformers": {"": LLMConfig},
    "llm/openai": {"": LLMConfig},
    "llm/scripted": {"": LLMConfig},
    "task/files": {"": TaskConfig},
}


def test_a_yaml_repeats_the_codes_defaults_or_differs_on_purpose():
    """Defaults stand in the classes, which real sites and outside strategies get; files repeat them
    so that overrides need no `+`. Of a value for built-in models and others, the second one
    counts."""
    differing = set()
    for file, parts in REPEATS.items():
        whole = OmegaConf.to_container(OmegaConf.load(conf.FOLDER / f"{file}.yaml"), resolve=False)
        for place, section in parts.items():
            for key, found in (whole[place] if place else whole).items():
                if key == "defaults" or key in parts or section.model_fields[key].is_required():
                    continue
                default = section.model_fields[key].get_default(call_default_factory=True)
                if isinstance(default, Section):
                    default = {}
                if isinstance(found, str) and (either := BUILTIN_OR.fullmatch(found)):
                    found = yaml.safe_load(either[1])
                name = ".".join(filter(None, (file.partition("/")[2], place, key)))
                same = found == (list(default) if isinstance(default, tuple) else default)
                # interpolations follow another key, engines name themselves, baselines are on
                known = str(found).startswith(("${", "???")) or key in ("engine", "baselines")
                if not same and not known:
                    differing.add(name)
    assert differing == set(ON_PURPOSE)


BUILTIN_OR = re.compile(r"\$\{builtin_or:\$\{\w+\.path\},[^,]+,([^,]+)\}")


def test_every_key_of_every_section_has_a_sentence():
    sections = {section for parts in REPEATS.values() for section in parts.values()}
    sections |= {find(name).config for name in builtin()} | {CustomConfig, Top, RunSection}
    sections |= {QuestionsConfig, PromptsConfig, RewardConfig, TrackingConfig}
    without = [
        f"{section.__name__}.{key}"
        for section in sections
        for key, field in section.model_fields.items()
        if not (field.description or "").rstrip(' "').endswith((".", ")"))
    ]
    assert not without
    said = SLMConfig.model_fields["head_factor"].description
    assert said == "The head, new and random, learns this many times faster."
