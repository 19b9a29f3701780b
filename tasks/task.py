"""What is learned: the public description of a task, the same at the server and at every site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Record:
    """One text with its label's index; private when it comes from a site's own file."""

    text: str
    label: int
    domain: str = ""  # wording, e.g. "kitchen"
    user: str = ""  # whose it is, where the task has a user column


@dataclass(frozen=True)
class Split:
    """What one site holds. `validation` chooses checkpoints and is never trained on or synthesised
    from; `test` only measures."""

    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    test: tuple[Record, ...]


@dataclass(frozen=True)
class Prompts:
    """Wording of the prompts, in chat and in completion form; `{domain}`, `{label}`, `{labels}`,
    `{n}`, `{text}`, `{noun}` are filled."""

    chat_system: str = ""
    chat_augment: str = ""
    chat_judge: str = ""
    # one labelled document as a base LLM knows it, e.g. "Product: {domain}\nRating:
    # {label}\nReview: {text}"
    completion_document: str = ""


@dataclass(frozen=True)
class Task:
    """A classification task in words. `labels[i]` words the label with index i; `domains` words
    each client's domain."""

    name: str
    labels: tuple[str, ...]
    domains: Mapping[str, str]  # client -> wording of its domain
    # generator's training string starts with this
    control_code: str = "Product: {domain}\nRating: {label}\nReview:"
    separator: str = " "  # between control code and text
    noun: str = "review"  # what one text is, for prompts
    prompts: Prompts = field(default_factory=Prompts)
    kind: str = "classification"
    about: str = ""  # what the texts are, e.g. "questions that customers ask {domain}"
    meanings: tuple[str, ...] = ()  # what a label stands for, in a sentence; empty: its wording

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(self.domains)

    def control(self, domain: str, label: int) -> str:
        """The control code of a (domain wording, label index), separator included."""
        return (
            self.control_code.format(
                domain=domain, label=self.labels[label], meaning=self.meaning(label)
            )
            + self.separator
        )

    def meaning(self, label: int) -> str:
        """What the label with this index stands for: its sentence, or else its wording."""
        return self.meanings[label] if self.meanings else self.labels[label]

    def described(self, domain: str) -> str:
        """What the texts of a domain are: `about`, or neutral words."""
        return (self.about or f"{self.noun}s about {{domain}}").replace("{domain}", domain)
