"""Text to tokens and back: HF tokenizer.json or GGUF metadata, templates, streams."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.errors import (
    InvalidRequestError,
    ModelCorruptError,
    UnsupportedModelError,
)
from trimtab_workers.engine.stops import StopText
from trimtab_workers.engine.template import ChatTemplate
from trimtab_workers.engine.weights.hf import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer as Backend

    from trimtab_workers.engine.weights.checkpoint import Checkpoint

_SPACE = "\u2581"
_CONTROL, _USER_DEFINED = 3, 4
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    "smollm": "digits",
    "default": "gpt2",
    "gpt-2": "gpt2",
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids that mean something to the engine.

    Attributes:
        end: Any of these ends a request with "stop".
        add_begin: Whether a plain completion prompt begins with `begin`.
    """

    begin: int | None
    end: frozenset[int]
    add_begin: bool


class Tokenizer:
    """One model's tokenizer; safe to use from several threads.

    Attributes:
        special: Begin and end of text.
        template: The chat template, or None if the model has none.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special: SpecialTokens,
        template: ChatTemplate | None,
        vocab: int,
    ) -> None:
        self._backend = backend
        self.special = special
        self.template = template
        self.vocab = vocab
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._added = {i: token.content for i, token in added.items()}
        self._byte_level = _is_byte_level(backend)
        self._bytes: dict[int, bytes] = {}

    def save(self, file: Path) -> None:
        """Write the tokenizer alone, without template, as a tokenizer.json."""
        self._backend.save(str(file))

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a request unless `ignore_eos`."""
        return self.special.end

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids; special tokens written in the text are recognised.

        Raises:
            InvalidRequestError: The text holds half a surrogate pair, which is no character.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            at = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
            if at is None:
                raise
            raise InvalidRequestError(
                f"The text has a lone surrogate (\\u{ord(text[at]):04x}) at character {at}, which "
                "is no character. Send whole surrogate pairs.",
                param="prompt",
            ) from error
        begin = self.special.begin
        if add_special_tokens and self.special.add_begin and begin is not None:
            return [begin, *ids]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turn token ids into text; incomplete UTF-8 becomes U+FFFD."""
        parts = (
            self.token_bytes(i)
            for i in token_ids
            if not (skip_special_tokens and i in self._special_ids)
        )
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special ones included."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of one token; ids beyond the vocabulary have none."""
        if not 0 <= token_id < self.vocab:
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            table = _byte_table()
            return b"".join(table.get(char) or char.encode() for char in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace(_SPACE, " ").encode()

    def is_special(self, token_id: int) -> bool:
        """Whether a token is never part of an answer's text."""
        return token_id in self._special_ids

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Render messages and tokenise the result.

        Raises:
            InvalidRequestError: The model has no template, or the template refuses the messages.
        """
        return self.encode(
            self.render_chat(messages, add_generation_prompt=add_generation_prompt),
            add_special_tokens=False,
        )

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Render messages to text; see `apply_chat_template`."""
        return ChatTemplate.render_or_refuse(
            self.template, messages, add_generation_prompt=add_generation_prompt
        )


class StreamDetokenizer:
    """Text of one growing output: holds back partial characters and possible stop texts.

    `push` returns text that can never be taken back. When a stop text appears, everything from
    its first character on is dropped, `stopped_by` names it, and nothing more is returned.
    """

    __slots__ = ("_decoder", "_held", "_stops", "_tokenizer", "stopped_by")

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(StopText(text) for text in stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain."""
        if self._tokenizer.is_special(token_id):
            return ""
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def finish(self) -> str:
        """Return what was held back; an incomplete character becomes U+FFFD."""
        if self.stopped_by is not None:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped_by is None:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        if self.stopped_by is not None:
            return ""
        text = self._held + new
        if not self._stops:
            return text
        ends = ((stop.feed(new), stop) for stop in self._stops)
        found = [
            (len(self._held) + end - len(stop.text), stop.text)
            for end, stop in ends
            if end is not None
        ]
        if found:
            at, self.stopped_by = min(found)
            self._held = ""
            return text[:at]
        keep = max(stop.matched for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def load_tokenizer(checkpoint: Checkpoint, *, chat_template: str | None) -> Tokenizer | None:
    """Load a checkpoint's tokenizer; None for random weights without files.

    Raises:
        CheckpointError: It is missing, damaged or of a kind that is not read.
    """
    if checkpoint.gguf_metadata is not None:
        return _from_gguf(checkpoint, checkpoint.gguf_metadata, chat_template)
    if checkpoint.directory is None:
        return None
    return _from_directory(checkpoint, checkpoint.directory, chat_template)


def _from_directory(checkpoint: Checkpoint, directory: Path, override: str | None) -> Tokenizer:
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415 - a quarter second

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise UnsupportedModelError(
            f"{directory}: there is no tokenizer.json, the only tokenizer format that is read from a "
            "directory. Convert the tokenizer with transformers' save_pretrained."
        )
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelCorruptError(f"{file}: no valid tokenizer: {error}. Fetch it again.") from error
    settings = _optional_json(directory / "tokenizer_config.json")
    generation = _optional_json(directory / "generation_config.json")
    ends: set[int] = set()
    for source in (checkpoint.hf_config, generation):
        value = source.get("eos_token_id")
        ends.update(value if isinstance(value, list) else [] if value is None else [value])
    named_end = backend.token_to_id(_content(settings.get("eos_token")))
    if named_end is not None:
        ends.add(named_end)
    begin = backend.token_to_id(_content(settings.get("bos_token")))
    template = override or _directory_template(directory, settings)
    first = backend.encode("a").ids[:1]
    return Tokenizer(
        backend,
        special=SpecialTokens(
            begin=begin,
            end=frozenset(ends),
            add_begin=begin is not None and first == [begin],
        ),
        template=_template(template, backend, begin, min(ends, default=None)),
        vocab=checkpoint.shape.vocab,
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: object) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _directory_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _template(
    source: str | None, backend: Backend, begin: int | None, end: int | None
) -> ChatTemplate | None:
    if source is None:
        return None
    texts = {
        name: "" if token is None else backend.id_to_token(token) or ""
        for name, token in (("bos_token", begin), ("eos_token", end))
    }
    template = ChatTemplate(source, special_texts=texts)
    template.start()
    return template


def _from_gguf(checkpoint: Checkpoint, meta: Mapping[str, Any], override: str | None) -> Tokenizer:
    pre = check_gguf_tokenizer(meta, where=checkpoint.where)
    backend = _gguf_backend(checkpoint, meta, pre)
    end = {
        meta[key]
        for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        if isinstance(meta.get(key), int)
    }
    begin = meta.get("tokenizer.ggml.bos_token_id")
    return Tokenizer(
        backend,
        special=SpecialTokens(
            begin=begin,
            end=frozenset(end),
            add_begin=bool(
                meta.get("tokenizer.ggml.add_bos_token", pre in {"llama-bpe", "llama3"})
            ),
        ),
        template=_template(
            override or meta.get("tokenizer.chat_template"), backend, begin, min(end, default=None)
        ),
        vocab=checkpoint.shape.vocab,
    )


def check_gguf_tokenizer(meta: Mapping[str, Any], *, where: str) -> str:
    """Return the name of a GGUF file's pre-tokenizer.

    Raises:
        UnsupportedModelError: Its tokenizer is of a kind that is not read.
    """
    kind = meta.get("tokenizer.ggml.model")
    pre = meta.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{where}: tokenizer.ggml.model is {kind!r} with pre-tokenizer {pre!r}; read are "
            f"'gpt2' with {', '.join(_PRE_TOKENIZERS)}. Give the model as a directory with "
            "tokenizer.json."
        )
    return str(pre)


def _gguf_backend(checkpoint: Checkpoint, meta: Mapping[str, Any], pre: str) -> Backend:
    from tokenizers import (  # noqa: PLC0415 - a quarter second
        AddedToken,
        Regex,
        decoders,
        models,
        pre_tokenizers,
    )
    from tokenizers import Tokenizer as Backend  # noqa: PLC0415

    tokens = meta.get("tokenizer.ggml.tokens")
    merges = meta.get("tokenizer.ggml.merges")
    kinds = meta.get("tokenizer.ggml.token_type") or []
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise ModelCorruptError(
            f"{checkpoint.where}: tokenizer.ggml.tokens or .merges is missing. Fetch the file again."
        )
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    vocab = {token: index for index, token in enumerate(tokens)}
    rule = _PRE_TOKENIZERS[pre]
    try:
        backend = Backend(
            models.BPE(vocab=vocab, merges=pairs, ignore_merges=rule == _LLAMA3, fuse_unk=False)
        )
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelCorruptError(
            f"{checkpoint.where}: its vocabulary and merges do not fit: {error}. "
            "Fetch the file again."
        ) from error
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in {"digits", "gpt2"})
    if rule == "gpt2":
        backend.pre_tokenizer = plain
    else:
        first = (
            pre_tokenizers.Digits(individual_digits=True)
            if rule == "digits"
            else pre_tokenizers.Split(Regex(rule), "isolated")
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence([first, plain])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=False)
            if kind == _CONTROL
        ]
    )
    backend.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in zip(tokens, kinds, strict=False)
            if kind == _USER_DEFINED
        ]
    )
    return backend


def _is_byte_level(backend: Backend) -> bool:
    return type(backend.decoder).__name__ == "ByteLevel"


_TABLE: dict[str, bytes] = {}


def _byte_table() -> dict[str, bytes]:
    """GPT-2's printable stand-ins for bytes, as character → byte."""
    if not _TABLE:
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        _TABLE.update({chr(byte): bytes((byte,)) for byte in printable})
        _TABLE.update({chr(256 + i): bytes((byte,)) for i, byte in enumerate(others)})
    return _TABLE
