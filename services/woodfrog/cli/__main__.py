"""`woodfrog` as typed. Ctrl-C ends it without a word, also in the second in which it imports what it needs."""

import atexit
import signal
import sys

_INTERRUPTED = 130  # as shells have it


def main() -> None:
    try:
        from woodfrog.cli import program

        program.main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:  # what is done is done: an interrupt that comes while Python ends must not say otherwise
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
