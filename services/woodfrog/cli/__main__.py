"""`woodfrog` as typed. Ctrl-C ends it without a word, also in the second in which it imports what it needs."""

import sys

_INTERRUPTED = 130  # as shells have it


def main() -> None:
    try:
        from woodfrog.cli import program

        program.main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
