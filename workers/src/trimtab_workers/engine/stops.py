"""Stop texts in a stream: found at a cost linear in the text, whatever the texts look like."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class StopText:
    """One stop text and how much of it the stream's end matches (Knuth, Morris and Pratt 1977).

    Attributes:
        matched: Length of the longest end of the stream that begins `text`.
    """

    text: str
    matched: int = 0
    _fallback: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._fallback = [0] * len(self.text)
        length = 0
        for index in range(1, len(self.text)):
            length = self._next(self.text[index], length)
            self._fallback[index] = length

    def _next(self, character: str, length: int) -> int:
        text = self.text
        while length and text[length] != character:
            length = self._fallback[length - 1]
        return length + (text[length] == character)

    def feed(self, new: str) -> int | None:
        """Add characters; return how many of them end the first match, or None without one."""
        if not self.matched and self.text[0] not in new:
            return None
        for index, character in enumerate(new):
            self.matched = self._next(character, self.matched)
            if self.matched == len(self.text):
                return index + 1
        return None
