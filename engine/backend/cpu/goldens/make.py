"""Remakes the expected values that the CPU back end is tested against.

    python make.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf     write the files beside this script
    python make.py --smollm2 ... --compare FULL.f32              measure a dump of ours, write nothing

Needs: numpy==2.4.6 gguf==0.19.0 llama_cpp_python==0.3.36 (llama.cpp itself is the reference).
`FULL.f32` is written by `cargo run --release -p polder-backend-cpu --example dump_logits`.

What it writes (all numbers little-endian):

blocks.bin    For each format: name (16 bytes, zero-filled), u32 rows, u32 cols, u32 bytes, the rows
              as llama.cpp's quantizer stored them, then rows * cols f32 as gguf-py reads them. The
              rows come from a llama model 256 wide with seeded weights.
smollm2.bin   Teacher-forced answers of llama.cpp on SmolLM2 written as F32, KV in F32: u32 texts, u32
              positions, u32 top, u32 dims, u64 seed; per text: u32 tokens[positions]; per position:
              u16 ids[top] and f32 logits[top] (best first), f32 log-sum-exp, f32 L2 norm, f32
              sketch[dims]. The sketch is a random projection with signs (see `signs`): the mean of the
              squared differences of two sketches estimates the squared distance of the full vectors.
tiny/NAME/    A seeded checkpoint: model.gguf (F32), config.json and model.safetensors (BF16, the same
              values), and expected.bin: u32 tokens, u32 vocab, u32 ids[tokens], f32 logits[tokens][vocab]
              from llama.cpp. `mixed` is a Q4_K_M file; its expected values are those of the same
              weights written as F32.
"""

import argparse
import json
import pathlib
import struct
import tempfile

import gguf
import llama_cpp
import numpy as np

HERE = pathlib.Path(__file__).parent
POSITIONS, TOP, DIMS, SEED = 256, 64, 32, 0x506F6C646572


def run(path, tokens, ctx=POSITIONS):
    """Logits of every position, f32 [tokens][vocab]. All floats stay 32 bits wide."""
    llm = llama_cpp.Llama(
        str(path), n_ctx=ctx, n_batch=ctx, n_ubatch=ctx, logits_all=True, verbose=False,
        type_k=0, type_v=0, flash_attn=False, n_threads=2, n_threads_batch=2,
    )
    out = []
    for row in tokens:
        llm.reset()
        llm.eval(row)
        out.append(np.array(llm.scores[: len(row)], dtype=np.float32))
    llm.close()
    return out


def quantize(source, target, ftype, pure=True):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.allow_requantize = True
    params.pure = pure
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert code == 0, f"llama.cpp could not write {target}"


