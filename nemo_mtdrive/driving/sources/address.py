"""Where scenes are, in one line: `SCHEME://PATH?name=value&name=value`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode

from nemo_mtdrive.driving.schema import SceneError


@dataclass(frozen=True)
class Address:
    """A parsed address; `str` gives the line again."""

    scheme: str
    path: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        query = urlencode(self.parameters, safe="/:,")
        return f"{self.scheme}://{quote(self.path)}{'?' + query if query else ''}"

    def only(self, *names: str) -> None:
        """Refuse parameters other than `names` (SceneError)."""
        for name in self.parameters:
            if name not in names:
                raise SceneError(f"{self}: unknown parameter {name!r}; set one of {', '.join(names)}")

    def number(self, name: str, default: int) -> int:
        """A whole number of 0 or more (SceneError)."""
        text = self.parameters.get(name, str(default))
        if not text.isdecimal():
            raise SceneError(f"{self}: got {name}={text}, set it to a whole number of 0 or more")
        return int(text)

    def share(self, name: str, default: float) -> float:
        """A number from 0 to 1 (SceneError)."""
        text = self.parameters.get(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 1.0:
            raise SceneError(f"{self}: got {name}={text}, set it to a number from 0 to 1")
        return value

    def weights(self, name: str) -> dict[str, float]:
        """`a:2,b:1` as weights; a name alone weighs 1 (SceneError)."""
        found = {}
        for part in filter(None, self.parameters.get(name, "").split(",")):
            key, _, weight = part.partition(":")
            try:
                found[key] = float(weight or 1)
            except ValueError as error:
                raise SceneError(f"{self}: got {part!r} in {name}, set it to NAME or NAME:WEIGHT") from error
        return found


def parse_address(text: str) -> Address:
    """Parse an address.

    Raises:
        SceneError: no `SCHEME://` in front, or a parameter without a value or given twice.
    """
    scheme, mark, rest = text.partition("://")
    if not mark or not scheme:
        raise SceneError(f"scenes {text!r}: not SCHEME://PATH?name=value, e.g. procedural://?count=2000&seed=7 or files://DIR")
    path, _, query = rest.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise SceneError(f"scenes {text!r}: got {query!r} after the '?', set it to name=value&name=value") from error
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise SceneError(f"scenes {text!r}: a parameter is given twice")
    return Address(scheme, unquote(path), parameters)
