"""Charts in a notebook as pictures: what draws them otherwise is fetched from the network."""

from __future__ import annotations

from typing import Any

NAME = "recsys"  # of the renderer, as Altair calls it
PADDING = 16  # pixels around: a browser may have wider letters than those by which text was placed
FONTS = "Arial, 'Liberation Sans', Helvetica, 'Nimbus Sans', sans-serif"  # as wide as those


def use() -> None:
    """Show Altair's charts as SVG from here on, if no other renderer was chosen. The specification stays beside."""
    import altair as alt

    alt.renderers.register(NAME, bundle)
    if alt.renderers.active == "default":
        alt.renderers.enable(NAME)


def bundle(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """What a cell puts out for a chart, by MIME type."""
    import altair as alt
    import vl_convert

    major = alt.SCHEMA_VERSION.removeprefix("v").partition(".")[0]
    picture = vl_convert.vegalite_to_svg({"padding": PADDING} | spec)
    picture = picture.replace("<svg ", f'<svg font-family="{FONTS}" ', 1).replace(' font-family="sans-serif"', "")
    return {"image/svg+xml": picture, f"application/vnd.vegalite.v{major}+json": spec, "text/plain": "alt.Chart(...)"}
