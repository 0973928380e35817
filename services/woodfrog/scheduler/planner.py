"""Which model should rest on which rung: the most seconds of waiting saved, under what nodes have. Pure.

A linear program tells what is worth taking; those that it takes in part are put where room is left. Where the program does
not end in time, a greedy choice takes its place.
"""

import time
from collections.abc import Sequence

from woodfrog.scheduler.plan import Choice, Item, Limits, Prices, Problem, Solution
from woodfrog.scheduler.program import Program
from woodfrog.scheduler.reasons import reasons
from woodfrog.scheduler.rounding import greedy, whole


class Planner:
    """Keeps where the last plan ended, from which the next is found in a fraction of the steps."""

    def __init__(self) -> None:
        self._program = Program()

    def solve(
        self,
        items: Sequence[Item],
        limits: Limits,
        prices: Prices,
        within_s: float = 1.0,
        *,
        asked: bool = False,
    ) -> Solution:
        """`items` have names of their own. Blocks for `within_s` at most, and for what the rest takes: a second
        with 10,000 models.

        A plan that people `asked` for has reasons, and the next does not begin where it ended.
        """
        began = time.perf_counter()
        problem = Problem(items, limits, prices)
        shares = self._program.solve(problem, within_s, keep=not asked) if problem.offers else None
        chosen = whole(problem, shares) if shares is not None else greedy(problem)
        choices = {}
        for model, number in chosen.items():
            _, option, value = problem.offers[number]
            choices[model] = Choice(option, value)
        return Solution(
            choices,
            "linear program" if shares is not None or not problem.offers else "greedy",
            time.perf_counter() - began,
            sum(choice.value for choice in choices.values()),
            shares.value if shares is not None else None if problem.offers else 0.0,
            shares.iterations if shares is not None else 0,
            reasons(items, problem, chosen, prices) if asked else {},
        )
