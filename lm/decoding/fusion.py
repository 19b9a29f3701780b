"""Several causal LMs write one text: their next-token logits are added with weights, in the one
decode loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fedduet.lm.decoding.llama import affords_copies, is_plain_llama
from fedduet.lm.decoding.stepper import AnyStepper, Stepper, stepper
from peft import PeftModel


class FusedStepper:
    """A `fedduet.lm.decoding.stepper.Stepper` whose logits are the sum of
    `weights[name] * logits of members[name]`.

    Raw logits are added, as Proxy-Tuning does (Liu et al. 2024, eq. 1); log-probabilities would
    differ from them by a number per row, which no softmax sees. `processed` counts the positions
    that each member has computed since the stepper was made, pads not among them: prompts once for
    all rows that share them, then one for each row and step. `vocabulary` cuts all logits to that
    many tokens (models whose embedding is padded); without it all members must have the same
    number, or the first batch raises ValueError.
    """

    def __init__(
        self,
        members: Mapping[str, Stepper],
        weights: Mapping[str, float],
        vocabulary: int | None = None,
    ) -> None:
        if not members or set(members) != set(weights):
            raise ValueError(
                f"found members {sorted(members)} and weights for {sorted(weights)}; each member"
                " needs one weight"
            )
        self._parts = [(name, run, float(weights[name])) for name, run in members.items()]
        self._vocabulary = vocabulary
        self._devices: list[torch.device] = []
        self.compact_at = min(run.compact_at for run in members.values())
        self.processed = dict.fromkeys(members, 0)

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        logits = [run.prefill(ids, mask, room) for _, run, _ in self._parts]
        self._devices = [part.device for part in logits]
        widths = {
            name: part.shape[1] for (name, _, _), part in zip(self._parts, logits, strict=True)
        }
        if self._vocabulary is None and len(set(widths.values())) > 1:
            raise ValueError(
                f"found vocabularies of {widths} tokens; models can be fused only when they share"
                " one vocabulary"
            )
        return self._mix(logits, int(mask.sum()))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        on = zip(self._parts, self._devices, strict=True)
        return self._mix([run.step(tokens.to(device)) for (_, run, _), device in on], len(tokens))

    def keep(self, rows: torch.Tensor) -> None:
        for (_, run, _), device in zip(self._parts, self._devices, strict=True):
            run.keep(rows.to(device))

    def _mix(self, logits: list[torch.Tensor], positions: int) -> torch.Tensor:
        mixed: torch.Tensor | None = None
        for (name, _, weight), part in zip(self._parts, logits, strict=True):
            self.processed[name] += positions
            part = part[:, : self._vocabulary].to(self._devices[0])
            mixed = weight * part if mixed is None else mixed.add_(part, alpha=weight)
        assert mixed is not None
        return mixed


def proxy_tuned(
    llm: Stepper, slm: SLMPair, alpha: float, vocabulary: int | None = None
) -> FusedStepper:
    """z_llm + alpha * (z_tuned - z_base) (METHODS, G-Boost step 1)."""
    members = {"llm": llm, **{name: run for name, (run, _) in slm.difference.items()}}
    return FusedStepper(
        members,
        {"llm": 1.0, **{name: alpha * sign for name, (_, sign) in slm.difference.items()}},
        vocabulary,
    )


def averaged(members: Mapping[str, Stepper], vocabulary: int | None = None) -> FusedStepper:
    """The plain mean of the members' logits: a baseline."""
    return FusedStepper(members, dict.fromkeys(members, 1 / len(members)), vocabulary)


@dataclass(frozen=True)
class SLMPair:
    """The tuned SLM and its untuned base, each alone, and what gives z_tuned - z_base: steppers by
    name, each with its sign."""

    tuned: Stepper
    base: Stepper
    difference: Mapping[str, tuple[Stepper, float]]


