"""The `van` command. Each subcommand imports what it needs, so `--help` answers at once.

A function for each: its docstring is the help, then come the options, one after the other, and what
they are given to. Some are long for that, and only for that.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import (
    SUPPRESS,
    Action,
    ArgumentError,
    ArgumentParser,
    BooleanOptionalAction,
)
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from . import __version__
from .support.interrupt import Interrupted
from .support.options import add_options, from_options
from .support.quiet import quiet_start


def train(parser: ArgumentParser) -> Any:
    """Train a VAN: the authors' recipe, or fine-tuning with --pretrained; killed, it goes on."""
    parser.add_argument(
        "--data",
        help="a folder with a folder of pictures for each class, or with train/ and val/ of such; "
        "or digits (bundled)",
    )
    parser.add_argument("--output", type=Path, help="folder to make for the run")
    parser.add_argument(
        "--recipe",
        help="imagenet (the authors'), finetune, in22k-to-1k, digits, or a YAML file; by default "
        "finetune with --pretrained, digits for these, else imagenet",
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a stopped run")
    parser.add_argument(
        "--force", action="store_true", help="go on although the recipe or the data have changed"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the recipe as YAML, and stop"
    )
    _add_recipe(parser)

    parser.usage = (
        "van train --data DATA --output RUN [--recipe RECIPE] [--FIELD VALUE ...]\n"
        "       van train --resume RUN [--force] [--FIELD VALUE ...]"
    )

    def run(data, output, recipe, resume, force, print_config, **fields: Any) -> None:
        from .train.recipe import choose_recipe

        fields = {name: None if v == [None] else v for name, v in fields.items()}
        if resume is None:
            chosen = choose_recipe(recipe, data, fields)
            if print_config:
                print(chosen, end="")
                return
            missing = [f"--{n}" for n, v in (("data", data), ("output", output)) if v is None]
            if missing:
                raise ValueError(f"{' and '.join(missing)} must be given, or --resume RUN")
        from .support.console import messages, results, say
        from .train.folder import check_finished, check_run, check_start

        if resume is not None:
            if output is not None or recipe is not None:
                raise ValueError("--resume RUN has its --output and --recipe; leave them out")
            known_data, known = check_run(resume)
            data, output, chosen = data or known_data, resume, known.with_(**fields)
            if print_config:
                print(chosen, end="")
                return
        going_on = resume is not None
        data, found = check_start(data, output, chosen, going_on, force)
        if going_on and (end := check_finished(output, chosen, *found)):
            say(messages(), str(end))
            return
        # Only now, as it starts Keras.
        from .train.callbacks import Stopped
        from .train.train import train as run_training

        try:
            run_training(
                data,
                output,
                chosen,
                resume=going_on,
                force=force,
                found=found,
                console=messages(),
                report_to=results(),
            )
        except (Stopped, KeyboardInterrupt):
            if not (output / "config.yaml").is_file():
                raise KeyboardInterrupt from None  # nothing has been begun
            command = ["train", "--resume", os.fspath(output)]
            raise Interrupted(instead=command) from None

    return run


def _add_recipe(parser: ArgumentParser) -> None:
    """An option for each field of a recipe; what is not given is the recipe's."""
    from .train.recipe import Recipe, field_help, field_kinds

    group = parser.add_argument_group("the recipe's fields (default: the authors')")
    about = field_help()
    for name, (kind, several) in field_kinds().items():
        default = getattr(Recipe(), name)
        shown = " ".join(map(str, default)) if several and default else default
        shown = "none" if default is None else shown
        text = f"{about.get(name, name)} (default: {shown})".replace("%", "%%")
        options: dict[str, Any] = {"default": SUPPRESS, "help": text, "dest": name}
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            group.add_argument(flag, action=BooleanOptionalAction, **options)
            continue
        options["metavar"] = {int: "N", float: "X", str: "TEXT"}[kind]
        options["type"] = _none_or_text  # the recipe has the better words for what is wrong
        if several:
            options["nargs"] = "+"
        if name == "pretrained":
            options |= {"nargs": "?", "const": "imagenet"}
        group.add_argument(flag, **options)


def _none_or_text(text: str) -> str | None:
    return None if text == "none" else text


@dataclass(frozen=True)
class Command:
    """A command: what it is for, what it is asked with, and what does it.

    Args:
        about: For `--help`.
        request: Module and name of a dataclass, whose fields are the options (`support.options`).
        run: Module and name of a function of that. What it returns, if it is not 0 or None, was
            found wrong, and makes the exit code 1.
    """

    about: str
    request: str
    run: str


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __package__), name)


