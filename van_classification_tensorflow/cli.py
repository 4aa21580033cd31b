"""The `van` command: which commands there are, and what is said where one fails.

What a command can do is said in its request, and done in its package. Both are imported only for
the command that is given, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Action, ArgumentError, ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from . import __version__
from .support.completion import SHELLS
from .support.interrupt import Interrupted
from .support.options import add_options, from_options
from .support.quiet import quiet_start
from .support.text import reason


@dataclass(frozen=True)
class Command:
    """A command: what it is for, what it is asked with, and what does it.

    Args:
        about: For `--help`.
        request: Module and name of a dataclass, whose fields are the options (`support.options`).
        run: Module and name of a function of that. What it returns, if it is not 0 or None, was
            found wrong, and makes the exit code 1.
        finding: In words, what that is.
        stopped: What Ctrl-C does, for `--help`.
        usage: Instead of the one that argparse makes.
        cluster: As `run`, where the request names a cluster (`support.cluster`).
    """

    about: str
    request: str
    run: str
    finding: str = ""
    stopped: str = "130 stopped by Ctrl-C"
    usage: str | None = None
    cluster: str | None = None


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __package__), name)


COMMANDS: dict[str, Command | dict[str, Command]] = {
    "demo": Command(
        "Train a small VAN on bundled digits, evaluate, save, reload, classify: about a minute.",
        "train.request:DemoRequest",
        "train.demo:run",
    ),
    "train": Command(
        "Train a VAN: the authors' recipe, or fine-tuning with --pretrained; killed, it goes on.",
        "train.request:TrainRequest",
        "train.command:run",
        usage="van train --data DATA --output RUN [--recipe RECIPE] [--FIELD VALUE ...]\n"
        "       van train --resume RUN [--force] [--FIELD VALUE ...]",
        cluster="cluster.train:run",
    ),
    "predict": Command(
        "Name what is in pictures: files, folders, patterns or a list; a table or a file.",
        "inference.request:PredictRequest",
        "inference.predict:run",
        cluster="cluster.predict:run",
        finding="a picture could not be read",
    ),
    "merge": Command(
        "Make one output of the parts that several `van predict --shard` have written.",
        "inference.request:MergeRequest",
        "inference.merge:run",
        finding="a picture could not be read",
    ),
    "explain": Command(
        "Show what in pictures a class came from: heat maps over them, arrays, a record of all.",
        "explanation.request:ExplainRequest",
        "explanation.command:run",
        finding="a picture could not be read",
    ),
    "segment": Command(
        "Say of each pixel what it is of: masks, overlays, areas; mIoU beside right masks.",
        "segment.request:SegmentRequest",
        "segment.command:run",
        finding="a picture could not be read",
    ),
    "evaluate": Command(
        "Measure accuracy on labelled pictures; beside the published and the original's.",
        "evaluate.request:EvaluateRequest",
        "evaluate.evaluate:run",
        cluster="cluster.evaluate:run",
        finding="a picture could not be read, or the original differs",
    ),
    "benchmark": Command(
        "Measure latency, throughput, memory and cold start of models and exported files.",
        "benchmark.request:BenchmarkRequest",
        "benchmark.report:run",
        finding="launches of the same model disagree",
    ),
    "serve": Command(
        "Answer pictures over HTTP: an API, a page, the protocol of KServe and Triton.",
        "serve.request:ServeRequest",
        "serve.command:run",
        cluster="cluster.serve:run",
        stopped="Ctrl-C ends it in good order, with 0, and at once when it comes twice",
    ),
    "convert": Command(
        "Convert a weight file of any known format and naming to another, bit for bit.",
        "export.request:ConvertRequest",
        "export.convert:run",
    ),
    "export": Command(
        "Write a model for ONNX Runtime, OpenVINO, LiteRT or TensorFlow, and compare it there.",
        "export.request:ExportRequest",
        "segment.export:run",
    ),
    "push": Command(
        "Send weights to a model hub: a folder for Keras, KerasHub and this package, with a card.",
        "hub.request:PushRequest",
        "hub.push:run",
    ),
    "pull": Command(
        "Fetch a folder of a model hub, verify it, and print where it is.",
        "hub.request:PullRequest",
        "hub.pull:run",
    ),
    "doctor": Command(
        "Say what is installed here and what of it runs: for a report of a bug.",
        "doctor.request:DoctorRequest",
        "doctor.report:run",
        finding="no engine runs",
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
            finding="weights are damaged or missing",
        ),
        "path": Command(
            "Print the path of weights that are here; exit 1 if they are not. Downloads nothing.",
            "weights.commands:PathRequest",
            "weights.commands:run_path",
            finding="the weights are not here",
        ),
    },
}
_GROUPS = {"weights": "Published weights: list, download, verify, path."}
# Options whose values a shell completes as files, beside those of type Path.
_FILES = (
    *("weights", "data", "inputs", "source", "target", "path", "pretrained", "calibration"),
    *("recipe", "resume", "class_map", "real_labels", "validation", "labels"),
)


class _Completion(Action):
    """`--print-completion SHELL`: only then is a parser made that knows every option."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        from .support.completion import completion_script

        whole = _parser()
        _add_commands(whole, COMMANDS, None)
        print(completion_script(whole, str(values), _FILES))
        parser.exit()


def _parser() -> _Parser:
    parser = _Parser(
        prog="van", description="Visual Attention Network (arXiv 2202.09741) for Keras 3."
    )
    parser.add_argument("--version", action="version", version=f"van {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=SHELLS,
        help="what lets a shell complete commands and options, to be kept in a file of its own",
    )
    return parser


class _Parser(ArgumentParser):
    """Says what is wrong beside the usage of the command it is about, and what may be meant."""

    def __init__(self, **kwargs: Any):
        # Whole names only: `Interrupted` leaves options out by these, and a new option could make
        # the beginning of an old one stand for two.
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
    parser: ArgumentParser, commands: Mapping[str, Any], arguments: Sequence[str] | None
) -> None:
    """All names and what they are for; the options of what `arguments` may mean, None: of all."""
    chosen = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in commands.items():
        is_group = isinstance(command, dict)
        about = _GROUPS[name] if is_group else command.about
        finding = f", or {command.finding}" if not is_group and command.finding else ""
        stopped = Command.stopped if is_group else command.stopped
        sub = chosen.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"Exit code: 0 done; 1 an error{finding}; 2 a wrong option; {stopped}; 141 the "
            "reader of the output has gone.",
        )
        if arguments is not None and name not in arguments:
            continue
        if is_group:
            _add_commands(sub, command, arguments)
            continue
        add_options(sub, _found(command.request))
        sub.usage = command.usage
        sub.set_defaults(command=command, parser=sub)


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
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    _add_commands(parser, COMMANDS, arguments)
    chosen: ArgumentParser = parser
    try:
        try:
            options = vars(parser.parse_args(arguments))
        finally:
            sys.stdout.flush()  # what `--help` and `--print-completion` say before they end it
        command, chosen = options.pop("command"), options.pop("parser")
        request = from_options(_found(command.request), options)
        # Only now is what does the work imported, which may start Keras.
        where = getattr(request, "where", None)
        run = command.cluster if where is not None and where.cluster else command.run
        was_wrong = _found(run)(request)
        sys.stdout.flush()
        if was_wrong:
            sys.exit(1)
    except BrokenPipeError:
        _nobody_reads()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        # What a user can mend: a wrong value, a file, a missing extra. Only other kinds of
        # error, which no input should cause, keep their traceback.
        print(f"van: error: {_in_flags(reason(error), chosen)}", file=sys.stderr)
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
