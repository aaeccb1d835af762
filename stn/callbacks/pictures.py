"""What all callbacks that draw share."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def drawing(what: str) -> Iterator[None]:
    """Warns of a picture that cannot be drawn or saved, since a picture never ends a training."""
    try:
        yield
    except (OSError, ValueError, MemoryError) as error:
        log.warning("%s could not be drawn: %s", what, error)
