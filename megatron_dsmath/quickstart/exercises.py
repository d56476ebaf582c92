"""Mathematical problems with worked solutions and random numbers, each in English and in Chinese.

Every equation holds, because its numbers are computed. The texts are written for this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random


def format_polynomial(coefficients: Sequence[int], variable: str = "x") -> str:
    """The polynomial with these coefficients, highest power first: (1, -5, 6) is `x^2 - 5x + 6`."""
    terms = []
    for power, coefficient in zip(range(len(coefficients) - 1, -1, -1), coefficients, strict=True):
        if coefficient:
            size = "" if abs(coefficient) == 1 and power else str(abs(coefficient))
            letter = "" if power == 0 else variable if power == 1 else f"{variable}^{power}"
            terms.append((" - " if coefficient < 0 else " + ", size + letter))
    text = "".join(sign + term for sign, term in terms) or " + 0"
    return "-" + text[3:] if text.startswith(" - ") else text[3:]


def format_fraction(number: Fraction) -> str:
    """A rational number in lowest terms as LaTeX."""
    sign = "-" if number < 0 else ""
    top, bottom = abs(number.numerator), number.denominator
    return f"{sign}{top}" if bottom == 1 else f"{sign}\\frac{{{top}}}{{{bottom}}}"


@dataclass(frozen=True)
class Exercise:
    """A problem, its worked solution and its answer in one language. Formulas are LaTeX between dollar signs."""

    question: str
    solution: str
    answer: str


Bilingual = tuple[Exercise, Exercise]  # English, Chinese


def _bilingual(answer: str, question: str, solution: str, chinese_question: str, chinese_solution: str) -> Bilingual:
    return Exercise(question, solution, answer), Exercise(chinese_question, chinese_solution, answer)


PEOPLE = (("Tom", "小明"), ("Anna", "小红"), ("Li Wei", "李伟"), ("Maria", "玛丽"), ("Chen", "小陈"), ("Omar", "小刚"))
GOODS = (("pencils", "支", "铅笔"), ("notebooks", "本", "笔记本"), ("apples", "斤", "苹果"), ("books", "本", "故事书"))


def purchase(draw: Random) -> Bilingual:
    """Money and change: a product and a difference."""
    (name, chinese_name), (goods, measure, chinese_goods) = draw.choice(PEOPLE), draw.choice(GOODS)
    count, price = draw.randint(3, 25), draw.randint(2, 18)
    cost = count * price
    paid = (cost // 50 + 1) * 50
    return _bilingual(
        f"{paid - cost}",
        f"{name} buys {count} {goods} at {price} dollars each and pays with {paid} dollars. What is the change?",
        f"The {goods} cost ${count} \\times {price} = {cost}$ dollars. The rest is ${paid} - {cost} = {paid - cost}$.",
        f"{chinese_name}买了{count}{measure}{chinese_goods}，每{measure}{price}元，付了{paid}元，应找回多少元？",
        f"一共要付 ${count} \\times {price} = {cost}$ 元，所以应找回 ${paid} - {cost} = {paid - cost}$ 元。",
    )


def linear_equation(draw: Random) -> Bilingual:
    """One unknown: a x + b = c."""
    a, x, b = draw.randint(2, 12), draw.randint(-9, 20), draw.choice((-1, 1)) * draw.randint(1, 30)
    left, right = format_polynomial((a, b)), a * x + b
    move = f"{right} - {b}" if b > 0 else f"{right} + {-b}"
    return _bilingual(
        f"x = {x}",
        f"Solve ${left} = {right}$ for $x$.",
        f"Move the constant to the right: ${a}x = {move} = {a * x}$. Divide both sides by ${a}$: $x = {x}$.",
        f"解方程 ${left} = {right}$。",
        f"移项得 ${a}x = {move} = {a * x}$，两边同时除以 ${a}$，得 $x = {x}$。",
    )


def quadratic_equation(draw: Random) -> Bilingual:
    """Two whole roots, found by factoring."""
    small = draw.randint(-9, 8)
    large = draw.randint(small + 1, 10)
    equation = format_polynomial((1, -small - large, small * large))
    factors = f"({format_polynomial((1, -small))})({format_polynomial((1, -large))})"
    return _bilingual(
        f"x = {small}, x = {large}",
        f"Find the roots of ${equation} = 0$.",
        f"Two numbers with sum ${small + large}$ and product ${small * large}$ are ${small}$ and ${large}$, so "
        f"${equation} = {factors}$. A product is zero when a factor is zero.",
        f"求方程 ${equation} = 0$ 的根。",
        f"和为 ${small + large}$、积为 ${small * large}$ 的两个数是 ${small}$ 和 ${large}$，"
        f"因此 ${equation} = {factors}$，于是其中一个因式等于零。",
    )


def discount(draw: Random) -> Bilingual:
    """A percentage of a price."""
    price, percent = draw.randint(2, 40) * 20, draw.randint(1, 15) * 5
    off = price * percent // 100
    return _bilingual(
        f"{price - off}",
        f"A coat costs {price} dollars. In the sale its price falls by {percent}%. What does it cost now?",
        f"The discount is ${price} \\times {percent} \\div 100 = {off}$ dollars, so the coat costs "
        f"${price} - {off} = {price - off}$ dollars.",
        f"一件大衣原价{price}元，现在降价{percent}%，现价是多少元？",
        f"降价 ${price} \\times {percent} \\div 100 = {off}$ 元，现价为 ${price} - {off} = {price - off}$ 元。",
    )


def common_divisor(draw: Random) -> Bilingual:
    """Euclid's algorithm, step by step."""
    shared = draw.randint(2, 18)
    small, large = shared * draw.randint(3, 12), shared * draw.randint(13, 40)
    steps, high, low = [], large, small
    while low:
        steps.append(f"${high} = {high // low} \\times {low} + {high % low}$")
        high, low = low, high % low
    return _bilingual(
        f"{high}",
        f"Find the greatest common divisor of {large} and {small}.",
        f"Divide with remainder until nothing is left: {', '.join(steps)}. The last divisor is ${high}$.",
        f"求{large}和{small}的最大公约数。",
        f"用辗转相除法：{'，'.join(steps)}。最后的除数是 ${high}$。",
    )


