"""Train a causal LM on text from scratch or further, within a budget, resumable, always
exportable."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from fedduet.lm.pretraining.blocks import IGNORED, Blocks, encode_documents, epoch_blocks, pack
from fedduet.lm.pretraining.config import (
    WEIGHTS,
    PretrainConfig,
    budget_fraction,
    contrast_weight,
    fingerprint,
    learning_rate,
)
from fedduet.lm.pretraining.contrast import contrast_batches, contrast_items, contrast_loss
from fedduet.lm.pretraining.corpus import Corpus, Document, read_corpus
from fedduet.lm.pretraining.export import (
    Measurement,
    Position,
    load_checkpoint,
    model_card,
    point_latest,
    save_checkpoint,
    write_folder,
)
from fedduet.lm.pretraining.probe import probe_accuracy, probe_items
from fedduet.lm.pretraining.start import load_model, load_tokenizer
from torch.nn import functional


@dataclass(frozen=True)
class PretrainStep:
    """What a progress callback gets after every step; `measured` only when this step was evaluated.

    `label_loss`: cross-entropy of the labels (nats) of the last step on the label contrast; `loss`
    never holds it.
    """

    position: Position
    fraction: float
    loss: float
    learning_rate: float
    tokens_per_second: float
    measured: Measurement | None = None
    label_loss: float | None = None


@dataclass(frozen=True)
class PretrainResult:
    """The finished folder, totals over all runs that it took, and every evaluation in order."""

    folder: Path
    position: Position
    measurements: tuple[Measurement, ...] = field(default=())

    @property
    def held_out_loss(self) -> float | None:
        return self.measurements[-1].held_out_loss if self.measurements else None


def split_documents(
    documents: Sequence[Document], count: int, seed: int
) -> tuple[list[Document], list[Document]]:
    """(trained on, held out): `count` of the documents that may be held out, at most a tenth of
    all, by the seed."""
    allowed = [index for index, document in enumerate(documents) if document.may_hold_out]
    count = min(count, len(documents) // 10, len(allowed))
    drawn = np.random.default_rng([seed, 0]).permutation(len(allowed))[:count]
    held = {allowed[index] for index in drawn}
    return (
        [document for index, document in enumerate(documents) if index not in held],
        [documents[allowed[index]] for index in drawn],
    )


def pick_device(name: str) -> torch.device:
    return torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    )


def autocast(precision: str, device: torch.device):
    """bf16 autocast when asked for, or under `auto` where it is faster: CUDA, and CPUs with bf16
    products."""
    if precision == "auto":
        fast = (
            device.type == "cuda"
            or torch.cpu._is_avx512_bf16_supported()
            or torch.cpu._is_amx_tile_supported()
        )
        precision = "bf16" if fast else "fp32"
    return (
        torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    )


def token_loss(
    model, ids: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Cross-entropy (nats) of every next token; ids and labels [batch, length], labels not shifted,
    -100 left out."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction=reduction,
    )


@torch.inference_mode()
def held_out_loss(model, blocks: Blocks, batch: int, device: torch.device) -> float:
    """Mean loss per predicted token over all blocks, nats."""
    total, tokens = 0.0, 0
    for start in range(0, len(blocks.ids), batch):
        ids, labels = blocks.batch(range(start, min(start + batch, len(blocks.ids))), device)
        total += float(token_loss(model, ids, labels, "sum"))
        tokens += int((labels[:, 1:] != IGNORED).sum())
    return total / tokens


def optimizer_for(model: torch.nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW (betas .9, .95); weight decay on matrices only, not on norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def pretrain(
    config: PretrainConfig, progress: Callable[[PretrainStep], None] | None = None
) -> PretrainResult:
    """Train until the budget is used up and return the finished folder, `out/final`.

    `out/checkpoint` holds the state to go on from, `out/latest` links to the newest weights as a
    plain folder. Called again with the same text and settings it goes on where it stopped, and
    returns at once when nothing is left to do (a larger budget goes on from a finished run). A
    KeyboardInterrupt between two steps, for one from `progress`, is checkpointed and passed on; in
    the middle of a step the last checkpoint stays.

    Raises:
        ValueError: the text is empty, or `out` belongs to a run with other text or other settings.
    """
    corpus = _corpus(config)
    trained, held = split_documents(corpus.documents, config.held_out, config.seed)
    if not trained:
        raise ValueError("pretrain: there is not one document to train on")
    return _Training(config, corpus, trained, held, progress).run()


def _corpus(config: PretrainConfig) -> Corpus:
    if config.documents:
        return Corpus(tuple(Document(text) for text in config.documents if text.strip()))
    return read_corpus(config.sources, config.root, config.forbidden)


class _Training:
    """One call of `pretrain`: the loaded model, the encoded text, and where training stands."""

    def __init__(
        self,
        config: PretrainConfig,
        corpus: Corpus,
        trained: Sequence[Document],
        held: Sequence[Document],
        progress: Callable[[PretrainStep], None] | None,
    ) -> None:
        self.config, self.corpus, self.progress = config, corpus, progress
        self.checkpoints = config.out / "checkpoint"
        self.identity = fingerprint(config, corpus.documents)
        self.device = pick_device(config.device)
        state = load_checkpoint(self.checkpoints)
        if state and state["fingerprint"] != self.identity:
            raise ValueError(
                f"{config.out}: its checkpoint is of a run with other text or settings, choose"
                " another out"
            )
        kept = str(self.checkpoints / "tokenizer") if state else config.tokenizer
        texts = [document.text for document in trained]
        self.tokenizer = load_tokenizer(
            config.start, kept, texts, config.vocab_size, max(512, config.block)
        )
        self.model = load_model(
            config.start, self.tokenizer, max(512, config.block), config.seed
        ).to(self.device)
        self.optimizer = optimizer_for(self.model, config)
        self.encoded = encode_documents(self.tokenizer, texts)
        self.repeats = [document.repeat for document in trained]
        held_encoded = encode_documents(self.tokenizer, [document.text for document in held])
        self.held = pack(
            held_encoded, config.block, self.tokenizer.pad_token_id, range(len(held_encoded))
        )
        self.held_documents = len(held)
        self.probed = probe_items(config.probe, held) if config.probe else ()
        self.contrasted = (
            contrast_items(trained, self.tokenizer, config.contrast_tokens)
            if config.contrast
            else ()
        )
        if config.contrast and not self.contrasted:
            raise ValueError("pretrain: no document's label is among its source's alternatives")
        self.label_loss, self.contrast_epoch = None, (0, -1, 0, [])
        self.position, self.measurements, self.between_steps = Position(), [], True
        if state:
            self._restore(state)
        else:
            torch.manual_seed(config.seed)
            self.tokenizer.save_pretrained(self.checkpoints / "tokenizer")

    def _restore(self, state: Mapping) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.position = Position(**state["position"])
        self.measurements = [Measurement(**entry) for entry in state["measurements"]]

    def run(self) -> PretrainResult:
        final = self.config.out / "final"
        if budget_fraction(self.config, self.position) >= 1 and final.is_dir():
            return PretrainResult(final, self.position, tuple(self.measurements))
        try:
            if not self.measurements:
                self._report(float("nan"), 0.0, self._measure())
            self._train()
        except KeyboardInterrupt:
            if self.between_steps:
                self._checkpoint()
            raise
        self._checkpoint(final=final)
        return PretrainResult(final, self.position, tuple(self.measurements))

    def _train(self) -> None:
        config, pad = self.config, self.tokenizer.pad_token_id
        base, began = self.position.seconds, time.monotonic()
        checkpointed = evaluated = began
        while budget_fraction(config, self.position) < 1:
            blocks = epoch_blocks(
                self.encoded, self.repeats, config.block, pad, config.seed, self.position.epoch
            )
            while (
                self.position.block < len(blocks.ids) and budget_fraction(config, self.position) < 1
            ):
                self.between_steps, before = False, time.monotonic()
                loss, tokens = self._step(blocks)
                now = time.monotonic()
                self.position = replace(self.position, seconds=base + now - began)
                self.between_steps, measured = True, None
                done = budget_fraction(config, self.position) >= 1
                if done or now - evaluated >= 60 * config.evaluate_minutes:
                    measured = self._measure()
                    evaluated = time.monotonic()
                if not done and now - checkpointed >= 60 * config.checkpoint_minutes:
                    self._checkpoint()
                    checkpointed = time.monotonic()
                self._report(loss, tokens / (now - before), measured)
            if self.position.block >= len(blocks.ids):
                self.position = replace(self.position, epoch=self.position.epoch + 1, block=0)

    def _step(self, blocks: Blocks) -> tuple[float, int]:
        config, position = self.config, self.position
        rate = learning_rate(config, budget_fraction(config, position))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        turn = position.step % (config.contrast_steps + 1)
        loss, tokens = (
            self._contrast_loss() if self.contrasted and turn else self._packed_loss(blocks)
        )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.position = replace(
            self.position, step=position.step + 1, tokens=position.tokens + tokens
        )
        return loss, tokens

    def _packed_loss(self, blocks: Blocks) -> tuple[float, int]:
        start = self.position.block
        rows = range(start, min(start + self.config.batch, len(blocks.ids)))
        ids, labels = blocks.batch(rows, self.device)
        with autocast(self.config.precision, self.device):
            loss = token_loss(self.model, ids, labels)
        loss.backward()
        self.position = replace(self.position, block=rows.stop)
        return loss.item(), int(blocks.used[rows].sum())

    def _contrast_loss(self) -> tuple[float, int]:
        config, done = self.config, self.position.contrasts
        fraction = budget_fraction(config, self.position)
        longest = 1 if fraction < config.contrast_alone else config.contrast_documents
        chains = [
            [self.contrasted[index] for index in chain]
            for chain in self._contrast_batch(done, longest)
        ]
        with autocast(config.precision, self.device):
            losses = contrast_loss(
                self.model, self.tokenizer, chains, config.contrast_temperature, 512
            )
        (losses.text + contrast_weight(config, fraction) * losses.labels).backward()
        self.position, self.label_loss = (
            replace(self.position, contrasts=done + 1),
            losses.labels.item(),
        )
        return losses.text.item(), losses.tokens

    def _contrast_batch(self, number: int, longest: int) -> list[tuple[int, ...]]:
        """Batch `number`, counted over all epochs, of chains of up to `longest` documents."""
        config = self.config
        made_for, epoch, first, batches = self.contrast_epoch
        if made_for != longest:
            epoch, first, batches = -1, 0, []
        while number >= first + len(batches):  # a resumed run goes through the epochs behind it
            epoch, first = epoch + 1, first + len(batches)
            batches = contrast_batches(
                self.contrasted, config.contrast_batch, config.seed, epoch, longest
            )
        self.contrast_epoch = (longest, epoch, first, batches)
        return batches[number - first]

    def _measure(self) -> Measurement:
        self.model.eval()
        with autocast(self.config.precision, self.device):
            held = (
                held_out_loss(self.model, self.held, self.config.batch, self.device)
                if len(self.held.ids)
                else None
            )
            accuracy = (
                probe_accuracy(self.model, self.tokenizer, self.probed, self.config.block)
                if self.probed
                else None
            )
        position = self.position
        measured = Measurement(position.step, position.tokens, position.seconds, held, accuracy)
        self.measurements.append(measured)
        return measured

    def _report(self, loss: float, speed: float, measured: Measurement | None) -> None:
        if self.progress:
            fraction = budget_fraction(self.config, self.position)
            rate = learning_rate(self.config, fraction)
            self.progress(
                PretrainStep(self.position, fraction, loss, rate, speed, measured, self.label_loss)
            )

    def _checkpoint(self, final: Path | None = None) -> None:
        state = {
            "fingerprint": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "position": asdict(self.position),
            "measurements": [asdict(measurement) for measurement in self.measurements],
        }
        target = final or self.config.out / "exports" / f"step-{self.position.step:08d}"
        write_folder(
            target,
            self.model,
            self.tokenizer,
            self._card(final is not None),
            WEIGHTS[self.config.weights],
        )
        save_checkpoint(self.checkpoints, state)
        point_latest(self.config.out, target)

    def _card(self, finished: bool) -> str:
        skipped = ("documents", "sources", "forbidden", "out", "start", "probe", "root")
        settings = {name: value for name, value in vars(self.config).items() if name not in skipped}
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        documents = (len(self.encoded), self.held_documents)
        return model_card(
            self.config.start,
            parameters,
            settings,
            self.corpus.counts,
            documents,
            self.position,
            self.measurements,
            finished,
        )
