"""Shows docs/notebook.ipynb as a page of the site, with its outputs; called by MkDocs (`hooks` in mkdocs.yml).

Raw HTML of an output stays as it is: it is ours, and needs neither script nor network. A picture goes into the page.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page in the place of every notebook."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        assert file.abs_src_path is not None
        files.append(
            File.generated(config, f"{file.src_uri.removesuffix('.ipynb')}.md", content=page(file.abs_src_path))
        )
    return files


def page(path: str) -> str:
    """A notebook as Markdown that needs no other file."""
    text, resources = MarkdownExporter().from_notebook_node(nbformat.read(path, as_version=4))
    for name, data in resources["outputs"].items():
        text = text.replace(f"]({name})", f"]({embedded(name, data)})")
    # Pandas brings a style element and attributes of its own; without them its table looks like the site's.
    text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.DOTALL)
    return text.replace('<table border="1" class="dataframe">', "<table>").replace(' style="text-align: right;"', "")


def embedded(name: str, data: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{Path(name).suffix.removeprefix('.')};base64,{base64.b64encode(data).decode()}"
