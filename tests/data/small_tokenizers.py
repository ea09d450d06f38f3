"""Small tokenizers with the chat templates of well-known families, made here so that no test needs a download.

Two kinds of tokenizer: byte-level (GPT-2, Llama 3, Qwen) and one that puts a blank before every text (Llama 2, Gemma,
Mistral). The templates are shortened, with the traits that break masks kept: trimming, default system prompts, dropped
thinking, a role called "model", system text moved into a user message, BOS written by the template or not.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Once upon a time there was a little girl named Lily. She said: hello, how are you?\nI am fine. Thank you!\n\n",
    "user assistant system model Question Answer Below is an instruction. ### Instruction: ### Response:",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。你好！",
    "1 + 1 = 2; def f(x): return x * 2  # <think> </think> 😀 é",
] * 4

CHATML_MARKED = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}{{- message['content'] + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

MARKED_WITHOUT_END = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] }}{%- endgeneration %}{{- '<|im_end|>\\n' }}
{%- else %}{{- message['content'] + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

QWEN3 = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' %}
{%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{- content }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

# The system text goes into the last user message, so the prompt of an earlier answer is not how the whole begins.
MISTRAL = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + (system + '\\n\\n' if system and message == (turns | selectattr('role', 'equalto', 'user') | list)[-1] \
else '') + message['content'] + ' [/INST]' }}
{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}
{%- endfor %}"""

ZEPHYR = """\
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""

# The generation prompt opens a thought that a finished conversation does not show.
R1 = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{%- set content = message['content'].split('</think>')[-1] %}
{{- '<|Assistant|>' + content + eos_token }}
{%- else %}{{- '<|User|>' + message['content'] }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """A template with the tokenizer it belongs to. `end`: the token that ends a turn."""

    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    end: str
    is_byte_level: bool
    adds_bos: bool = False
    has_system: bool = True


FAMILIES = {
    "chatml marked": Family(CHATML_MARKED, ("<|im_start|>",), None, "<|im_end|>", "<|im_end|>", True),
    "chatml": Family(CHATML, ("<|im_start|>", "<|im_end|>"), None, "<|endoftext|>", "<|im_end|>", True),
    "marks without end": Family(MARKED_WITHOUT_END, ("<|im_start|>",), None, "<|im_end|>", "<|im_end|>", True),
    "llama 3": Family(
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
        True,
        adds_bos=True,
    ),
    "qwen 3": Family(QWEN3, ("<|im_start|>", "<|endoftext|>"), None, "<|im_end|>", "<|im_end|>", True),
    "gemma": Family(
        GEMMA,
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        False,
        adds_bos=True,
        has_system=False,
    ),
    "mistral": Family(MISTRAL, (), "<s>", "</s>", "</s>", False, adds_bos=True),
    "zephyr": Family(ZEPHYR, (), "<s>", "</s>", "</s>", False, adds_bos=True),
    "r1": Family(R1, ("<|User|>", "<|Assistant|>"), "<|begin|>", "<|end|>", "<|end|>", True, adds_bos=True),
}


@functools.cache
def _trained(is_byte_level: bool) -> str:
    if is_byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        letters = [chr(c) for c in range(33, 127)]
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
            initial_alphabet=letters,
            show_progress=False,
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    written = json.loads(tokenizer.to_str())
    # The trainer takes the bytes as special; in real tokenizers they are ordinary.
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] == "<unk>"]
    return json.dumps(written)


@functools.cache
def _built(name: str) -> str:
    family = FAMILIES[name]
    tokenizer = Tokenizer.from_str(_trained(family.is_byte_level))
    named = [t for t in (family.bos, family.eos) if t is not None]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*named, *family.special)])
    if family.adds_bos and family.bos is not None:
        place = (family.bos, tokenizer.token_to_id(family.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[place])
    return tokenizer.to_str()


@functools.cache
def _lossy() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(
        ["Once upon a time. Say yes, say no. 1"] * 4, trainers.BpeTrainer(show_progress=False)
    )
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer.to_str()


def lossy_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that leaves out unknown characters in silence, as some of the TinyStories models do."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_lossy()), eos_token="</s>")


def family_tokenizer(name: str, with_template: bool = True) -> PreTrainedTokenizerFast:
    """Return a fresh tokenizer of a family; pad is eos, as in many models."""
    family = FAMILIES[name]
    built = Tokenizer.from_str(_built(name))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token=family.bos, eos_token=family.eos, pad_token=family.eos
    )
    if with_template:
        tokenizer.chat_template = family.template
    return tokenizer
