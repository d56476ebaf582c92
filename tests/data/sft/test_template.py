from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_dsmath.data.sft.conversation import Message
from megatron_dsmath.data.sft.jinja_template import JinjaTemplate, open_template
from megatron_dsmath.data.sft.loss_masks import Span
from megatron_dsmath.data.sft.template import ConversationEncoder, DeepSeekMathTemplate, Template, prompt_spans
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import TokenizerError, UsageError
from tests.support.small_tokenizer import BEGIN, END, write_small_tokenizer

# The chat template in the tokenizer_config.json of deepseek-math-7b-rl, as transformers renders it.
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<s>' + message.role + '\n' + (message.content | trim) + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TOOL_ANSWER = "```python\nprint(2)\n```\n```output\n2\n```\nTwo."
CONVERSATIONS = {
    "one turn": [Message("user", "1+1?"), Message("assistant", "2")],
    "a system": [Message("system", "简短。"), Message("user", "1+1?"), Message("assistant", "2")],
    "two turns, a tool": [
        Message("user", f"{END} and {BEGIN}"),
        Message("assistant", TOOL_ANSWER),
        Message("user", "again"),
        Message("assistant", f"{END}\n"),
    ],
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_small_tokenizer(tmp_path_factory.mktemp("small")))


def jinja(source: str, tokenizer: Tokenizer) -> JinjaTemplate:
    return JinjaTemplate(source, tokenizer, Path("chat_template.jinja"))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_our_template_is_that_of_the_authors(name: str, tokenizer: Tokenizer) -> None:
    theirs = jinja(DEEPSEEK, tokenizer).spans(CONVERSATIONS[name])
    assert theirs == DeepSeekMathTemplate(tokenizer).spans(CONVERSATIONS[name])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_text_is_what_transformers_renders(name: str, shared_data: Path) -> None:
    """ours: the tokens decoded; theirs: the same tokenizer_config.json through transformers' own environment."""
    from transformers.utils.chat_template_utils import render_jinja_template

    folder = shared_data / "tokenizer" / "deepseek_llm"
    tokenizer, config = load_tokenizer(folder), json.loads((folder / "tokenizer_config.json").read_bytes())
    turns = [message._asdict() for message in CONVERSATIONS[name]]
    (theirs,), _ = render_jinja_template(
        [turns],
        chat_template=config["chat_template"],
        bos_token=config["bos_token"]["content"],
        eos_token=config["eos_token"]["content"],
    )
    encoder = ConversationEncoder(open_template("tokenizer", tokenizer), tokenizer)
    assert tokenizer.decode(encoder.encode([CONVERSATIONS[name]]).tokens.tolist()) == theirs


def test_in_chatml_the_answer_and_its_end_are_targets_but_not_the_line_after(tokenizer: Tokenizer) -> None:
    begin, end = tokenizer.begin_of_document, tokenizer.end_of_document
    assert jinja(CHATML, tokenizer).spans([Message("user", " 1? "), Message("assistant", " 1\n")]) == [
        Span("", False, begin),
        Span("user\n1?", False),
        Span("", False, end),
        Span("\n", False),
        Span("", False, begin),
        Span("assistant\n", False),
        Span("1", True),
        Span("", True, end),
        Span("\n", False),
    ]


@pytest.mark.parametrize("source", [None, DEEPSEEK, CHATML])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_prompt_is_the_beginning_of_the_example(source: str | None, name: str, tokenizer: Tokenizer) -> None:
    messages = CONVERSATIONS[name]
    template: Template = DeepSeekMathTemplate(tokenizer) if source is None else jinja(source, tokenizer)
    prompt, whole = prompt_spans(template, messages[:-1]), template.spans(messages)
    assert [span._replace(is_target=False) for span in whole[: len(prompt)]] == prompt
    assert whole[len(prompt)].is_target
    encoder = ConversationEncoder(template, tokenizer)
    tokens = encoder.encode_prompt(messages[:-1])
    assert encoder.encode([messages]).tokens[: len(tokens)].tolist() == tokens


def test_the_prompt_ends_with_the_colon(tokenizer: Tokenizer) -> None:
    prompt = prompt_spans(DeepSeekMathTemplate(tokenizer), [Message("user", "1?")])
    assert prompt == [Span("", False, tokenizer.begin_of_document), Span("User: 1?\n\nAssistant:", False)]


