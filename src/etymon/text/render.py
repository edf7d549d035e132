"""The one renderer: a conversation becomes ids, the mask of what is trained, and who wrote each token."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from etymon.errors import RenderError, suggest
from etymon.text.markup import find_calls, find_reasoning
from etymon.text.provenance import Span, StandIns, check_private, kept_pattern, plain
from etymon.text.template import compiled
from etymon.text.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
Message: TypeAlias = Mapping[str, Any]
"""`{"role": …, "content": …}`; further keys (`name`, `tool_calls`, …) go to the template as they are."""
TrainOn: TypeAlias = Literal["assistant", "last"]


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens; the three lists are of equal length.

    `trained[i]`: token i is one that the model must produce. `sources[i]`: index of the message whose text token i
    begins in, -1 for the template's own text. `text`: what the template wrote, before tokenisation.
    """

    ids: list[int]
    trained: list[bool]
    sources: list[int]
    text: str

    @property
    def prefix(self) -> int:
        """How many ids come before the first that the model must produce: what is given before anything is written."""
        return self.trained.index(True) if True in self.trained else len(self.ids)


@dataclass(frozen=True)
class _Turn:
    """What the model writes in one assistant message: `text[start:end]`; `cued`: a generation prompt ends at start."""

    start: int
    end: int
    cued: bool


