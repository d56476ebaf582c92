"""The formats of rows with conversations, detected by their fields, and their conversion to messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from megatron_dsmath.data.sft.conversation import (
    KINDS,
    LANGUAGES,
    TOOL,
    Conversation,
    Message,
    Row,
    detect_kind,
    detect_language,
    fold_tool_messages,
    require_turns,
)
from megatron_dsmath.data.sft.loss_masks import FenceError

OPENAI_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": TOOL}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": TOOL,
    "tool": TOOL,
}
TOPIC_FIELDS = ("topic", "type", "subject", "category")


class RowContent(NamedTuple):
    """The content of a row, with `kind` and `topic` where its format has them."""

    messages: list[Message]
    kind: str | None = None
    topic: str | None = None


class Format(NamedTuple):
    """A format. A row that has all fields of one of `shapes` has this format; `required`: fields that may not miss."""

    shapes: tuple[frozenset[str], ...]
    required: frozenset[str]
    read: Callable[[Row], RowContent]


def find_format(row: Row) -> str | None:
    """The name of the first format with a shape that the row has, or None."""
    names = row.fields.keys()
    return next((name for name, form in FORMATS.items() if any(shape <= names for shape in form.shapes)), None)


def require_format(row: Row) -> str:
    """The name of the row's format. Raises DataError where it is unknown."""
    name = find_format(row)
    if name is None:
        found = ", ".join(map(repr, list(row.fields)[:10])) or "no field"
        row.refuse("the row has no known format", found, f"one of {', '.join(FORMATS)}", "name it with --format")
    return name


def read_conversation(
    row: Row,
    format_name: str,
    *,
    is_detected: bool,
    kind: str | None = None,
    language: str | None = None,
) -> Conversation:
    """The conversation of a row. Raises DataError.

    `is_detected`: the format was detected from the first row of the file, so a row of another format is refused.
    `kind` and `language` override those of the row, which override those detected from the messages.
    """
    form = FORMATS[format_name]
    if is_detected and (detected := find_format(row)) not in (format_name, None):
        row.refuse(
            "the file has rows of two formats",
            detected,
            f"{format_name}, as the first row",
            "split the file, or name one format for all of it with --format",
        )
    if missing := form.required - row.fields.keys():
        row.refuse(f"the row is not of the format {format_name}", f"no {', '.join(sorted(missing))}", "its fields")
    content = form.read(row)
    messages = fold_tool_messages(content.messages, row)
    require_turns(messages, row)
    try:
        detected_kind = detect_kind(messages)
    except FenceError as error:
        row.refuse("the fences of a text are not balanced", error, "a closing fence for every fence")
    row_kind = _choice(row, "kind", KINDS) or content.kind
    return Conversation(
        tuple(messages),
        kind or row_kind or detected_kind,
        language or _choice(row, "language", LANGUAGES) or detect_language(messages),
        content.topic or next((row.fields[name] for name in TOPIC_FIELDS if _is_name(row.fields.get(name))), None),
    )


def _choice(row: Row, name: str, choices: tuple[str, ...]) -> str | None:
    value = row.fields.get(name)
    return value if isinstance(value, str) and value in choices else None


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable()


def _messages(row: Row) -> RowContent:
    return RowContent(_turns(row, "messages", "role", "content", OPENAI_ROLES))


def _sharegpt(row: Row) -> RowContent:
    turns = _turns(row, "conversations", "from", "value", SHAREGPT_ROLES)
    system = row.text_or_none("system")
    return RowContent([Message("system", system), *turns] if system else turns)


def _alpaca(row: Row) -> RowContent:
    question, context = row.text("instruction"), row.text_or_none("input")
    messages = [Message("system", system)] if (system := row.text_or_none("system")) else []
    for number, pair in enumerate(row.fields.get("history") or []):
        if not isinstance(pair, list) or len(pair) != 2:
            row.refuse("the history is not pairs of texts", f"pair {number}: {pair!s:.60}", "[question, answer]")
        asked, answered = (row.checked(text, f"history[{number}]") for text in pair)
        messages += [Message("user", asked), Message("assistant", answered)]
    asked = f"{question}\n{context}" if context else question
    return RowContent([*messages, Message("user", asked), Message("assistant", row.text("output"))])


