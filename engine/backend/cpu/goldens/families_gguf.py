"""Writes the checkpoints of `families/` as GGUF files too, in `families-gguf/NAME.gguf`.

    python families_gguf.py

Needs: gguf==0.19.0 numpy==2.4.6. The names of tensors and keys are gguf-py's own (`get_tensor_name_map`, `GGUFWriter`), the
values those of the safetensors files, so that what `transformers` answers on these is expected of the GGUF files as well.
Only families whose layouts differ between the two formats are written: experts are one tensor, phi3's matrices stay fused.
llama.cpp converts rows of llama's queries; `make.py` covers that one.
"""

import json
import pathlib
import struct

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3, "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "phi3": gguf.MODEL_ARCH.PHI3, "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
}


def tensors(path):
    """Name to (shape, values as f32), and the raw bytes of BF16."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for name, told in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        assert told["dtype"] == "BF16", told
        begin, end = (8 + length + at for at in told["data_offsets"])
        bits = np.frombuffer(data[begin:end], dtype="<u2")
        yield name, bits.reshape(told["shape"])


def floats(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write(name):
    folder = HERE / "families" / name
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    layers = config["num_hidden_layers"]
    # No published mixture of qwen3 has layers without experts; where ours has one, it is named as in qwen3.
    maps = [gguf.get_tensor_name_map(kind, layers) for kind in (arch, gguf.MODEL_ARCH.QWEN3)]
    out = gguf.GGUFWriter(HERE / "families-gguf" / f"{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
    rope = config["rope_parameters"]
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(layers)
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_rope_dimension_count(head)
    out.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        out.add_rope_scaling_factor(rope["factor"])
        out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config["model_type"] == "phi3":
        out.add_sliding_window(config.get("sliding_window") or 0)
    # transformers writes one of the two names.
    if experts := config.get("num_experts") or config.get("num_local_experts"):
        out.add_expert_count(experts)
        out.add_expert_used_count(config["num_experts_per_tok"])
        out.add_expert_feed_forward_length(config["moe_intermediate_size"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")
    apart = {}
    for own, bits in tensors(folder / "model.safetensors"):
        if ".experts." in own:
            layer, _, rest = own.partition(".experts.")
            number, part = rest.split(".", 1)
            apart.setdefault(f"{layer}.experts.{part}", {})[int(number)] = bits
            continue
        add(out, maps, own, bits)
    for own, parts in apart.items():
        add(out, maps, own, np.stack([parts[number] for number in sorted(parts)]))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def add(out, maps, own, bits):
    for names in maps:
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name:
            break
    assert name, own
    # Vectors and routers are floats in the files that are around.
    if bits.ndim == 1 or "ffn_gate_inp" in name:
        out.add_tensor(name, floats(bits))
    else:
        out.add_tensor(name, np.ascontiguousarray(bits).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)


def write_q3_k():
    """A qwen3 of one layer whose matrices are random blocks of Q3_K, for which llama.cpp's quantizer is not needed."""
    rng = np.random.default_rng(12)
    hidden, vocab, head = 256, 128, 128
    out = gguf.GGUFWriter(HERE / "families-gguf" / "q3_k.gguf", "qwen3")
    out.add_context_length(512)
    out.add_embedding_length(hidden)
    out.add_block_count(1)
    out.add_feed_forward_length(hidden)
    out.add_head_count(2)
    out.add_head_count_kv(1)
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(1e6)
    out.add_vocab_size(vocab)
    out.add_tokenizer_model("no_vocab")

    def matrix(name, rows):
        blocks = rng.integers(0, 256, (rows, hidden // 256, 110), dtype=np.uint8)
        # Values of a block are up to 128 times this, and mostly far less.
        scale = rng.uniform(1e-3, 3e-3, (rows, hidden // 256)).astype(np.float16)
        blocks[..., 108:] = scale[..., None].view(np.uint8)
        out.add_tensor(name + ".weight", blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q3_K)

    def vector(name, length):
        out.add_tensor(name + ".weight", rng.normal(1, 0.2, length).astype(np.float32))

    for name, rows in [("token_embd", vocab), ("output", vocab), ("blk.0.attn_q", 2 * head), ("blk.0.attn_k", head),
                       ("blk.0.attn_v", head), ("blk.0.attn_output", hidden), ("blk.0.ffn_gate", hidden),
                       ("blk.0.ffn_up", hidden), ("blk.0.ffn_down", hidden)]:
        matrix(name, rows)
    for name, length in [("output_norm", hidden), ("blk.0.attn_norm", hidden), ("blk.0.ffn_norm", hidden),
                         ("blk.0.attn_q_norm", head), ("blk.0.attn_k_norm", head)]:
        vector(name, length)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


(HERE / "families-gguf").mkdir(exist_ok=True)
for name in ["qwen3_moe", "phi3", "seed_oss", "qwen3"]:
    write(name)
write_q3_k()
