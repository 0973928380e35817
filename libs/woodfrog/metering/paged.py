"""Usage of one ledger or of several, to read page by page: so that no reader holds its loop for long."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from woodfrog.metering.usage import Row


class Paged(ABC):
    @abstractmethod
    def page(self, since_hour: int, until_hour: int, after: Row | None = None) -> list[Row]:
        """Rows of the hours from the first up to, not including, the second, sorted by hour, tenant and model; `after` the
        last row of the page before. Only an empty page is the last. Raises Unavailable LEDGER_UNREADABLE.
        """

    def rows(self, since_hour: int, until_hour: int) -> Iterator[Row]:
        """All that `page` has, page by page. Raises Unavailable LEDGER_UNREADABLE."""
        after: Row | None = None
        while found := self.page(since_hour, until_hour, after):
            yield from found
            after = found[-1]
