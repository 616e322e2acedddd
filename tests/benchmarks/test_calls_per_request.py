"""What one request alone costs, in function calls: no change makes the hot path longer unseen.

`python -m tests.support.call_counts inline` prints the calls. A change that needs fewer lowers the
bar here; one that needs more says why they are worth it.
"""

import pytest

from revconn import Request
from tests.support.call_counts import KINDS, calls_of_one_request, echo, numbers

# In Python, in C: at most. The same on Python 3.9 with the oldest dependencies as on 3.13 with the
# newest: none of them has a part in it but protobuf, in C. len() and dict.get() count, and take
# half of the time that a slice does, or two looks into a dict. A few more in the pool than inline
# are the worker's: it looks whether another one has to come, and settles what was served.
BARS = {
    "inline": (22, 40),
    "pool": (29, 56),
    "inline-pinged": (25, 48),
    "pool-pinged": (33, 64),
}


@pytest.mark.parametrize("name", BARS)
def test_one_request_alone_takes_no_more_calls_than_its_bar(name: str) -> None:
    python, c = numbers(calls_of_one_request(KINDS[name]))
    most_python, most_c = BARS[name]
    assert python <= most_python, f"calls in Python; python -m tests.support.call_counts {name}"
    assert c <= most_c, f"calls in C; python -m tests.support.call_counts {name}"


def test_each_call_is_counted_in_whichever_thread_it_is_made() -> None:
    def longer(request: Request) -> bytes:
        len("")
        len("")
        return echo(request)

    for name in ("inline", "pool"):
        python, c = numbers(calls_of_one_request(KINDS[name]))
        assert numbers(calls_of_one_request(KINDS[name], longer)) == (python + 1, c + 2)


def test_a_request_in_the_pool_is_counted_in_the_receiving_thread_and_in_the_handlers() -> None:
    calls = calls_of_one_request(KINDS["pool"])
    assert {call.thread.split("-")[1].split("_")[0] for call in calls} == {"receiver", "handler"}
    assert [call.thread.startswith("revconn-handler") for call in calls].count(True) > 1
