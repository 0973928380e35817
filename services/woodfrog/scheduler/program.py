"""A plan as a linear program (HiGHS), whose solution is whole but for about as many models as there are limits. Pure.

Most of a plan's program is in the next one too, but never all: items come and go. So where one ended is kept by the names of
columns and rows, and the next begins there: a new column is not taken, a new row binds nothing, and HiGHS repairs what does
not fit together. It uses a basis that it is given only without presolve, which takes longer than it saves here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from woodfrog.scheduler.plan import Offer, Problem

_SCALE = (
    1e4  # a model that wakes once a day saves so little that the solver would take it for nothing
)


@dataclass(frozen=True, slots=True)
class Shares:
    of: list[float]  # of each offer, what is taken
    value: float  # that no whole choice exceeds
    worth: list[float]  # of all of each limit, in their order: what more of it would save
    iterations: int


class Program:
    """Keeps where the last one ended."""

    def __init__(self) -> None:
        self._columns: dict[Any, Any] = {}  # status of those that are not at zero
        self._rows: dict[Any, Any] = {}  # and of those that bind

    def solve(self, problem: Problem, within_s: float, *, keep: bool = True) -> Shares | None:
        """None when it took too long: then the next goes on from there. Without `keep` the next begins where this one did."""
        import highspy

        models = [*dict.fromkeys(offer.item.model for offer in problem.offers)]
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in (
            ("output_flag", False), ("threads", 1), ("presolve", "off"), ("time_limit", within_s),
        ):  # fmt: skip
            solver.setOptionValue(name, value)
        solver.passModel(_program(problem, models))
        columns = [_name(offer) for offer in problem.offers]
        rows = [*models, *problem.names]
        if self._columns:
            solver.setBasis(self._basis(columns, rows))
        solver.run()
        basis = solver.getBasis()
        if keep:
            self._keep(columns, rows, basis)
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution, info = solver.getSolution(), solver.getInfo()
        return Shares(
            [float(share) for share in solution.col_value],
            -float(info.objective_function_value) / _SCALE,
            [max(0.0, -dual) / _SCALE for dual in solution.row_dual[len(models) :]],
            int(info.simplex_iteration_count),
        )

    def _basis(self, columns: Sequence[Any], rows: Sequence[Any]) -> Any:
        import highspy

        zero, slack = highspy.HighsBasisStatus.kLower, highspy.HighsBasisStatus.kBasic
        basis = highspy.HighsBasis()
        basis.col_status = [self._columns.get(name, zero) for name in columns]
        basis.row_status = [self._rows.get(name, slack) for name in rows]
        basis.valid = basis.alien = True
        return basis

    def _keep(self, columns: Sequence[Any], rows: Sequence[Any], basis: Any) -> None:
        import highspy

        self._columns, self._rows = {}, {}
        if not basis.valid:
            return
        zero, slack = highspy.HighsBasisStatus.kLower, highspy.HighsBasisStatus.kBasic
        told = zip(columns, basis.col_status, strict=True)
        self._columns = {name: status for name, status in told if status != zero}
        told = zip(rows, basis.row_status, strict=True)
        self._rows = {name: status for name, status in told if status != slack}


def _name(offer: Offer) -> tuple[object, ...]:
    """The same from plan to plan; a model's options that use the same take the same."""
    option = offer.option
    return offer.item.model, option.group, option.rung, *option.uses


def _program(problem: Problem, models: Sequence[str]) -> Any:
    """A column of each offer, a row of each model, then of each limit, which is 1, or 0 where there is nothing."""
    import highspy
    import numpy as np

    rows = {model: row for row, model in enumerate(models)}
    first, limits = len(models), problem.limits
    starts, indices, values = [0], [], []
    for offer, needs in zip(problem.offers, problem.needs, strict=True):
        indices.append(rows[offer.item.model])
        values.append(1.0)
        for number, used in needs:
            indices.append(first + number)
            values.append(used / (limits[number] or 1.0))
        starts.append(len(indices))
    program = highspy.HighsLp()
    program.num_col_ = len(problem.offers)
    program.num_row_ = first + len(limits)
    program.col_cost_ = -_SCALE * np.array([offer.value for offer in problem.offers])
    program.col_lower_ = np.zeros(program.num_col_)
    program.col_upper_ = np.ones(program.num_col_)
    program.row_lower_ = np.full(program.num_row_, -highspy.kHighsInf)
    has = [1.0 if limit else 0.0 for limit in limits]
    program.row_upper_ = np.array([1.0] * first + has)
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = np.array(starts, dtype=np.int32)
    program.a_matrix_.index_ = np.array(indices, dtype=np.int32)
    program.a_matrix_.value_ = np.array(values)
    return program
