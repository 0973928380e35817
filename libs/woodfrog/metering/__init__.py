"""Who used what: records of usage, where they are kept, and how they are split and compared."""

from woodfrog.metering.ledger import Ledger
from woodfrog.metering.usage import HOUR_S, Row, Usage, bucket, hours_in

__all__ = ["HOUR_S", "Ledger", "Row", "Usage", "bucket", "hours_in"]
