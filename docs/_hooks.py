"""The site's generated pages and its navigation: pages made from the code cannot grow stale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from gateshift.cli import reference

ROOT = Path(__file__).resolve().parents[1]

# Title and file, in the order of reading. What is not there yet is left out; what is not listed comes last.
SECTIONS: dict[str, list[tuple[str, str]]] = {
    "Start": [
        ("gateshift", "index.md"),
        ("Ten-minute tutorial", "tutorial.md"),
        ("First use", "first-use.md"),
        ("On call: one screen", "on-call.md"),
    ],
    "How to": [
        ("EKS with Route 53", "howto/eks-route53.md"),
        ("Cloudflare", "howto/cloudflare.md"),
        ("APISIX traffic-split", "howto/traffic-split.md"),
        ("Pipelines", "howto/pipelines.md"),
        ("Notifications", "howto/notifications.md"),
    ],
    "Understand": [
        ("How verdicts are reached", "verdicts.md"),
        ("Translation", "translation.md"),
        ("What becomes what", "reference/becomes.md"),
        ("Plugins", "plugins.md"),
        ("Moving traffic", "dns.md"),
        ("Clusters", "clusters.md"),
        ("Archive", "archive.md"),
        ("Troubleshooting", "troubleshooting.md"),
        ("Beside other tools", "comparison.md"),
    ],
    "Reference": [
        ("Params", "reference/params.md"),
        ("Commands", "reference/commands.md"),
        ("Exit codes and errors", "reference/errors.md"),
    ],
}


# The names are their own: a generated page would silently take the place of a written one.
GENERATED: dict[str, Callable[[], str]] = {
    "reference/params.md": lambda: reference.params_page(
        ROOT / "params" / "production.yaml", ROOT / "docs" / "params_remarks.yaml"
    ),
    "reference/commands.md": reference.commands_page,
    "reference/errors.md": reference.errors_page,
    "reference/becomes.md": lambda: reference.translation_page(ROOT / "docs" / "translation_rows.yaml"),
}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, then lay out the navigation over all that is there."""
    for path, make in GENERATED.items():
        files.append(File.generated(config, path, content=make()))
    there = {file.src_uri for file in files.documentation_pages()}
    nav: list[Any] = [
        {title: [{name: path} for name, path in pages if path in there]} for title, pages in SECTIONS.items()
    ]
    listed = {path for pages in SECTIONS.values() for _, path in pages}
    if rest := sorted(there - listed):
        nav.append({"More": list(rest)})
    config.nav = nav
    return files


ONE_SCREEN = "on-call.md"
"""Read at two in the morning: nothing beside it, and nothing below the edge of the screen."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Give the page for people on call the whole screen; docs/style.css makes it fit."""
    if page.file.src_uri != ONE_SCREEN:
        return markdown
    page.meta["hide"] = ["navigation", "toc"]
    return f'<div class="one-screen" markdown>\n\n{markdown}\n\n</div>\n'
