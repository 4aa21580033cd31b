"""What `van doctor` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from ..support.options import option


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """The options of `van doctor`."""

    json: bool = option("one JSON object on the standard output, for programs", False)
    quick: bool = option("only look: run no engine, which takes a while", False)
