"""Reads the texts and labels an LLM generated: tolerant of form, strict about labels, never
raising."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from fedduet.tasks.task import Task

Generated = list[tuple[str, int]]  # (text, label index)

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w-]*[ \t]*$", re.MULTILINE)
_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_ITEM = re.compile(r"^\s*(?:[-*\u2022\u2013>]|\(?#?[0-9]{1,4}[.)])\s+")
_TEXT_KEYS = ("text", "content", "sentence", "example", "body")
_LABEL_KEYS = ("label", "rating", "sentiment", "class", "category", "topic")
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "`": "`", "\u00ab": "\u00bb"}
_CHATTER = re.compile(
    r"^(sure|of course|certainly|okay|ok|absolutely|here (are|is)\b|below (are|is)\b|i hope|let me"
    r" know|note:|feel free)",
    re.IGNORECASE,
)
_MARKS = "*_ \t"


def parse_generated(task: Task, form: str, answer: str, label: int) -> Generated:
    """The (text, label index) pairs of an answer to `augment_prompt`, where `label` was the wanted
    one.

    Texts come on one line. A text that names a label has that label, even if another one was asked
    for; one that names none has the wanted label; one that names something else in a label's place
    is dropped. Where any text of an answer names a label, lines without are taken for chatter.
    Empty when nothing can be read.
    """
    if form == "completion":
        return _documents(task, answer, label)
    if form == "list":
        return _items(answer, label)
    answer = unwrapped(answer)
    found = _from_json(task, answer, label)
    pairs = _from_lines(task, answer, label) if found is None else found
    return [
        (text, index) for text, index in ((_clean(text), index) for text, index in pairs) if text
    ]


def label_index(task: Task, found: object) -> int | None:
    """The label that `found` names: its wording in any case, or its index as a whole number; else
    None."""
    if isinstance(found, bool) or found is None:
        return None
    if isinstance(found, float):
        if not found.is_integer():
            return None
        found = int(found)
    word = _folded(str(found)) if not isinstance(found, int) else None
    if word is not None:
        for index, wording in enumerate(task.labels):
            if word == _folded(wording):
                return index
        if not re.fullmatch(r"[0-9]{1,4}(\.0*)?", word):
            return None
        found = int(word.split(".")[0])
    return found if isinstance(found, int) and 0 <= found < len(task.labels) else None


def unwrapped(answer: str) -> str:
    """`answer` without thoughts in <think> tags and without code fences."""
    return _FENCE.sub("", _THINKING.sub("", answer)).strip()


def json_values(text: str) -> Iterator[Any]:
    """JSON lists and objects that stand in `text`, outermost first."""
    decoder, place = json.JSONDecoder(), 0
    for _ in range(200):  # an answer with more opening brackets than this is not ours
        start = re.compile(r"[\[{]").search(text, place)
        if start is None:
            return
        try:
            value, place = decoder.raw_decode(text, start.start())
            yield value
        except (ValueError, RecursionError):
            place = start.end()


def _from_json(task: Task, answer: str, label: int) -> Generated | None:
    """Pairs of a JSON answer; None when the answer is none."""
    if not re.match(r"[^\n]{0,200}?\n?\s*[\[{]", answer):
        return None
    pairs: Generated = []
    read = False
    for value in json_values(answer):
        several = isinstance(value, dict) or any(isinstance(item, (dict, list)) for item in value)
        texts = bool(value) and all(isinstance(item, str) for item in value)
        if (
            several
            or _is_pair(task, value)
            or (texts and (answer.startswith("[") or len(value) > 1))
        ):
            read = True
            pairs.extend(_json_pairs(task, value, label, depth=0))
    return pairs if read else None


def _is_pair(task: Task, value: Any) -> bool:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not any(isinstance(item, str) for item in value)
    ):
        return False
    return any(label_index(task, item) is not None for item in value)


def _json_pairs(task: Task, value: Any, label: int, depth: int) -> Generated:
    if depth > 8:
        return []
    if isinstance(value, str):
        return _from_lines(task, value.replace("\n", " "), label) if value.strip() else []
    if isinstance(value, list):
        if _is_pair(task, value):
            first, second = value
            index = label_index(task, first)
            if index is not None and isinstance(second, str):
                return [(second, index)]
            index = label_index(task, second)
            return [(first, index)] if index is not None and isinstance(first, str) else []
        return [pair for item in value for pair in _json_pairs(task, item, label, depth + 1)]
    if not isinstance(value, dict):
        return []
    folded = {str(key).casefold().strip(): item for key, item in value.items()}
    noun = task.noun.casefold()
    text = next(
        (folded[key] for key in (*_TEXT_KEYS, noun) if isinstance(folded.get(key), str)), None
    )
    if text is not None:
        named = next(
            (folded[key] for key in _LABEL_KEYS if key in folded and folded[key] is not text), None
        )
        index = label if named is None else label_index(task, named)
        return [] if index is None else [(text, index)]
    pairs: Generated = []
    for key, item in folded.items():
        index = label_index(task, key)
        if index is not None and isinstance(item, (str, list)):
            texts = (
                [item]
                if isinstance(item, str)
                else [text for text in item if isinstance(text, str)]
            )
            pairs.extend((text, index) for text in texts)
        elif isinstance(item, (list, dict)):
            pairs.extend(_json_pairs(task, item, label, depth + 1))
    return pairs


def _from_lines(task: Task, answer: str, label: int) -> Generated:
    lines = [line for line in answer.split("\n") if line.strip(_MARKS)]
    counted = _counts_up(lines)
    explicit: Generated = []
    items: list[str] = []
    plain: list[str] = []
    pending: int | None = None
    for line in lines:
        body = _ITEM.sub("", line)
        numbered = body != line
        if counted:
            body, numbered = re.sub(r"^\W*[0-9]{1,4}\s*:\s*", "", line), True
        body = body.strip(_MARKS)
        found, text = _split_label(task, body)
        if found is not None and text:
            explicit.append((text, found))
            pending = None
        elif found is not None:
            pending = found
        elif pending is not None:
            explicit.append((_without_key(task, body), pending))
            pending = None
        # broken JSON, or a foreign label
        elif body.startswith(("{", "[{", '["')) or _names_something_else(task, body):
            continue
        elif numbered or body[:1] in ('"', "\u201c"):
            items.append(_without_key(task, body))
        elif not (body.endswith(":") or _CHATTER.match(body)):
            plain.append(_without_key(task, body))
    if explicit:
        return explicit
    return [(text, label) for text in items or plain]


def _split_label(task: Task, line: str) -> tuple[int | None, str]:
    """(label index, what follows) of a line that begins with a label; the text is empty when the
    label stands alone."""
    key = "|".join(_LABEL_KEYS)
    words = "|".join(sorted((re.escape(word) for word in task.labels), key=len, reverse=True))
    pattern = (
        rf"[\"'`\[(<*_\s]*(?:(?:{key})\s*[:=]\s*[\"'`\[(<*_\s]*)?(?P<label>{words}|[0-9]{{1,4}}(?:\.0+)?)[\"'`\])>*_]*\s*"
        rf"(?:[:|=\t]|[-\u2013\u2014]+(?=\s)|(?<=[\])>])\s|$)[*_\s]*(?P<text>.*)"
    )
    match = re.fullmatch(pattern, line, re.IGNORECASE | re.DOTALL)
    if match is None:
        return None, ""
    index = label_index(task, match["label"])
    if index is None:
        return None, ""
    return index, _without_key(task, match["text"].strip())


def _without_key(task: Task, line: str) -> str:
    keys = "|".join(re.escape(key) for key in (*_TEXT_KEYS, task.noun.casefold()))
    return re.sub(rf"^[*_\"']*(?:{keys})[*_\"']*\s*[:=]\s*", "", line, flags=re.IGNORECASE).strip()


def _names_something_else(task: Task, line: str) -> bool:
    """Whether a line that begins with no label of the task has other words in a label's place."""
    most = max(len(wording.split()) for wording in task.labels)
    match = re.match(
        rf"[\[(*_]*((?:[\w/-]+\s+){{0,{most - 1}}}[\w/-]+)[\])*_]*\s*:(?:\s|[*_]|$)", line
    )
    if match is None:
        return False
    return match[1].casefold() not in (*_TEXT_KEYS, task.noun.casefold())


