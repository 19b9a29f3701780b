"""One listener for the process, another for a thread that wants its own."""

import threading

from fedduet.lm import progress


def test_listeners():
    everywhere, here = [], []
    progress.report("nobody listens", 0, 1)
    progress.listen(everywhere.append)
    try:
        progress.report("a", 1, 2, "steps", loss=0.5)
        with progress.listening(here.append):
            progress.report("b", 1, 2)
            other = threading.Thread(target=progress.report, args=("c", 1, 2))
            other.start()
            other.join()
        progress.report("d", 2, 2)
    finally:
        progress.listen(None)
    progress.report("e", 1, 1)
    assert everywhere[0] == progress.Progress("a", 1, 2, "steps", {"loss": 0.5})
    assert [p.phase for p in everywhere] == ["a", "c", "d"] and [p.phase for p in here] == ["b"]
