"""Writes a tiny checkpoint whose answers are known, for the stories of real clients: model.py FOLDER.

A qwen3 of one layer for 131,072 tokens whose attention and feed-forward add nothing, so that a token alone says what comes
next: each token of a script has a direction of its own in the embedding, and the head sends that direction to the token
after it. The chat template chooses the script by the last word of the prompt:

    tools, and none has been called yet    the call of the tool `Bash` below
    a tool has been called                 a closing sentence
    no tools                               a whole file, as Aider takes it

Everything else is real: the engine reads every token of what a client sends, samples each word from the logits, and finds
the call in them. The tokenizer is trained on this project's own texts, so that long English prompts have about as many
tokens as with a tokenizer of its size.

Needs: tokenizers.
"""

import json
import pathlib
import struct
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, CONTEXT, VOCAB = 64, 131_072, 8_192
END = "<|im_end|>"
CALL = '\n{"name": "Bash", "arguments": {"command": "echo said by the box > said.txt", "description": "Writes a word"}}\n'
SCRIPTS = [
    ["<|act|>", "<tool_call>", CALL, "</tool_call>", END],
    ["<|close|>", "The word", " is written.", END],
    ["<|write|>", "Here it is:\n\n", "said.txt\n", "```\n", "said by the box\n", "```", END],
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", END, "<|act|>", "<|close|>", "<|write|>"]
TEMPLATE = """
{%- set ns = namespace(called=false) %}
{%- if tools %}
<|im_start|>system
You may call tools. They are:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
For each call write its name and arguments as JSON within <tool_call></tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{% set ns.called = true %}{% endif %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ (call.function or call) | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{{ '<|close|>' if ns.called else ('<|act|>' if tools else '<|write|>') }}
{%- endif %}"""


def tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [word for script in SCRIPTS for word in script if word not in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(words), special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in dict.fromkeys(words)])
    return tokenizer


def bf16(value):
    return struct.pack("<f", value)[2:]


def matrix(rows, columns, filled):
    """Zeros, but for `filled`: (row, column) to value. Bytes of bf16."""
    data = bytearray(2 * rows * columns)
    for (row, column), value in filled.items():
        at = 2 * (row * columns + column)
        data[at : at + 2] = bf16(value)
    return bytes(data)


def safetensors(tensors):
    header, at = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def main(folder):
    root = pathlib.Path(__file__).parents[2]
    texts = [path.read_text() for path in sorted(root.glob("**/*.md")) if "target" not in path.parts]
    words = tokenizer(texts)
    vocab = words.get_vocab_size()
    embedding, head = {}, {}
    direction = 0
    for script in SCRIPTS:
        for this, following in zip(script, script[1:]):
            this, following = words.token_to_id(this), words.token_to_id(following)
            embedding[this, direction] = 1.0
            head[following, direction] = 8.0
            direction += 1
    assert direction <= HIDDEN and len(embedding) == direction, "a word stands in two scripts"
    layer = "model.layers.0."
    zeros = lambda rows, columns: ([rows, columns], matrix(rows, columns, {}))
    ones = lambda length: ([length], bf16(1.0) * length)
    tensors = {
        "model.embed_tokens.weight": ([vocab, HIDDEN], matrix(vocab, HIDDEN, embedding)),
        "lm_head.weight": ([vocab, HIDDEN], matrix(vocab, HIDDEN, head)),
        "model.norm.weight": ones(HIDDEN),
        layer + "input_layernorm.weight": ones(HIDDEN),
        layer + "post_attention_layernorm.weight": ones(HIDDEN),
        layer + "self_attn.q_proj.weight": zeros(HIDDEN, HIDDEN),
        layer + "self_attn.k_proj.weight": zeros(HIDDEN, HIDDEN),
        layer + "self_attn.v_proj.weight": zeros(HIDDEN, HIDDEN),
        layer + "self_attn.o_proj.weight": zeros(HIDDEN, HIDDEN),
        layer + "self_attn.q_norm.weight": ones(HIDDEN),
        layer + "self_attn.k_norm.weight": ones(HIDDEN),
        layer + "mlp.gate_proj.weight": zeros(HIDDEN, HIDDEN),
        layer + "mlp.up_proj.weight": zeros(HIDDEN, HIDDEN),
        layer + "mlp.down_proj.weight": zeros(HIDDEN, HIDDEN),
    }
    end = words.token_to_id(END)
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": HIDDEN, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": False, "attention_bias": False, "vocab_size": vocab,
        "bos_token_id": None, "eos_token_id": end,
    }
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("model.safetensors").write_bytes(safetensors(tensors))
    folder.joinpath("config.json").write_text(json.dumps(config, indent=1))
    folder.joinpath("generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    folder.joinpath("tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": END}))
    words.save(str(folder / "tokenizer.json"))


main(pathlib.Path(sys.argv[1]))
