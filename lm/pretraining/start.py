"""What pre-training starts from: a folder with weights, a config, or a size preset, and a tokenizer
for it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

END = "<|endoftext|>"
PAD = "<|pad|>"

# Llama shapes (hidden, layers, heads, FFN), all with tied embeddings; parameters counted with 8192
# tokens. Our choice.
PRESETS: dict[str, tuple[int, int, int, int]] = {
    "tiny": (64, 2, 2, 172),  # 0.6 M
    "2m": (128, 4, 2, 344),  # 1.8 M
    "5m": (224, 6, 4, 600),  # 5.5 M
    "12m": (320, 8, 5, 864),  # 12.5 M
    "30m": (512, 8, 8, 1376),  # 29 M
}
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (no unknown token) with an end and a pad token, padding at the
    left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=max_length,
        padding_side="left",
    )


def has_weights(start: str) -> bool:
    return any((Path(start) / name).is_file() for name in WEIGHT_FILES)


def load_tokenizer(
    start: str, folder: str | None, texts: Sequence[str], vocab_size: int, max_length: int
):
    """The tokenizer of `folder`, else of `start` where that holds weights, else one trained on
    `texts`."""
    source = folder or (start if has_weights(start) else None)
    if source is None:
        return train_tokenizer(texts, vocab_size, max_length)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source, local_files_only=True
    )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source}: its tokenizer is a slow one ({type(tokenizer).__name__}), a fast one is"
            " needed"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{source}: its tokenizer has no EOS token, which closes every document")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    start: str, tokenizer: PreTrainedTokenizerBase, max_positions: int, seed: int
) -> torch.nn.Module:
    """A float32 causal LM: the weights of a folder, or seeded random weights for a config or a
    size."""
    if has_weights(start):
        model = AutoModelForCausalLM.from_pretrained(
            start, dtype=torch.float32, local_files_only=True
        )
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            rows = model.get_input_embeddings().num_embeddings
            raise ValueError(
                f"{start}: the model embeds {rows} tokens, the tokenizer has {len(tokenizer)}"
            )
        return model
    if start in PRESETS:
        hidden, layers, heads, feed_forward = PRESETS[start]
        config = LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=feed_forward,
            max_position_embeddings=max_positions,
            tie_word_embeddings=True,
        )
    elif Path(start).is_file() or (Path(start) / "config.json").is_file():
        config = AutoConfig.from_pretrained(start, local_files_only=True)
    else:
        raise ValueError(
            f"start is {start!r}: no folder with weights, no config.json, and no size (sizes:"
            f" {', '.join(PRESETS)})"
        )
    config.vocab_size = len(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