def slm_pair(tuned: Any, base: Any = None, dtype: torch.dtype | None = None) -> SLMPair:
    """The pair of `tuned`. Fully tuned: `base` is the untuned model. A PeftModel: its base is
    itself with the adapter off, and `base` is not asked.

    An adapter on a plain Llama small enough to copy runs as two folded models, any other as one
    batch over one set of weights (`AdapterDifference`). On one core, one step takes folded, in one
    batch, and with the adapter switched off and on: 8.2, 11.4 and
    17.1 ms (7 M, 4 rows); 110, 112 and 157 ms (24 M, 16 rows). Raises ValueError for a fully tuned
    model without base.
    """
    if not isinstance(tuned, PeftModel):
        if base is None:
            raise ValueError(
                "a fully tuned SLM needs its untuned base beside it; only an adapter carries its"
                " base with it"
            )
        return _two(stepper(tuned, dtype), stepper(base, dtype))
    if affords_copies(tuned):
        plain = copy.deepcopy(tuned).unload()
        if is_plain_llama(plain):
            return _two(stepper(tuned, dtype), stepper(plain, dtype))
    alone = AnyStepper(tuned.eval(), dtype)
    off = AnyStepper(alone.model)
    off.model = _RowAdapters(alone.model, lambda rows: ["__base__"] * rows)
    return SLMPair(alone, off, {"pair": (AdapterDifference(alone.model), 1.0)})


def _two(tuned: Stepper, base: Stepper) -> SLMPair:
    return SLMPair(tuned, base, {"tuned": (tuned, 1.0), "base": (base, -1.0)})


class AdapterDifference:
    """A `fedduet.lm.decoding.stepper.Stepper` whose logits are those with the adapter less those
    without it, both in one batch over one set of weights."""

    compact_at = AnyStepper.compact_at

    def __init__(self, model: PeftModel) -> None:
        self._run = AnyStepper(model.eval())
        self._run.model = _RowAdapters(
            model, lambda rows: [model.active_adapter] * (rows // 2) + ["__base__"] * (rows // 2)
        )
        self._rows = 0

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        self._rows = len(ids)
        return self._difference(self._run.prefill(ids.repeat(2, 1), mask.repeat(2, 1), room))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._difference(self._run.step(tokens.repeat(2)))

    def keep(self, rows: torch.Tensor) -> None:
        self._run.keep(torch.cat([rows, rows + self._rows]))
        self._rows = len(rows)

    def _difference(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[: self._rows] - logits[self._rows :]


class _RowAdapters:
    """A PeftModel with an adapter of its own for each row, "__base__" for none (peft's mixed
    batches)."""

    def __init__(self, model: PeftModel, names: Callable[[int], list[str]]) -> None:
        self.model, self.names, self.device = model, names, model.device
        # the signature is asked
        self.config, self.forward = model.get_base_model().config, model.get_base_model().forward

    def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        return self.model(input_ids=input_ids, adapter_names=self.names(len(input_ids)), **inputs)


def shared_vocabulary(models: Mapping[str, tuple[Any, Any]]) -> int:
    """The number of tokens that all (model, tokenizer) of `models` share, for `vocabulary` above;
    the names are for the sentence.

    Raises ValueError when any token has another id in another tokenizer, or a model knows fewer
    tokens than its tokenizer.
    """
    (first, (_, tokenizer)), *others = models.items()
    known: dict[str, int] = tokenizer.get_vocab()
    for name, (_, other) in others:
        if odd := sorted(
            known.items() ^ other.get_vocab().items(), key=lambda entry: (entry[1], entry[0])
        ):
            token, number = odd[0]
            raise ValueError(
                f"the {first} and the {name} have different vocabularies ({len(known)} and"
                f" {len(other.get_vocab())} tokens; {token!r} is token {number} in one only), so"
                " their logits cannot be fused; let the LLM write whole steps instead"
            )
    size = max(known.values()) + 1
    for name, (model, _) in models.items():
        if (rows := model.get_input_embeddings().weight.shape[0]) < size:
            raise ValueError(
                f"the {name} knows {rows} tokens and its tokenizer {size}; load it with its"
                " tokenizer (load_causal_lm)"
            )
    return size


def shared_context(models: Iterable[Any]) -> int:
    """Tokens that fit the context of every model (their `max_position_embeddings`)."""
    return min(
        getattr(model.config, "max_position_embeddings", None) or 1_000_000 for model in models
    )
