"""torchrun, but with the exit code of what it ran: `python -m training.torchrun -m wgan_cli ...`.

torchrun itself ends with 1 whatever its workers end with. Whoever starts a retraining must know a
rejected challenger from a fault, and an interruption from both.
"""

from __future__ import annotations

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

INTERRUPTED = 75


def main(arguments: list[str]) -> int:
    """Run torchrun with its own arguments, or those that the variables PET_* hold.

    Returns:
        0; the exit code of the worker that failed first; 75 if a signal ended them, which wrote
        their checkpoint if they could; 1 for a worker that was killed.
    """
    try:
        run.run(run.parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return max(failure.exitcode, 1)  # a signal's is negative
    except SignalException:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