def _counts_up(lines: list[str]) -> bool:
    """Whether lines of the form `1: text` count the lines (1, 2, 3, ...) rather than name
    labels."""
    numbers = [
        int(match[1]) for line in lines if (match := re.match(r"^\W*([0-9]{1,4})\s*:\s", line))
    ]
    return len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1))


def _items(answer: str, label: int) -> Generated:
    """The items of a numbered list that the prompt left open behind a number; ends where numbers
    stop counting up."""
    found: Generated = []
    for place, line in enumerate(unwrapped(answer).split("\n")):
        body = line if place == 0 else _ITEM.sub("", line)
        if place and (body == line or not body.strip()):  # not an item: the list is over
            break
        if text := _clean(body):
            found.append((text, label))
    return found


def _documents(task: Task, answer: str, label: int) -> Generated:
    """What stands before the first blank line, and any further document that begins with a control
    code of the task."""
    template = task.prompts.completion_document or task.control_code + task.separator + "{text}"
    template = template.removesuffix("{text}").rstrip()
    words = "|".join(sorted((re.escape(wording) for wording in task.labels), key=len, reverse=True))
    pattern = (
        re.escape(template)
        .replace(r"\{noun\}", re.escape(task.noun))
        .replace(r"\{domain\}", r"[^\n]{0,200}?")
        .replace(r"\{meaning\}", r"[^\n]{0,400}?")
    )
    pattern = pattern.replace(r"\{label\}", f"(?P<label>{words})", 1).replace(
        r"\{label\}", "(?P=label)"
    )
    pairs, current, place = [], label, 0
    for match in re.finditer(r"^" + pattern, answer, re.MULTILINE):
        pairs.append((answer[place : match.start()], current))
        index = label_index(task, match["label"])
        current, place = (label if index is None else index), match.end()
    pairs.append((answer[place:], current))
    firsts = ((re.split(r"\n\s*\n", text.lstrip(), maxsplit=1)[0], index) for text, index in pairs)
    return [(" ".join(text.split()), index) for text, index in firsts if text.strip()]


def _clean(text: str) -> str:
    text = (
        " ".join(text.split()).rstrip(",")
        if text.rstrip().endswith('",')
        else " ".join(text.split())
    )
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text.strip("*").strip()


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.strip().casefold())
