"""The texts that every Python installation carries: the standard library's sources and documentation.

Licence: the Python Software Foundation License 2, and for some modules the notice that stands in the module itself;
sources are used as whole files, so that each keeps its notice. They are read from the running interpreter, which
has them under that licence already; nothing of them is part of this project.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

from megatron_dsmath.errors import DataError

CHINESE_SHARE = 0.3  # of the documents; the paper gives no split

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


def documents(draw: Random) -> Iterator[str]:
    """Documents without end while the English lasts: documentation, and short Chinese essays between them."""
    for text in documentation(draw):
        yield text
        while draw.random() < CHINESE_SHARE:
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


MATHEMATICAL = ("fractions", "statistics", "numbers", "random", "colorsys", "heapq", "bisect", "decimal", "graphlib")
# Tables and toys rather than programs.
LEFT_OUT = ("encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo", "this", "antigravity")
SMALLEST_BYTES, LARGEST_BYTES = 500, 60_000  # an empty __init__ says nothing; a huge module is most of a small corpus
PIECE_CHARACTERS = 6_000
FEWEST_MODULES = 50  # fewer would be a stripped library, and the corpus would soon be learnt by heart


def mathematical_modules() -> Iterator[str]:
    """The sources of the standard library's mathematical modules, one after the other."""
    for path in sources():
        if path.stem in MATHEMATICAL and path.parent == library():
            yield from _text(path)


def modules(draw: Random) -> Iterator[str]:
    """The sources of the other modules in a drawn order. Raises DataError where the interpreter carries too few."""
    paths = [path for path in sources() if path.stem not in MATHEMATICAL]
    if len(paths) < FEWEST_MODULES:
        raise DataError(
            "the quickstart's code corpus needs the sources of the standard library",
            where=library(),
            found=f"{len(paths)} modules as .py files",
            expected=f"at least {FEWEST_MODULES}, as every usual installation has",
            fix="run it with Python from python.org, your distribution's full package, conda or uv",
        )
    draw.shuffle(paths)
    for path in paths:
        yield from _text(path)


def documentation(draw: Random) -> Iterator[str]:
    """English prose in a drawn order: the language reference of `help()`, and the modules' documentation strings."""
    chapters: list[str | Path] = [*_reference(), *sources()]
    draw.shuffle(chapters)
    for chapter in chapters:
        texts = [chapter] if isinstance(chapter, str) else map(_documentation_strings, _text(chapter))
        for text in texts:
            yield from _pieces(text)


def library() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def sources() -> list[Path]:
    """The library's own modules, in the order of their names; what others installed beside them is left out."""
    known = sys.stdlib_module_names.difference(LEFT_OUT)
    found = [
        path for name in sorted(known) for path in (library() / f"{name}.py", *sorted((library() / name).rglob("*.py")))
    ]
    return [path for path in found if _is_plain(path)]


def _is_plain(path: Path) -> bool:
    tests = {"test", "tests", "idle_test", "__pycache__"}.intersection(path.relative_to(library()).parts)
    return not tests and path.is_file() and SMALLEST_BYTES < path.stat().st_size < LARGEST_BYTES


def _text(path: Path) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a few old modules are in another encoding
        return


def _reference() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out; the documentation strings remain
        return []
    return [topics[name] for name in sorted(topics)]


def _pieces(text: str) -> Iterator[str]:
    """The text cut at empty lines into pieces of about PIECE_CHARACTERS."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece += ("\n\n" if piece else "") + paragraph.strip("\n")
    if piece:
        yield piece


def _documentation_strings(source: str) -> str:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    strings = (ast.get_docstring(node) for node in nodes)
    return "\n\n".join(string for string in strings if string and len(string) > 200)
