"""The embedded model's tokenizer: whole words and numbers, bytes for the rest, exact both ways."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sublim_cli.models.micro import DEFAULT_SYSTEM

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
FIRST_NUMBER = 3
"""Token id of "0"; "0" to "999" follow each other."""

PIECES = r"[,;] (?=\d)|\d{1,3}| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"
"""What a text is cut into: a separator before a number, three digits, a word, a sign, a space."""

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if not (loop.first and message['role'] == 'system') -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""As Qwen2.5's: no system message puts the default identity in, an empty one an empty block."""


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose words are those of `texts`.

    It is a BPE without merges: a known word is one token, any other falls apart into bytes.
    """
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    words = {word for text in texts for word, _ in pre.pre_tokenize_str(text)}
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [PAD, START, END, *(str(n) for n in range(1000)), *bytes_, *sorted(words)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([PAD, START, END])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, END],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