def test_the_tokens_of_inference_with_a_tool_are_those_of_training(tokenizer: Tokenizer) -> None:
    """At inference: the prompt, what the model writes up to the word, and "\\n{result}\\n```\\n" from the harness."""
    messages = [Message("user", "1+1?"), Message("assistant", TOOL_ANSWER)]
    encoder = ConversationEncoder(DeepSeekMathTemplate(tokenizer), tokenizer)
    call, output, conclusion = " ```python\nprint(2)\n```\n```output", "\n2\n```\n", "Two."
    expected = [
        *encoder.encode_prompt(messages[:1]),
        *(token for text in (call, output, conclusion) for token in encoder.encode_continuation(text)),
        tokenizer.end_of_document,
    ]
    assert encoder.encode([messages]).tokens.tolist() == expected


def test_no_space_is_added_at_the_start_of_a_span(shared_data: Path) -> None:
    """SentencePiece adds a space to every text, which would be inside the answer."""
    tokenizer = load_tokenizer(shared_data / "tokenizer" / "sentencepiece" / "test_unigram_1000.model")
    encoder = ConversationEncoder(DeepSeekMathTemplate(tokenizer), tokenizer)
    assert tokenizer.decode(tokenizer.encode("x") + tokenizer.encode("then")) == "x then"
    assert tokenizer.decode(tokenizer.encode("x") + encoder.encode_continuation("then")) == "xthen"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{% for", "not Jinja"),
        ("{{ messages[0].content }}", "leaves out a message"),
        (
            "{{ messages[0].content }}{{ messages[0].content }}{{ messages[1].content }}{{ eos_token }}",
            "writes one twice",
        ),
        ("{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}", "leaves out a message"),
        ("{% for m in messages %}{{ m.content }}.{% endfor %}", "no special token ends an answer"),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}bot: {% endif %}",
            "not how it begins an answer",
        ),
        (
            "{% for m in messages %}{% if m.content == '1?' %}!{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}",
            "changes a message",
        ),
        ("{{ raise_exception('no') }}", "fails on a conversation"),
        ("{{ messages.__class__.__mro__ }}", "fails on a conversation"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "fails on a conversation"),
        ("{% for i in range(999999) %}{% endfor %}", "fails on a conversation"),
        ("{{ messages.append(1) }}", "fails on a conversation"),
    ],
)
def test_an_unusable_template_is_refused(source: str, what: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=what) as caught:
        jinja(source, tokenizer).spans([Message("user", "1?"), Message("assistant", "1")])
    assert str(caught.value.where) == "chat_template.jinja"


def test_the_sandbox_gives_no_access_to_python(tokenizer: Tokenizer) -> None:
    """Names with underscores are undefined in it, and undefined names are written as nothing."""
    source = "{{ messages.__class__ }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    assert jinja(source, tokenizer).spans([Message("user", "1?"), Message("assistant", "1")])[0].text == "1?"


def test_a_template_comes_from_the_tokenizer_or_a_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = CONVERSATIONS["two turns, a tool"]
    folder = shutil.copytree(tokenizer.path.parent, tmp_path / "tokenizer")
    with pytest.raises(TokenizerError, match="no chat template"):
        open_template("tokenizer", load_tokenizer(folder))
    (folder / "chat_template.jinja").write_text(DEEPSEEK)
    with_template = load_tokenizer(folder)
    assert open_template("tokenizer", with_template).spans(messages) == open_template("deepseekmath", tokenizer).spans(
        messages
    )
    (tmp_path / "chatml.jinja").write_text(CHATML)
    named = open_template(str(tmp_path / "chatml.jinja"), tokenizer)
    assert named.spans(messages) == jinja(CHATML, tokenizer).spans(messages)
    with pytest.raises(UsageError, match="cannot be read"):
        open_template(str(tmp_path / "missing.jinja"), tokenizer)


def test_a_tokenizer_without_named_special_tokens_is_refused(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizer" / "sentencepiece" / "internlm_bpe_103168.model")
    with pytest.raises(TokenizerError, match="does not name its special tokens"):
        jinja(DEEPSEEK, tokenizer)
