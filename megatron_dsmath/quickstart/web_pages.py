"""Generated bilingual pages of mathematics, in place of the DeepSeekMath Corpus (paper, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from megatron_dsmath.quickstart import exercises
from megatron_dsmath.quickstart.exercises import Bilingual, Exercise

ENGLISH, CHINESE = 0, 1
CHINESE_SHARE = 0.35  # of the pages; the paper calls its corpus bilingual and gives no split


@dataclass(frozen=True)
class Topic:
    """A kind of exercise: its title and rule in (English, Chinese), and the function that draws one in both."""

    title: tuple[str, str]
    rule: tuple[str, str]
    draw: Callable[[Random], Bilingual]


TOPICS = (
    Topic(
        ("Money and change", "购物问题"),
        ("Multiply the price by the number of things.", "总价等于单价乘以数量。"),
        exercises.purchase,
    ),
    Topic(
        ("Linear equations", "一元一次方程"),
        ("Whatever is done to one side is done to the other.", "等式两边同时进行相同的运算，等式仍然成立。"),
        exercises.linear_equation,
    ),
    Topic(
        ("Quadratic equations", "一元二次方程"),
        ("A product is zero exactly when one of its factors is zero.", "两数之积为零，当且仅当其中一个数为零。"),
        exercises.quadratic_equation,
    ),
    Topic(
        ("Percentages", "百分数"),
        ("One percent is one hundredth of the whole.", "百分之一就是整体的一百分之一。"),
        exercises.discount,
    ),
    Topic(
        ("Euclid's algorithm", "最大公约数"),
        ("A common divisor of two numbers divides their remainder too.", "两数的公约数也整除它们相除的余数。"),
        exercises.common_divisor,
    ),
    Topic(
        ("Adding fractions", "分数加法"),
        ("Fractions are added over a common denominator.", "异分母分数相加，先通分再相加。"),
        exercises.fraction_sum,
    ),
    Topic(
        ("Arithmetic series", "等差数列"),
        ("The sum is the number of terms times the mean of the first and last.", "和等于项数乘以首末两项的平均数。"),
        exercises.arithmetic_series,
    ),
    Topic(
        ("The theorem of Pythagoras", "勾股定理"),
        ("The squares over the legs make up the square over the hypotenuse.", "两条直角边的平方和等于斜边的平方。"),
        exercises.right_triangle,
    ),
    Topic(
        ("Counting choices", "排列与组合"),
        ("Count ordered choices and divide by the orders of each.", "先数有序的取法，再除以每组的排列数。"),
        exercises.combination,
    ),
    Topic(
        ("Derivatives", "导数"),
        ("The derivative of $x^n$ is $n x^{n-1}$.", "$x^n$ 的导数是 $n x^{n-1}$。"),
        exercises.derivative,
    ),
    Topic(
        ("Speed, distance and time", "行程问题"),
        ("Distance is speed times time.", "路程等于速度乘以时间。"),
        exercises.meeting,
    ),
    Topic(
        ("Remainders", "同余与余数"),
        ("A remainder is never negative and less than the divisor.", "余数不小于零，并且小于除数。"),
        exercises.remainder,
    ),
)

PHRASES = {  # the text of a page around its exercises
    "lesson": ("{title}: worked examples", "{title}：例题详解"),
    "example": ("Example {number}.", "例{number}："),
    "solution": ("Solution.", "解："),
    "answer": ("The answer is $\\boxed{{{answer}}}$.", "答案是 $\\boxed{{{answer}}}$。"),
    "sheet": ("Practice sheet: {title}", "练习题：{title}"),
    "key": ("Answers", "参考答案"),
    "question": ("Question about {title}", "求助：{title}"),
    "asked": ("Asked by {user}, {votes} votes", "提问者：{user}，{votes}人关注"),
    "replied": ("{user} replied ({votes} votes):", "{user}的回答（{votes}个赞）："),
}
OPENINGS = (
    ("In this lesson we practise one rule.", "本节课我们练习一个重要的法则。"),
    ("Read the examples slowly and check every step.", "请认真阅读例题，并检查每一步。"),
    ("The idea is short; the practice takes longer.", "道理很简单，但需要多加练习。"),
    ("Before you start, recall the following fact.", "开始之前，请先回忆下面的事实。"),
)
THANKS = (("Thank you, now I see it.", "谢谢，我明白了。"), ("Nice and clear.", "讲得很清楚。"), ("", ""))


def generate_pages(draw: Random) -> Iterator[str]:
    """Yield pages without end: lessons, practice sheets, and questions with their replies."""
    while True:
        topic = draw.choice(TOPICS)
        language = CHINESE if draw.random() < CHINESE_SHARE else ENGLISH
        page = draw.choice((_lesson, _practice_sheet, _question_and_reply))
        yield page(draw, topic, language)


def _phrase(key: str, language: int, **values: object) -> str:
    return PHRASES[key][language].format(**values)


def _distinct(draw: Random, topic: Topic, language: int, count: int) -> list[Exercise]:
    drawn = (topic.draw(draw)[language] for _ in range(count))
    return list({exercise.question: exercise for exercise in drawn}.values())


def _lesson(draw: Random, topic: Topic, language: int) -> str:
    opening = draw.choice(OPENINGS)[language]
    parts = [f"# {_phrase('lesson', language, title=topic.title[language])}", f"{opening} {topic.rule[language]}"]
    for number, exercise in enumerate(_distinct(draw, topic, language, draw.randint(2, 6)), 1):
        example, solution = _phrase("example", language, number=number), _phrase("solution", language)
        answer = _phrase("answer", language, answer=exercise.answer)
        parts.append(f"{example} {exercise.question}\n{solution} {exercise.solution} {answer}")
    return "\n\n".join(parts)


def _practice_sheet(draw: Random, topic: Topic, language: int) -> str:
    drawn = _distinct(draw, topic, language, draw.randint(4, 9))
    drawn += _distinct(draw, draw.choice(TOPICS), language, draw.randint(0, 3))
    questions = [f"{number}. {exercise.question}" for number, exercise in enumerate(drawn, 1)]
    answers = [f"{number}. ${exercise.answer}$" for number, exercise in enumerate(drawn, 1)]
    title = f"# {_phrase('sheet', language, title=topic.title[language])}"
    return "\n".join([title, "", *questions, "", f"## {_phrase('key', language)}", "", *answers])


def _question_and_reply(draw: Random, topic: Topic, language: int) -> str:
    exercise = topic.draw(draw)[language]
    asker, helper = (f"{draw.choice(exercises.PEOPLE)[language].replace(' ', '')}{draw.randint(1, 999)}" for _ in "ab")
    answer = _phrase("answer", language, answer=exercise.answer)
    lines = [
        _phrase("question", language, title=topic.title[language].lower()),
        _phrase("asked", language, user=asker, votes=draw.randint(1, 60)),
        "",
        exercise.question,
        "",
        _phrase("replied", language, user=helper, votes=draw.randint(1, 90)),
        f"{topic.rule[language]} {exercise.solution} {answer}",
        draw.choice(THANKS)[language],
    ]
    return "\n".join(lines).rstrip()
