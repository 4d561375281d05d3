"""``greenroom-gevent``: the command ``greenroom`` whose worker processes run on gevent. Extra: ``gevent``.

A module beside the package, because it has to be imported before it: what gevent replaces must be replaced before
anything uses it. The parent of the workers is not patched, for it runs nobody's code; the workers are fresh
interpreters, and the first thing that ``multiprocessing`` imports in one is the parent's main module, which is this
one or imports it.
"""

from __future__ import annotations

import importlib.util
import sys

if "--multiprocessing-fork" in sys.orig_argv:  # this is a spawned process, before it is told what to run
    from gevent import monkey

    monkey.patch_all()


def main() -> int:
    """Runs the command line, and returns its exit code."""
    from greenroom.cli import COMMANDS, main
    from greenroom.cli.parsing import tell
    from greenroom.runtime.exit_codes import ExitCode

    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "--version") or words[0] in COMMANDS.keys() - {"worker"}:
        return main(words)
    if not _has_gevent():
        tell(["greenroom-gevent needs gevent. Install it with: pip install 'greenroom[gevent]'"])
        return ExitCode.USAGE
    return main([*words, "--use-spawn"])


def _has_gevent() -> bool:
    try:
        return importlib.util.find_spec("gevent") is not None
    except ValueError:  # somebody has put a stand-in into its place
        return False


if __name__ == "__main__":
    sys.exit(main())
