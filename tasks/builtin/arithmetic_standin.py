"""Stand-ins for the arithmetic world: an LLM that calculates, an SLM that has only met small
numbers, and a process reward model.

`builtin:arithmetic-llm`, `-slm` and `-reward` in a configuration mean these; every report names
them as stand-ins.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedduet.lm.randomness import derive
from fedduet.lm.training.config import SLMConfig
from fedduet.tasks.builtin.arithmetic import LARGEST, follows, public_documents, public_questions
from fedduet.tasks.reasoning import prompt, worked

CONTEXT = 256


@dataclass(frozen=True)
class ArithmeticRecipe:
    """How a stand-in is made; a changed recipe is another model. All values are our choice [O].
    Many small steps: copying from a question sets in after so many steps, not tokens."""

    hidden: int
    layers: int
    heads: int
    steps: int
    learning_rate: float
    largest: int  # of the numbers in its public text
    drills: float  # columns of sums, as a share of the questions
    questions: int = 20_000
    batch: int = 8
    vocabulary: int = 512


@dataclass(frozen=True)
class RewardRecipe:
    """How the reward model is made from the LLM: public questions, sampled solutions and
    completions [O]."""

    questions: int = 400
    solutions: int = 2  # of each writer
    completions: int = 2
    form: str = "likelihood of all steps"


RECIPES: dict[str, ArithmeticRecipe] = {
    "arithmetic-llm": ArithmeticRecipe(128, 2, 4, 3000, 3e-3, LARGEST, 0.3),
    "arithmetic-slm": ArithmeticRecipe(64, 2, 2, 1800, 3e-3, 20, 0.1),
}
REWARD = RewardRecipe()
ROLES = (*RECIPES, "arithmetic-reward")


def digest(role: str) -> str:
    """Of the recipe, those of what it is made from, and the text that models are trained on."""
    made_from = RECIPES if role not in RECIPES else {role: RECIPES[role]}
    described = [
        role,
        {name: asdict(recipe) for name, recipe in made_from.items()},
        public_documents(20, 0),
    ]
    described += [asdict(REWARD)] if role not in RECIPES else []
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]


def make(role: str, folder: Path, model_of: Callable[[str], Path]) -> None:
    """Train the stand-in `role` into `folder`; `model_of(role)` is the folder of another one. Under
    a minute each on one core."""
    if role == "arithmetic-reward":
        _make_reward(folder, model_of("arithmetic-llm"), model_of("arithmetic-slm"))
        return
    from fedduet.lm.models.save import save_model
    from fedduet.lm.pretraining.start import load_model, train_tokenizer
    from fedduet.lm.training.causal import train_causal
    from transformers import LlamaConfig

    recipe = RECIPES[role]
    # one for both: their logits are fused
    tokenizer = train_tokenizer(public_documents(3000, 0), recipe.vocabulary, CONTEXT)
    shape = {
        "hidden_size": recipe.hidden,
        "intermediate_size": int(2.7 * recipe.hidden),
        "num_hidden_layers": recipe.layers,
    }
    shape |= {
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    }
    LlamaConfig(**shape).save_pretrained(folder.parent / f".{folder.name}.shape")
    model = load_model(
        str(folder.parent / f".{folder.name}.shape"), tokenizer, CONTEXT, derive(0, role)
    )
    pairs = [worked(question) for question in public_questions(recipe.questions, 0, recipe.largest)]
    pairs += [
        ("", sums)
        for sums in public_documents(
            round(recipe.drills * recipe.questions), 1, 1.0, recipe.largest
        )
    ]
    random.Random(role).shuffle(pairs)
    config = SLMConfig(
        path=role,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch,
        min_steps=recipe.steps,
        max_steps=recipe.steps,
        max_tokens=CONTEXT,
    )
    model, _ = train_causal(
        model, tokenizer, pairs, config, derive(0, role), f"making the {role.replace('-', ' ')}"
    )
    save_model(model, tokenizer, folder)


def _make_reward(folder: Path, llm: Path, slm: Path) -> None:
    """The LLM and the SLM write, the LLM completes; a solution is right when it does what it says
    (`fedduet.tasks.builtin.arithmetic.follows`)."""
    from fedduet.lm.training.reward_training import fit_likelihood
    from fedduet.lm.training.step_labels import label_steps

    questions = [question.question for question in public_questions(REWARD.questions, "reward")]
    labelled = []
    writers = {str(path): _writer(path) for path in (llm, slm)}
    for path, write in writers.items():
        labelled += label_steps(
            [prompt(question) for question in questions],
            lambda number, steps: prompt(questions[number], steps),
            lambda number, text: follows(questions[number], text),
            write,
            writers[str(llm)],
            REWARD.solutions,
            REWARD.completions,
            derive(0, path == str(llm)),
        )
    fit_likelihood(llm, questions, labelled, prompt, folder)


def _writer(path: Path) -> Callable[[Sequence[str], int], list[str]]:
    from fedduet.lm.decoding.sample import sample_texts
    from fedduet.lm.models.load import load_causal_lm, load_tokenizer

    tokenizer = load_tokenizer(str(path), generates=True)
    model: Any = load_causal_lm(str(path), tokenizer=tokenizer)

    def write(prompts: Sequence[str], seed: int) -> list[str]:
        found = sample_texts(
            model,
            tokenizer,
            prompts,
            72,
            1.0,
            0,
            1.0,
            seed,
            128,
            phase="making the arithmetic reward: solutions",
        )
        return [sample.text for sample in found]

    return write
