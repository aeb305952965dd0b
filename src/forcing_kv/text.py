"""From prompts to the text states that the transformer reads."""

import html
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ftfy
import torch
from torch import Tensor

from forcing_kv.errors import PromptError
from forcing_kv.prompt_cache import PromptCache

MAX_RECENT_PROMPTS = 64


class PromptEncoder(Protocol):
    """What a pipeline needs of a text encoder."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """States of one text per batch item, [batch, text_len, text_dim], zeros at padding."""
        ...

    def bytes_on(self, device: torch.device) -> int:
        """Memory of a device that `release` would free."""
        ...

    def release(self) -> None:
        """Frees what the next call can load again."""
        ...

    def forget(self) -> None:
        """Lets every text be encoded anew, also one that was encoded before."""
        ...


class TextEncoder:
    """A UMT5 encoder with its tokenizer.

    Args:
        model: transformers' `UMT5EncoderModel`.
        tokenizer: Its tokenizer.
        text_len: Positions the transformer reads; longer prompts are cut, shorter ones padded with zeros.
    """

    def __init__(self, model: Any, tokenizer: Any, *, text_len: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.text_len = text_len

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encodes one text per batch item.

        Returns:
            [batch, text_len, text_dim], zeros at padding, in the encoder's dtype and on its device.

        Raises:
            PromptError: A text of which the tokenizer knows nothing at all; the model would show something at random.
        """
        tokens = self.tokenizer(
            [clean_prompt(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        self._check_known(texts, tokens)
        states: Tensor = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        masked: Tensor = states * tokens.attention_mask[..., None].to(states.dtype)
        return masked

    def bytes_on(self, device: torch.device) -> int:
        """See `PromptEncoder.bytes_on`."""
        return 0

    def release(self) -> None:
        """See `PromptEncoder.release`: the model was handed in and stays."""

    def forget(self) -> None:
        """See `PromptEncoder.forget`: nothing is remembered."""

    def _check_known(self, texts: Sequence[str], tokens: Any) -> None:
        unknown = self.tokenizer.unk_token_id
        special = set(self.tokenizer.all_special_ids)
        for text, ids in zip(texts, tokens.input_ids.tolist(), strict=True):
            if unknown in ids and all(token in special for token in ids):
                raise PromptError(
                    f"the model knows no word of {text!r}; for the embedded model, see forcing-kv prompts"
                )


class LazyTextEncoder:
    """A text encoder that is loaded when a prompt needs it, which for a prompt seen before it does not.

    Each text is encoded by itself, so that its states do not depend on the batch it comes in.

    Args:
        load: Loads the encoder.
        device: Where the states are wanted.
        cache: States of earlier runs, on disk; None keeps none.
    """

    def __init__(
        self, load: Callable[[], TextEncoder], *, device: torch.device | str, cache: PromptCache | None = None
    ) -> None:
        self._load = load
        self._device = torch.device(device)
        self._cache = cache
        self._encoder: TextEncoder | None = None
        self._recent: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """See `PromptEncoder`; the texts that are not known are encoded.

        Raises:
            CheckpointError: The encoder is needed and cannot be loaded.
            PromptError: As `TextEncoder`.
        """
        return torch.stack([self._states(text) for text in texts]).to(self._device)

    def bytes_on(self, device: torch.device) -> int:
        """See `PromptEncoder.bytes_on`."""
        if self._encoder is None or self._encoder.model.device != device:
            return 0
        return sum(parameter.nbytes for parameter in self._encoder.model.parameters())

    def release(self) -> None:
        """See `PromptEncoder.release`; what was encoded is remembered."""
        self._encoder = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what torch keeps of the freed memory is wanted by others

    def forget(self) -> None:
        """See `PromptEncoder.forget`; the states of earlier runs are left on the disk, and no longer used here."""
        self._recent.clear()
        self._cache = None

    def _states(self, text: str) -> Tensor:
        """[text_len, text_dim], on the CPU."""
        text = clean_prompt(text)
        states = self._recent.pop(text, None)
        if states is None and self._cache is not None:
            states = self._cache.get(text)
        if states is None:
            if self._encoder is None:
                self._encoder = self._load()
            states = self._encoder([text])[0].cpu()
            if self._cache is not None:
                self._cache.put(text, states)
        self._recent[text] = states  # newest last
        if len(self._recent) > MAX_RECENT_PROMPTS:
            self._recent.popitem(last=False)
        return states


def encode_within(
    spare_bytes: float,
    encoder: PromptEncoder,
    texts: Sequence[str],
    *,
    device: torch.device,
    coming: Sequence[str] = (),
) -> Tensor:
    """Encodes, and frees the encoder afterwards if it takes more of a device than can be spared there.

    Args:
        spare_bytes: Memory of the device that nothing else will need.
        encoder: To use.
        texts: One per batch item.
        device: Whose memory may be short.
        coming: Texts that will be asked for; they are encoded while the encoder is there.
    """
    states = encoder(texts)
    if encoder.bytes_on(device) > spare_bytes:
        encoder(coming)
        encoder.release()
    return states


def clean_prompt(text: str) -> str:
    """A prompt as Wan's training saw it: broken Unicode repaired, HTML entities resolved, white space collapsed."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))  # twice: captions were often escaped twice
    return re.sub(r"\s+", " ", text).strip()
