"""What tests of rate limits share: a request of no size, and its reservation."""

from langchain_retryrouter import RateLimit
from langchain_retryrouter.rate_limits import Reservation, Size

ONE = Size()


def admitted(limit: RateLimit, size: Size = ONE) -> Reservation:
    """The reservation of a request that is admitted, within a minute."""
    one = limit.reserve(size, 60)
    assert one is not None
    return one
