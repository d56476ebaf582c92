"""Five small corpora in place of the five sources of the paper's mixture, made from nothing but Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from megatron_dsmath.files.atomic_files import AtomicFiles
from megatron_dsmath.quickstart import formal, papers, standard_library, web_pages

README = """\
# Corpora of the quickstart

Miniatures of the five sources of DeepSeekMath's mixture (arXiv 2402.03300, section 2.3), made by `dsmath quickstart`.

| file | content | owner |
|---|---|---|
| deepseekmath_corpus.jsonl | generated: mathematical pages with worked solutions, English and Chinese | ours |
| algebraic_stack.jsonl | generated: Lean, computer algebra, numerical programs | ours |
| | and the mathematical modules of Python's standard library | Python's |
| arxiv.jsonl | generated: LaTeX sections with theorems and proofs | ours |
| github_code.jsonl | other modules of Python's standard library, as whole files | Python's |
| natural_language.jsonl | generated: Chinese essays | ours |
| | and English documentation that Python carries | Python's |

Ours: megatron_dsmath, Apache-2.0. The mathematics is true; persons and places are invented.
Python's: read from the interpreter that wrote this folder, under the Python Software Foundation License 2 (see its
LICENSE.txt, or `license()` in Python) and, in some modules, the notice in the module. Pass them on only with it.
"""
SESSIONS_PER_MODULE = 120
ESSAY_SHARE = 0.3  # Chinese essays in natural_language; the paper gives no split
# The words and sentences of the essays.
TIMES = ("清晨", "上午", "中午", "下午", "傍晚", "晚上", "周末", "春天", "夏天", "秋天", "冬天", "放学以后", "假期里")
PEOPLE = ("爷爷", "奶奶", "妈妈", "老师", "我", "弟弟", "姐姐", "邻居", "同学们", "医生", "农民", "司机", "画家")
PLACES = ("公园", "图书馆", "河边", "菜市场", "学校", "火车站", "院子里", "山脚下", "博物馆", "海边", "小镇", "田野")
ACTIONS = ("散步", "读书", "聊天", "写生", "种花", "买菜", "钓鱼", "跑步", "拍照", "唱歌", "听故事", "看风景")
WEATHER = ("天气很好", "下着小雨", "刮着大风", "阳光明媚", "飘着雪花", "天空很蓝", "云很低", "空气清新", "雾气很重")
THINGS = ("柳树", "小桥", "灯笼", "石头", "自行车", "老房子", "茶馆", "渔船", "花朵", "书店", "麦田", "钟楼", "城墙")
QUALITIES = ("古老", "安静", "漂亮", "热闹", "普通", "有趣", "宽阔", "明亮", "温暖", "高大", "干净", "神秘")
FEELINGS = ("十分高兴", "有些疲倦", "觉得很有意思", "非常感动", "依依不舍", "很想再来一次", "心里很平静", "收获很大")
SENTENCES = (
    "{time}，{person}到{place}去{action}，那天{weather}。",
    "{place}有许多{thing}，看上去非常{quality}。",
    "{person}说：“这里的{thing}真{quality}，我们应该好好保护它们。”",
    "因为{weather}，所以{person}决定留在{place}{action}。",
    "虽然{weather}，但是{person}还是{feeling}。",
    "走过{thing}，前面就是{place}，人们正在那里{action}。",
    "{person}和{other}一边{action}，一边谈起从前的{thing}。",
    "回家的路上，{person}{feeling}。",
    "{time}的{place}特别{quality}，{person}常常来这里{action}。",
    "如果{weather}，{person}就会带着{other}去{place}。",
)
TITLES = ("{place}的一天", "我和{person}", "{time}的{place}", "一次难忘的{action}", "{quality}的{thing}")


def _algebraic_stack(draw: Random) -> Iterator[str]:
    """Yield sessions without end, and each mathematical module once, after SESSIONS_PER_MODULE further sessions."""
    sessions = formal.generate_sessions(draw)
    for module in standard_library.mathematical_modules():
        yield from islice(sessions, SESSIONS_PER_MODULE)
        yield module
    yield from sessions


def _natural_language(draw: Random) -> Iterator[str]:
    """Yield English documentation until it ends, with short Chinese essays in between."""
    for text in standard_library.documentation(draw):
        yield text
        while draw.random() < ESSAY_SHARE:
            yield _essay(draw)


def _essay(draw: Random) -> str:
    paragraphs = ["".join(_sentence(draw, SENTENCES) for _ in range(draw.randint(4, 9))) for _ in "一二三四"]
    return "\n\n".join([_sentence(draw, TITLES), *paragraphs])


def _sentence(draw: Random, patterns: tuple[str, ...]) -> str:
    person, other = draw.sample(PEOPLE, 2)
    return draw.choice(patterns).format(
        time=draw.choice(TIMES),
        person=person,
        other=other,
        place=draw.choice(PLACES),
        action=draw.choice(ACTIONS),
        weather=draw.choice(WEATHER),
        thing=draw.choice(THINGS),
        quality=draw.choice(QUALITIES),
        feeling=draw.choice(FEELINGS),
    )


# (share of the bytes, which is the paper's share of the tokens (section 2.3); generator of documents) of each corpus.
CORPORA: dict[str, tuple[float, Callable[[Random], Iterator[str]]]] = {
    "deepseekmath_corpus": (0.56, web_pages.generate_pages),
    "algebraic_stack": (0.04, _algebraic_stack),
    "arxiv": (0.10, papers.generate_articles),
    "github_code": (0.20, standard_library.other_modules),
    "natural_language": (0.10, _natural_language),
}


def write_corpora(folder: Path, seed: int, megabytes: float = 6.0) -> dict[str, Path]:
    """Write `folder`/NAME.jsonl for each corpus, with `{"text": ...}` per line, and README.md; return paths by name.

    `megabytes`: about the size of all files together, divided as the paper's mixture. A corpus that is read from the
    interpreter may end earlier. The same seed and version of Python give the same bytes. All files appear, or none.
    Raises OutputError, and DataError if Python's sources are missing.
    """
    paths = {name: folder / f"{name}.jsonl" for name in CORPORA}
    with AtomicFiles(folder / "README.md", *paths.values()) as (readme, *files):
        readme.write(README.encode())
        for file, (name, (share, documents)) in zip(files, CORPORA.items(), strict=True):
            draw = Random(f"{seed}/{name}")  # noqa: S311 - it draws texts, not secrets
            for text in documents(draw):
                file.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
                if file.size_bytes >= int(megabytes * share * 1e6):
                    break
    return paths
