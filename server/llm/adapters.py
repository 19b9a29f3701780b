"""LoRA adapters of a transformers engine: made, tuned, used, saved and loaded by name, on one base
that never changes."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedduet.lm.decoding.llama import affords_copies
from fedduet.lm.decoding.stepper import AnyStepper, Stepper, stepper
from fedduet.lm.models.batch import Encoded
from fedduet.lm.models.load import add_lora, quiet
from fedduet.lm.training.config import ExamplesConfig, PolicyConfig, TuneReport
from fedduet.lm.training.tune import tune_examples, tune_policy
from fedduet.server.llm.base import Example, Progress, Prompt, Rated
from peft import LoraConfig, PeftModel

Encode = Callable[[Prompt, str, bool], Encoded]  # prompt, what follows, whether it ended


class Adapters:
    """The adapters on `model`, a causal LM. `current` is the model to run: the plain one until
    there is an adapter, then a PeftModel."""

    def __init__(self, model: Any, path: str, pad_id: int, precision: str = "") -> None:
        self.current, self._path, self._pad_id = model, path, pad_id
        self._precision = precision
        self.used: str | None = model.active_adapter if isinstance(model, PeftModel) else None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.current.peft_config) if isinstance(self.current, PeftModel) else ()

    def use(self, name: str | None) -> None:
        """Run with `name` from now on, or (None) as the base. Raises KeyError for an adapter that
        is not there."""
        if name is not None and name not in self.names:
            raise KeyError(
                f"adapter {name!r}: not there; found: {', '.join(self.names) or 'none'}; tune or"
                " load it first"
            )
        self.used = name
        if not isinstance(self.current, PeftModel):
            return
        if name is None:
            self.current.base_model.disable_adapter_layers()
        else:
            self.current.base_model.enable_adapter_layers()
            self.current.set_adapter(name)

    def stepper(self) -> Stepper:
        """For decoding: a plain Llama, with the adapter folded in, where memory allows a copy; else
        the model's own forward."""
        model = self.current
        if not isinstance(model, PeftModel):
            return stepper(model, precision=self._precision)
        inner = model.get_base_model()
        if type(inner).__name__ != "LlamaForCausalLM" or not affords_copies(inner):
            return AnyStepper(model)
        with quiet():
            plain = copy.deepcopy(model)
            plain = (
                plain.merge_and_unload(adapter_names=[self.used]) if self.used else plain.unload()
            )
        return stepper(plain, precision=self._precision)

    def tune_policy(
        self,
        name: str,
        rated: Sequence[Rated],
        keep: Sequence[Encoded],
        encode: Encode,
        config: PolicyConfig,
        seed: int,
        progress: Progress | None,
    ) -> TuneReport:
        """See `fedduet.server.llm.base.Tunes`. Texts of no tokens are left out."""
        rows = [(encode(one.prompt, one.text, one.ended), one) for one in rated]
        rows = [(row, one) for row, one in rows if len(row.ids) > row.context]
        with _Active(self, name, config.rank, config.alpha, seed) as model:
            given = (
                [row for row, _ in rows],
                [one.reward for _, one in rows],
                [one.group for _, one in rows],
            )
            return tune_policy(model, *given, keep, config, self._pad_id, seed, _told(progress))

    def tune_examples(
        self,
        name: str,
        examples: Sequence[Example],
        keep: Sequence[Encoded],
        encode: Encode,
        config: ExamplesConfig,
        seed: int,
        progress: Progress | None,
    ) -> TuneReport:
        """See `fedduet.server.llm.base.Tunes`."""
        rows = [encode(one.prompt, one.answer, False) for one in examples]
        with _Active(self, name, config.rank, config.alpha, seed) as model:
            weights = [one.weight for one in examples]
            return tune_examples(
                model, rows, weights, keep, config, self._pad_id, seed, _told(progress)
            )

    def save(self, name: str, folder: Path) -> None:
        """A folder that `PeftModel.from_pretrained(base, folder)` loads. Raises KeyError for an
        adapter that is not there."""
        if name not in self.names:
            raise KeyError(f"adapter {name!r}: not there; found: {', '.join(self.names) or 'none'}")
        self.current.peft_config[name].base_model_name_or_path = self._path
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work, quiet():
            self.current.save_pretrained(
                work, selected_adapters=[name], save_embedding_layers=False
            )
            shutil.rmtree(folder, ignore_errors=True)
            shutil.move(Path(work) / name, folder)

    def load(self, name: str, folder: Path) -> None:
        """Put the weights of `folder` into `name`, made when it is not there."""
        self.drop(name)
        with quiet():
            if isinstance(self.current, PeftModel):
                self.current.load_adapter(str(folder), adapter_name=name, is_trainable=True)
            else:
                self.current = PeftModel.from_pretrained(
                    self.current, str(folder), adapter_name=name, is_trainable=True
                )
        self.current.eval()
        self.use(self.used)

    def drop(self, name: str) -> None:
        """Forget `name`, if it is there; whoever used it goes on with the base."""
        if name not in self.names:
            return
        if self.used == name:
            self.used = None
        if len(self.names) == 1:
            self.current = self.current.unload()
            return
        other = next(one for one in self.names if one != name)
        self.current.set_adapter(other)
        self.current.delete_adapter(name)
        self.use(self.used)


class _Active:
    """Within: the model with adapter `name` on and trainable, made when it is not there. After:
    what was used before."""

    def __init__(self, adapters: Adapters, name: str, rank: int, alpha: float, seed: int) -> None:
        self._adapters, self._name = adapters, name
        self._made = LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules="all-linear"
        )
        self._seed = seed

    def __enter__(self) -> Any:
        adapters = self._adapters
        if self._name not in adapters.names:
            adapters.current = add_lora(adapters.current, self._made, self._name, self._seed)
        self._before = adapters.used
        adapters.use(self._name)
        return adapters.current

    def __exit__(self, *_: Any) -> None:
        self._adapters.current.eval()
        self._adapters.use(self._before)


def _told(progress: Progress | None) -> Callable[[int, int], None]:
    return (
        (lambda done, total: progress(done, total, 0)) if progress else (lambda done, total: None)
    )
