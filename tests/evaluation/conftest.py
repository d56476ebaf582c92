from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def published_prompts(shared_data: Path) -> dict[str, dict[str, Any]]:
    """The values of deepseek-ai/DeepSeek-Math's evaluation/few_shot_prompts, by file name."""
    file = shared_data / "eval/few_shot_prompts.json"
    prompts: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return prompts


@pytest.fixture
def paper_data(shared_data: Path, published_prompts: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    """A folder for `--data`: every benchmark, and few_shot_prompts/*.py in the form of the published files."""
    folder = tmp_path / "data"
    (folder / "few_shot_prompts").mkdir(parents=True)
    for name, values in published_prompts.items():
        (folder / f"few_shot_prompts/{name}.py").write_text(_python(values), encoding="utf-8")
    for file in [*shared_data.glob("eval/*.jsonl"), *shared_data.glob("pretrain/*.jsonl")]:
        (folder / file.name).symlink_to(file)
    return folder


def _python(values: dict[str, Any]) -> str:
    """Code of the published files' form, which raises when it is executed."""
    prompt = values["few_shot_prompt"]
    by_tag = {"all": prompt} if isinstance(prompt, str) else prompt
    texts = "".join(f"    {tag!r}: {_literal(text)}.strip(),\n" for tag, text in by_tag.items())
    template = values["template"].replace("{few_shot_prompt}", "{few_shot_prompt[tag]}")
    return (
        'from .few_shot_prompting import FewShotPrompting\n\nraise SystemExit("executed")\n\n'
        f'few_shot_prompt = {{\n    "unused": "another text",\n{texts}}}\n\n\n'
        f"class {values['class']}(FewShotPrompting):\n"
        '    def format_prompt(self, task_input, task_output, tag="all"):\n'
        f"        prompt = f{template!r}\n"
        "        return prompt.rstrip()\n\n"
        f"    def stop_words(self):\n        return {values['stop_words']!r}\n"
    )


def _literal(text: str) -> str:
    """A triple-quoted string with a line break at both ends."""
    escaped = text.replace("\\", "\\\\").replace('"""', '\\"""')
    return f'"""\n{escaped}\n"""'
