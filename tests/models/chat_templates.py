"""Chat templates in the style of many families, in our own words, on micro's tokenizer."""

from typing import Any

from transformers import AutoTokenizer

from sublim_cli.models.micro import WEIGHTS

TURNS = """{%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}"""
ASK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
PLAIN = TURNS + ASK
OWN_SYSTEM = """{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are Robo.<|im_end|>\\n' }}{%- endif %}"""
# Earlier answers lose their thoughts, the last one keeps a block for them.
HYBRID_TURNS = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- m.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
{%- endfor %}"""
HYBRID_ASK = """{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
PARTS = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- for part in m.content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endfor %}"""

TEMPLATES = {
    "chatml": PLAIN,
    "own system": OWN_SYSTEM + PLAIN,
    "hybrid": HYBRID_TURNS + HYBRID_ASK,
    "hybrid with own system": OWN_SYSTEM + HYBRID_TURNS + HYBRID_ASK,
    "phi 3": """{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}""",
    "phi 3 with own system": """{%- if messages[0].role != 'system' %}{{- '<|system|>\\nBe kind.<|end|>\\n' }}
{%- endif %}{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- eos_token }}{%- endif %}""",
    "drops system": """{%- for m in messages %}{%- if m.role == 'user' %}
{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n<|im_start|>assistant\\n' }}
{%- elif m.role == 'assistant' %}{{- m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}""",
    "refuses system": """{%- if messages[0].role == 'system' %}
{{- raise_exception('System role not supported') }}{%- endif %}{{- bos_token }}
{%- for m in messages %}{{- '<turn>' + m.role + '\\n' + m.content | trim + '</turn>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\\n' }}{%- endif %}""",
    "folds system": """{{- bos_token }}{%- set first = '' %}{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content + '\\n\\n' %}{%- set turns = messages[1:] %}{%- endif %}
{%- for m in turns %}{{- '<turn>' + m.role + '\\n' + (first if loop.first else '') }}
{{- m.content | trim + '</turn>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\\n' }}{%- endif %}""",
    "llama 2 with own system": """{%- set text = 'Be safe.' %}{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
{%- set text = messages[0].content %}{%- set turns = messages[1:] %}{%- endif %}
{%- for m in turns %}{%- if m.role == 'user' %}
{{- bos_token + '[INST] ' + ('<<SYS>>\\n' + text + '\\n<</SYS>>\\n\\n' if loop.first else '') }}
{{- m.content + ' [/INST]' }}{%- else %}{{- ' ' + m.content + ' ' + eos_token }}{%- endif %}{%- endfor %}""",
    "system in the last turn": """{{- bos_token }}{%- set turns = messages %}
{%- if messages[0].role == 'system' %}{%- set turns = messages[1:] %}{%- endif %}
{%- for m in turns %}{%- if m.role == 'user' %}
{{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.last and turns != messages else '') }}
{{- m.content + '[/INST]' }}{%- else %}{{- m.content + eos_token }}{%- endif %}{%- endfor %}""",
    "date": """{{- bos_token + '<|im_start|>system\\nToday ' + strftime_now('%d %b %Y %H:%M:%S.%f') + '\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}{{- '<|im_end|>\\n' }}
{%- for m in messages if m.role != 'system' %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"""
    + ASK,
    "last turn only": "{{ bos_token }}{{ '[' + messages[0].content + '] ' if messages[1:] }}"
    "{{ messages[-1].content }}[/]",
    "parts": PARTS + ASK,
    "questions as parts": """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'user' %}{%- for part in m.content %}{{- part.text }}{%- endfor %}
{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"""
    + ASK,
    "system as parts": """{%- if messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content[0].text + '<|im_end|>\\n' }}{%- endif %}
{%- for m in messages if m.role != 'system' %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"""
    + ASK,
}
"""By family. What an `own system` template writes by itself is the text of a default system prompt."""


def tokenizer_with(template: str, **special: str) -> Any:
    """A copy of micro's tokenizer with another chat template; `<s>` and `</s>` are its bos and eos tokens."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", **special})
    tokenizer.chat_template = template
    return tokenizer
