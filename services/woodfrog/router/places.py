"""A client's retry takes the place of the request that it retries, so that one question is not waited for twice.

OpenAI's clients ask again after their time-out. They close the first connection, but a proxy between need not close its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from woodfrog.router.http_request import Arrival, WhileConnected
from woodfrog.router.openai_errors import Refusal

_Question = tuple[str, str, bytes, bytes]


@dataclass(slots=True, eq=False)
class Place:
    retries: int  # how often the client had asked before
    request: WhileConnected
    answered: bool = False  #: something of the answer went out; or another has this place already


class Places:
    def __init__(self) -> None:
        self._places: dict[_Question, dict[Place, None]] = {}  # the longest there first

    @contextmanager
    def take(
        self, arrival: Arrival, whose: str, body: bytes, request: WhileConnected
    ) -> Iterator[Place]:
        """For as long as the request lasts. Ends the request that this one retries with a refusal, if it is of the same.

        With an idempotency key that is any earlier one with the key and the same body. Without, the same body may be
        meant to be answered twice: a retry, which says that it is one, replaces the oldest that was retried less often.
        """
        key = arrival.headers.get(b"idempotency-key", b"")
        question = (whose, arrival.path, key, body)
        place = Place(arrival.retries, request)
        places = self._places.setdefault(question, {})
        for old in places if key or place.retries else ():
            if not old.answered and (key or old.retries < place.retries):
                old.answered = True
                old.request.end(_superseded())
                break
        places[place] = None
        try:
            yield place
        finally:
            del places[place]
            if not places:
                del self._places[question]


def _superseded() -> Refusal:
    text = "the same request came again and took the place of this one"
    return Refusal(409, text, "superseded", headers=[(b"x-should-retry", b"false")])
