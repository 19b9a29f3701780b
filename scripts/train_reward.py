"""`fedduet-train-reward`: a process reward model from questions with answers, by sampled solutions
and Monte-Carlo step labels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedduet.scripts.launching.environment import prepare

prepare()

from fedduet.conf.check import ConfigError  # noqa: E402
from fedduet.lm.decoding.sample import sample_texts  # noqa: E402
from fedduet.lm.models.folder import check_model_folder  # noqa: E402
from fedduet.lm.models.load import load_causal_lm, load_tokenizer  # noqa: E402
from fedduet.lm.training.reward_training import (  # noqa: E402
    RewardTraining,
    fit_likelihood,
    train_reward,
)
from fedduet.lm.training.step_labels import label_steps  # noqa: E402
from fedduet.scripts.reporting.terminal import Display  # noqa: E402
from fedduet.tasks.builtin.standin import resolve  # noqa: E402
from fedduet.tasks.data.read import Columns, read_rows  # noqa: E402
from fedduet.tasks.reasoning import find_answer, is_right, prompt  # noqa: E402
from rich.console import (  # noqa: E402
    Console,
)


def main(argv: Sequence[str]) -> int:
    """Label steps by completions (Math-Shepherd's hard estimation), train, write a plain folder; 2
    for what cannot work."""
    parser = argparse.ArgumentParser(prog="fedduet-train-reward", description=__doc__)
    parser.add_argument(
        "--questions",
        type=Path,
        required=True,
        help="csv, jsonl or parquet with questions and answers",
    )
    parser.add_argument("--question-column", default="question")
    parser.add_argument("--answer-column", default="answer")
    parser.add_argument(
        "--llm",
        required=True,
        help="folder of the causal LM that writes, completes, and lends its body",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the reward model")
    parser.add_argument(
        "--form",
        choices=("steps", "likelihood"),
        default="steps",
        help="lm/training/reward.py says what each is",
    )
    parser.add_argument("--most", type=int, default=1000, help="questions used")
    parser.add_argument("--solutions", type=int, default=4, help="of each question")
    parser.add_argument("--completions", type=int, default=4, help="after each step")
    parser.add_argument("--tokens", type=int, default=256, help="longest solution")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--steps", type=int, default=300, help="of training the head")
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=1e-5,
        help="of training the head; 1e-3 suits models below 10 M parameters",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(list(argv))
    try:
        rows = read_rows(given.questions, Columns(given.question_column, given.answer_column))[
            : given.most
        ]
        path = resolve(given.llm)
        check_model_folder(path, "--llm", causal=True)
        with Display(given.out):
            good, steps = _train(
                given,
                path,
                [" ".join(row.text.split()) for row in rows],
                [row.label for row in rows],
            )
    except (ConfigError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    Console().print(
        f"reward model of form {given.form} in {given.out}: {good} of {steps} labelled steps are"
        " good",
        highlight=False,
    )
    return 0


def _train(
    given: argparse.Namespace, path: str, questions: list[str], answers: list[str]
) -> tuple[int, int]:
    tokenizer = load_tokenizer(path, generates=True)
    model = load_causal_lm(path, tokenizer=tokenizer)

    def write(prompts: Sequence[str], seed: int) -> list[str]:
        drawn = sample_texts(
            model,
            tokenizer,
            prompts,
            given.tokens,
            given.temperature,
            0,
            1.0,
            seed,
            phase="solutions and completions",
        )
        return [one.text for one in drawn]

    labelled = label_steps(
        [prompt(question) for question in questions],
        lambda number, steps: prompt(questions[number], steps),
        lambda number, text: is_right(find_answer(text), answers[number]),
        write,
        write,
        given.solutions,
        given.completions,
        given.seed,
    )
    if given.form == "likelihood":
        fit_likelihood(path, questions, labelled, prompt, given.out)
    else:
        settings = RewardTraining(
            learning_rate=given.learning_rate, steps=given.steps, batch_size=given.batch_size
        )
        train_reward(path, questions, labelled, prompt, given.out, settings, given.seed)
    return sum(sum(one.good) for one in labelled), sum(len(one.good) for one in labelled)


def command() -> None:
    """Console entry."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
