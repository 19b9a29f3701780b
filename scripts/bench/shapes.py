"""Random Llama models of the sizes that the benches use; random weights cost what trained ones
cost."""

from __future__ import annotations

import torch
from fedduet.scripts.bench.paired import device
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "12.5 M": {
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_hidden_layers": 8,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    }
    | {"vocab_size": 8192, "max_position_embeddings": 512},
    "135 M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    | {"vocab_size": 49152, "max_position_embeddings": 2048},
}


def random_llama(shape: str, tied: bool = True) -> LlamaForCausalLM:
    """A model of that shape with random weights, the same every time."""
    torch.manual_seed(0)
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return (
        LlamaForCausalLM(LlamaConfig(**SHAPES[shape], **tokens, tie_word_embeddings=tied))
        .eval()
        .to(device())
    )
