"""G-Boost's search: a tree of steps by the private SLM and by it and the LLM together, guided by
process reward (METHODS, G-Boost)."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

from fedduet.clients.vault.answering.config import COLLABORATIVE, PRIVATE, SearchConfig
from fedduet.clients.vault.answering.solving import (
    Costs,
    Form,
    Part,
    RewardModel,
    Score,
    Solution,
    SolvedStep,
    Solver,
    Write,
    check_questions,
    common_room,
    joined,
    solve_together,
)
from fedduet.clients.vault.answering.steps import Step, StepAsk, StepWriter
from fedduet.clients.vault.answering.tree import Node, Tree
from fedduet.lm.randomness import derive


def search_many(
    questions: Sequence[str],
    seeds: Sequence[int],
    writers: Mapping[str, StepWriter],
    reward: RewardModel,
    form: Form,
    config: SearchConfig,
    clock: Callable[[], float] = time.monotonic,
) -> list[Solution]:
    """One solution for each question; all are searched side by side, so that models see full
    batches.

    `writers`: "private" and "collaborative", as far as `config.modes` asks for them. A question's
    solution depends on its own seed, not on the others (unless `config.seconds` runs out). Raises
    ValueError for an empty question, one too long for the context, or a missing writer, before
    anything is spent.
    """
    modes = [PRIVATE, COLLABORATIVE] if config.modes in ("both", "random") else [config.modes]
    room = common_room(writers, modes)
    check_questions(questions, form, room, config.step_tokens)
    start = clock()
    solvers = [
        _Search(question, seed, form, config, room, lambda: clock() - start).solve()
        for question, seed in zip(questions, seeds, strict=True)
    ]
    return solve_together(solvers, writers, reward)


class _Search:
    """The search of one question."""

    def __init__(
        self,
        question: str,
        seed: int,
        form: Form,
        config: SearchConfig,
        room: Callable[[str], int],
        elapsed: Callable[[], float],
    ) -> None:
        self.question, self.seed, self.form, self.config, self.room, self.elapsed = (
            question,
            seed,
            form,
            config,
            room,
            elapsed,
        )
        self.tree = Tree(config.exploration, config.path_score, config.max_steps)
        self.costs = Costs()
        self.iterations = 0
        self.longest = 0  # LLM tokens of a step

    def solve(self) -> Solver:
        """Rounds of selection, expansion, evaluation and backpropagation until a budget is spent or
        the answer is settled."""
        known = 0  # nodes when the tree was last exhausted
        while True:
            if self.config.widen and not self.tree.nodes[0].open and len(self.tree.nodes) > known:
                known = len(self.tree.nodes)
                self.tree.widen(self._chosen() or self.tree.nodes[0])
            if stopped := self._stop():
                break
            leaves = self.tree.select(
                min(self.config.parallel, self.config.iterations - self.iterations)
            )
            planned = self._plan(leaves)
            steps = yield Write([(mode, ask) for _, mode, ask in planned])
            yield from self._grow(planned, steps)
            self.tree.end_round()
        if not self._finished():
            yield from self._complete()
        return self._solution(stopped)

    # ------------------------------------------------------------ budgets

    def _stop(self) -> str:
        """Why no further round may begin, or ""."""
        if not self.tree.nodes[0].open:
            return "exhausted"
        if self._settled():
            return "settled"
        if self.iterations >= self.config.iterations:
            return "iterations"
        return self._spent(self.config.modes)

    def _spent(self, modes: str) -> str:
        config = self.config
        if config.steps is not None and self.costs.steps >= config.steps:
            return "steps"
        if config.seconds is not None and self.elapsed() >= config.seconds:
            return "seconds"
        return "llm_tokens" if modes == COLLABORATIVE and self._llm_tokens_left() <= 0 else ""

    def _llm_tokens_left(self) -> float:
        budget = self.config.llm_token_budget
        return math.inf if budget is None else budget - self.costs.llm_tokens

    def _settled(self) -> bool:
        """Whether nothing that is left to try can change the answer."""
        answered = [node for node in self._finished() if node.answer is not None]
        if not answered:
            return False
        highest = 1.0 if self.config.widen else self.tree.highest()  # any path can still come
        if self.config.answer == "best":  # of equals the earlier stays
            return max(self.tree.score(node) for node in answered) >= highest
        first, second = [*sorted(self._votes().values(), reverse=True), 0.0][:2]
        paths: float = (self.config.iterations - self.iterations) * 2 * self.config.children
        if self.config.steps is not None:
            paths = min(paths, self.config.steps - self.costs.steps)
        if self.config.modes == COLLABORATIVE:
            paths = min(paths, self._llm_tokens_left())  # a step takes a token at least
        return first - second > max(paths, 0) * highest

    # ------------------------------------------------------------ expansion

    def _modes(self, leaf: Node) -> list[str]:
        """Who is to write the children of `leaf`."""
        count = self.config.children
        if self.config.modes == "both":
            return [PRIVATE, COLLABORATIVE] * count
        if self.config.modes == "random":
            return [
                (PRIVATE, COLLABORATIVE)[self._seed(leaf, "mode", number) % 2]
                for number in range(leaf.asked, leaf.asked + 2 * count)
            ]
        return [self.config.modes] * (2 * count)

    def _plan(self, leaves: list[Node]) -> list[tuple[Node, str, StepAsk]]:
        """The children of `leaves` to be written: (leaf, mode, ask), as many as fit the budgets
        whatever length they come to have.

        Under an LLM-token budget a round has as many LLM steps as would fit if each were twice as
        long as the longest so far, and each may take an equal share of what is left [O]. A leaf
        whose LLM steps do not fit waits for the next round, unless it is the first:
        then it gets fewer (with modes "random" and nothing left, private ones). Leaves without room
        in the context stay closed.
        """
        config = self.config
        tokens, steps = (
            self._llm_tokens_left(),
            (math.inf if config.steps is None else config.steps - self.costs.steps),
        )
        likely = min(config.step_tokens, 2 * self.longest or config.step_tokens)
        # LLM steps of this round
        paying = tokens if tokens in (0, math.inf) else max(1, tokens // likely)
        chosen: list[tuple[Node, str, int, str]] = []
        for leaf in leaves:
            prompt = self._prompt(leaf)
            if self.room(prompt) < config.step_tokens:
                continue
            modes = (
                [PRIVATE] * (2 * config.children)
                if config.modes == "random" and tokens < 1
                else self._modes(leaf)
            )
            if steps < 1 or (chosen and modes.count(COLLABORATIVE) > paying > 0):
                self.tree.reopen(leaf)
                continue
            for number, mode in enumerate(modes, start=leaf.asked):
                if steps >= 1 and (mode == PRIVATE or paying >= 1):
                    steps, paying = steps - 1, paying - (mode == COLLABORATIVE)
                    chosen.append((leaf, mode, number, prompt))
            leaf.asked += len(modes)
            self.iterations += 1
        paid = sum(mode == COLLABORATIVE for _, mode, _, _ in chosen)
        most = {
            PRIVATE: config.step_tokens,
            COLLABORATIVE: int(min(config.step_tokens, tokens if not paid else tokens / paid)),
        }
        return [
            (
                leaf,
                mode,
                StepAsk(
                    prompt,
                    self._seed(leaf, mode, number),
                    most[mode],
                    config.temperature,
                    config.top_p,
                ),
            )
            for leaf, mode, number, prompt in chosen
        ]

    def _grow(self, planned: Sequence[tuple[Node, str, StepAsk]], steps: Sequence[Step]) -> Part:
        """Adds the written steps to the tree, asks for their rewards and sends these up to the
        root.

        Not added, but paid: failed and empty steps, steps that the LLM's budget cut short, and a
        text that the leaf already has.
        """
        new: list[Node] = []
        short: dict[int, Node] = {}
        for (leaf, mode, ask), step in zip(planned, steps, strict=True):
            self.costs.add(step)
            self.longest = max(self.longest, step.llm_tokens)
            cut = step.end == "length" and ask.max_tokens < self.config.step_tokens
            if step.end == "error" or cut or not (step.text or (step.ended and leaf.depth)):
                self.costs.dropped += 1
                short |= {leaf.number: leaf} if cut else {}
                continue
            finished = step.ended or self.form.final(step.text)
            twins = [self.tree.nodes[child] for child in leaf.children]
            if any((twin.text, twin.finished) == (step.text, finished) for twin in twins):
                continue
            new.append(
                self.tree.add(
                    leaf, step.text, PRIVATE if step.degraded else mode, finished, step.degraded
                )
            )
        for leaf in short.values():
            if not leaf.children:
                self.tree.reopen(leaf)  # it may have luck with what is left
        scored = [node for node in new if node.text]
        rewards = yield Score([(self.question, self._texts(node)) for node in scored])
        found = {
            node.number: self.costs.reward(value)
            for node, value in zip(scored, rewards, strict=True)
        }
        for node in new:
            above = self.tree.nodes[node.parent or 0]
            # an end without a text is worth what it ends
            self.tree.settle(node, found.get(node.number, above.reward))
            if node.finished:
                node.answer = self.form.answer(joined(self._texts(node)))
                node.key = None if node.answer is None else self.form.key(node.answer)

    def _complete(self) -> Part:
        """No path is finished: the best open one goes on, greedily and step by step, in the private
        mode, which costs no LLM token [O].

        (With modes "collaborative" in that mode, as far as its budget goes.)
        """
        mode = COLLABORATIVE if self.config.modes == COLLABORATIVE else PRIVATE
        leaves = self.tree.open_leaves()
        leaf = max(leaves, key=lambda node: (self.tree.score(node), node.depth)) if leaves else None
        while leaf and leaf.open and not self._spent(mode):
            self.tree.close(leaf)
            most = (
                self.config.step_tokens
                if mode == PRIVATE
                else int(min(self.config.step_tokens, self._llm_tokens_left()))
            )
            prompt = self._prompt(leaf)
            if self.room(prompt) < self.config.step_tokens:
                break
            before = len(self.tree.nodes)
            ask = StepAsk(prompt, self._seed(leaf, "complete"), most, 0.0)
            steps = yield Write([(mode, ask)])
            yield from self._grow([(leaf, mode, ask)], steps)
            leaf = self.tree.nodes[-1] if len(self.tree.nodes) > before else None

    def _seed(self, leaf: Node, *names: str | int) -> int:
        """A seed for what happens at a node: nodes are numbered in the order of their making, which
        one seed fixes."""
        return derive(self.seed, "search", leaf.number, *names)

    def _texts(self, node: Node) -> tuple[str, ...]:
        return tuple(step.text for step in self.tree.steps(node))

    def _prompt(self, node: Node) -> str:
        return self.form.prompt(self.question, self._texts(node))

    # ------------------------------------------------------------ the answer

    def _finished(self) -> list[Node]:
        return [node for node in self.tree.nodes if node.finished]

    def _votes(self) -> dict[Hashable, float]:
        votes: dict[Hashable, float] = defaultdict(float)
        for node in self._finished():
            if node.answer is not None:
                votes[node.key] += self.tree.score(node)
        return votes

    def _chosen(self) -> Node | None:
        """The end of the path that answers: of the winning answer when voting, finished before
        open, the earlier of equals."""
        ends = [node for node in self.tree.nodes[1:] if not node.children]
        votes = self._votes()
        if self.config.answer == "vote" and votes:
            winner = max(votes, key=votes.__getitem__)
            ends = [
                node
                for node in ends
                if node.finished and node.answer is not None and node.key == winner
            ]
        return max(
            ends,
            key=lambda node: (node.answer is not None, node.finished, self.tree.score(node)),
            default=None,
        )

    def _solution(self, stopped: str) -> Solution:
        end = self._chosen()
        steps = self.tree.steps(end) if end else []
        return Solution(
            self.question,
            joined(step.text for step in steps),
            end.answer if end else None,
            self.tree.score(end) if end else 0.0,
            bool(end and end.finished),
            tuple(SolvedStep(step.text, step.mode, step.reward, step.degraded) for step in steps),
            self.costs,
            self.elapsed(),
            stopped,
            tuple(self.tree.rows()),
        )
