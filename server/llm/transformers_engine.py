"""The engine for weights on this machine: batched sampling, and log-probabilities of given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fedduet.lm.decoding.decode import Answer, Ask, decode
from fedduet.lm.decoding.sample import end_tokens
from fedduet.lm.decoding.stepper import forward
from fedduet.lm.models.batch import Encoded, by_length, pad, positions
from fedduet.lm.training.config import ExamplesConfig, PolicyConfig, TuneReport
from fedduet.server.llm.adapters import Adapters
from fedduet.server.llm.base import Completion, Example, Progress, Prompt, Rated, Request
from fedduet.server.llm.tokens import decoded, decoded_after, encode, start_tokens

KEPT_TOKENS = 128  # of a text on which tuning shall change nothing [O]
LOGITS_BYTES = 256 * 2**20  # scoring holds at most this much of float32 logits at once [O]


@dataclass(frozen=True)
class _Scored:
    """A row to score: its tokens, how many of them are the continuation's, and (pair, last token)
    of all pairs that share the others."""

    tokens: list[int]
    count: int
    ends: list[tuple[int, int]]


class TransformersLLM:
    """A Hugging Face causal LM that learns by LoRA adapters.

    Each request draws from its own stream, so in float32 its answer does not depend on the other
    requests of the batch; in bf16 and int8 numbers round differently in differently shaped
    batches, so that only the same list of requests gives the same answers.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        form: str,
        context: int,
        batch_tokens: int = 16_384,
        precision: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self._pad_id = (
            tokenizer.pad_token_id
            if tokenizer.pad_token_id is not None
            else tokenizer.eos_token_id or 0
        )
        self._path, self._precision = str(getattr(model, "name_or_path", "") or name), precision
        self.model = model.eval()
        self.name, self.form, self.context, self.batch_tokens = name, form, context, batch_tokens
        self.parameters: int | None = sum(weight.numel() for weight in model.parameters())

    @property
    def model(self) -> Any:
        """The model as it runs: plain, or a PeftModel."""
        return self._adapters.current

    @model.setter
    def model(self, model: Any) -> None:
        self._adapters = Adapters(model, self._path, self._pad_id, self._precision)

    # -- Generation ------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> list[Completion]:
        """One completion for each request, in their order. Requests that cannot run (see
        `_problem`) finish with "error".

        A plain Llama decodes with a copy of its weights, made for this call, an adapter folded in;
        other models with their own forward.
        """
        answers: list[Completion | None] = [None] * len(requests)
        new_tokens = done = 0

        def finish(index: int, completion: Completion) -> None:
            nonlocal new_tokens, done
            answers[index] = completion
            new_tokens, done = new_tokens + completion.new_tokens, done + 1
            if progress:
                progress(done, len(requests), new_tokens)

        asks: dict[int, Ask] = {}
        for index, request in enumerate(requests):
            prompt = self._prompt(request.prompt)
            contrast = [] if request.contrast is None else self._prompt(request.contrast)
            if problem := self._problem(request, prompt, contrast):
                finish(index, Completion("", len(prompt), 0, "error", problem))
            else:
                asks[index] = self._ask(request, tuple(prompt), tuple(contrast))
        if asks:
            order = list(asks)
            decode(
                self._adapters.stepper(),
                list(asks.values()),
                end_tokens(self.model, self.tokenizer),
                batch_size=None,
                batch_tokens=self.batch_tokens,
                done=lambda at, answer: finish(
                    order[at], self._completion(requests[order[at]], asks[order[at]].prompt, answer)
                ),
            )
        return answers  # type: ignore[return-value]

    def _prompt(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens; none for a chat that this model does not take."""
        if self.form == "chat":  # a string is one user turn
            turns = (
                [("user", prompt)]
                if isinstance(prompt, str)
                else [(t.role, t.content) for t in prompt]
            )
            turns = [{"role": role, "content": content} for role, content in turns]
            tokens = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        elif isinstance(prompt, str):
            tokens = encode(self.tokenizer, prompt)
        else:
            return []
        return list(tokens) or start_tokens(self.tokenizer)

    def _problem(self, request: Request, prompt: list[int], contrast: list[int]) -> str:
        """What is wrong with the request ("" if nothing)."""
        if self.form != "chat" and not (
            isinstance(request.prompt, str) and isinstance(request.contrast, str | None)
        ):
            return "the prompt is a chat, but this model takes completion prompts (strings) only"
        if not prompt:
            return "the prompt is empty and the tokenizer has no token to start a text with"
        if request.max_new_tokens < 1:
            return f"max_new_tokens: found {request.max_new_tokens}, allowed: 1 or more"
        if request.temperature < 0 or request.top_k < 0 or not 0 < request.top_p <= 1:
            found = (
                f"temperature {request.temperature}, top_k {request.top_k}, top_p {request.top_p}"
            )
            return f"found {found}; allowed: temperature >= 0, top_k >= 0, 0 < top_p <= 1"
        if request.guidance < 0 or (request.guidance > 0 and not contrast):
            given = "a contrast" if contrast else "no contrast"
            return (
                f"found guidance {request.guidance} and {given}; allowed: guidance >= 0, and 0"
                " without a contrast"
            )
        longest = max(len(prompt), len(contrast))
        if longest + request.max_new_tokens > self.context:
            return (
                f"the prompt has {longest} tokens and max_new_tokens is"
                f" {request.max_new_tokens}, together more than the context of {self.context}"
                " tokens; shorten the prompt or lower max_new_tokens"
            )
        return ""

    def _ask(self, request: Request, prompt: tuple[int, ...], contrast: tuple[int, ...]) -> Ask:
        """The request for the decode loop, which ends it as soon as a stop string is there."""
        stops = [stop for stop in request.stop if stop]
        # tokens have a byte or more, so these few show it first
        span = max((len(stop.encode()) for stop in stops), default=0) + 8

        def stopped(new: list[int]) -> bool:
            tail = decoded(self.tokenizer, [*prompt[-1:], *new][-span:])
            return any(stop in tail for stop in stops) and self._text(request, prompt, new)[1]

        options = (
            request.max_new_tokens,
            request.temperature,
            request.top_k,
            request.top_p,
            request.seed,
        )
        return Ask(prompt, *options, stopped if stops else None, contrast, request.guidance)

    def _text(
        self, request: Request, prompt: tuple[int, ...], new: Sequence[int]
    ) -> tuple[str, bool]:
        """The text of the new tokens up to its first stop string, and whether there was one."""
        text = decoded_after(self.tokenizer, list(prompt[-1:]), list(new))
        cut = min(
            (at for at in (text.find(stop) for stop in request.stop if stop) if at >= 0),
            default=None,
        )
        return text[:cut], cut is not None

    def _completion(self, request: Request, prompt: tuple[int, ...], answer: Answer) -> Completion:
        """What the caller gets; the end token counts as a new token."""
        count = len(answer.tokens) + (answer.finish == "end")
        if answer.error:
            return Completion("", len(prompt), count, "error", answer.error)
        text, cut = self._text(request, prompt, answer.tokens)
        return Completion(
            text, len(prompt), count, "length" if answer.finish == "length" and not cut else "stop"
        )

    # -- Scoring ---------------------------------------------------------------

    @torch.inference_mode()
    def continuation_logprobs(
        self, pairs: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float]:
        """For each (prompt, continuation): sum of log p(token | what precedes) over the
        continuation's tokens, natural log.

        A string prompt and its continuation are tokenised as one text, as in training. The
        continuation begins at the first token that the prompt alone would not have: where a token
        spans the boundary (a prompt that ends with a space, say), it counts as the continuation's.
        After turns it stands where the answer would. An empty continuation scores 0. Continuations
        of one token after the same prompt (labels, say) are scored together. Raises ValueError,
        before anything runs, for a pair longer than the context.
        """
        scores, rows = [0.0] * len(pairs), {}
        for index, (prompt, continuation) in enumerate(pairs):
            whole, start = self._joined(prompt, continuation)
            # nothing precedes the first token: begin the text as the model's training texts began
            if start == 0:
                whole, start = (
                    start_tokens(self.tokenizer) + whole,
                    len(start_tokens(self.tokenizer)),
                )
            if continuation and start == 0:
                raise ValueError(
                    f"pair {index}: the prompt is empty and the tokenizer has no token to start a"
                    " text with"
                )
            if len(whole) > self.context:
                raise ValueError(
                    f"pair {index}: found {len(whole)} tokens, allowed: the context of"
                    f" {self.context} tokens"
                )
            count = len(whole) - start
            if continuation and count:
                shared = tuple(whole[:-1]) if count == 1 else index
                rows.setdefault(shared, _Scored(whole, count, [])).ends.append((index, whole[-1]))
        waiting, done = (
            list(rows.values()),
            len(pairs) - sum(len(row.ends) for row in rows.values()),
        )
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        limit = max(1, LOGITS_BYTES // (4 * vocabulary))
        for numbers in by_length([len(row.tokens) for row in waiting], None, self.batch_tokens):
            part = [waiting[number] for number in numbers]
            for batch in by_length([row.count + 1 for row in part], None, limit):
                self._score([part[number] for number in batch], scores)
                done += sum(len(part[number].ends) for number in batch)
                if progress:
                    progress(done, len(pairs), 0)
        return scores

    def _score(self, batch: list[_Scored], scores: list[float]) -> None:
        """Writes the batch's scores. Left padding puts all continuations at the end, so that only
        their logits are made."""
        keep = max(row.count for row in batch) + 1
        tokens, mask = (
            part.to(self.model.device) for part in pad([row.tokens for row in batch], 0, left=True)
        )
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions(mask),
            "logits_to_keep": keep,
        }
        logits = forward(self.model, **inputs, use_cache=False).logits[:, -keep:-1].float()
        total = torch.logsumexp(logits, dim=-1)
        each = (logits.gather(2, tokens[:, 1 - keep :, None])[:, :, 0] - total).double()
        for place, row in enumerate(batch):
            # all but the last token, in which ends may differ
            before = float(each[place, keep - 1 - row.count : keep - 2].sum())
            last = (
                (logits[place, -1, [token for _, token in row.ends]] - total[place, -1])
                .double()
                .tolist()
            )
            for (index, _), value in zip(row.ends, last, strict=True):
                scores[index] = before + value

    def _joined(self, prompt: Prompt, text: str) -> tuple[list[int], int]:
        """Tokens of prompt and text, and how many of them are the prompt's."""
        if isinstance(prompt, str):
            before, whole = encode(self.tokenizer, prompt), encode(self.tokenizer, prompt + text)
        else:
            before = self._prompt(prompt)
            whole = (
                before + self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            )
        return whole, next(
            (at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
            min(len(before), len(whole)),
        )

    # -- Tuning ----------------------------------------------------------------

    @property
    def adapter(self) -> str | None:
        """The adapter in use."""
        return self._adapters.used

    def use(self, adapter: str | None) -> None:
        """Generate and score with this adapter from now on; None: with the base alone."""
        self._adapters.use(adapter)

    def tune_policy(
        self,
        adapter: str,
        rated: Sequence[Rated],
        config: PolicyConfig,
        seed: int,
        keep: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> TuneReport:
        """See `Tunes`."""
        return self._adapters.tune_policy(
            adapter, rated, self._kept(keep), self._encoded, config, seed, progress
        )

    def tune_examples(
        self,
        adapter: str,
        examples: Sequence[Example],
        config: ExamplesConfig,
        seed: int,
        keep: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> TuneReport:
        """See `Tunes`."""
        return self._adapters.tune_examples(
            adapter, examples, self._kept(keep), self._encoded, config, seed, progress
        )

    def save_adapter(self, adapter: str, folder: Path) -> None:
        """A folder that plain peft loads."""
        self._adapters.save(adapter, folder)

    def load_adapter(self, adapter: str, folder: Path) -> None:
        """Put the weights of `folder` into `adapter`."""
        self._adapters.load(adapter, folder)

    def drop_adapter(self, adapter: str) -> None:
        """Forget `adapter`, if it is there."""
        self._adapters.drop(adapter)

    def _kept(self, texts: Sequence[str]) -> list[Encoded]:
        return [
            Encoded(tuple(encode(self.tokenizer, text)[: min(self.context, KEPT_TOKENS)]))
            for text in texts
        ]

    def _encoded(self, prompt: Prompt, text: str, ended: bool) -> Encoded:
        """Prompt and text as one training row, its context the prompt; cut where the LLM's context
        ends, and then without an end."""
        whole, start = self._joined(prompt, text)
        end = (
            [self.tokenizer.eos_token_id]
            if ended and self.tokenizer.eos_token_id is not None
            else []
        )
        return Encoded(tuple([*whole, *end][: self.context]), start)

    # -- Tokens ----------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, without the ones a tokenizer puts around a whole prompt."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def close(self) -> None:
        """Lets go of the weights."""
        self._adapters.current = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
