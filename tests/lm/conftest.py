"""Tiny models with random weights and a word tokenizer, made in a moment and the same every
time."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [
    *(
        "<pad>",
        "<eos>",
        "<unk>",
        "[CLS]",
        "[SEP]",
        "label",
        "good",
        "bad",
        ":",
        "the",
        "a",
        "film",
        "book",
        "was",
        "is",
        "very",
        "nice",
    ),
    *("fine", "awful", "dull", "one", "two", "three", "four", "five", "six", "seven", "eight"),
]


@pytest.fixture(scope="session")
def tokenizer():
    """White-space words; pad 0, end 1, unknown 2; adds nothing by itself."""
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=64,
    )
    fast.padding_side = "right"
    return fast


def _llama(kv=1, tied=True, **more):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=kv,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=1, tie_word_embeddings=tied, initializer_range=0.3, **more,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=2, n_positions=64, pad_token_id=0, eos_token_id=1, bos_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def _bert(labels=2):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=64,
        pad_token_id=0, num_labels=labels, initializer_range=0.1,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="session")
def llama():
    """Makes a tiny Llama: `llama(kv=1, tied=True)`."""
    return _llama


@pytest.fixture(scope="session")
def gpt2():
    """Makes a tiny GPT-2."""
    return _gpt2


@pytest.fixture(scope="session")
def bert():
    """Makes a tiny BERT classifier: `bert(labels=2)`."""
    return _bert


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer):
    """Saved models with the tokenizer, by name: llama, gpt2, bert (the body alone, without a
    head)."""
    root = tmp_path_factory.mktemp("models")
    for name, model in (("llama", _llama()), ("gpt2", _gpt2()), ("bert", _bert().bert)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in ("llama", "gpt2", "bert")}
