"""Generated articles in LaTeX with theorems and proofs, in place of arXiv (paper, section 2.3).

Every theorem is true and every number is computed. The texts are written for this project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from megatron_dsmath.quickstart.exercises import format_fraction, format_polynomial

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


@dataclass(frozen=True)
class Section:
    """A section of an article: a theorem, its proof, and a consequence with numbers."""

    title: str
    theorem: str
    proof: str
    example: str


def generate_articles(draw: Random) -> Iterator[str]:
    """Yield articles without end: an abstract and a few sections."""
    kinds = (_power_integral, _geometric_sum, _irrational_root, _fermat, _fixed_point, _symmetric, _linear_sum, _bound)
    while True:
        chosen = [kind(draw) for kind in draw.sample(kinds, draw.randint(2, 4))]
        titles = " and ".join(section.title.lower() for section in chosen[:2])
        parts = [
            f"\\title{{{draw.choice(('On', 'Remarks on', 'A note on', 'Notes on'))} {titles}}}",
            f"\\begin{{abstract}}\n{_abstract(draw, len(chosen))}\n\\end{{abstract}}",
        ]
        parts += [_format_section(draw, number, section) for number, section in enumerate(chosen, 1)]
        yield "\n\n".join(parts)


def _abstract(draw: Random, sections: int) -> str:
    aim = draw.choice(("We collect", "We give short proofs of", "We present", "This note contains"))
    kind = draw.choice(("elementary facts", "classical results", "well-known statements"))
    use = draw.choice(("in teaching", "in a first course", "as examples", "in numerical work"))
    return f"{aim} {sections} {kind} that are useful {use}. No claim of novelty is made."


def _format_section(draw: Random, number: int, section: Section) -> str:
    label = f"thm:{number}"
    lead = draw.choice(
        (
            "The following statement is classical.",
            "We start with a definite case and keep the notation simple.",
            "The proof uses nothing beyond elementary algebra.",
            "This section is independent of the others.",
        )
    )
    link = draw.choice(("As an illustration of", "To see how one applies", "Here is a case of"))
    return (
        f"\\section{{{section.title}}}\n{lead}\n"
        f"\\begin{{theorem}}\\label{{{label}}}\n{section.theorem}\n\\end{{theorem}}\n"
        f"\\begin{{proof}}\n{section.proof}\n\\end{{proof}}\n"
        f"{link} Theorem~\\ref{{{label}}}, {section.example}"
    )


def _power_integral(draw: Random) -> Section:
    n, top = draw.randint(2, 9), draw.randint(1, 6)
    area = format_fraction(Fraction(top ** (n + 1), n + 1))
    return Section(
        "An integral of a power",
        f"For every real $a \\ge 0$ we have\n\\begin{{equation}}\n\\int_0^a x^{{{n}}} \\, dx = "
        f"\\frac{{a^{{{n + 1}}}}}{{{n + 1}}}.\n\\end{{equation}}",
        f"The derivative of $x^{{{n + 1}}} / {n + 1}$ is $x^{{{n}}}$, and the function vanishes at $0$. "
        "The claim follows from the fundamental theorem of calculus.",
        f"take $a = {top}$: the integral is ${area}$.",
    )


def _geometric_sum(draw: Random) -> Section:
    ratio, count = draw.randint(3, 8), draw.randint(3, 9)
    total = (ratio**count - 1) // (ratio - 1)
    terms = " + ".join(str(ratio**power) for power in range(count))
    return Section(
        "A geometric sum",
        f"For every $n \\ge 1$,\n\\[\n\\sum_{{k=0}}^{{n-1}} {ratio}^k = \\frac{{{ratio}^n - 1}}{{{ratio - 1}}}.\n\\]",
        f"Let $S$ be the sum. Then ${ratio} S - S$ telescopes to ${ratio}^n - 1$, and ${ratio} - 1 = {ratio - 1}$.",
        f"with $n = {count}$ we get ${terms} = {total}$.",
    )


def _irrational_root(draw: Random) -> Section:
    p = draw.choice(PRIMES)
    low = int(p**0.5)
    return Section(
        "An irrational square root",
        f"The number $\\sqrt{{{p}}}$ is irrational.",
        f"Suppose $\\sqrt{{{p}}} = a/b$ with coprime integers $a$ and $b > 0$. Then $a^2 = {p} b^2$, so ${p}$, a "
        f"prime, divides $a^2$ and hence $a$. Write $a = {p} c$. Then ${p} c^2 = b^2$, so ${p}$ divides $b$ too, "
        "which contradicts that $a$ and $b$ are coprime.",
        f"note that ${low}^2 = {low**2} < {p} < {(low + 1) ** 2} = {low + 1}^2$, so the root lies strictly between "
        f"${low}$ and ${low + 1}$.",
    )


def _fermat(draw: Random) -> Section:
    p, base = draw.choice(PRIMES[:6]), draw.randint(2, 9)
    whole = base**p - base
    return Section(
        "A divisibility by a prime",
        f"For every integer $n$ the prime ${p}$ divides $n^{{{p}}} - n$.",
        f"If ${p}$ divides $n$, there is nothing to show. Otherwise $n, 2n, \\dots, {p - 1}n$ are, modulo ${p}$, the "
        f"numbers $1, \\dots, {p - 1}$ in some order; comparing products, $n^{{{p - 1}}} \\equiv 1 \\pmod{{{p}}}$.",
        f"let $n = {base}$: ${base}^{{{p}}} - {base} = {whole} = {p} \\cdot {whole // p}$.",
    )


def _fixed_point(draw: Random) -> Section:
    q, shift, start = draw.randint(2, 9), draw.randint(1, 20), draw.randint(-9, 9)
    limit = Fraction(shift * q, q - 1)
    first = Fraction(start, q) + shift
    second = first / q + shift
    return Section(
        "A contraction of the line",
        f"Let $x_{{n+1}} = x_n / {q} + {shift}$ with any $x_0 \\in \\mathbb{{R}}$. "
        f"Then $x_n$ converges to ${format_fraction(limit)}$.",
        f"The number $x^* = {format_fraction(limit)}$ satisfies $x^* = x^* / {q} + {shift}$. Subtracting, we get "
        f"$x_{{n+1}} - x^* = (x_n - x^*) / {q}$, so the distance shrinks by the factor ${q}$ in each step.",
        f"the start $x_0 = {start}$ gives $x_1 = {format_fraction(first)}$ and $x_2 = {format_fraction(second)}$.",
    )


def _symmetric(draw: Random) -> Section:
    a, b = draw.randint(1, 20), draw.randint(1, 20)
    matrix = f"\\begin{{pmatrix}} {a} & {b} \\\\ {b} & {a} \\end{{pmatrix}}"
    return Section(
        "Eigenvalues of a symmetric matrix",
        f"The eigenvalues of the matrix $A = {matrix}$ are ${a + b}$ and ${a - b}$.",
        f"The vectors $(1, 1)^T$ and $(1, -1)^T$ are mapped to ${a + b} \\cdot (1, 1)^T$ and to "
        f"${a - b} \\cdot (1, -1)^T$, and they form a basis of $\\mathbb{{R}}^2$.",
        f"the determinant of $A$ is ${a}^2 - {b}^2 = {a * a - b * b}$ and its trace is ${2 * a}$.",
    )


def _linear_sum(draw: Random) -> Section:
    a, b, n = 2 * draw.randint(1, 9), draw.randint(-9, 9), draw.randint(4, 40)
    closed = format_polynomial((a // 2, a // 2 + b, 0), "n")
    return Section(
        "A sum of linear terms",
        f"For all $n \\ge 1$,\n\\begin{{equation}}\n\\sum_{{k=1}}^n ({format_polynomial((a, b), 'k')}) = {closed}."
        "\n\\end{equation}",
        f"We use induction on $n$. For $n = 1$ both sides are ${a + b}$. Increasing $n$ by one adds "
        f"${format_polynomial((a, a + b), 'n')}$ to the left side, and the right side grows by the same amount.",
        f"put $n = {n}$: the sum is ${a // 2 * n * n + (a // 2 + b) * n}$.",
    )


def _bound(draw: Random) -> Section:
    a, c = draw.randint(1, 15), draw.randint(1, 40)
    form = format_polynomial((1, -2 * a, a * a + c))
    at = draw.randint(-5, 20)
    return Section(
        "A lower bound for a quadratic form",
        f"For all real $x$ we have ${form} \\ge {c}$, with equality if and only if $x = {a}$.",
        f"Completing the square gives ${form} = (x - {a})^2 + {c}$, and a square is never negative.",
        f"at $x = {at}$ the left side equals ${(at - a) ** 2 + c}$.",
    )
