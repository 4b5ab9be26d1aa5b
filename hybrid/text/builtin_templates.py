"""Chat templates for models whose folder has none, in the formats that their makers published."""

from collections.abc import Mapping

_ALTERNATE = """\
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('user and assistant must take turns, and user begins') -}}
{%- endif -%}
"""

# https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md; Qwen and many others
_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

# https://github.com/meta-llama/llama/blob/main/llama/generation.py, chat_completion
_LLAMA_2 = f"""\
{{%- set system = namespace(text='') -%}}
{{%- if messages and messages[0].role == 'system' -%}}
{{%- set system.text = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}}
{{%- set messages = messages[1:] -%}}
{{%- endif -%}}
{{%- for message in messages -%}}
{_ALTERNATE}
{{%- if message.role == 'user' -%}}
{{{{- bos_token + '[INST] ' + (system.text + message.content).strip() + ' [/INST]' -}}}}
{{%- set system.text = '' -%}}
{{%- else -%}}
{{{{- ' ' + message.content.strip() + ' ' + eos_token -}}}}
{{%- endif -%}}
{{%- endfor -%}}
"""

# https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2: instruction format; it has no system role
_MISTRAL = f"""\
{{{{- bos_token -}}}}
{{%- for message in messages -%}}
{_ALTERNATE}
{{%- if message.role == 'user' -%}}
{{{{- '[INST] ' + message.content + ' [/INST]' -}}}}
{{%- else -%}}
{{{{- ' ' + message.content.strip() + eos_token -}}}}
{{%- endif -%}}
{{%- endfor -%}}
"""

# https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3
_LLAMA_3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content.strip() + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}
"""

# https://huggingface.co/HuggingFaceH4/zephyr-7b-beta; TinyLlama chat
_ZEPHYR = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\n' + message.content + eos_token + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}
"""

BUILT_IN: Mapping[str, str] = {
    "chatml": _CHATML,
    "llama-2": _LLAMA_2,
    "llama-3": _LLAMA_3,
    "mistral": _MISTRAL,
    "zephyr": _ZEPHYR,
}


def guess(tokens: Mapping[str, bool], model_type: str, model_name: str) -> str | None:
    """The name of the built-in template that fits a model; None when nothing speaks for one.

    `tokens` says which of `TELLING_TOKENS` the vocabulary has; `model_type` is that of config.json, `model_name` the
    folder's or the repository's. Tokens say most: a model that was not trained on a format has no use for them.
    """
    name = model_name.lower()
    if tokens.get("<|start_header_id|>") and tokens.get("<|eot_id|>"):
        return "llama-3"
    if (tokens.get("<|im_start|>") and tokens.get("<|im_end|>")) or model_type.startswith("qwen"):
        return "chatml"
    if "zephyr" in name or ("tinyllama" in name and "chat" in name):
        return "zephyr"
    if "chat" in name and ("llama-2" in name or "llama2" in name):
        return "llama-2"
    return "mistral" if model_type in ("mistral", "mixtral") else None


TELLING_TOKENS = ("<|start_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>")
