"""An engine whose answers are written down: a callable, a list, or patterns with answers. For tests
and documentation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from fedduet.conf.check import ConfigError
from fedduet.server.llm.base import NO_CONTRAST, Completion, Progress, Request

Answers = Callable[[Request], str] | Sequence[str] | Mapping[str, str | Sequence[str]]


class ScriptedLLM:
    """Tokens are whitespace words.

    `answers` is a callable on the request; or a list, given in turn (when it is used up, requests
    finish with "error"); or a mapping from regular expressions to answers: the first that is found
    in the prompt (`re.search`, "." crosses lines) decides, and where it has several answers the
    request's seed picks one. A prompt that nothing matches finishes with "error".
    """

    parameters: int | None = None

    def __init__(
        self,
        answers: Answers,
        *,
        name: str = "scripted",
        form: str = "completion",
        context: int = 8192,
    ) -> None:
        self.answers, self.name, self.form, self.context = answers, name, form, context
        self.given = 0  # answers of a list so far

    def generate(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> list[Completion]:
        done: list[Completion] = []
        for request in requests:
            done.append(self._complete(request))
            if progress:
                progress(
                    len(done), len(requests), sum(completion.new_tokens for completion in done)
                )
        return done

    def _complete(self, request: Request) -> Completion:
        prompt = (
            request.prompt
            if isinstance(request.prompt, str)
            else "\n".join(turn.content for turn in request.prompt)
        )
        length = self.count_tokens(prompt)
        if request.contrast is not None:
            return Completion("", length, 0, "error", NO_CONTRAST)
        if length + request.max_new_tokens > self.context:
            wanted = (
                f"the prompt has {length} tokens and max_new_tokens is {request.max_new_tokens}"
            )
            return Completion(
                "",
                length,
                0,
                "error",
                f"{wanted}, together more than the context of {self.context} tokens",
            )
        text = self._answer(request, prompt)
        if text is None:
            return Completion(
                "", length, 0, "error", f"the script has no answer for the prompt {prompt[:80]!r}"
            )
        text = text[
            : min(
                (at for at in (text.find(stop) for stop in request.stop if stop) if at >= 0),
                default=None,
            )
        ]
        words = list(re.finditer(r"\S+", text))
        if len(words) > request.max_new_tokens:
            return Completion(
                text[: words[request.max_new_tokens - 1].end()],
                length,
                request.max_new_tokens,
                "length",
            )
        return Completion(text, length, len(words), "stop")

    def _answer(self, request: Request, prompt: str) -> str | None:
        if callable(self.answers):
            return self.answers(request)
        if isinstance(self.answers, Mapping):
            for pattern, answer in self.answers.items():
                if re.search(pattern, prompt, re.DOTALL):
                    return answer if isinstance(answer, str) else answer[request.seed % len(answer)]
            return None
        self.given += 1
        return self.answers[self.given - 1] if self.given <= len(self.answers) else None

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        pass


def read_script(path: Path, key: str = "llm.script") -> list[str] | dict[str, str | list[str]]:
    """The answers of a YAML file: {answers: a list of strings, or {pattern: answer or list of
    answers}}. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(
            f"{key}: found {str(path)!r}, which is not a file; give a YAML file of answers"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as failure:
        raise ConfigError(f"{key}: {path} is not YAML: {failure}") from None
    answers = (
        content.get("answers")
        if isinstance(content, dict) and set(content) == {"answers"}
        else None
    )
    if isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers):
        return answers
    if not isinstance(answers, dict) or not answers:
        raise ConfigError(
            f"{key}: {path} must hold one key, answers: a list of strings, or a mapping of pattern"
            " to answer(s)"
        )
    for pattern, answer in answers.items():
        several = (
            isinstance(answer, list) and answer and all(isinstance(one, str) for one in answer)
        )
        if not isinstance(pattern, str) or not (isinstance(answer, str) or several):
            raise ConfigError(
                f"{key}: {path}, pattern {pattern!r}: found {answer!r}, allowed: a string or a list"
                " of strings"
            )
        try:
            re.compile(pattern)
        except re.error as failure:
            raise ConfigError(
                f"{key}: {path}, pattern {pattern!r}: not a regular expression ({failure})"
            ) from None
    return answers
