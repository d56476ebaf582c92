"""Natural language in English and Chinese: stands in for the Common Crawl part of the mixture (paper, section 2.3).

English is the documentation that the interpreter carries (see interpreter.py for its licence); Chinese is generated.
The Chinese texts are this project's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from megatron_dsmath.quickstart import interpreter

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
    for text in interpreter.documentation(draw):
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
