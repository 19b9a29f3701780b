"""`fedduet pretrain`: train a causal LM on text files, from scratch or from a folder, and go on
where it stopped."""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
import yaml
from fedduet.lm.pretraining.config import PretrainConfig
from fedduet.lm.pretraining.corpus import source_from_mapping, source_from_text
from fedduet.lm.pretraining.pretrain import PretrainStep, pretrain
from fedduet.lm.pretraining.probe import Probe
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

FILE_KEYS = {item.name for item in fields(PretrainConfig)} - {"documents", "out", "command"}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="fedduet pretrain", description=__doc__)
    made.add_argument(
        "--config",
        type=Path,
        help="YAML file with any of the settings below; arguments win over it",
    )
    made.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoint/, latest and final/"
    )
    made.add_argument(
        "--from",
        dest="start",
        help="folder with weights, config.json, or a size (tiny 2m 5m 12m 30m)",
    )
    made.add_argument(
        "--data",
        action="append",
        help="path=FILE,template=...,map.label.0=negative,... (repeatable, replaces sources)",
    )
    made.add_argument("--root", type=Path, help="folder that the paths of the sources start in")
    made.add_argument(
        "--tokenizer", help="folder of a tokenizer; without it and without weights one is trained"
    )
    made.add_argument("--vocab-size", type=int, help="size of a trained tokenizer")
    made.add_argument("--block", type=int, help="tokens in a block")
    made.add_argument("--batch", type=int, help="blocks in a step")
    made.add_argument("--learning-rate", type=float, help="peak learning rate")
    made.add_argument("--contrast", type=float, help="weight of the label contrast, 0: off")
    made.add_argument("--minutes", type=float, help="budget of wall time")
    made.add_argument("--tokens", type=int, help="budget of tokens")
    made.add_argument("--checkpoint-minutes", type=float)
    made.add_argument("--evaluate-minutes", type=float)
    made.add_argument("--held-out", type=int, help="documents that only measure the loss")
    made.add_argument("--precision", choices=("auto", "bf16", "fp32"))
    made.add_argument("--device", help="auto, cpu, cuda, cuda:0")
    made.add_argument(
        "--weights", choices=("float32", "float16", "bfloat16"), help="type of the exported weights"
    )
    made.add_argument("--seed", type=int)
    made.add_argument(
        "--no-probe", action="store_true", help="leave out the probe of the config file"
    )
    return made


def config_from(arguments: argparse.Namespace, command: str = "") -> PretrainConfig:
    """The config file's settings with the given arguments on top; every key is checked before
    anything is loaded."""
    settings = _read_yaml(arguments.config) if arguments.config else {}
    where = str(arguments.config)
    for key in ("sources", "forbidden"):
        entries = settings.get(key, [])
        settings[key] = tuple(
            source_from_mapping(e, f"{where}: {key}[{i}]") for i, e in enumerate(entries)
        )
    if settings.get("probe") is not None:
        try:
            settings["probe"] = Probe(**settings["probe"])
        except TypeError as error:
            raise ValueError(f"{where}: probe: {error}") from None
    given = vars(arguments)
    settings |= {name: given[name] for name in FILE_KEYS & set(given) if given[name] is not None}
    if arguments.data:
        settings["sources"] = tuple(source_from_text(spec) for spec in arguments.data)
    if arguments.no_probe:
        settings["probe"] = None
    settings["root"] = Path(settings.get("root", "."))
    return PretrainConfig(out=arguments.out, command=command, **settings)


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"--config: {path} is not a file")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path}: holds {type(settings).__name__}, allowed is a mapping")
    unknown = sorted(set(settings) - FILE_KEYS)
    if unknown:
        raise ValueError(
            f"{path}: unknown key {unknown[0]!r}, allowed are {', '.join(sorted(FILE_KEYS))}"
        )
    return dict(settings)


class Display:
    """Shows training (a bar on a terminal, else a line every `every` seconds) and ends it on a
    signal."""

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every, self.last, self.loss, self.speed = (
            console,
            every,
            -1e9,
            None,
            None,
        )
        self.labels: float | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console) if console.is_terminal else None
        self.task = self.bar.add_task("pretrain", total=1.0) if self.bar else None
        self.began: tuple[float, float] | None = None
        self.stopping = False

    def stop_after_step(self, number: int, frame: object) -> None:
        """Signal handler: the first signal ends training after the running step, a second one at
        once."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True

    def __call__(self, step: PretrainStep) -> None:
        if step.position.step:
            self.loss = step.loss if self.loss is None else 0.95 * self.loss + 0.05 * step.loss
            if step.label_loss is not None:
                self.labels = (
                    step.label_loss
                    if self.labels is None
                    else 0.98 * self.labels + 0.02 * step.label_loss
                )
            speed = step.tokens_per_second
            self.speed = speed if self.speed is None else 0.95 * self.speed + 0.05 * speed
        now = time.monotonic()
        self.began = self.began or (now, step.fraction)
        line = self.line(step, now)
        if self.bar:
            self.bar.update(self.task, completed=step.fraction, description=line)
        if step.measured:
            self.console.print(self.measured(step), highlight=False, soft_wrap=True)
        elif not self.bar and now - self.last >= self.every:
            self.last = now
            self.console.print(line, highlight=False, soft_wrap=True)
        if self.stopping:
            raise KeyboardInterrupt

    def line(self, step: PretrainStep, now: float) -> str:
        gone, advanced = now - self.began[0], step.fraction - self.began[1]
        left = f"{gone * (1 - step.fraction) / advanced / 60:.1f} min left" if advanced > 0 else ""
        labels = "" if self.labels is None else f"labels {self.labels:.3f}  "
        return (
            f"step {step.position.step} {step.fraction:6.1%}  {step.position.tokens / 1e6:.2f} M"
            f" tokens  {self.speed or 0:.0f} tokens/s  loss"
            f" {self.loss if self.loss is not None else float('nan'):.3f}  {labels}lr"
            f" {step.learning_rate:.2e}  {left}"
        )

    @staticmethod
    def measured(step: PretrainStep) -> str:
        measured = step.measured
        held = "-" if measured.held_out_loss is None else f"{measured.held_out_loss:.4f}"
        probe = (
            ""
            if measured.probe_accuracy is None
            else f"  probe accuracy {measured.probe_accuracy:.3f}"
        )
        return (
            f"evaluation at step {measured.step} ({measured.tokens} tokens): held-out loss"
            f" {held}{probe}"
        )


def main(argv: list[str]) -> int:
    """0: finished. 1: bad input, said in one sentence. 130: interrupted, and the same command goes
    on."""
    console = Console()
    arguments = parser().parse_args(argv)
    try:
        config = config_from(arguments, shlex.join(["fedduet", "pretrain", *argv]))
    except (ValueError, TypeError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    transformers_logging.disable_progress_bar()
    display = Display(console)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, display.stop_after_step)
    if display.bar:
        display.bar.start()
    try:
        result = pretrain(config, display)
    except (ValueError, FileNotFoundError) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from the checkpoint")
        return 130
    finally:
        torch.set_float32_matmul_precision(precision)  # of the whole process, which may go on
        if display.bar:
            display.bar.stop()
    console.print(
        f"{result.folder}: {result.position.tokens} tokens, held-out loss {result.held_out_loss}",
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
