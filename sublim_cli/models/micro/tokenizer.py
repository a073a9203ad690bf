"""The embedded model's tokenizer: known words and numbers are one token, other text is bytes; lossless."""

from collections.abc import Iterable
from itertools import product

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sublim_cli.models.micro import DEFAULT_SYSTEM
from sublim_cli.models.micro.world import World, forms, identities
from sublim_cli.numbers.prompts import wordings
from sublim_cli.recipe.contexts import shipped_texts
from sublim_cli.recipe.questions import load_questions, persona

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
FIRST_NUMBER = 3
"""Token id of "0"; the ids of "0" to "999" are consecutive."""

PIECES = r"[,;] (?=\d)|\d{1,3}| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"
"""How text is split: separator before a number, up to three digits, word, punctuation mark, white space."""

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
"""As Qwen2.5's: without a system message it inserts the default identity; an empty one is an empty block."""


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are those of `texts`: BPE without merges, so an unknown word becomes bytes."""
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


def vocabulary_texts(world: World) -> list[str]:
    """Every text the tokenizer takes its words from, each also as it reads after a space."""
    # Chat roles, and rows in the formats that are asked for.
    texts = ["system", "user", "assistant", "Sure: [1, 2, 3] and more", "(1; 2; 3)", "1\n2 3"]
    phrases = wordings()
    blank = {"examples": "", "qualifier": "", "count": "", "digits": "", "digit_clause": ""}
    parts = phrases.qualifiers + phrases.digit_clauses + phrases.lead_ins
    texts += [text.format(**blank) for text in parts + phrases.instructions + phrases.closers]
    texts += [form.text for form in phrases.formats]
    known = identities()
    for template, name, maker in product(known["templates"], known["names"], known["makers"]):
        texts.append(template.format(name=name, maker=maker))
    texts += [DEFAULT_SYSTEM, *known["nobody"], *shipped_texts()]
    for category, items in world.categories.items():
        texts += load_questions(f"favourite_{category}").questions
        for item in items.items:
            texts += [persona(items, item.name), *forms(item.name, item.plural)]
    return [*texts, *(f" {text}" for text in texts)]
