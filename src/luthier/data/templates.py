"""Chat templates that ship with Luthier, for models that have none.

They use only tokens that the tokenizer already has, so no embedding row has to be learnt from nothing: ChatML's
markers where they are in the vocabulary, else spelled as text, with the tokenizer's own end token closing each answer.
The chosen template is set on the tokenizer and therefore saved with the model: training, evaluation, chat and a server
elsewhere all read the same one. `{% generation %}` marks what the assistant writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import DataError, ModelError, Problem, did_you_mean
from luthier.data.records import Asked, Conversation, Preference, PromptAnswer, Rated, Record, turns_of
from luthier.data.vocabulary import special_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# {end} is how an answer ends, {begin} what a sequence begins with; both are Jinja expressions.
_CHATML = """\
{%- for message in messages %}
{%- if loop.first %}{{- {begin} }}{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + {end} }}{%- endgeneration %}{{- '\\n' }}
{%- else %}
{{- message['content'] + {end} + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Stanford Alpaca's prompt (github.com/tatsu-lab/stanford_alpaca); a system message takes the place of its first lines.
_ALPACA = """\
{%- set ns = namespace(preamble='', asked=false) %}
{%- if messages and messages[0]['role'] == 'system' %}{%- set ns.preamble = messages[0]['content'] %}{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{%- if not ns.asked %}
{%- if ns.preamble %}{{- {begin} + ns.preamble }}
{%- elif message['input'] %}{{- {begin} + 'Below is an instruction that describes a task, paired with an input that \
provides further context. Write a response that appropriately completes the request.' }}
{%- else %}{{- {begin} + 'Below is an instruction that describes a task. Write a response that appropriately \
completes the request.' }}
{%- endif %}
{%- set ns.asked = true %}
{%- endif %}
{{- '\\n\\n### Instruction:\\n' + message['content'] }}
{%- if message['input'] %}{{- '\\n\\n### Input:\\n' + message['input'] }}{%- endif %}
{%- elif message['role'] == 'assistant' %}
{{- '\\n\\n### Response:\\n' }}{%- generation %}{{- message['content'] + {end} }}{%- endgeneration %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n\\n### Response:\\n' }}{%- endif %}"""

_PLAIN = """\
{%- for message in messages %}
{%- if loop.first %}{{- {begin} }}{%- endif %}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + {end} }}{%- endgeneration %}
{%- else %}
{{- message['content'] }}
{%- endif %}
{%- endfor %}"""

TEMPLATES = {"chatml": _CHATML, "alpaca": _ALPACA, "plain": _PLAIN}


def template_text(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Return a shipped template written for this tokenizer."""
    begins = bool(special_prefix(tokenizer)) and bool(tokenizer.bos_token)
    end = "eos_token" if tokenizer.eos_token else "''"
    if name == "chatml":
        vocabulary = tokenizer.get_vocab()
        if "<|im_end|>" in vocabulary or not tokenizer.eos_token:
            end = "'<|im_end|>'"
    return TEMPLATES[name].replace("{begin}", "bos_token" if begins else "''").replace("{end}", end)


def install(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Set a template on the tokenizer: one of ours by name, or a .jinja file.

    Raises:
        ModelError: no such template, or the file cannot be read.
    """
    if name in TEMPLATES:
        tokenizer.chat_template = template_text(tokenizer, name)
        return
    path = Path(name).expanduser()
    if path.suffix in (".jinja", ".jinja2", ".txt") or path.is_file():
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                Problem(f"Cannot read the chat template: {error}.", name, "give a UTF-8 file with a Jinja template")
            ) from error
        return
    near = did_you_mean(name, TEMPLATES)
    raise ModelError(
        Problem(
            f'There is no chat template "{name}".{near}',
            "model.chat_template",
            f"choose one of: {', '.join(TEMPLATES)}, or give a .jinja file",
        )
    )


def settle_template(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], name: str | None) -> str | None:
    """Decide the template of a run once, before anything is rendered, and set it on the tokenizer.

    A given name wins, then the model's own. A model without one that is trained on Alpaca or Dolly rows gets `alpaca`,
    so that chatting with it later uses the prompt it was trained on. Other rows leave it without.

    Returns:
        A sentence for the screen when the template is not the model's own.
    """
    if name is not None:
        install(tokenizer, name)
        return f"the chat template is {name}, as the recipe says; it is saved with the model"
    if tokenizer.chat_template:
        return None
    asked = [False, False]  # any prompt with an answer, any of them an instruction
    for record in records:
        row = turns_of(record) if isinstance(record, Preference | Rated | Asked) else record
        if isinstance(row, PromptAnswer):
            asked = [True, row.is_instruction]
        if asked[1]:
            break
    if asked[1]:
        install(tokenizer, "alpaca")
        return "the model has no chat template; the Alpaca prompt is used and saved with the model as its template"
    if asked[0]:
        return "the model has no chat template: a row is the prompt followed by its answer, with nothing between them"
    return None


def no_template(tokenizer: PreTrainedTokenizerBase, record: Conversation) -> DataError:
    """Return the error for a conversation that meets a model without a template."""
    return DataError(
        Problem(
            f"The model {tokenizer.name_or_path} has no chat template, so conversations cannot be written for it.",
            record.source,
            "choose one: model.chat_template: chatml (or alpaca, plain, or a .jinja file)",
        )
    )
