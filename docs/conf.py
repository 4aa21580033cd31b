"""How Sphinx makes the documentation: `scripts/docs.sh`.

The source directory is the repository's root, so that relative links mean the same here and on
GitHub. Pages that are made of the code (`made_pages.py`) are written to `docs/made/` first.
"""

import inspect
import re
import sys
from pathlib import Path

from sphinx.util.inspect import stringify_signature

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import made_pages  # noqa: E402 - beside this file, which the line above makes known

from van_classification_tensorflow import __version__  # noqa: E402 - after it

made_pages.write(HERE / "made")

project = "van-classification-tensorflow"
author = "the authors of van-classification-tensorflow"
copyright = "the authors, MIT licence"
release = version = __version__
smartquotes_action = "De"  # quotes stay: they are of texts that are to be typed

root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["docs/_build"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

# --- Markdown and notebooks ---

# Anchors of headings as GitHub makes them: `predict.md#engines`.
myst_heading_anchors = 3
# Every run executes them; an error in one ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
# What TensorFlow and the converters say of themselves as they start, with paths of this machine.
nb_output_stderr = "remove"

# --- The reference, of the docstrings ---

default_role = "literal"  # `name` in a docstring is code
autodoc_typehints = "none"  # types stand in the signature
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90  # longer ones have an argument on each line
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
nitpicky = True
# Types of others, of which no inventory can be had without a network, and ways of writing types.
nitpick_ignore_regex = [
    ("py:.*", r"(keras|tf|tensorflow|np|numpy|PIL|Image|os|rich|collections|typing|pathlib)\b.*"),
    ("py:.*", r"(Path|Any|Callable|Iterable|Iterator|Mapping|Sequence|Literal|ArrayLike)"),
    (
        "py:.*",
        "(Pretrained|SegmenterWeights)",
    ),  # opened weights: accepted, but not for others to make
]

# --- How it looks ---

html_theme = "furo"
html_title = f"VAN {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_static/index.html"]  # the folder itself leads to `docs/index.html`
html_use_index = False  # the search finds more
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
copybutton_exclude = ".linenos, .gp, .go, .c, .c1"  # not the comments of a command

# --- Links to the outside, with `scripts/docs.sh --linkcheck` ---

linkcheck_anchors = False  # GitHub makes many of them in the browser
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1|van\.example\.org|mirror\.example).*"]


def _plain_stars(app, what, name, obj, options, lines):
    """The docstrings are no reStructuredText: a star, a bar or an option in them is just that."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``?[^`]*``?)", line)  # what stands between backticks is left as it is
        parts[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", one) for one in parts[::2]]
        parts[::2] = [re.sub(r"(?<!\S)(--[a-z][a-z-]+)", r"``\1``", one) for one in parts[::2]]
        lines[number] = "".join(parts)


def _own_signature(app, what, name, obj, options, signature, return_annotation):
    """Of the constructor, where Keras's classes have a general one in front of it."""
    if what == "class" and (signature or "").startswith("(*args"):
        parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
        return stringify_signature(inspect.Signature(parameters)), None
    return None


def setup(app):
    app.connect("autodoc-process-signature", _own_signature)
    app.connect("autodoc-process-docstring", _plain_stars, priority=900)  # after napoleon
