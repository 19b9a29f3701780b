"""The engine for weights on this machine: batched sampling with its own decode loop, and log-probabilities of given text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from server.llm.base import Completion, Progress, Request
from server.llm.key_value_cache import roomy_cache
from server.llm.sampling import draw, uniforms
from server.llm.tokens import batches, decoded, decoded_after, encode, left_padded, start_tokens

LOGITS_BYTES = 256 * 2**20  # scoring holds at most this much of float32 logits at once [O]


@dataclass
class _Row:
    """One request on its way: what it was asked, its prompt's tokens, and what it has drawn so far."""

    index: int
    request: Request
    prompt: list[int]
    new: list[int] = field(default_factory=list)

    @property
    def cells(self) -> int:
        return len(self.prompt) + self.request.max_new_tokens


class TransformersLLM:
    """A Hugging Face causal LM. `model` and `tokenizer` are public for those who tune it (they swap or wrap `model` between calls).

    Each request draws from its own stream, so in float32 its answer does not depend on the other requests of the batch; in bf16 the
    products round differently in differently shaped batches, so that only the same list of requests gives the same answers.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, form: str, context: int, batch_tokens: int = 16_384
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.name, self.form, self.context, self.batch_tokens = name, form, context, batch_tokens
        self.parameters: int | None = sum(weight.numel() for weight in model.parameters())

    # -- Generation ------------------------------------------------------------

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        """One completion for each request, in their order. Requests that cannot run (see `_row`) finish with "error"."""
        answers: list[Completion | None] = [None] * len(requests)
        new_tokens = done = 0

        def finish(row: _Row, completion: Completion) -> None:
            nonlocal new_tokens, done
            answers[row.index] = completion
            new_tokens, done = new_tokens + completion.new_tokens, done + 1
            if progress:
                progress(done, len(requests), new_tokens)

        kinds: dict[tuple, list[_Row]] = {}
        for index, request in enumerate(requests):
            row, problem = self._row(index, request)
            if problem:
                finish(row, Completion("", len(row.prompt), 0, "error", problem))
            else:  # one way of drawing per batch: ties then break alike whatever the neighbours
                kinds.setdefault((request.temperature == 0, request.top_k, request.top_p >= 1), []).append(row)
        for rows in kinds.values():
            for batch in batches(rows, lambda row: row.cells, self.batch_tokens):
                self._decode_within_memory(batch, finish)
        return answers  # type: ignore[return-value]

    def _row(self, index: int, request: Request) -> tuple[_Row, str]:
        """The tokenised request, and what is wrong with it ("" if nothing)."""
        if self.form != "chat":
            if not isinstance(request.prompt, str):
                return _Row(index, request, []), "the prompt is a chat, but this model takes completion prompts (strings) only"
            prompt = encode(self.tokenizer, request.prompt)
        else:  # a string is one user turn
            turns = [("user", request.prompt)] if isinstance(request.prompt, str) else [(t.role, t.content) for t in request.prompt]
            turns = [{"role": role, "content": content} for role, content in turns]
            prompt = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        row = _Row(index, request, list(prompt) or start_tokens(self.tokenizer))
        if not row.prompt:
            return row, "the prompt is empty and the tokenizer has no token to start a text with"
        if request.max_new_tokens < 1:
            return row, f"max_new_tokens: found {request.max_new_tokens}, allowed: 1 or more"
        if request.temperature < 0 or request.top_k < 0 or not 0 < request.top_p <= 1:
            found = f"temperature {request.temperature}, top_k {request.top_k}, top_p {request.top_p}"
            return row, f"found {found}; allowed: temperature >= 0, top_k >= 0, 0 < top_p <= 1"
        if row.cells > self.context:
            return row, (
                f"the prompt has {len(row.prompt)} tokens and max_new_tokens is {request.max_new_tokens}, together more than "
                f"the context of {self.context} tokens; shorten the prompt or lower max_new_tokens"
            )
        return row, ""

    def _decode_within_memory(self, rows: list[_Row], finish: Callable[[_Row, Completion], None]) -> None:
        """Decode; where the device has too little memory, in halves, from the start of each row that is not done."""
        done: set[int] = set()
        try:
            return self._decode(rows, lambda row, completion: (done.add(row.index), finish(row, completion)))
        except torch.OutOfMemoryError as failure:
            message = str(failure).splitlines()[0]
        left = [_Row(row.index, row.request, row.prompt) for row in rows if row.index not in done]
        if len(rows) == 1:
            return finish(left[0], Completion("", len(left[0].prompt), 0, "error", f"out of memory for one request: {message}"))
        for half in (left[: len(left) // 2], left[len(left) // 2 :]):
            if half:
                self._decode_within_memory(half, finish)

    @torch.inference_mode()
    def _decode(self, rows: list[_Row], finish: Callable[[_Row, Completion], None]) -> None:
        """Prefill, then one token per step for every live row; a row leaves the batch and its cache in the step it ends."""
        device, ends = self.model.device, self._end_tokens()
        steps = max(row.request.max_new_tokens for row in rows)
        tokens, mask, positions = (part.to(device) for part in left_padded([row.prompt for row in rows], room=steps))
        width = tokens.shape[1]
        cache = roomy_cache(self.model.config, width + steps)
        temperature = torch.tensor([row.request.temperature for row in rows], device=device)
        top_p = torch.tensor([row.request.top_p for row in rows], device=device)
        stream = torch.zeros(len(rows), steps)
        for number, row in enumerate(rows):
            stream[number, : row.request.max_new_tokens] = uniforms(row.request.seed, row.request.max_new_tokens)
        stream = stream.to(device)
        for step in range(steps):
            inputs = {"input_ids": tokens, "attention_mask": mask[:, : width + step], "position_ids": positions}
            output = self._forward(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits = output.logits[:, -1].float()
            broken = logits.sum(dim=-1).isnan().tolist()
            if rows[0].request.temperature == 0:
                drawn = logits.argmax(dim=-1)
            else:
                drawn = draw(logits, stream[:, step], temperature, rows[0].request.top_k, top_p)
            live = []
            for number, (row, token, nan) in enumerate(zip(rows, drawn.tolist(), broken, strict=True)):
                row.new.append(token)
                completion = self._failed(row) if nan else self._ended(row, token in ends)
                if completion is None:
                    live.append(number)
                else:
                    finish(row, completion)
            if not live:
                return
            tokens, positions = drawn[:, None], positions[:, -1:] + 1
            if len(live) < len(rows):
                keep = torch.tensor(live, device=device)
                cache.batch_select_indices(keep)
                tokens, positions, mask, stream = tokens[keep], positions[keep], mask[keep], stream[keep]
                temperature, top_p, rows = temperature[keep], top_p[keep], [rows[number] for number in live]

    def _failed(self, row: _Row) -> Completion:
        return Completion("", len(row.prompt), len(row.new), "error", "the model's logits are not numbers; try precision fp32")

    def _ended(self, row: _Row, at_end_token: bool) -> Completion | None:
        """The completion if the row's last token ended it, else None."""
        request, full = row.request, len(row.new) == row.request.max_new_tokens
        if not at_end_token and not full and not self._may_stop(row):
            return None
        text = decoded_after(self.tokenizer, row.prompt[-1:], row.new[:-1] if at_end_token else row.new)
        cut = min((at for at in (text.find(stop) for stop in request.stop if stop) if at >= 0), default=None)
        if cut is None and not at_end_token and not full:
            return None
        finish = "stop" if at_end_token or cut is not None else "length"
        return Completion(text[:cut], len(row.prompt), len(row.new), finish)

    def _may_stop(self, row: _Row) -> bool:
        """Whether a stop string may have appeared with the last token; looks at the last tokens only (each has a byte or more)."""
        stops = [stop for stop in row.request.stop if stop]
        if not stops:
            return False
        tail = (row.prompt[-1:] + row.new)[-max(len(stop.encode()) for stop in stops) - 8 :]
        text = decoded(self.tokenizer, tail)
        return any(stop in text for stop in stops)

    # -- Scoring ---------------------------------------------------------------

    @torch.inference_mode()
    def continuation_logprobs(
        self, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
    ) -> list[float]:
        """For each (prompt, continuation): sum of log p(token | what precedes) over the continuation's tokens, natural log.

        Prompt and continuation are tokenised as one text, as in training. The continuation begins at the first token that the prompt
        alone would not have: where a token spans the boundary (a prompt that ends with a space, say), it counts as the continuation's.
        An empty continuation scores 0. Raises ValueError, before anything runs, for a pair longer than the context.
        """
        scores, rows = [0.0] * len(pairs), []
        for index, (prompt, continuation) in enumerate(pairs):
            before, whole = encode(self.tokenizer, prompt), encode(self.tokenizer, prompt + continuation)
            start = next((at for at, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole)))
            if start == 0:  # nothing precedes the first token: begin the text as the model's training texts began
                whole, start = start_tokens(self.tokenizer) + whole, len(start_tokens(self.tokenizer))
            if continuation and start == 0:
                raise ValueError(f"pair {index}: the prompt is empty and the tokenizer has no token to start a text with")
            if len(whole) > self.context:
                raise ValueError(f"pair {index}: found {len(whole)} tokens, allowed: the context of {self.context} tokens")
            if continuation and start < len(whole):
                rows.append((index, whole, len(whole) - start))
        done = len(pairs) - len(rows)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        limit = max(1, LOGITS_BYTES // (4 * vocabulary))
        for part in batches(rows, lambda row: len(row[1]), self.batch_tokens):
            for batch in batches(part, lambda row: row[2] + 1, limit):
                self._score(batch, scores)
                done += len(batch)
                if progress:
                    progress(done, len(pairs), 0)
        return scores

    def _score(self, batch: list[tuple[int, list[int], int]], scores: list[float]) -> None:
        """Writes the batch's scores. Left padding puts all continuations at the end, so that only their logits are made."""
        keep = max(count for _, _, count in batch) + 1
        tokens, mask, positions = (part.to(self.model.device) for part in left_padded([whole for _, whole, _ in batch]))
        output = self._forward(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep)
        logits = output.logits[:, -keep:-1].float()
        targets = tokens[:, 1 - keep :]
        each = logits.gather(2, targets[:, :, None])[:, :, 0] - torch.logsumexp(logits, dim=-1)
        for (index, _, count), row in zip(batch, each.double(), strict=True):
            scores[index] = float(row[len(row) - count :].sum())

    # -- Tokens ----------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, without the ones a tokenizer puts around a whole prompt."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def close(self) -> None:
        """Lets go of the weights."""
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _end_tokens(self) -> set[int]:
        generation = getattr(self.model, "generation_config", None)
        ends = getattr(generation, "eos_token_id", None)
        return {*(ends if isinstance(ends, Iterable) else [ends]), self.tokenizer.eos_token_id} - {None}

    def _forward(self, **inputs: Any) -> Any:
        """The model's output; arguments that its architecture does not know (position_ids, logits_to_keep) are left out."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        known = inspect.signature(model.forward).parameters
        return self.model(**{key: value for key, value in inputs.items() if key in known})
