"""Tokenizer and text encoder of the embedded model, of the same types as Wan's: a tokenizer file and a UMT5 encoder.

The tokenizer knows whole words only (some fifty); phrases and synonyms are replaced, the rest is one <unk> token. The
encoder is trained together with the transformer. Its outputs are set to zero at padding, as Wan does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from forcing_kv.tiny.prompts import PHRASES, SYNONYMS, vocabulary

TEXT_LEN = 24
TEXT_DIM = 64

_SPECIAL = ("<pad>", "</s>", "<unk>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer: lower case, letters only, synonyms replaced, `</s>` at the end."""
    words = [*_SPECIAL, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    words_alike = [(rf"\b(?:{'|'.join(synonyms)})\b", word) for word, synonyms in SYNONYMS.items()]
    replacements = [
        normalizers.Replace(Regex(pattern), word) for pattern, word in ((r"\s+", " "), *PHRASES, *words_alike)
    ]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *replacements])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]+"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LEN,
    )


def build_text_encoder(vocab_size: int, seed: int = 0) -> UMT5EncoderModel:
    """An untrained two-layer encoder, fp32, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(
            UMT5Config(
                vocab_size=vocab_size,
                d_model=TEXT_DIM,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                relative_attention_num_buckets=16,
                relative_attention_max_distance=TEXT_LEN,
                dropout_rate=0.0,
                pad_token_id=0,
                eos_token_id=1,
                decoder_start_token_id=0,
                initializer_factor=1.0,
            )
        )


def token_ids(tokenizer: Any, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, each int64 [captions, TEXT_LEN], padded."""
    batch = tokenizer(list(captions), padding="max_length", truncation=True, max_length=TEXT_LEN, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def text_states(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Encoder states [captions, TEXT_LEN, TEXT_DIM], zero at padding."""
    states: Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return states * mask[..., None].to(states.dtype)
