"""How a plot follows a dark theme: one picture, drawn for white, whose lightness the page turns over.

A kernel does not know the theme of whoever looks, and two pictures would double each frame and each archived
notebook. The style sheet travels in the status card, which every notebook shows first. Where it does not hold
(VS Code, a notebook that JupyterLab does not trust) the plot stays as it is, dark on its own white ground.
"""

from __future__ import annotations

__all__ = ["DARK_GROUND", "FILTER", "PAGE", "STYLE"]

DARK_GROUND = 17
"""What white becomes, of 255: JupyterLab's dark ground is #111111, a browser's #121212."""

FILTER = f"invert({1 - DARK_GROUND / 255:.4f}) hue-rotate(180deg)"
"""Lightness turned over, hues kept."""

STYLE = (
    "<style>"
    '[data-jp-theme-light="false"] .jp-Notebook:has(.gateshift-card) .jp-RenderedImage img,'
    # nbconvert's page is one notebook
    '[data-jp-theme-light="false"].jp-Notebook .jp-RenderedImage img'
    f"{{filter:{FILTER}}}</style>"
)
"""For JupyterLab, in which all open notebooks share one page: only pictures beside a card of ours."""

PAGE = f"@media screen and (prefers-color-scheme:dark){{img{{filter:{FILTER}}}}}"
"""For pages of ours, which follow the reader's browser."""
