"""How Sphinx builds these pages (`make docs`)."""

from importlib.metadata import version as installed_version

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

project = "revconn"
author = "the revconn authors"
copyright = "the revconn authors"  # noqa: A001 (Sphinx asks for this name)
version = release = installed_version("revconn")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
lexers["log"] = lexers["haproxy"] = TextLexer()

autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
autodoc_member_order = "bysource"

# A reference to revconn has to lead somewhere. Those to the standard library and to grpc would
# need their inventories from the network, which a build should not.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!revconn\b).*")]
nitpick_ignore = [
    ("py:class", "revconn.serving.handler_registry.H"),  # a type variable
    ("py:class", "revconn.serving.handlers.Serializable"),  # what a protobuf message is, to Handler
]
