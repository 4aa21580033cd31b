"""The `van` command. Each subcommand imports what it needs, so `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def demo(output: Path = Path("van-demo"), seed: int = 0, epochs: int = 30) -> None:
    """Train a small VAN on bundled digits, evaluate, save, reload and classify: about a minute.

    Args:
        output: Folder for the model, the metrics and the pictures.
        seed: Seed of weights, order and augmentation.
        epochs: Passes over the 1,437 training images.
    """
    from .demo import run

    run(output, seed=seed, epochs=epochs)


COMMANDS = {"demo": demo}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console command: exit 0, or one clear line and exit 1 or 2."""
    from jsonargparse import auto_cli

    # TensorFlow's start-up chatter hides what the command says; a set value is respected.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        auto_cli(COMMANDS, args=arguments, as_positional=False, prog="van", description=__doc_van__)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        # What a user can mend: a wrong value, a file, a missing extra. Only other kinds of
        # error, which no input should cause, keep their traceback.
        print(f"van: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("van: stopped", file=sys.stderr)
        sys.exit(130)


__doc_van__ = "Visual Attention Network (arXiv 2202.09741) for Keras 3."
