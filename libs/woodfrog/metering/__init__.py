"""Who used what: records of usage, where they are kept, and how they are split and compared."""

from woodfrog.metering.ledger import Ledger
from woodfrog.metering.ledgers import Ledgers
from woodfrog.metering.paged import Paged
from woodfrog.metering.usage import GIB_H, HOUR_S, Row, Usage, bucket, hours_in, month_of

__all__ = [
    "GIB_H",
    "HOUR_S",
    "Ledger",
    "Ledgers",
    "Paged",
    "Row",
    "Usage",
    "bucket",
    "hours_in",
    "month_of",
]
