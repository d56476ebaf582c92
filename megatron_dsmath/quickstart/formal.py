"""Generated formal and computed mathematics, in place of AlgebraicStack (paper, section 2.3).

Lean theorems, sessions in the style of PARI/GP, Octave and SymPy, and numerical programs with their output. Every
statement is true and every result is computed. The texts are written for this project.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from megatron_dsmath.quickstart.exercises import format_polynomial


def generate_sessions(draw: Random) -> Iterator[str]:
    """Yield documents without end, each a short session or file of one system."""
    kinds = (_lean, _pari, _octave, _sympy, _newton, _recurrence)
    while True:
        yield draw.choice(kinds)(draw)


def _lean(draw: Random) -> str:
    parts = ["import Mathlib.Tactic", ""]
    for number in range(1, draw.randint(5, 12)):
        a, b, c = draw.randint(2, 40), draw.randint(2, 40), draw.randint(2, 9)
        statements = (
            f"theorem sum_{number} : ({a} : ℕ) + {b} * {c} = {a + b * c} := by norm_num",
            f"theorem divides_{number} : {a} ∣ {a * b} := ⟨{b}, by norm_num⟩",
            f"theorem gcd_{number} : Nat.gcd {a * c} {b * c} = {math.gcd(a * c, b * c)} := by norm_num",
            f"theorem square_{number} (x y : ℤ) : (x + {a} * y)^2 = x^2 + {2 * a} * x * y + {a * a} * y^2 := by ring",
            f"theorem product_{number} (x : ℤ) : (x + {a}) * (x - {b}) = {_lean_product(a, b)} := by ring",
            f"theorem less_{number} (x : ℝ) (h : {a} < x) : {a * c} < {c} * x := by linarith",
            f"theorem residue_{number} : {a}^{c} % {b} = {a**c % b} := by norm_num",
        )
        parts += [draw.choice(statements), ""]
    return "\n".join(parts).rstrip()


def _lean_product(a: int, b: int) -> str:
    middle = f" + {a - b} * x" if a > b else f" - {b - a} * x" if a < b else ""
    return f"x^2{middle} - {a * b}"


def _pari(draw: Random) -> str:
    lines = []
    for number in range(1, draw.randint(6, 16)):
        a, b, m = draw.randint(2, 400), draw.randint(2, 400), draw.randint(3, 60)
        command, result = draw.choice(
            (
                (f"gcd({a}, {b})", f"{math.gcd(a, b)}"),
                (f"lcm({a}, {b})", f"{math.lcm(a, b)}"),
                (f"Mod({a}, {m})^{b}", f"Mod({pow(a, b, m)}, {m})"),
                (f"binomial({m}, 3)", f"{math.comb(m, 3)}"),
                (f"divrem({a}, {m})", f"[{a // m}, {a % m}]~"),
                (f"sqrtint({a * b})", f"{math.isqrt(a * b)}"),
                (f"sumdigits({a * b})", f"{sum(map(int, str(a * b)))}"),
                (f"factor({a})[,1]~", f"[{', '.join(map(str, _prime_divisors(a)))}]"),
                (f"isprime({a})", f"{int(_prime_divisors(a) == [a])}"),
            )
        )
        lines += [f"? {command}", f"%{number} = {result}"]
    return "\n".join(lines)


def _prime_divisors(number: int) -> list[int]:
    primes, divisor = [], 2
    while number > 1:
        if number % divisor == 0:
            primes.append(divisor)
            while number % divisor == 0:
                number //= divisor
        divisor += 1
    return primes


def _octave(draw: Random) -> str:
    lines = []
    for _ in range(draw.randint(2, 5)):
        a, b, c, d = (draw.randint(-9, 9) for _ in range(4))
        x, y = draw.randint(-9, 9), draw.randint(-9, 9)
        product = (a * x + b * y, c * x + d * y)
        width = 3 + max(len(str(abs(entry))) for entry in product)
        lines += [
            f">> A = [{a} {b}; {c} {d}];",
            f">> v = [{x}; {y}];",
            ">> A * v",
            "ans =",
            "",
            *(f"{entry:>{width}}" for entry in product),
            "",
            ">> trace(A)",
            f"ans = {a + d}",
            ">> A(1,1) * A(2,2) - A(1,2) * A(2,1)",
            f"ans = {a * d - b * c}",
        ]
    return "\n".join(lines)


def _sympy(draw: Random) -> str:
    lines = [">>> from sympy import diff, expand, factor, integrate, symbols", ">>> x = symbols('x')"]
    for _ in range(draw.randint(4, 10)):
        r, s, top = draw.randint(1, 12), draw.randint(1, 12), draw.randint(1, 9)
        wide = (1, r + s, r * s)
        cubic = (4 * top, 0, -2 * s, r)
        low, high = sorted((r, s))
        factors = f"(x + {low})*(x + {high})" if low < high else f"(x + {low})**2"
        command, result = draw.choice(
            (
                (f"expand((x + {r})*(x + {s}))", _sympy_text(wide)),
                (f"factor({_sympy_text(wide)})", factors),
                (f"diff({_sympy_text(cubic)}, x)", _sympy_text((12 * top, 0, -2 * s))),
                (f"integrate({_sympy_text((3 * top, 2 * r, s))}, x)", _sympy_text((top, r, s, 0))),
                (f"({_sympy_text(wide)}).subs(x, {top})", str((top + r) * (top + s))),
            )
        )
        lines += [f">>> {command}", result]
    return "\n".join(lines)


def _sympy_text(coefficients: tuple[int, ...]) -> str:
    """The polynomial as SymPy prints it: `3*x**2 - x + 1`."""
    terms = format_polynomial(coefficients, "X").replace("^", "**").split(" ")
    return " ".join(term.replace("X", "*x") if term.lstrip("-")[:1].isdigit() else term.lower() for term in terms)


def _newton(draw: Random) -> str:
    number, start, steps = draw.randint(2, 500), float(draw.randint(1, 20)), draw.randint(4, 8)
    x, output = start, []
    for step in range(steps):
        x = (x + number / x) / 2
        output.append(f"{step} {x}")
    title = f"Newton's method for the square root of {number}"
    return _program(title, start, f"(x + {number} / x) / 2", "step, x", output)


def _recurrence(draw: Random) -> str:
    a, b, modulus, start = draw.randint(2, 9), draw.randint(0, 30), draw.randint(20, 200), draw.randint(1, 19)
    x, output = start, []
    for _ in range(draw.randint(6, 16)):
        x = (a * x + b) % modulus
        output.append(str(x))
    title = f"The orbit of {start} under x -> ({a} x + {b}) mod {modulus}"
    return _program(title, start, f"({a} * x + {b}) % {modulus}", "x", output)


def _program(title: str, start: float, update: str, printed: str, output: list[str]) -> str:
    loop = [f"for step in range({len(output)}):", f"    x = {update}", f"    print({printed})"]
    return "\n".join([f"# {title}", f"x = {start}", *loop, "", "# output", *output])
