"""The folder that `van explain` makes: a picture and an array of each map, and a record of all."""

from __future__ import annotations

from ..support.recorded_folder import RecordedFolder

INDEX = "explanations.json"
FOLDER = RecordedFolder(INDEX, "explanation")
