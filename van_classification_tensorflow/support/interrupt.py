"""Ctrl-C in a command that can go on where it was stopped."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command that can be continued; holds the command line that continues it.

    Args:
        without: Arguments to leave out of those that were given.
        add: Arguments to give as well.
        instead: The command and all of its arguments, if they are others.
    """

    def __init__(
        self,
        without: Sequence[str] = (),
        add: Sequence[str] = (),
        instead: Sequence[str] | None = None,
    ):
        super().__init__()
        self.without, self.add, self.instead = without, add, instead

    def command(self, arguments: Sequence[str]) -> str:
        """The command line to type, quoted for a shell; `arguments`: what `van` was given."""
        name, *rest = self.instead or [one for one in arguments if one not in self.without]
        return shlex.join(["van", name, *self.add, *rest])
