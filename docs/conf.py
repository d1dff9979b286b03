"""How the documentation is built: `make docs` writes `docs/_build/html`, and a warning is an error.

Pages are MyST Markdown, so that they read on the hosting site too. Equations are Unicode text in code blocks, as in the
docstrings: nothing is fetched from elsewhere while building or while reading.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from adagrpo import __version__

project = "adagrpo"
author = "the adagrpo contributors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated", "repository_links"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 3
highlight_language = "text"  # of blocks that name none: equations, output
myst_enable_extensions = ["fieldlist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"  # one backtick in a docstring is code
suppress_warnings = ["ref.python"]

html_theme = "furo"
html_title = "adagrpo"
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"top_of_page_buttons": []}
