"""The parts of a page as HTML: sections, tables, and images with their captions."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

from PIL import Image
from torch import Tensor

from stn.figures import Reading

PIXELS = 96  # the longest side up to which an image is kept pixel by pixel, and enlarged as squares
LARGEST_IMAGE = 192  # the longest side of a single image
QUALITY = 75  # of a large picture as WebP


class Section(NamedTuple):
    """A section of the page. name: for links to it. title: plain text. body: HTML."""

    name: str
    title: str
    body: str

    def __str__(self) -> str:
        return f'<section id="{self.name}"><h2>{escape(self.title)}</h2>{self.body}</section>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table of texts that scrolls within its own box. The first of each row is its name."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    lines = (
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(text)}</td>" for text in row[1:])}</tr>'
        for row in rows
    )
    body = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return scrolled(body, label)


def scrolled(content: str, label: str, kind: str = "") -> str:
    """A box for HTML that may be wider than the page. label: says what is in it. kind: a class of the style sheet."""
    return f'<div class="scroll {kind}" tabindex="0" role="group" aria-label="{escape(label)}">{content}</div>'


def image(picture: Image.Image, alt: str, attributes: str = "") -> str:
    """An image that is part of the page, as PNG if it is small, otherwise as WebP. alt: for those who do not see it."""
    content = io.BytesIO()
    small = max(picture.size) <= PIXELS
    if small:
        picture.save(content, "PNG", optimize=True)
        attributes += ' class="pixels"'
    else:
        picture.save(content, "WebP", quality=QUALITY, method=6)
    kind, encoded = "png" if small else "webp", base64.b64encode(content.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(alt)}" {size}{attributes}>'


def outline(points: Tensor) -> str:
    """The border of what is read, see `Reading`, over an image; its upper side has another colour."""
    places = [f"{x:.2f},{y:.2f}" for x, y in points.double().nan_to_num(0).clamp(-100, 100).tolist()]
    upper = places[: (len(places) - 1) // 4 + 1]
    lines = f'<polyline points="{" ".join(places)}"/><polyline class="upper" points="{" ".join(upper)}"/>'
    return f'<svg viewBox="-1 -1 2 2" aria-hidden="true">{lines}</svg>'


def cell(reading: Reading, layout: Literal["beside", "over"], names: tuple[str, str] = ("original", "read")) -> str:
    """An image and what is read of it, side by side or one over the other, above the caption.

    names: of the two images, for those who do not see them.
    """
    caption = reading.caption.replace("\n", ", ")
    before, after = (None if one is None else reduced(one) for one in (reading.image, reading.seen))
    assert before is not None
    border = "" if reading.outline is None else outline(reading.outline)
    parts = [f'<span class="before">{image(before, f"{caption}: {names[0]}")}{border}</span>']
    if after is not None:
        parts.append(f'<span class="after">{image(after, f"{caption}: {names[1]}")}</span>')
    mark = {None: "", True: '<span class="right">✓</span> ', False: '<span class="wrong">✗</span> '}[reading.right]
    said = mark + escape(reading.caption).replace("\n", "<br>")
    return f'<figure class="cell"><div class="{layout}">{"".join(parts)}</div><figcaption>{said}</figcaption></figure>'


def reduced(picture: Image.Image, side: int = LARGEST_IMAGE) -> Image.Image:
    """A copy that is at most `side` pixels wide and high."""
    found = picture.copy()
    found.thumbnail((side, side))
    return found