def fraction_sum(draw: Random) -> Bilingual:
    """Two fractions over a common denominator."""
    first = Fraction(draw.randint(1, 9), draw.randint(2, 12))
    second = Fraction(draw.randint(1, 9), draw.randint(2, 12))
    shared = math.lcm(first.denominator, second.denominator)
    tops = [part.numerator * shared // part.denominator for part in (first, second)]
    sums = f"{format_fraction(first)} + {format_fraction(second)}"
    total = format_fraction(first + second)
    work = f"${sums} = \\frac{{{tops[0]} + {tops[1]}}}{{{shared}}} = {total}$"
    return _bilingual(
        total,
        f"Add ${sums}$.",
        f"Both have the denominator ${shared}$ in common: {work}.",
        f"计算 ${sums}$。",
        f"公分母是 ${shared}$，通分得 {work}。",
    )


def arithmetic_series(draw: Random) -> Bilingual:
    """The sum of an arithmetic series."""
    first, difference, count = draw.randint(1, 20), draw.randint(2, 9), 2 * draw.randint(3, 20)
    last = first + (count - 1) * difference
    terms = f"{first}, {first + difference}, {first + 2 * difference}"
    total = count * (first + last) // 2
    work = f"$\\frac{{{count} \\times ({first} + {last})}}{{2}} = {total}$"
    return _bilingual(
        f"{total}",
        f"Find the sum of the first {count} terms of ${terms}, \\dots$",
        f"The last term is ${first} + {count - 1} \\times {difference} = {last}$. The sum is {work}.",
        f"求等差数列 ${terms}, \\dots$ 前{count}项的和。",
        f"末项为 ${first} + {count - 1} \\times {difference} = {last}$，所以和为 {work}。",
    )


def right_triangle(draw: Random) -> Bilingual:
    """The hypotenuse of a triangle with whole sides."""
    n = draw.randint(1, 6)
    m = draw.randint(n + 1, 9)
    a, b, c = m * m - n * n, 2 * m * n, m * m + n * n
    work = f"${a}^2 + {b}^2 = {a * a} + {b * b} = {c * c} = {c}^2$"
    return _bilingual(
        f"{c}",
        f"A right triangle has legs {a} cm and {b} cm. How long is the hypotenuse?",
        f"By the theorem of Pythagoras its square is {work}.",
        f"直角三角形的两条直角边长{a}厘米和{b}厘米，求斜边。",
        f"由勾股定理，斜边的平方为 {work}。",
    )


def combination(draw: Random) -> Bilingual:
    """How many ways to choose some of many."""
    n, k = draw.randint(5, 14), draw.randint(2, 4)
    top = " \\times ".join(str(n - i) for i in range(k))
    bottom = " \\times ".join(str(i) for i in range(k, 0, -1))
    work = f"$\\frac{{{top}}}{{{bottom}}} = \\frac{{{math.perm(n, k)}}}{{{math.factorial(k)}}} = {math.comb(n, k)}$"
    return _bilingual(
        f"{math.comb(n, k)}",
        f"In how many ways can {k} students be chosen from {n}?",
        f"The order does not matter, so the number is $\\binom{{{n}}}{{{k}}}$, that is {work}.",
        f"从{n}名学生中选出{k}名，共有多少种选法？",
        f"与顺序无关，所以是组合数 $\\binom{{{n}}}{{{k}}}$，即 {work}。",
    )


def derivative(draw: Random) -> Bilingual:
    """The slope of a parabola at a point."""
    a, b, c, at = (draw.randint(1, 9), draw.randint(-9, 9), draw.randint(-12, 12), draw.randint(1, 6))
    function, slope = format_polynomial((a, b, c)), format_polynomial((2 * a, b))
    result = 2 * a * at + b
    work = f"{2 * a} \\times {at}" + ("" if b == 0 else f" {'+' if b > 0 else '-'} {abs(b)}")
    return _bilingual(
        f"{result}",
        f"Let $f(x) = {function}$. What is the slope of its graph at $x = {at}$?",
        f"The derivative is $f'(x) = {slope}$, and at $x = {at}$ it is ${work} = {result}$.",
        f"设 $f(x) = {function}$，求曲线在 $x = {at}$ 处的斜率。",
        f"导数为 $f'(x) = {slope}$，当 $x = {at}$ 时等于 ${work} = {result}$。",
    )


def meeting(draw: Random) -> Bilingual:
    """Two cars that drive towards each other."""
    first, second, hours = draw.randint(40, 90), draw.randint(40, 90), draw.randint(2, 9)
    total = (first + second) * hours
    work = f"${first} + {second} = {first + second}$", f"${total} \\div {first + second} = {hours}$"
    return _bilingual(
        f"{hours}",
        f"Two cars start towards each other from towns {total} km apart, at {first} km/h and {second} km/h. "
        "After how many hours do they meet?",
        f"Every hour they come {work[0]} km closer, so they meet after {work[1]} hours.",
        f"两地相距{total}千米，两车同时相向而行，速度分别为每小时{first}千米和{second}千米，几小时后相遇？",
        f"两车每小时共行 {work[0]} 千米，所以经过 {work[1]} 小时相遇。",
    )


def remainder(draw: Random) -> Bilingual:
    """The remainder of a power."""
    base, power, modulus = draw.randint(2, 9), draw.randint(3, 6), draw.randint(5, 13)
    whole = base**power
    work = f"${base}^{power} = {whole} = {whole // modulus} \\times {modulus} + {whole % modulus}$"
    return _bilingual(
        f"{whole % modulus}",
        f"What is the remainder of ${base}^{power}$ divided by ${modulus}$?",
        f"We have {work}, and ${whole % modulus}$ is less than ${modulus}$.",
        f"求 ${base}^{power}$ 除以 ${modulus}$ 的余数。",
        f"因为 {work}，而 ${whole % modulus}$ 小于 ${modulus}$。",
    )
