"""The task section of the configuration: where texts come from, who holds which, how labels and
domains are worded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from fedduet.conf.check import Section
from fedduet.tasks.labels import raw_value, wordings
from pydantic import Field, field_validator, model_validator

CHAT_SYSTEM = "You write realistic {noun}s that serve as training data for a text classifier."
CHAT_AUGMENT = """Domain: {domain}
Labels, in order: {labels}

Examples, one per line as `label: text`:
{examples}

Write {n} new {noun}s about {domain} whose label is {label}. Vary topic, wording and length as the examples do. \
Do not copy the examples or one another.
Answer with exactly {n} lines and nothing else. Each line is one {noun} in the form
{label}: text"""
CHAT_JUDGE = """Domain: {domain}
Labels, in order: {labels}

Numbered {noun}s, each with the label it should have:
{members}

Keep every {noun} that is understandable, is about {domain}, carries its label, and is not nearly the same as one \
before it.
Answer with the numbers to keep as a JSON list, for example [0, 2], or [] for none. Write nothing else."""

PLACEHOLDERS = {
    "control_code": ({"domain", "label", "meaning"}, {"label"}),  # allowed, required
    "about": ({"domain"}, set()),
    "domain": ({"client"}, set()),
    "prompts.chat_system": ({"domain", "labels", "noun", "n"}, set()),
    "prompts.chat_augment": (
        {"domain", "label", "labels", "meaning", "n", "noun", "examples"},
        {"label", "n", "examples"},
    ),
    "prompts.chat_judge": ({"domain", "labels", "noun", "members"}, {"members"}),
    "prompts.completion_document": (
        {"domain", "label", "meaning", "noun", "text"},
        {"label", "text"},
    ),
}


def check_placeholders(key: str, template: str) -> str:
    """`template` unchanged. Raises ValueError when it names an unknown `{placeholder}` or lacks one
    it needs."""
    allowed, required = PLACEHOLDERS[key]
    found = set(re.findall(r"\{([A-Za-z_]+)\}", template))
    if unknown := sorted(found - allowed):
        raise ValueError(f"found the placeholder {{{unknown[0]}}}; allowed: {_braced(allowed)}")
    if missing := sorted(required - found):
        raise ValueError(f"found {template!r}; it needs {_braced(set(missing))}")
    return template


def _braced(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names)) or "none"


Metric = Literal["accuracy", "macro_f1", "auroc"]  # that reports and sweeps compare by


class PromptsConfig(Section):
    """Wording of the prompts [our choice]. The placeholders named in `PLACEHOLDERS` are filled in;
    other braces stay."""

    chat_system: str = CHAT_SYSTEM
    """The system turn."""
    chat_augment: str = CHAT_AUGMENT
    """Asks for new texts after examples."""
    chat_judge: str = CHAT_JUDGE
    """Asks which of numbered texts to keep."""
    completion_document: str | None = None
    """null: control_code + separator + {text}."""

    @field_validator("chat_system", "chat_augment", "chat_judge", "completion_document")
    @classmethod
    def _known_placeholders(cls, template: str | None, info: Any) -> str | None:
        if template is not None:
            check_placeholders(f"prompts.{info.field_name}", template)
            if info.field_name == "completion_document" and not template.endswith("{text}"):
                raise ValueError(
                    f"found {template!r}; it must end in {{text}}, so that it can be left open for"
                    " a model"
                )
        return template


class TaskConfig(Section):
    """One classification task. Paths are relative to `root`, and `root` to the current working
    directory."""

    name: str = Field(min_length=1)
    """How reports name it."""
    kind: Literal["classification"] = "classification"
    """Labelled texts."""
    source: Literal["world", "files", "hub"] = "files"
    """The built-in world, files, or the hub."""

    root: str | None = None
    """Folder that path and test_path are relative to; null is the current working directory."""
    path: str | dict[str, str] | None = None
    """A file; a folder with one file per client; or client -> file."""
    test_path: str | dict[str, str] | None = None
    """Likewise; one file without client_column serves all clients."""
    dataset: str | None = None
    """hub: the first argument of datasets.load_dataset, also a local folder."""
    subset: str | None = None
    """hub: the data set's configuration."""
    train_split: str = "train"
    """hub: whose rows are dealt to the clients."""
    test_split: str | None = None
    """hub: the split for tests; null: test_fraction of each client's rows."""

    text_column: str = "text"
    """The column of texts."""
    label_column: str = "label"
    """The column of labels."""
    client_column: str | None = None
    """The column that says which client's row it is."""
    user_column: str | None = None
    """Whose row it is, where users are the unit of privacy (privacy.policy.unit)."""
    clients: int | tuple[str, ...] | dict[str, str] | None = None
    """null: every client found in the data."""
    domain: str | None = None
    """Wording of every client's domain, in which {client} is the bare name; null: the client's
    name, _ as space."""
    partition: Literal["column", "files", "iid", "dirichlet"] | None = None
    """null: told from the others."""
    dirichlet_alpha: float = Field(default=0.5, gt=0)
    """Of partition=dirichlet: the smaller, the more the label shares of clients differ."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Raw value -> wording."""

    metric: Metric = "accuracy"
    """Others of simulations alone; auroc: of two labels."""

    rows_per_client: int | None = Field(default=None, ge=1)
    """Training rows, stratified by label; null: all."""
    validation_rows: int | None = Field(default=None, ge=0)
    """null: ceil(rows_per_client / 4) [our choice]."""
    test_rows: int | None = Field(default=None, ge=1)
    """null: the whole test split."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Of a client's rows, where there is no test file or split."""
    max_chars: int = Field(default=20_000, ge=1)
    """Longer texts are cut at a word boundary."""
    on_bad_row: Literal["fail", "drop"] = "fail"
    """A row without a text, with an unknown label, or broken: ends the reading, or is left
    out."""

    public_clients: tuple[str, ...] = ()
    """Labelled text of no site (tasks/data/public.py): names of the data that are no clients,
    or a file; and a file of other such rows, on which settings may be chosen (null: a fifth
    of these)."""
    public_path: str | None = None
    """Rows of no site, on which settings may be chosen."""
    validation_path: str | None = None
    """A file of validation rows; null: they are taken from the training rows."""

    about: str | None = None
    """What the texts are, e.g. "questions that customers ask a bank": every prompt says it."""
    meanings: dict[str, str] = Field(default_factory=dict)
    """What each label stands for, in a sentence: raw value or wording -> meaning."""
    control_code: str | None = None
    """What a generator's training string starts with; null: made of `about`, label and
    meaning."""
    separator: str = " "
    """Between control code and text."""
    noun: str = "text"
    """What one text is called."""
    prompts: PromptsConfig = Field(default_factory=PromptsConfig)
    """Wording of the prompts."""

    @field_validator("name", "train_split", "text_column", "label_column", mode="before")
    @classmethod
    def _name_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("path", "test_path", mode="before")
    @classmethod
    def _one_path_or_many(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if (
            isinstance(value, Mapping)
            and value
            and all(isinstance(file, str) for file in value.values())
        ):
            return {str(client): file for client, file in value.items()}
        raise ValueError(
            f"found {value!r}; allowed: a file, a folder, or a mapping from client to file"
        )

    @field_validator("clients", mode="before")
    @classmethod
    def _names_or_number(cls, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        names = (
            [raw_value(name) for name in value] if isinstance(value, (Mapping, list, tuple)) else []
        )
        if not names or not all(names):
            raise ValueError(
                f"found {value!r}; allowed: a list of names, a mapping from name to domain, or a"
                " number >= 1"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"found {value!r}; a name stands there twice")
        if isinstance(value, Mapping):
            return {raw_value(name): str(wording) for name, wording in value.items()}
        return tuple(names)

    @field_validator("labels", mode="before")
    @classmethod
    def _raw_to_wording(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, (list, tuple)):  # the raw values are the wordings
            value = {wording: wording for wording in value}
        if not isinstance(value, Mapping):
            raise ValueError(
                f"found {value!r}; allowed: a mapping from raw value to wording, such as {{0:"
                " negative, 1: positive}"
            )
        labels: dict[str, str] = {}
        for raw, wording in value.items():
            raw, wording = raw_value(raw), raw_value(wording)
            if not wording or "\n" in wording:
                raise ValueError(
                    f"found {wording!r} as the wording of {raw!r}; allowed: words on one line"
                )
            if labels.get(raw, wording) != wording:
                raise ValueError(f"found {raw!r} twice, worded {labels[raw]!r} and {wording!r}")
            labels[raw] = wording
        folded = [wording.casefold() for wording in wordings(labels)]
        if len(set(folded)) < len(folded):
            raise ValueError(
                f"found {', '.join(wordings(labels))}; wordings must differ in more than their case"
            )
        return labels

    @field_validator("control_code", "domain", "about")
    @classmethod
    def _known_placeholders(cls, template: str | None, info: Any) -> str | None:
        if template is None:
            return None
        check_placeholders(info.field_name, template)
        if info.field_name == "control_code":
            try:  # Task.control fills it with str.format
                template.format(domain="", label="", meaning="")
            except (ValueError, KeyError, IndexError) as failure:
                raise ValueError(
                    f"found {template!r}; a brace other than {{domain}} and {{label}} is written"
                    f" double ({failure})"
                ) from None
        return template

    @field_validator("meanings", mode="before")
    @classmethod
    def _sentences(cls, value: Any) -> Any:
        given = value or {}
        if not isinstance(given, Mapping):
            raise ValueError(f"found {value!r}; allowed: a mapping from label to a sentence")
        sentences = {raw_value(label): " ".join(str(text).split()) for label, text in given.items()}
        if empty := [label for label, text in sentences.items() if not text]:
            raise ValueError(f"found no words for {empty[0]!r}; allowed: a sentence")
        return sentences

    @model_validator(mode="after")
    def _every_label_has_a_meaning(self) -> TaskConfig:
        found, known = self.meanings_by_wording, wordings(self.labels)
        if found and set(found) != set(known):
            wrong = sorted(set(found) ^ set(known))
            raise ValueError(
                f"meanings: found {', '.join(found)}; allowed: one for each of the labels"
                f" {', '.join(known)} ({wrong[0]} is only in one of them)"
            )
        return self

    @property
    def meanings_by_wording(self) -> dict[str, str]:
        """The meanings under the wordings of their labels; empty when none are given."""
        words = {raw_value(raw): wording for raw, wording in self.labels.items()}
        return {words.get(label, label): text for label, text in self.meanings.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> TaskConfig:
        if self.metric == "auroc" and len(wordings(self.labels)) not in (0, 2):
            raise ValueError(
                f"metric: found 'auroc' with {len(wordings(self.labels))} labels; allowed: accuracy,"
                " macro_f1, or two labels"
            )
        if self.source == "world":
            if self.public_clients or self.public_path or self.validation_path:
                raise ValueError(
                    "public_clients, public_path, validation_path: the built-in world brings public"
                    " text of its own; allowed: none of them"
                )
            if self.user_column:
                raise ValueError(
                    f"user_column: found {self.user_column!r}; the built-in world's reviews have no"
                    " writers; allowed: null"
                )
            if self.partition not in (None, "column"):
                raise ValueError(
                    f"partition: found {self.partition!r}; allowed with source=world: null (one"
                    " domain per client)"
                )
            if set(wordings(self.labels)) - {"negative", "positive"}:
                raise ValueError(
                    f"labels: found {self.labels}; the built-in world has negative and positive"
                )
            return self
        if len(wordings(self.labels)) < 2:
            raise ValueError(
                f"labels: found {self.labels}; needed: at least two, such as {{0: negative, 1:"
                " positive}"
            )
        if self.rows_per_client is not None and self.rows_per_client < len(wordings(self.labels)):
            raise ValueError(
                f"rows_per_client: found {self.rows_per_client}; allowed: at least one a label,"
                f" {len(wordings(self.labels))}"
            )
        if self.source == "files" and self.path is None:
            raise ValueError(
                "path: missing with source=files; give a file, a folder, or a mapping from client"
                " to file"
            )
        if self.source == "hub" and self.dataset is None:
            raise ValueError(
                "dataset: missing with source=hub; give a data set's name or a local folder"
            )
        if self.source == "hub" and self.partition == "files":
            raise ValueError(
                "partition: found 'files' with source=hub; allowed: column, iid, dirichlet"
            )
        if self.partition == "column" and self.client_column is None:
            raise ValueError("client_column: missing with partition=column")
        if self.public_clients and self.partition in ("iid", "dirichlet"):
            raise ValueError(
                f"public_clients: found {', '.join(self.public_clients)} with partition="
                f"{self.partition}, where names stand for no rows; allowed: public_path"
            )
        if self.partition in ("iid", "dirichlet"):
            if self.client_column is not None:
                raise ValueError(
                    f"client_column: found {self.client_column!r} with partition={self.partition},"
                    " which deals rows out whoever's they are; allowed: null, or partition=column"
                    " (and clients=null for all of the column)"
                )
            if self.clients is None:
                raise ValueError(
                    f"clients: missing with partition={self.partition}; give their number or names"
                )
            if not isinstance(self.path, str) and self.source == "files":
                raise ValueError(
                    f"path: found one file per client with partition={self.partition}; allowed: one"
                    " file"
                )
        if isinstance(self.clients, int) and self.partition in ("column", "files"):
            raise ValueError(
                f"clients: found the number {self.clients} with partition={self.partition};"
                " allowed: names or null"
            )
        return self
