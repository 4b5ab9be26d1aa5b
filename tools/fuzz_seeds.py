"""The files that are damaged: tiny models, one of each kind, made here."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from hybrid.loading.settings import DEMO_MODEL
from hybrid.machine.profiles import find_profile

VOCAB, HIDDEN, HEADS, HEAD = 1024, 32, 2, 16
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
    "{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
_CONVERSATION = {
    "format": "hybrid-run conversation",
    "model": "a",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ],
}
_SETTINGS = 'model = "a"\ncuda = 2.5\nmax-tokens = 5\ntemperature = 0.5\nstop = ["a", "b"]\nverbose = true\n'


def write_seeds(folder: Path) -> None:
    """Write `hf`, `onnx` and `files` into a folder."""
    for name in ("hf", "onnx", "files"):
        (folder / name).mkdir()
    _write_huggingface(folder / "hf")
    _write_onnx(folder / "onnx")
    shutil.copy(DEMO_MODEL / "tokenizer.model", folder / "onnx")
    profile = find_profile("laptop-6gb").to_json()
    _write_json(folder / "files" / "machine.json", profile)
    _write_json(folder / "files" / "chat.json", _CONVERSATION)
    (folder / "files" / "settings.toml").write_text(_SETTINGS)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _write_huggingface(folder: Path) -> None:
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    config |= {"num_key_value_heads": 1, "head_dim": HEAD, "vocab_size": VOCAB}
    config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config["rope_scaling"]["original_max_position_embeddings"] = 256
    _write_json(folder / "config.json", config)
    recommended = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "eos_token_id": [2, 3]}
    _write_json(folder / "generation_config.json", recommended)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    _write_json(folder / "added_tokens.json", {"<extra>": 262})
    _write_json(folder / "tokenizer.json", _tokenizer())
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    layer, wide = "model.layers.0.", 64
    shapes = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        f"{layer}input_layernorm.weight": (HIDDEN,),
        f"{layer}post_attention_layernorm.weight": (HIDDEN,),
        f"{layer}self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
        f"{layer}self_attn.k_proj.weight": (HEAD, HIDDEN),
        f"{layer}self_attn.v_proj.weight": (HEAD, HIDDEN),
        f"{layer}self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
        f"{layer}mlp.gate_proj.weight": (wide, HIDDEN),
        f"{layer}mlp.up_proj.weight": (wide, HIDDEN),
        f"{layer}mlp.down_proj.weight": (HIDDEN, wide),
    }
    names = sorted(shapes)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, inside in shards.items():
        (folder / file).write_bytes(_safetensors({name: shapes[name] for name in inside}))
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})


def _safetensors(shapes: dict[str, tuple[int, ...]]) -> bytes:
    random, header, data = np.random.default_rng(0), {}, b""
    for name, shape in shapes.items():
        stored = random.standard_normal(shape, np.float32).astype(np.float16).tobytes()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(stored)]}
        data += stored
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _tokenizer_config() -> dict[str, object]:
    added = {"content": "<|im_end|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "add_bos_token": True,
        "added_tokens_decoder": {"261": added},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": _TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _tokenizer() -> dict[str, object]:
    """A byte-level vocabulary with two merges, as tokenizer.json has it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    characters = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(len(others))]
    vocab = {text: number for number, text in enumerate([*characters, "th", "the"])}
    added = [
        {
            "id": 258 + n,
            "content": text,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for n, text in enumerate(("<s>", "</s>", "<|im_start|>", "<|im_end|>"))
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": [["t", "h"], ["th", "e"]],
        },
    }  # fmt: skip


def _write_onnx(folder: Path) -> None:
    """One layer: fp32 weights in a file beside, a weight in blocks, fused attention, a body, and inline tables."""
    random = np.random.default_rng(0)
    data = b""

    def outside(name: str, *shape: int) -> TensorProto:
        nonlocal data
        stored = random.standard_normal(shape, np.float32).tobytes()
        proto = TensorProto(name=name, data_type=1, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "model.data", "offset": len(data), "length": len(stored)}.items():
            proto.external_data.add(key=key, value=str(value))
        data += stored
        return proto

    tables = [from_array(random.standard_normal((128, HEAD // 2), np.float32), name) for name in ("cos", "sin")]
    weights = [
        outside("embed", VOCAB, HIDDEN),
        outside("w_qkv", HIDDEN, (HEADS + 2) * HEAD),
        outside("w_logits", HIDDEN, VOCAB),
        from_array(random.integers(0, 255, (HIDDEN, 1, 16), np.uint8), "w_o"),
        from_array(np.ones((HIDDEN, 1), np.float32), "scales"),
        from_array(np.array([1], np.int64), "one"),
        from_array(np.float32(0.5), "half"),
        *tables,
    ]
    body = make_graph(
        [make_node("Mul", ["o", "half"], ["b"])], "body", [], [make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    microsoft = "com.microsoft"
    lengths = ["past_key_values.0.key", "past_key_values.0.value", "seqlens", "total", "cos", "sin"]
    nodes = [
        make_node("Gather", ["embed", "input_ids"], ["h"]),
        make_node("ReduceSum", ["attention_mask", "one"], ["sum"], keepdims=0),
        make_node("Sub", ["sum", "one"], ["less"]),
        make_node("Cast", ["less"], ["seqlens"], to=TensorProto.INT32),
        make_node("Shape", ["attention_mask"], ["shape"]),
        make_node("Gather", ["shape", "one"], ["last"], axis=0),
        make_node("Squeeze", ["last"], ["length"]),
        make_node("Cast", ["length"], ["total"], to=TensorProto.INT32),
        make_node("MatMul", ["h", "w_qkv"], ["qkv"], name="/layers.0/qkv/MatMul"),
        make_node(
            "GroupQueryAttention", ["qkv", "", "", *lengths], ["a", "present.0.key", "present.0.value"],
            domain=microsoft, num_heads=HEADS, kv_num_heads=1, do_rotary=1, scale=0.25,
        ),
        make_node("MatMulNBits", ["a", "w_o", "scales"], ["o"], domain=microsoft, K=32, N=32, bits=4, block_size=32),
        make_node("Greater", ["length", "zero"], ["any"]),
        make_node("If", ["any"], ["scaled"], then_branch=body, else_branch=body),
        make_node("Constant", [], ["zero"], value_int=0),
        make_node("Add", ["h", "scaled"], ["x"]),
        make_node("MatMul", ["x", "w_logits"], ["logits"], name="/lm_head/MatMul"),
    ]  # fmt: skip
    ids = [make_tensor_value_info(name, TensorProto.INT64, ["B", "S"]) for name in ("input_ids", "attention_mask")]
    cached = ("past_key_values.0.key", "past_key_values.0.value", "present.0.key", "present.0.value")
    caches = [make_tensor_value_info(name, TensorProto.FLOAT, ["B", 1, "P", HEAD]) for name in cached]
    logits = make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", VOCAB])
    graph = make_graph(nodes, "main", [*ids, *caches[:2]], [logits, *caches[2:]], weights)
    model = make_model(graph, opset_imports=[make_opsetid("", 18), make_opsetid(microsoft, 1)], ir_version=10)
    (folder / "model.onnx").write_bytes(onnx.ModelProto.SerializeToString(model))
    (folder / "model.data").write_bytes(data)
    genai = {
        "model": {"context_length": 64, "eos_token_id": [2], "decoder": {"head_size": HEAD, "num_key_value_heads": 1}}
    }
    _write_json(folder / "genai_config.json", genai)
    _write_json(folder / "config.json", {"vocab_size": VOCAB, "eos_token_id": 2, "max_position_embeddings": 64})
