"""The vault of a task of kind "reasoning": a private SLM tuned on a site's questions, which answers
together with a general LLM."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fedduet.clients.vault.answering.config import SearchConfig, check_search, method_of
from fedduet.clients.vault.answering.methods import Answering
from fedduet.clients.vault.answering.sent import Sent
from fedduet.clients.vault.answering.solving import Solution
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.cards import write_reasoning_card
from fedduet.clients.vault.config import SiteConfig
from fedduet.clients.vault.refusing import refusing
from fedduet.clients.vault.release import policy as rules
from fedduet.clients.vault.release.policy import PolicyError
from fedduet.clients.vault.release.releases import Releases
from fedduet.clients.vault.trainings import batch_seed, count_training, told_seconds
from fedduet.conf.check import ConfigError
from fedduet.lm.dp.accounting import Event
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.models.save import save_model
from fedduet.lm.randomness import derive
from fedduet.lm.training.causal import train_causal
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.data.questions import QuestionsConfig, QuestionSplit, load_questions
from fedduet.tasks.reasoning import is_right, worked
from fedduet.wire.codec import Arrays
from fedduet.wire.messages import Answer, Answered, Introduced, Learn, Learned, Receipt, Refused
from peft import PeftModel


class ReasoningVault:
    """One site. Opening it reads nothing. Questions, answers, steps and the private SLM stay
    inside; what leaves are counts.

    A question is shown to the LLM only where the site's policy says
    `share_questions: gateway_only`; at a real site each answer that asks it is charged as an
    unprotected release before anything is sent, and what was sent is kept.
    """

    def __init__(self, config: SiteConfig) -> None:
        if not isinstance(config.task, QuestionsConfig):
            raise ConfigError(
                "task.kind: found classification; a vault that answers questions needs a task of"
                " kind reasoning"
            )
        self.config, self._task = config, config.task
        self._measurements = Releases(config.folder / "measurements")
        self._answering: dict[tuple[str, str], Answering] = {}

    @cached_property
    def _questions(self) -> QuestionSplit:
        return load_questions(self._task, self.config.client, self.config.seed)

    def introduce(self) -> Introduced:
        """The site's public name, which is its domain too."""
        return Introduced(self.config.client, self.config.client)

    @refusing
    def learn(
        self, request: Learn, arrays: Arrays | None = None
    ) -> tuple[Learned | Refused, Arrays | None]:
        """Tune the SLM on the site's worked questions and keep it; nothing but sizes leaves."""
        began = time.monotonic()
        if request.share_weights or arrays or len(request.data) or not request.private:
            raise PolicyError(
                "a site with questions learns from its own alone, and keeps the weights"
            )
        train = self._questions.train
        rules.check_learn(self.config.policy, request, len(train))
        count_training(self.config, request)
        tokenizer, base = self._base()
        seed = derive(batch_seed(self.config, request), "private SLM")
        model, steps = train_causal(
            base,
            tokenizer,
            [worked(one) for one in train],
            self.config.slm,
            seed,
            f"train {request.model}",
            padded=not self.config.repeatable,
        )
        folder = self._folder(request.run, request.model)
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # the adapter alone: switched off it is the base, which so costs nothing extra
        if isinstance(model, PeftModel):
            model.save_pretrained(str(folder))
            tokenizer.save_pretrained(folder)
        else:
            save_model(model, tokenizer, folder)
        write_reasoning_card(
            folder, self.config, request, len(train), steps, isinstance(model, PeftModel)
        )
        self._answering.clear()
        return (
            Learned(
                model=request.model,
                private_units=len(train),
                generated_rows=0,
                steps=steps,
                private_passes=self.config.slm.batch_size * steps / len(train),
                generated_passes=0.0,
                checkpoint="last",
                seconds=told_seconds(self.config, began),
            ),
            None,
        )

    @refusing
    def answer(self, request: Answer) -> Answered | Refused:
        """Answers test questions by a method and says how many were right; a repeated message id
        gets its first answer."""
        measured = f"{request.message_id} {request.method}"
        if (earlier := self._measurements.find(measured)) is not None:
            return earlier
        rules.check_measurement(
            self.config.policy, f"answers of method {request.method!r}", self._measurements.count()
        )
        try:
            search = check_search(request.search)
        except ValueError as failure:  # the message asks for what cannot be done
            raise PolicyError(str(failure)) from None
        rules.check_search(self.config.policy, request, search.model_dump())
        test = self._questions.test[: request.questions]
        seeds = [derive(request.seed, "question", number) for number in range(len(test))]
        asked = [question.question for question in test]
        began = time.monotonic()
        solutions, requests = self._solve(
            measured,
            request.run,
            request.model,
            request.method,
            asked,
            seeds,
            search,
            request.samples,
        )
        seconds = told_seconds(self.config, began, 2)
        modes = [step.mode for solution in solutions for step in solution.steps]
        counted = Answered(
            request.method,
            sum(
                is_right(solution.answer, question.answer)
                for solution, question in zip(solutions, test, strict=True)
            ),
            len(test),
            sum(solution.costs.llm_tokens for solution in solutions),
            sum(solution.costs.slm_tokens for solution in solutions),
            sum(solution.costs.reward_calls for solution in solutions),
            seconds,
            sum(solution.answer is None for solution in solutions),
            sum(solution.costs.degraded for solution in solutions),
            sum(solution.costs.bad_rewards for solution in solutions),
            requests,
            sum(mode == "private" for mode in modes),
            sum(mode == "collaborative" for mode in modes),
            receipt=self._charged_openly(f"{measured} counts", request.run, "counts", 1),
        )
        return self._measurements.keep(measured, counted)

    def solve(
        self,
        run: str,
        model: str,
        question: str,
        search: SearchConfig,
        seed: int = 0,
        method: str = "search",
    ) -> Solution:
        """One question, for the site itself: this is no message, and its result must not travel.

        Raises PolicyError where the policy keeps questions from the LLM, ValueError for a question
        that cannot be asked.
        """
        id = f"ask/{uuid.uuid4().hex}"
        return self._solve(id, run, model, method, [question], [seed], search, 1)[0][0]

    def _solve(
        self,
        id: str,
        run: str,
        model: str,
        method: str,
        questions: Sequence[str],
        seeds: Sequence[int],
        search: SearchConfig,
        samples: int,
    ) -> tuple[list[Solution], int]:
        try:
            wanted = method_of(method, search)
        except ValueError as failure:
            raise PolicyError(str(failure)) from None
        answers = self.config.answers
        remote = bool(answers.base_url) or answers.llm_is_remote
        rules.check_answer(self.config.policy, wanted.asks_llm and remote)
        answering = self._model(run, model)
        if wanted.asks_llm and remote:
            self._charged_openly(f"{id} questions", run, "questions", len(questions))
            answering.sent = Sent(self.config.folder, id)
        return answering.solve(method, questions, seeds, search, samples)

    def _charged_openly(self, id: str, run: str, what: str, released: int) -> Receipt | None:
        """The receipt of something that leaves unprotected by a permission of its own; None in a
        simulation, where it goes to nobody."""
        if self.config.simulated:
            return None
        policy, records = self.config.policy, len(self._questions.train)
        delta = rules.delta_for(policy, records)
        ledger = Ledger(
            self.config.folder / "ledger.jsonl",
            policy.epsilon_total,
            delta,
            policy.allow_unprotected,
            unprotected=rules.granted_openly(policy),
            unit=policy.unit,
        )
        charge = ledger.charge(id, run, what, Event.none(), released)
        total = charge.epsilon_total
        return Receipt("none", charge.epsilon, delta, total, released, records=records)

    def _model(self, run: str, name: str) -> Answering:
        if (run, name) not in self._answering:
            tokenizer, base = self._base()
            folder = self._folder(run, name)
            if (folder / "adapter_config.json").is_file():
                tuned: Any = PeftModel.from_pretrained(
                    load_causal_lm(resolve(self.config.slm.path), tokenizer=tokenizer), folder
                ).eval()
            elif (folder / "config.json").is_file():
                tuned = load_causal_lm(str(folder), tokenizer=tokenizer)
            else:
                raise PolicyError(
                    f"this site keeps no model {name!r} for this run; it has to learn it first"
                )
            self._answering[run, name] = Answering(
                self.config.answers, (tuned, tokenizer), (base, tokenizer)
            )
        return self._answering[run, name]

    def _base(self) -> tuple[Any, Any]:
        path = resolve(self.config.slm.path)
        tokenizer = load_tokenizer(path, generates=True)
        return tokenizer, load_causal_lm(path, tokenizer=tokenizer)

    def _folder(self, run: str, model: str) -> Path:
        # messages hold no name that leads out of the folder
        return self.config.folder / "models" / run / model
