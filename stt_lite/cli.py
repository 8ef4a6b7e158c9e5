# Made from notebooks/94_command_line.ipynb by "make extract".
"""The command `stt-lite`: arguments, and how mistakes end. Built in appendix 94."""

import contextlib
import importlib.metadata
import io
import re
import sys
import traceback
from typing import Annotated

import tyro

from stt_lite.commands import (
    Compare,
    Evaluate,
    Generate,
    Pretrained,
    Train,
    TrainFolder,
)
from stt_lite.contexts import PRESETS

__all__ = ["main"]


def is_users(error: Exception) -> bool:
    """Whether an error is of a kind that input can cause; others are our defects."""
    if isinstance(error, RuntimeError):  # torch's word for a full memory, too
        words = "(out of|not enough|allocate) memory|overflow|home directory"
        return bool(re.search(words, str(error), re.IGNORECASE))
    kinds = ArithmeticError, ImportError, MemoryError, OSError, ValueError
    return isinstance(error, kinds)


def parse(arguments: list[str]):
    """The command that they ask for; ValueError: a setting out of its range."""
    presets = {name: Train(*preset) for name, preset in PRESETS.items()}
    notes = {
        name: f"{p.source.size}x{p.source.size} pixels, "
        + p.source.data.get("content", f"digits: {p.source.data.get('digits')}")
        for name, p in presets.items()
    }
    digits = tyro.extras.subcommand_type_from_defaults(presets, notes)
    folder = Annotated[TrainFolder, tyro.conf.subcommand("folder")]

    def train(what: digits | folder):
        """Train on moving digits, or on your own videos; again: go on."""
        return what

    commands = {
        "generate": Generate,
        "train": train,
        "evaluate": Evaluate,
        "compare": Compare,
        "pretrained": Pretrained,
    }
    box = io.StringIO()  # what tyro says of bad arguments
    try:
        with contextlib.redirect_stderr(box):
            return tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="stt-lite",
                description="Generate video with a small spatial-temporal transformer.",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        error = stop.__context__
        whole = isinstance(getattr(error, "arg", ""), str)  # a config, no single flag
        while error is not None and not isinstance(error, ValueError):
            error = error.__context__
        if whole and error is not None:
            raise error from None
        sys.stderr.write(box.getvalue())
        raise


REPORT = "https://github.com/stt-lite/stt_lite/issues"


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what a user can cause is one line on stderr, and exit code 2.

    Args:
        arguments: None takes those of the shell.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments == ["--version"]:
            print(f"stt-lite {importlib.metadata.version('stt_lite')}")
        elif arguments[:1] == ["compare"]:  # what follows is the script's
            Compare(tuple(arguments[1:])).run()
        else:
            parse(arguments).run()
    except KeyboardInterrupt as stop:
        print(f"\nstt-lite: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if is_users(error):
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"stt-lite: {message}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        print(f"stt-lite: our mistake: please report it at {REPORT}", file=sys.stderr)
        sys.exit(1)
