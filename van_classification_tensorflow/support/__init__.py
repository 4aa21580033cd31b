"""Helpers that know nothing of VAN: texts, files, console, plots, optional packages."""
