"""`python -m cgpt_convert`, and what the installed command calls."""

import gc
import sys


def main() -> int:
    """Run the command in `sys.argv` and return its exit code."""
    try:
        from cgpt_convert.cli import main as run

        code = run()
    except KeyboardInterrupt:  # while it is imported, most of a short command's time
        sys.stderr.write("interrupted\n")
        if "--json" in sys.argv:
            keys = '"kind": "interrupted", "message": "interrupted", "where": "", "hint": ""'
            sys.stdout.write(f'{{"error": {{{keys}, "exit_code": 130}}}}\n')
        return 130
    gc.freeze()  # or the interpreter, as it ends, looks through all objects for cycles
    return code


if __name__ == "__main__":
    sys.exit(main())
