"""The documentation site: `make docs` builds it into build/docs, without network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "python")]

import fusedloss  # noqa: E402
import plots  # noqa: E402

project = "fusedloss"
copyright = "the fusedloss authors"
release = version = fusedloss.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository that are no pages
exclude_patterns = ["generated"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": False}
add_module_names = False
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"fusedloss {version}"
html_copy_source = False
html_show_sphinx = False

plots.draw_all(HERE / "generated")