def bf16(values):
    """Rounds to values that BF16 holds exactly."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


class Tiny:
    """A seeded checkpoint of one family, in the names and layouts of both file formats."""

    def __init__(self, family, seed, *, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16,
                 inner=96, vocab=64, tied=False, theta=10000.0, llama3=None, window=None):
        self.__dict__.update(locals())
        self.eps = 1e-5
        rng = np.random.default_rng(seed)
        self.tensors = {}

        def matrix(name, rows, cols, gain=1.0):
            self.tensors[name] = bf16(rng.normal(0, gain / np.sqrt(cols), (rows, cols)))

        def vector(name, n, middle=1.0):
            self.tensors[name] = bf16(rng.normal(middle, 0.2, n))

        matrix("token_embd", vocab, hidden, np.sqrt(hidden))
        if not tied:
            matrix("output", vocab, hidden, 2.0)
        vector("output_norm", hidden)
        for i in range(layers):
            at = f"blk.{i}."
            vector(at + "attn_norm", hidden)
            matrix(at + "attn_q", heads * head_dim, hidden, 2.0)
            matrix(at + "attn_k", kv_heads * head_dim, hidden, 2.0)
            matrix(at + "attn_v", kv_heads * head_dim, hidden)
            matrix(at + "attn_output", hidden, heads * head_dim)
            if family == "qwen2":
                for part, width in [("q", heads), ("k", kv_heads), ("v", kv_heads)]:
                    vector(f"{at}attn_{part}.bias", width * head_dim, 0.0)
            if family in ("qwen3", "gemma3"):
                vector(at + "attn_q_norm", head_dim)
                vector(at + "attn_k_norm", head_dim)
            if family == "gemma3":
                vector(at + "post_attention_norm", hidden)
                vector(at + "post_ffw_norm", hidden)
            vector(at + "ffn_norm", hidden)
            matrix(at + "ffn_gate", inner, hidden)
            matrix(at + "ffn_up", inner, hidden)
            matrix(at + "ffn_down", hidden, inner)

    def neighbours(self, w, heads):
        """Rows of a head in the order that interleaved RoPE wants (llama's GGUF files)."""
        if self.family != "llama":
            return w
        shaped = w.reshape(heads, 2, self.head_dim // 2, -1)
        return shaped.swapaxes(1, 2).reshape(w.shape)

    def divisors(self):
        """Llama 3.1's rule, as divisors of the plain frequencies."""
        c = self.llama3
        plain = self.theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        wavelength = 2 * np.pi / plain
        long, short = c["original"] / c["low"], c["original"] / c["high"]
        blend = (c["original"] / wavelength - c["low"]) / (c["high"] - c["low"])
        middle = 1 / ((1 - blend) / c["factor"] + blend)
        return np.where(wavelength > long, c["factor"], np.where(wavelength < short, 1.0, middle))

    def write_gguf(self, path):
        w = gguf.GGUFWriter(path, self.family)
        w.add_context_length(256)
        w.add_embedding_length(self.hidden)
        w.add_block_count(self.layers)
        w.add_feed_forward_length(self.inner)
        w.add_head_count(self.heads)
        w.add_head_count_kv(self.kv_heads)
        w.add_key_length(self.head_dim)
        w.add_value_length(self.head_dim)
        w.add_rope_dimension_count(self.head_dim)
        w.add_rope_freq_base(self.theta)
        w.add_layer_norm_rms_eps(self.eps)
        w.add_vocab_size(self.vocab)
        if self.window:
            w.add_sliding_window(self.window)
        w.add_tokenizer_model("no_vocab")
        for name, values in self.tensors.items():
            if name.endswith(("attn_q", "attn_k")):
                values = self.neighbours(values, self.heads if name.endswith("q") else self.kv_heads)
            w.add_tensor(name if name.endswith("bias") else name + ".weight", values)
        if self.llama3:
            w.add_tensor("rope_freqs.weight", self.divisors().astype(np.float32))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()

    def write_huggingface(self, folder):
        config = {
            "model_type": self.family, "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim, "intermediate_size": self.inner, "vocab_size": self.vocab,
            "max_position_embeddings": 256, "rms_norm_eps": self.eps, "rope_theta": self.theta,
            "hidden_act": "silu", "tie_word_embeddings": self.tied, "torch_dtype": "bfloat16",
        }
        if c := self.llama3:
            config["rope_scaling"] = {
                "rope_type": "llama3", "factor": c["factor"], "low_freq_factor": c["low"],
                "high_freq_factor": c["high"], "original_max_position_embeddings": c["original"],
            }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        parts = {
            "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
            "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }
        whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
        header, data = {}, b""
        for name, values in self.tensors.items():
            end = ".bias" if name.endswith(".bias") else ".weight"
            name = name.removesuffix(".bias")
            if name in whole:
                name = whole[name]
            else:
                _, layer, part = name.split(".")
                name = f"model.layers.{layer}.{parts[part]}"
            name += end
            raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
            header[name] = {"dtype": "BF16", "shape": list(values.shape),
                            "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


FAMILIES = {
    "llama": dict(family="llama", seed=1),
    "llama3-tied": dict(family="llama", seed=2, tied=True, theta=500000.0,
                        llama3=dict(factor=8.0, low=1.0, high=4.0, original=64)),
    "qwen2": dict(family="qwen2", seed=3, theta=1000000.0),
    "qwen3": dict(family="qwen3", seed=4, head_dim=32, theta=1000000.0),
    "gemma3": dict(family="gemma3", seed=5, hidden=32, layers=7, heads=2, kv_heads=1, inner=48,
                   tied=True, theta=1000000.0, window=8),
}


def make_tiny():
    for name, shape in FAMILIES.items():
        folder = HERE / "tiny" / name
        folder.mkdir(parents=True, exist_ok=True)
        tiny = Tiny(**shape)
        tiny.write_gguf(folder / "model.gguf")
        if tiny.family != "gemma3":
            tiny.write_huggingface(folder)
        expect(folder, folder / "model.gguf", tiny.vocab)


def expect(folder, path, vocab):
    ids = np.random.default_rng(99).integers(0, vocab, 40).astype(np.uint32)
    (logits,) = run(path, [ids.tolist()], ctx=64)
    with open(folder / "expected.bin", "wb") as out:
        out.write(struct.pack("<II", len(ids), vocab))
        out.write(ids.tobytes())
        out.write(logits.tobytes())


def make_mixed(work):
    """A file with several quantized formats in it."""
    folder = HERE / "tiny" / "mixed"
    folder.mkdir(parents=True, exist_ok=True)
    tiny = Tiny("llama", 6, hidden=256, layers=2, head_dim=64, inner=256, vocab=64)
    tiny.write_gguf(work / "mixed.gguf")
    quantize(work / "mixed.gguf", folder / "model.gguf", 15, pure=False)
    quantize(folder / "model.gguf", work / "mixed-f32.gguf", 0, pure=False)
    expect(folder, work / "mixed-f32.gguf", tiny.vocab)


def make_blocks(work):
    """A few rows of each format, from llama.cpp's own quantizer."""
    tiny = Tiny("llama", 7, hidden=256, layers=1, head_dim=64, inner=256)
    # One row of every kind that quantizers stumble over: zeros, one spike, a ramp.
    w = tiny.tensors["blk.0.ffn_up"]
    w[1], w[2], w[3] = 0.0, 0.0, np.linspace(-1, 1, 256)
    w[2][17] = 3.0
    source = work / "tiny.gguf"
    tiny.write_gguf(source)
    ftypes = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7,
              "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}
    with open(HERE / "blocks.bin", "wb") as out:
        for name, ftype in ftypes.items():
            target = work / f"tiny-{name}.gguf"
            quantize(source, target, ftype)
            tensor = next(t for t in gguf.GGUFReader(target).tensors if t.name == "blk.0.ffn_up.weight")
            assert tensor.tensor_type.name == name, (tensor.tensor_type, name)
            rows = tensor.data.reshape(256, -1)[:6]
            expected = gguf.quants.dequantize(rows, tensor.tensor_type).astype(np.float32)
            assert expected.shape == (6, 256)
            raw = rows.tobytes()
            out.write(struct.pack("<16sIII", name.encode(), 6, 256, len(raw)) + raw)
            out.write(expected.tobytes())


def signs(vocab):
    """f32 [vocab][DIMS]: bit d of splitmix64(SEED + v) says whether the sign is minus."""
    z = np.arange(vocab, dtype=np.uint64) + np.uint64(SEED)
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    bits = (z[:, None] >> np.arange(DIMS, dtype=np.uint64)) & np.uint64(1)
    return 1.0 - 2.0 * bits.astype(np.float64)


def log_sum_exp(logits):
    top = logits.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))[..., 0]


def smollm2(model, work):
    """Tokens of the ten texts, and llama.cpp's logits on the weights written as F32."""
    llm = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)
    tokens = []
    for path in sorted((HERE / "texts").glob("*.txt")):
        row = llm.tokenize(path.read_bytes(), add_bos=False, special=True)
        assert len(row) >= POSITIONS, f"{path.name} has only {len(row)} tokens"
        tokens.append(row[:POSITIONS])
    llm.close()
    wide = work / "smollm2-f32.gguf"
    quantize(model, wide, 0, pure=False)
    return tokens, run(wide, tokens)


def make_smollm2(model, work):
    tokens, logits = smollm2(model, work)
    projection = signs(logits[0].shape[1])
    with open(HERE / "smollm2.bin", "wb") as out:
        out.write(struct.pack("<IIIIQ", len(tokens), POSITIONS, TOP, DIMS, SEED))
        for row, values in zip(tokens, logits):
            out.write(np.array(row, dtype="<u4").tobytes())
            wide = values.astype(np.float64)
            order = np.argsort(-wide, axis=-1, kind="stable")[:, :TOP]
            total = log_sum_exp(wide)
            norm = np.linalg.norm(wide, axis=-1)
            sketch = wide @ projection
            for i in range(POSITIONS):
                out.write(order[i].astype("<u2").tobytes())
                out.write(values[i][order[i]].astype("<f4").tobytes())
                out.write(np.array([total[i], norm[i], *sketch[i]], dtype="<f4").tobytes())


def divergence(reference, ours):
    """Full-vocabulary KL and relative L2 distance, per position."""
    p = reference.astype(np.float64)
    q = ours.astype(np.float64)
    log_p = p - log_sum_exp(p)[:, None]
    log_q = q - log_sum_exp(q)[:, None]
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return kl, np.linalg.norm(p - q, axis=-1) / np.linalg.norm(p, axis=-1)


def report(name, pairs):
    kl, l2 = (np.concatenate(x) for x in zip(*(divergence(a, b) for a, b in pairs)))
    print(f"{name}: mean KL {kl.mean():.3e}, worst {kl.max():.3e}; "
          f"relative L2 mean {l2.mean():.3e}, worst {l2.max():.3e}")


def compare(model, work, dump):
    tokens, logits = smollm2(model, work)
    ours = np.memmap(dump, dtype="<f4", mode="r").reshape(len(tokens), POSITIONS, -1)
    report("ours against llama.cpp F32", zip(logits, ours))
    report("llama.cpp on the file as it is against its F32", zip(logits, run(model, tokens)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smollm2", type=pathlib.Path, required=True)
    parser.add_argument("--compare", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        if arguments.compare:
            compare(arguments.smollm2, work, arguments.compare)
        else:
            make_tiny()
            make_mixed(work)
            make_blocks(work)
            make_smollm2(arguments.smollm2, work)
