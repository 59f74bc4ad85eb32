"""A lack of memory after which a process computes nothing new: such a worker ends, to be replaced.

oneDNN, by which PyTorch computes convolutions, compiles kernels for each new shape. Where memory
lacks just then, that thread compiles nothing more, however much memory there is later, and another
thread that meets the same shape crashes (seen with PyTorch 2.13.0 and its oneDNN 3.12.0).
"""

from __future__ import annotations

import logging
import os
import signal
import threading

from models.errors import causes

SAYS = "could not create a primitive"
"""What PyTorch then raises, as a RuntimeError."""
log = logging.getLogger("wgan.service")
_is_ending = threading.Lock()


def is_broken(error: BaseException) -> bool:
    """Tell if an error says that this process computes nothing new any more."""
    return any(isinstance(e, RuntimeError) and str(e).startswith(SAYS) for e in causes(error))


def end_worker() -> None:
    """End this process as its supervisor would: unready first, and what is under way is done."""
    if not _is_ending.acquire(blocking=False):  # a second signal would cut that short
        return
    log.critical(
        "memory lacked while kernels were compiled, and this worker can compile no more: it ends, "
        "to be replaced"
    )
    os.kill(os.getpid(), signal.SIGTERM)
