"""Passwords, tokens and signatures in addresses: seen, and kept out of what is printed or written."""

import re

# Between scheme and host of an address; not a port and a path that has an @.
_PASSWORD = r"://[^/@\s'\"]*:(?!\d+(?:/|$))[^@\s'\"]*@"
# A user name alone is a token where HTTP is spoken; elsewhere it may be a container or a login.
_TOKEN = r"(?i:https?|webdavs?|davs?)://[^/@\s'\"]+@"
_SECRET = re.compile(rf"{_PASSWORD}|{_TOKEN}|://.*\?")


def secret_in(address: str) -> bool:
    """Say whether an address has a password, a token or a query, which may be a signature."""
    return _SECRET.search(address) is not None


def masked(text: str) -> str:
    """Return a text whose addresses have neither passwords nor queries, which may be signatures."""
    text = re.sub(_PASSWORD, "://...@", text)
    text = re.sub(_TOKEN, lambda found: f"{found[0].partition('://')[0]}://...@", text)
    return re.sub(r"(\w://[^\s?'\"]+)\?[^\s'\"]*", r"\1?...", text)


def one_line(error: BaseException) -> str:
    """Return an error's first line with its type; secrets in addresses are left out."""
    text = str(error).strip().splitlines()
    text = masked(text[0]) if text else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