class Renderer:
    """Renders conversations with a chat template (the tokenizer's own by default) for training and serving alike.

    Ids equal those of transformers' `apply_chat_template` wherever the messages hold no text that looks like a control
    token; where they do, it stays ordinary text here (in assistant messages the template's own markup, such as
    `<think>`, keeps its tokens; special tokens never do). The ids of a conversation begin with the ids of each of its
    prompts: what serving sees before a reply is what training saw there. `calls` and `reasoning` say how the template
    writes calls of tools and blocks of reasoning, None where it has none.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        source = tokenizer.chat_template if template is None else template
        if source is None:
            raise RenderError(
                "The tokenizer carries no chat template, so conversations cannot be rendered. Pass a template, or add "
                "chat_template.jinja to the tokenizer's directory."
            )
        check_private(source, "The chat template")
        if source != tokenizer.chat_template:
            tokenizer = tokenizer.with_template(source)  # which tokens are markup depends on the template
        self.tokenizer = tokenizer
        self.template = source
        self._template = compiled(source)
        self.calls, self.reasoning = find_calls(source), find_reasoning(source)
        self.stop_ids = tokenizer.stop_ids
        markup = tokenizer.markup
        self._control = _longest_first([*tokenizer.special, *markup])
        self._markup = _longest_first(markup)
        self._control_special = _longest_first(tokenizer.special)
        # A special token that the template looks for is replaced all the same: in a message it is only text.
        kept = [text for text in self._template.searched if not any(name in text for name in tokenizer.special)]
        escapes = self._template.escapes
        self._kept_assistant = kept_pattern(kept, escapes)
        self._kept = kept_pattern([text for text in kept if not any(name in text for name in markup)], escapes)
        self._compared = self._template.compared - set(self.tokenizer.special) - set(markup)

    @property
    def hash(self) -> str:
        """sha256 of the template and the tokenizer: equal hashes render equal ids."""
        return hashlib.sha256(f"{self.tokenizer.fingerprint}\n{self.template}".encode()).hexdigest()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        train_on: TrainOn | None = "assistant",
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Rendered:
        """Render `messages`; serving passes `add_generation_prompt`, training does not.

        `train_on` says which assistant messages are trained: all, the last one, or (None) none. Trained is what the
        model must write after the generation prompt: the content and the token that ends the turn; where the template
        has `{% generation %}` blocks, exactly those. Raises RenderError for messages that are malformed (naming their
        index), for what the template refuses, and when training would have no token to train.
        """
        conversation = [_checked(message, i) for i, message in enumerate(_listed(messages))]
        if train_on not in ("assistant", "last", None):
            raise RenderError(f"train_on is {train_on!r}; expected 'assistant', 'last' or None.")
        described = plain(tools, "tools") if tools is not None else None
        self._check_keys([conversation, described])
        now = datetime.now()

        def write(conversation: Any, tools: Any, prompt: bool, marks: bool = False) -> str:
            variables = {
                **self.tokenizer.template_variables,
                "messages": conversation,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": prompt,
            }
            return self._template.render(variables, marks=marks, now=now)

        text = write(conversation, described, add_generation_prompt)
        stand_ins = StandIns(self._control_special)
        replaced = write(
            [self._replaced(message, i, stand_ins) for i, message in enumerate(conversation)],
            _mapped(described, lambda text: self._field(text, -1, stand_ins)),
            add_generation_prompt,
            self._template.generates,
        )
        spans, generated = stand_ins.trace(text, replaced)
        control = self._control_spans(text, spans, conversation)
        turns = self._turns(
            text, spans, control, conversation, lambda upto: write(conversation[:upto], described, True)
        )
        ids, starts = self._encode(text, control, [turn.start for turn in turns.values() if turn.cued])
        sources = _sources(starts, spans)
        trained = [False] * len(ids)
        if train_on is not None:
            regions = self._regions(turns, generated, conversation, train_on, strict=not add_generation_prompt)
            for start, end in regions:
                first = bisect_left(starts, start)
                if generated and first and starts[first : first + 1] != [start]:
                    first = _containing(starts, start, control)
                for k in range(first, bisect_left(starts, end)):
                    trained[k] = True
            if not add_generation_prompt and not any(trained):
                raise RenderError(_nothing_trained(conversation, train_on))
        return Rendered(ids, trained, sources, text)

    # -- whose text ---------------------------------------------------------------------------------------------------

    def _replaced(self, message: dict[str, Any], index: int, stand_ins: StandIns) -> dict[str, Any]:
        kept = self._kept_assistant if message["role"] == "assistant" else self._kept
        replaced = {}
        for key, value in message.items():
            if key == "content" and value is not None:
                replaced[key] = stand_ins.replace(value, index, kept)
            elif key != "role":
                replaced[key] = _mapped(value, lambda text: self._field(text, index, stand_ins))
            else:
                replaced[key] = value
        return replaced

    def _field(self, text: str, index: int, stand_ins: StandIns) -> str:
        # A template may ask whether tool['type'] is 'function'; it would not ask that of what somebody said.
        return text if text in self._compared else stand_ins.replace(text, index, self._kept)

    def _check_keys(self, value: Any) -> None:
        """Keys are not replaced (templates look them up), so they must not spell control tokens."""
        if isinstance(value, dict):
            for key in value:
                if match := self._control.search(key):
                    raise RenderError(
                        f"The key {key!r} in a message or tool holds the control token {match.group()!r}."
                    )
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                self._check_keys(item)

    def _control_spans(
        self, text: str, spans: Sequence[Span], conversation: Sequence[Mapping[str, Any]]
    ) -> list[tuple[int, int]]:
        """Where the template itself wrote control tokens, and assistant messages hold its markup."""
        control, at = [], 0
        for span in [*spans, None]:
            until = span.start if span else len(text)
            control += [match.span() for match in self._control.finditer(text, at, until)]
            if span is None:
                break
            if span.source.message >= 0 and conversation[span.source.message]["role"] == "assistant":
                control += [match.span() for match in self._markup.finditer(text, span.start, span.end)]
            at = span.end
        return control

    # -- what the model writes ----------------------------------------------------------------------------------------

    def _turns(
        self,
        text: str,
        spans: Sequence[Span],
        control: Sequence[tuple[int, int]],
        conversation: Sequence[Mapping[str, Any]],
        prompt: Callable[[int], str],
    ) -> dict[int, _Turn]:
        """The part of `text` that the model writes, for every assistant message whose place is certain."""
        turns = {}
        for index, message in enumerate(conversation):
            if message["role"] != "assistant":
                continue
            own = [span for span in spans if span.source.message == index]
            try:
                cue = prompt(index) if index else None
            except RenderError:  # many templates refuse a conversation that ends where this one would
                cue = None
            cued = cue is not None and text.startswith(cue) and (not own or len(cue) <= own[0].start)
            if not own and (not cued or (message["content"] or "").strip()):
                continue
            start = len(cue) if cue is not None and cued else own[0].start
            end = own[-1].end if own else start
            upto = end
            if message.get("tool_calls"):  # what closes a call is the template's text, and still the model's to write
                others = (span.start for span in spans if span.start >= end and span.source.message != index)
                upto = next(others, len(text))
            turns[index] = _Turn(start, self._closed(text, end, control, upto), cued)
        return turns

    def _closed(self, text: str, end: int, control: Sequence[tuple[int, int]], upto: int) -> int:
        """`end`, moved behind the end-of-turn token if that comes next (white space may stand before it, and any text
        before `upto`)."""
        for start, stop in control[bisect_left(control, (end, end)) :]:
            if self.tokenizer.special.get(text[start:stop]) in self.stop_ids:
                return end if start > upto and text[end:start].strip() else stop
            if stop > upto:
                break
        return end

    def _regions(
        self,
        turns: Mapping[int, _Turn],
        generated: Sequence[tuple[int, int]],
        conversation: Sequence[Mapping[str, Any]],
        train_on: TrainOn,
        strict: bool,
    ) -> list[tuple[int, int]]:
        if generated:
            return list(generated if train_on == "assistant" else generated[-1:])
        wanted = [i for i, message in enumerate(conversation) if message["role"] == "assistant"]
        wanted = wanted if train_on == "assistant" else wanted[-1:]
        lost = [i for i in wanted if i not in turns]
        if lost and strict:
            raise RenderError(
                f"messages[{lost[0]}] is an assistant message to be trained, but its text does not appear in what the "
                "chat template writes. Leave it out, or train on the 'last' message only."
            )
        return [(turns[i].start, turns[i].end) for i in wanted if i in turns]

    # -- ids ----------------------------------------------------------------------------------------------------------

    def _encode(
        self, text: str, control: Sequence[tuple[int, int]], cues: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Tokenise `text` as one, except that a token may not reach over the end of a generation prompt.

        That is checked rather than enforced, since a cut changes nothing in nearly all cases: the tokens before the end
        of the prompt must be those of the prompt alone.
        """
        spans = list(control)
        ids, starts = self.tokenizer.encode_spans(text, spans)
        for cue in cues:
            # Tokens never reach over a control token or a cut: only the text behind the last one needs a look.
            k = bisect_right(spans, (cue, cue)) - 1
            while k >= 0 and spans[k][1] > cue:
                k -= 1
            start, end = spans[k] if k >= 0 else (0, 0)
            alone, _ = self.tokenizer.encode_spans(text[start:cue], [(0, end - start)] if k >= 0 else [])
            if alone != ids[bisect_left(starts, start) : bisect_left(starts, cue)]:
                spans = sorted([*spans, (cue, cue)])
                ids, starts = self.tokenizer.encode_spans(text, spans)
        return ids, starts