def _mathinstruct(row: Row) -> RowContent:
    source = row.fields.get("source")  # for example data/PoT/gsm_gpt4.json
    path = PurePosixPath(source if isinstance(source, str) else "")
    kind = next((part.lower() for part in path.parts if part in ("CoT", "PoT")), None)
    return RowContent(_pair(row.text("instruction"), row.text("output")), kind, path.stem or None)


def _lila(row: Row) -> RowContent:
    """The first of several equivalent programs, or the answer where there is no program."""
    programs = row.fields["Output Program"]
    has_program = any(isinstance(item, str) and item.strip() for item in _as_list(programs))
    answer = row.texts("Output Program" if has_program else "Output Answer")[0]
    return RowContent(_pair(row.text("Input"), answer), "pot" if has_program else "cot")


def _question_answer(row: Row) -> RowContent:
    names = ("question", "answer") if "question" in row.fields else ("problem", "solution")
    return RowContent(_pair(row.text(names[0]), row.text(names[1])))


def _question_code(row: Row) -> RowContent:
    return RowContent(_pair(row.text("input"), row.text("code")), "pot")


def _tal_scq5k(row: Row) -> RowContent:
    """A question with its options, and the analysis with a last line that names the option."""
    options = [option for group in row.items("answer_option_list") for option in _as_list(group)]
    lines = []
    for option in options:
        if not isinstance(option, dict):
            row.refuse("an option is not an object", f"{option!s:.60}", "aoVal and content")
        letter, content = (row.checked(option.get(name), name).strip() for name in ("aoVal", "content"))
        lines.append(f"{letter}. {content}")
    analysis = "\n".join(text.strip() for text in row.texts("answer_analysis"))
    answer = f"{analysis}\n答案是\\boxed{{{row.text('answer_value').strip()}}}。"
    routes = row.fields.get("knowledge_point_routes")
    route = routes[0] if isinstance(routes, list) and routes and isinstance(routes[0], str) else ""
    topic = "/".join(route.split("->")[1:3])  # levels 2 and 3 of up to 7; the finest level has 820 topics
    question = "\n".join([row.text("problem").strip(), *lines])
    return RowContent(_pair(question, answer), topic=topic or None)


def _pair(question: str, answer: str) -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


def _turns(row: Row, field: str, role_name: str, content_name: str, roles: dict[str, str]) -> list[Message]:
    messages = []
    for number, turn in enumerate(row.items(field)):
        name = f"{field}[{number}]"
        if not isinstance(turn, dict):
            row.refuse("a turn is not an object", f"{name} is {turn!s:.60}", f"{role_name} and {content_name}")
        role = turn.get(role_name)
        if not isinstance(role, str) or role not in roles:
            row.refuse("the role is unknown", f"{name}.{role_name} is {role!s:.60}", f"one of {', '.join(roles)}")
        content = row.checked(turn.get(content_name), f"{name}.{content_name}")
        messages.append(Message(roles[role], content))
    return messages


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _format(read: Callable[[Row], RowContent], *shapes: str, required: str | None = None) -> Format:
    sets = tuple(frozenset(shape.split(", ")) for shape in shapes)
    return Format(sets, frozenset(required.split(", ")) if required is not None else frozenset(), read)


# In the order in which they are tried: a row that fits several formats has the first.
FORMATS = {
    "messages": _format(_messages, "messages"),
    "sharegpt": _format(_sharegpt, "conversations"),
    "tal_scq5k": _format(
        _tal_scq5k,
        "problem, answer_option_list, answer_analysis, answer_value",
        required="answer_option_list, answer_analysis",
    ),
    "lila": _format(_lila, "Input, Output Program, Output Answer", required="Output Program"),
    "alpaca": _format(_alpaca, "instruction, input, output"),
    "mathinstruct": _format(_mathinstruct, "instruction, output"),
    "question_code": _format(_question_code, "input, code"),
    "question_answer": _format(_question_answer, "question, answer", "problem, solution"),
}
