"""``python -m examples.bookshop web`` serves the shop; ``... nightly`` sends the clean-up and is for cron."""

from __future__ import annotations

import argparse
from wsgiref.simple_server import make_server


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m examples.bookshop")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("web", help="serve the shop").add_argument("--port", type=int, default=8000)
    commands.add_parser("nightly", help="send the clean-up")
    arguments = parser.parse_args()
    if arguments.command == "nightly":
        from .tasks import clean_up

        clean_up.send()
        return
    from .web import application

    with make_server("127.0.0.1", arguments.port, application) as server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
