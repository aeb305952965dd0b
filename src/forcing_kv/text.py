"""From prompts to the text states that the transformer reads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forcing_kv.errors import PromptError


class TextEncoder:
    """A UMT5 encoder with its tokenizer.

    Args:
        model: transformers' `UMT5EncoderModel`.
        tokenizer: Its tokenizer.
        text_len: Positions the transformer reads; longer prompts are cut, shorter ones padded with zeros.
        device: Where the states are wanted.
    """

    def __init__(self, model: Any, tokenizer: Any, *, text_len: int, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.text_len = text_len
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encodes one text per batch item.

        Returns:
            [batch, text_len, text_dim], zeros at padding, in the encoder's dtype.

        Raises:
            PromptError: A text of which the tokenizer knows nothing at all; the model would show something at random.
        """
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        self._check_known(texts, tokens)
        states: Tensor = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        states = states * tokens.attention_mask[..., None].to(states.dtype)
        return states.to(self.device)

    def _check_known(self, texts: Sequence[str], tokens: Any) -> None:
        unknown = self.tokenizer.unk_token_id
        special = set(self.tokenizer.all_special_ids)
        for text, ids in zip(texts, tokens.input_ids.tolist(), strict=True):
            if unknown in ids and all(token in special for token in ids):
                raise PromptError(
                    f"the model knows no word of {text!r}; for the embedded model, see forcing-kv prompts"
                )
