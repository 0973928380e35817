"""How far off the scheduler's predictions of climbs are, on a real local cluster.

    python -m loadtest.predictions [--runs 30] [--cases parked,frozen,stored]

One model is woken from each rung in turn. The scheduler's log has each prediction, made before the climb, beside what the
climb took. The floor is what nobody can beat who says one number for a rung: the climbs' own spread around their median.
The first climb from a rung is predicted by the prior and left out.
"""

import json
import statistics
from collections.abc import Sequence

from loadtest.lab import Lab, laboratory
from loadtest.report import Bench, quantile
from woodfrog.cli import options
from woodfrog.model.rung import Rung

CASES = ("parked", "frozen", "stored")
_FROG = "frog"
_P90 = 0.9
_FLOOR_NOTE = "of always saying the median of the case, told afterwards"


def climbs(lab: Lab) -> list[tuple[str, float, float]]:
    """(rung, predicted seconds, taken seconds) of each climb so far."""
    lines = (lab.cluster.home / "logs" / "scheduler.log").read_text().splitlines()
    said = [json.loads(line) for line in lines if '"climb finished"' in line]
    return [(each["rung"], each["predicted_s"], each["seconds"]) for each in said]


def errors(predicted: Sequence[float], taken: Sequence[float]) -> list[float]:
    """Relative to what was taken."""
    return sorted(abs(said - was) / was for said, was in zip(predicted, taken, strict=True))


def measure(lab: Lab, bench: Bench, cases: Sequence[str], runs: int) -> None:
    lab.add(_FROG, "eager")
    lab.ask(_FROG)
    pointer = lab.snapshot(_FROG)
    for _ in range(runs + 1):
        for case in cases:
            lab.descend(_FROG, Rung.PARKED if case == "parked" else Rung.FROZEN)
            if case == "stored":
                lab.evict(pointer.manifest)
            lab.ask(_FROG)
    found = climbs(lab)
    all_errors: list[float] = []
    all_floors: list[float] = []
    for case in cases:
        of_case = [(said, was) for rung, said, was in found if rung == case][1:]
        said, taken = [each[0] for each in of_case], [each[1] for each in of_case]
        wrong = errors(said, taken)
        least = errors([statistics.median(taken)] * len(taken), taken)
        all_errors += wrong
        all_floors += least
        bench.add(case, "climb_s", taken)
        bench.add(
            case,
            "error_p90_share",
            [quantile(wrong, _P90)],
            floor=quantile(least, _P90),
            floor_note=_FLOOR_NOTE,
        )
    bench.add(
        "all",
        "error_p90_share",
        [quantile(sorted(all_errors), _P90)],
        floor=quantile(sorted(all_floors), _P90),
        floor_note=_FLOOR_NOTE,
    )


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=options.whole(1, 10_000), default=30)
    parser.add_argument("--cases", type=options.listed(options.one_of(CASES)), default=list(CASES))
    args = parser.parse_args()
    bench = Bench("predictions")
    with laboratory() as lab:
        measure(lab, bench, args.cases, args.runs)
    bench.finish()


if __name__ == "__main__":
    main()
