"""Why a plan lets each model rest where it does, in words for people. Pure."""

from collections.abc import Iterable, Mapping

from woodfrog.scheduler.plan import Item, Option, Prices, Problem, paid, saved


def reasons(
    items: Iterable[Item], problem: Problem, chosen: Mapping[str, int], prices: Prices
) -> dict[str, str]:
    """By model. `chosen` are numbers of offers."""
    return _Reasons(problem, chosen, prices).of(items)


class _Reasons:
    def __init__(self, problem: Problem, chosen: Mapping[str, int], prices: Prices) -> None:
        self._problem, self._chosen, self._prices = problem, chosen, prices
        self._left = [*problem.limits]
        self._holders: list[list[int]] = [[] for _ in problem.limits]  # by number of a limit
        for number in chosen.values():
            for key, used in problem.needs[number]:
                self._left[key] -= used
                self._holders[key].append(number)

    def of(self, items: Iterable[Item]) -> dict[str, str]:
        best: dict[str, int] = {}
        alone: dict[str, int] = {}  # that would fit if nobody else were planned
        offers = self._problem.offers
        for number in sorted(range(len(offers)), key=lambda number: -offers[number].value):
            model = offers[number].item.model
            best.setdefault(model, number)
            needs = self._problem.needs[number]
            if all(used <= self._problem.limits[key] for key, used in needs):
                alone.setdefault(model, number)
        found = {}
        for item in items:
            if item.model not in best:
                found[item.model] = self._worthless(item)
            elif item.model in self._chosen:
                found[item.model] = self._kept(item, best[item.model])
            else:
                wanted = alone.get(item.model, best[item.model])
                passed = f"{offers[wanted].option.rung.value} was passed over"
                found[item.model] = self._full(wanted, None) or passed
        return found

    def _kept(self, item: Item, best: int) -> str:
        """What its rest saves, and why it has none from which a wake is shorter."""
        number = self._chosen[item.model]
        held, wanted = self._problem.offers[number], self._problem.offers[best]
        shorter_s = item.away_s - held.option.wake_s
        saves = f"saves {_time(shorter_s)} of a wake expected in {_time(1 / item.wakes_s)}"
        if held.value < wanted.value:
            full = self._full(best, number) or "it was passed over"
            return f"{saves}; not {_higher(wanted.option, held.option)}: {full}"
        quicker = [o for o in item.options if o.wake_s + o.late_s < held.option.wake_s]
        if not quicker:
            return saves
        option = max(quicker, key=lambda o: self._worth(item, o))
        moved = self._worth(item, option) > self._worth(item, held.option)
        cost = "the move" if moved else "its price"
        return f"{saves}; {_higher(option, held.option)} would not be worth {cost}"

    def _worthless(self, item: Item) -> str:
        """No option is worth anything."""
        option = max(item.options, key=lambda o: self._worth(item, o))
        if saved(item, option) <= 0:
            return "nothing that it could keep would shorten a wake"
        said = f"{option.rung.value} would save {_time(saved(item, option))} a second"
        if self._worth(item, option) > 0:
            return f"not worth the move: {said}"
        return f"not worth its price: {said} and cost {_time(paid(option, self._prices))}"

    def _worth(self, item: Item, option: Option) -> float:
        """Were it free to move."""
        return saved(item, option) - paid(option, self._prices)

    def _full(self, wanted: int, held: int | None) -> str:
        """Which limit keeps the model from the offer `wanted`; empty where none does."""
        back = dict(self._problem.needs[held]) if held is not None else {}
        for key, used in self._problem.needs[wanted]:
            if used <= self._left[key] + back.get(key, 0.0):
                continue
            node, resource = self._problem.names[key]
            if used > self._problem.limits[key]:
                return (
                    f"node {node} has too little {resource.value} beside what the plan leaves alone"
                )
            return f"{resource.value} of node {node} is full{self._who(key, wanted, used, held)}"
        return ""

    def _who(self, key: int, wanted: int, used: float, held: int | None) -> str:
        """Of those that fill the limit and save more with what they take of it, the largest."""
        offers = self._problem.offers
        density = offers[wanted].value / used
        others = {
            takes: offers[number]
            for number in self._holders[key]
            if number != held
            for at, takes in self._problem.needs[number]
            if at == key and offers[number].value / takes >= density
        }
        return f": {others[max(others)].item.model} is worth more" if others else ""


def _higher(option: Option, held: Option) -> str:
    return option.rung.value if option.rung is not held.rung else "with its weights pinned"


def _time(seconds: float) -> str:
    """To two digits, or whole ones."""
    number, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