# A command adds its options to a parser and returns what to run with their values.
COMMANDS: dict[str, Any] = {
    "demo": Command(
        "Train a small VAN on bundled digits, evaluate, save, reload, classify: about a minute.",
        "train.request:DemoRequest",
        "train.demo:run",
    ),
    "train": train,
    "predict": Command(
        "Name what is in pictures: files, folders, patterns or a list; a table or a file.",
        "inference.request:PredictRequest",
        "inference.predict:run",
    ),
    "evaluate": Command(
        "Measure accuracy on labelled pictures; beside the published and the original's.",
        "evaluate.request:EvaluateRequest",
        "evaluate.evaluate:run",
    ),
    "benchmark": Command(
        "Measure latency, throughput, memory and cold start of models and exported files.",
        "benchmark.request:BenchmarkRequest",
        "benchmark.report:run",
    ),
    "convert": Command(
        "Convert a weight file of any known format and naming to another, bit for bit.",
        "export.request:ConvertRequest",
        "export.convert:run",
    ),
    "export": Command(
        "Write a model for ONNX Runtime, OpenVINO, LiteRT or TensorFlow, and compare it there.",
        "export.request:ExportRequest",
        "export.export:run",
    ),
    "weights": {
        "list": Command(
            "List the published weights: classes, size, published accuracy, whether they are here.",
            "weights.commands:ListRequest",
            "weights.commands:run_list",
        ),
        "download": Command(
            "Download weights into the cache, verify them, and print where they are.",
            "weights.commands:DownloadRequest",
            "weights.commands:run_download",
        ),
        "verify": Command(
            "Compare cached weights with their SHA-256 again; exit 1 if one is damaged or missing.",
            "weights.commands:VerifyRequest",
            "weights.commands:run_verify",
        ),
        "path": Command(
            "Print the path of weights that are here; exit 1 if they are not. Downloads nothing.",
            "weights.commands:PathRequest",
            "weights.commands:run_path",
        ),
    },
}
_GROUPS = {"weights": "Published weights: list, download, verify, path."}
# Why a command ends with 1 that has done its work.
_FINDINGS = {
    "predict": "a picture could not be read",
    "evaluate": "a picture could not be read, or the original differs",
    "benchmark": "launches of the same model disagree",
    "verify": "weights are damaged or missing",
    "path": "the weights are not here",
}


