"""How Sphinx makes pages of the notebooks, with the outputs that are committed: nothing is executed."""

project = html_title = "gptcourse"
extensions = ["myst_nb"]
html_theme = "furo"
html_show_copyright = html_show_sphinx = html_copy_source = False
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
html_static_path = ["../node_modules/mathjax/es5/tex-svg.js"]  # npm brings it: nothing is loaded from elsewhere
mathjax_path = "tex-svg.js"
# Headings begin below the title of a notebook, links go to files of the repository, and widgets have no picture.
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type"]
