"""What the libraries say while they load an adapter: keys that they do not know or miss are no more than a warning to them."""

import contextlib
import logging
import warnings

LIBRARIES = ("diffusers", "transformers", "peft")


@contextlib.contextmanager
def refused():
    """Raises if a library warns within."""
    heard = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.removeHandler(handler)
            logger.setLevel(level)
    # A library's own use of what it will remove says nothing of an adapter.
    about_keys = (w for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning, ResourceWarning)))
    heard += [str(warning.message) for warning in about_keys]
    assert not heard, "\n".join(heard)