def _longest_first(names: Sequence[str] | Mapping[str, int]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


def _sources(starts: Sequence[int], spans: Sequence[Span]) -> list[int]:
    sources, k = [], 0
    for start in starts:
        while k < len(spans) and spans[k].end <= start:
            k += 1
        sources.append(spans[k].source.message if k < len(spans) and spans[k].start <= start else -1)
    return sources


def _containing(starts: Sequence[int], character: int, control: Sequence[tuple[int, int]]) -> int:
    """Index of the first token that covers `character`, or of the next one where a control token covers it."""
    start = starts[bisect_right(starts, character) - 1]
    covered = any(a <= start < b for a, b in control)
    return bisect_left(starts, character if covered else start)


def _listed(messages: object) -> Sequence[Message]:
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise RenderError(f"A conversation is a list of messages, not {type(messages).__name__}.")
    if not messages:
        raise RenderError("The conversation is empty: it needs at least one message with 'role' and 'content'.")
    return messages


def _checked(message: object, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RenderError(f"{where} is {type(message).__name__}; expected an object with 'role' and 'content'.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        known = suggest(role, ROLES) if isinstance(role, str) else ""
        raise RenderError(f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}.{known}")
    if content is None and not (role == "assistant" and message.get("tool_calls")):
        raise RenderError(f"{where} ({role}) has no 'content'.")
    if content is not None and not isinstance(content, str):
        raise RenderError(f"{where} ({role}) has content of type {type(content).__name__}; expected a string.")
    checked: dict[str, Any] = plain(message, where)
    return checked


def _nothing_trained(conversation: Sequence[Mapping[str, Any]], train_on: TrainOn) -> str:
    roles = ", ".join(message["role"] for message in conversation)
    if not any(message["role"] == "assistant" for message in conversation):
        reason = "it has no assistant message"
    else:
        reason = f"the template leaves nothing of the assistant's to train (train_on={train_on!r})"
    return f"No token of this conversation would be trained: {reason} (roles: {roles})."
