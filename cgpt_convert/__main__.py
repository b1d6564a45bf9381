"""`python -m cgpt_convert`, and what the installed command calls."""

import gc
import sys


def main() -> int:
    """The exit code of the command that `sys.argv` asks for."""
    try:
        from cgpt_convert.cli import main as run

        code = run()
    except KeyboardInterrupt:  # while it is imported, most of a short command's time
        sys.stderr.write("interrupted\n")
        return 130
    gc.freeze()  # or the interpreter, as it ends, looks through all objects for cycles
    return code


if __name__ == "__main__":
    sys.exit(main())