class _Parser(ArgumentParser):
    """Says what is wrong beside the usage of the command it is about, and what may be meant."""

    def __init__(self, **kwargs: Any):
        # Whole names only: `go_on` leaves options out by these, and a new option could make the
        # beginning of an old one stand for two.
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # argparse would leave what a command does not know to the parser of `van`, and would
        # first say that an option is missing where that one is misspelt.
        args = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:
            options = args[: args.index("--")] if "--" in args else args
            self._refuse([one for one in options if not self._may_be_known(one)])
        found, unknown = super().parse_known_args(args, namespace)
        self._refuse(unknown)
        return found, unknown

    def _may_be_known(self, word: str) -> bool:
        option = word.partition("=")[0]
        is_option = option.startswith("--") and " " not in word
        return not is_option or option in self._option_string_actions

    def _refuse(self, unknown: list[str]) -> None:
        if unknown:
            words = [one.partition("=")[0] for one in unknown if one.startswith("-")]
            hint = _meant(words, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")

    def _check_value(self, action: Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except ArgumentError as error:
            error.message += _meant([str(value)], map(str, action.choices or ()))
            raise


def _meant(words: Iterable[str], known: Iterable[str]) -> str:
    known = list(known)
    near = [one for word in words for one in get_close_matches(word, known, n=1)]
    return f"; did you mean {', '.join(near)}?" if near else ""


def _add_commands(
    parser: ArgumentParser, commands: dict[str, Any], arguments: Sequence[str]
) -> None:
    """All names and what they are for; the options only of what `arguments` may mean."""
    chosen = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in commands.items():
        is_new = isinstance(command, Command)
        text = (
            _GROUPS[name]
            if isinstance(command, dict)
            else command.about
            if is_new
            else command.__doc__
        )
        finding = f", or {_FINDINGS[name]}" if name in _FINDINGS else ""
        sub = chosen.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"Exit code: 0 done; 1 an error{finding}; 2 a wrong option; 130 stopped by "
            "Ctrl-C; 141 the reader of the output has gone.",
        )
        if name not in arguments:
            continue
        if isinstance(command, dict):
            _add_commands(sub, command, arguments)
        elif is_new:
            add_options(sub, _found(command.request))
            sub.set_defaults(run=command, parser=sub)
        else:
            sub.set_defaults(run=command(sub), parser=sub)


def _words(error: Exception) -> str:
    """The system's errors without their number, the file first."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        from .support.text import printable

        return f"{printable(error.filename)}: {error.strerror}"
    return str(error)


def _in_flags(text: str, parser: ArgumentParser) -> str:
    """An error in the words of the command line: `--batch-size` for the argument `batch_size`.

    What a file says, a recipe or the configuration of a run, keeps its own names.
    """
    if re.match(r".*\.ya?ml: ", text):
        return text
    said = {action.dest: action for action in parser._actions}

    def shown(action: Action) -> str:
        long = [flag for flag in action.option_strings if flag.startswith("--")]
        return long[0] if long else str(action.metavar).upper()

    def received(found: re.Match) -> str:
        action = said.get(found[1])
        if action is None:
            return found[0]
        return shown(action) if action.nargs == 0 else f"{shown(action)} {found[2]}"

    text = re.sub(r"`(\w+)`", lambda m: shown(said[m[1]]) if m[1] in said else m[0], text)
    before, word, after = text.rpartition("Received: ")
    return before + word + re.sub(r"\b(\w+)=([^\s,]+)", received, after) if word else text


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console command: exit 0, or one clear line and exit 1 or 2."""
    quiet_start()
    _print_anything()
    parser = _Parser(
        prog="van", description="Visual Attention Network (arXiv 2202.09741) for Keras 3."
    )
    parser.add_argument("--version", action="version", version=f"van {__version__}")
    arguments = sys.argv[1:] if arguments is None else arguments
    _add_commands(parser, COMMANDS, arguments)
    options = vars(parser.parse_args(arguments))
    run, chosen = options.pop("run"), options.pop("parser")
    try:
        if isinstance(run, Command):
            request = from_options(_found(run.request), options)
            # Only now is what does the work imported, which may start Keras.
            if _found(run.run)(request):
                sys.exit(1)
        else:
            run(**options)
        sys.stdout.flush()
    except BrokenPipeError:
        _nobody_reads()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        # What a user can mend: a wrong value, a file, a missing extra. Only other kinds of
        # error, which no input should cause, keep their traceback.
        print(f"van: error: {_in_flags(_words(error), chosen)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        hint = ""
        if isinstance(stopped, Interrupted):
            hint = f"; to go on: {stopped.command(arguments)}"
        print(f"van: stopped{hint}", file=sys.stderr)
        sys.exit(130)


def _print_anything() -> None:
    """A name of bytes that are no text: as it is to a file or a program, escaped to a screen."""
    stream = sys.stdout
    if hasattr(stream, "reconfigure"):
        as_it_is = stream.encoding.lower() == "utf-8" and not stream.isatty()
        stream.reconfigure(errors="surrogateescape" if as_it_is else "backslashreplace")


def _nobody_reads() -> None:
    """Ends as other commands do whose output is a pipe that was closed: `van ... | head -1`."""
    # Whatever is still to be written, at the end of the process too, goes nowhere.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    sys.exit(141)  # 128 + SIGPIPE
