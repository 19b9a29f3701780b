"""The tree of solutions: nodes are finished steps, leaves are chosen by UCT, rewards flow back to
the root."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

PathScore = Literal["last", "min", "mean", "product"]
SCORES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda rewards: rewards[-1],
    "min": min,
    "mean": lambda rewards: sum(rewards) / len(rewards),
    "product": math.prod,
}


def uct(total: float, visits: int, parent_visits: int, exploration: float) -> float:
    """Q + c * sqrt(ln N_parent / N), Q = W / N; infinite when unvisited (METHODS, G-Boost step
    2)."""
    if visits == 0:
        return math.inf
    return total / visits + exploration * math.sqrt(math.log(max(parent_visits, 1)) / visits)


def bound(rewards: Sequence[float], score: PathScore, left: int) -> float:
    """The highest score that a path with these rewards can reach in at most `left` more steps, each
    rewarded at most 1."""
    if not rewards or score == "last":
        return 1.0
    return SCORES["mean"]([*rewards, *[1.0] * left]) if score == "mean" else SCORES[score](rewards)


@dataclass
class Node:
    """A step and its statistics: `visits` N and `total` W of all rewards at and below it. The root
    is the question, without a step."""

    number: int
    parent: int | None
    depth: int
    text: str = ""
    mode: str = ""
    reward: float = 0.0
    degraded: bool = False
    finished: bool = False
    answer: str | None = None
    key: Hashable = None
    visits: int = 0
    total: float = 0.0
    # visits promised to leaves of the round, rewarded 0 until they are known (virtual loss)
    virtual: int = 0
    open: int = 1  # leaves at and below it that can still be chosen
    asked: int = 0  # children that writers were asked for so far
    children: list[int] = field(default_factory=list)


class Tree:
    """Grows by `select`, `add` and `settle`. `exploration`: c of UCT; `max_depth`: steps of a
    path."""

    def __init__(self, exploration: float, score: PathScore, max_depth: int) -> None:
        self.nodes = [Node(0, None, 0)]
        self._exploration, self._score, self._max_depth = exploration, score, max_depth

    def select(self, count: int) -> list[Node]:
        """Up to `count` different leaves, the first by UCT, each further one as if those before had
        been visited and rewarded 0.

        They are closed until `reopen`, and stay so when `add` gives them children. Unvisited
        children come first, then the earliest of equals. Subtrees without an open leaf are passed
        over [O].
        """
        leaves: list[Node] = []
        while len(leaves) < count and self.nodes[0].open:
            node = self.nodes[0]
            while among := [
                child for child in map(self.nodes.__getitem__, node.children) if child.open
            ]:
                seen = node.visits + node.virtual
                node = max(
                    among,
                    key=lambda child: uct(
                        child.total, child.visits + child.virtual, seen, self._exploration
                    ),
                )
            for above in self.path(node):
                above.virtual += 1
            self._count_open(node, -1)
            leaves.append(node)
        return leaves

    def add(
        self, parent: Node, text: str, mode: str, finished: bool, degraded: bool = False
    ) -> Node:
        """A new child; open unless it is finished or at the depth limit."""
        node = Node(
            len(self.nodes),
            parent.number,
            parent.depth + 1,
            text,
            mode,
            degraded=degraded,
            finished=finished,
            open=0,
        )
        self.nodes.append(node)
        parent.children.append(node.number)
        if not finished and node.depth < self._max_depth:
            self._count_open(node, 1)
        return node

    def settle(self, node: Node, reward: float) -> None:
        """The reward of a new node: N += 1 and W += reward there and up to the root."""
        node.reward = reward
        for above in self.path(node):
            above.visits += 1
            above.total += reward

    def end_round(self) -> None:
        """Takes the virtual losses back."""
        for node in self.nodes:
            node.virtual = 0

    def close(self, leaf: Node) -> None:
        """An open leaf can no longer be chosen."""
        self._count_open(leaf, -1)

    def widen(self, best: Node) -> None:
        """The nodes on the path to `best` that writers were asked to continue can be chosen again,
        for more children [O]."""
        for node in self.path(best):
            if node.asked:
                self.reopen(node)

    def reopen(self, leaf: Node) -> None:
        """A node can be chosen again, to get (more) children: after all below it that are open."""
        self._count_open(leaf, 1)

    def path(self, node: Node) -> list[Node]:
        """From the root to `node`."""
        way = [node]
        while way[-1].parent is not None:
            way.append(self.nodes[way[-1].parent])
        return way[::-1]

    def steps(self, node: Node) -> list[Node]:
        """The path's steps; an end without a text is none."""
        return [step for step in self.path(node)[1:] if step.text]

    def score(self, node: Node) -> float:
        """The score of the path to `node`; 0 without steps."""
        rewards = [step.reward for step in self.steps(node)]
        return SCORES[self._score](rewards) if rewards else 0.0

    def open_leaves(self) -> list[Node]:
        """Nodes that can be chosen, in order of their making: leaves, and those that `reopen` made
        leaves again."""
        return [
            node
            for node in self.nodes
            if node.open > sum(self.nodes[child].open for child in node.children)
        ]

    def highest(self) -> float:
        """The highest score that any path through an open leaf can still reach; -inf without
        one."""
        rewards = {
            leaf.number: [step.reward for step in self.steps(leaf)] for leaf in self.open_leaves()
        }
        scores = [
            bound(found, self._score, self._max_depth - self.nodes[number].depth)
            for number, found in rewards.items()
        ]
        return max(scores, default=-math.inf)

    def rows(self) -> list[dict[str, Any]]:
        """The nodes as plain data, for a report."""
        hidden = {"virtual", "open", "key", "asked", "children"}
        return [
            {key: value for key, value in asdict(node).items() if key not in hidden}
            for node in self.nodes
        ]

    def _count_open(self, leaf: Node, change: int) -> None:
        for above in self.path(leaf):
            above.open += change
