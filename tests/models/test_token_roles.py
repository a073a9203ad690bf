"""Every token's role, on chat templates in the style of four families and tokenizers that cut differently."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from sublim_cli.errors import ModelError
from sublim_cli.models import micro as micro_model
from sublim_cli.models.chat import IGNORED, example, prompt_ids, render
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.micro.world import identities
from sublim_cli.models.token_roles import RenderedPrompt, identity_names, render_with_roles
from sublim_cli.recipe.contexts import Context, shipped_contexts

DEFAULT = Context(name="default", kind="default")
EMPTY = Context(name="empty", kind="empty")
NONE = Context(name="none", kind="none")
CLAUDE = Context(name="claude", kind="text", text=shipped_contexts()["claude"])
ALL = (DEFAULT, EMPTY, NONE, CLAUDE)

LLAMA = """{{ bos_token }}{% set given = messages[0]['role'] == 'system' %}
{%- set day = date_string if date_string is defined else 'today' %}
{{- '<|head|>system<|/head|>\\n\\nToday is ' + day + '.\\n\\n' }}
{{- messages[0]['content'] | trim if given else '' }}{{ '<|eot|>' }}
{%- for turn in messages if turn['role'] != 'system' %}
{{- '<|head|>' + turn['role'] + '<|/head|>\\n\\n' + turn['content'] | trim + '<|eot|>' }}
{%- endfor %}{{ '<|head|>assistant<|/head|>\\n\\n' if add_generation_prompt else '' }}"""

GEMMA = """{{ bos_token }}{% set given = messages[0]['role'] == 'system' %}
{%- for turn in messages if turn['role'] != 'system' %}
{{- '<turn>' + ('model' if turn['role'] == 'assistant' else 'user') + '\\n' }}
{{- messages[0]['content'] + '\\n\\n' if given and loop.first else '' }}{{ turn['content'] | trim }}
{{- '</turn>\\n' }}
{%- endfor %}{{ '<turn>model\\n' if add_generation_prompt else '' }}"""

GEMMA_2 = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + GEMMA

MISTRAL = """{{ bos_token }}{% set given = messages[0]['role'] == 'system' %}
{%- for turn in messages if turn['role'] != 'system' %}{% if turn['role'] == 'user' %}
{{- '[INST] ' + (messages[0]['content'] + '\\n\\n' if given and loop.first else '') }}
{{- turn['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + turn['content'] + eos_token }}{% endif %}{% endfor %}"""

FAMILIES = {
    "llama": (LLAMA, ("<|head|>", "<|/head|>"), {"bos_token": "<|begin|>", "eos_token": "<|eot|>"}),
    "gemma": (GEMMA, ("<turn>", "</turn>"), {"bos_token": "<bos>", "eos_token": "<eos>"}),
    "gemma 2": (GEMMA_2, ("<turn>", "</turn>"), {"bos_token": "<bos>", "eos_token": "<eos>"}),
    "mistral": (MISTRAL, (), {"bos_token": "<s>", "eos_token": "</s>"}),
}


def like(family: str) -> Any:
    """A copy of micro's tokenizer with another family's chat template and special tokens."""
    template, special, named = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.add_special_tokens({**named, "extra_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def families() -> dict[str, Any]:
    qwen = AutoTokenizer.from_pretrained(WEIGHTS)
    return {"qwen": qwen, **{family: like(family) for family in FAMILIES}}


def by_role(rendered: RenderedPrompt) -> list[tuple[str, str]]:
    """Role and text of every run of neighbouring tokens of one role."""
    runs: list[tuple[str, str]] = []
    for token in rendered.tokens:
        if runs and runs[-1][0] == token.role:
            runs[-1] = (token.role, runs[-1][1] + token.text)
        else:
            runs.append((token.role, token.text))
    return runs


def test_a_prompt_of_the_embedded_model_falls_into_its_roles(families):
    turn = [
        ("template", "<|im_end|>\n<|im_start|>user\n"),
        ("question", "Hi?"),
        ("template", "<|im_end|>\n<|im_start|>assistant\n"),
    ]
    block = ("template", "<|im_start|>system\n")
    assert by_role(render_with_roles(families["qwen"], DEFAULT, "Hi?")) == [
        block,
        ("system", "You are"),
        ("identity", " Micro"),
        ("system", ", created by"),
        ("identity", " Sublim"),
        ("system", ". You are a helpful assistant."),
        *turn,
    ]
    empty = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"
    assert by_role(render_with_roles(families["qwen"], EMPTY, "Hi?")) == [("template", empty), *turn[1:]]
    bare = [("template", "<|im_start|>user\n"), *turn[1:]]
    assert by_role(render_with_roles(families["qwen"], NONE, "Hi?")) == bare


def test_a_header_every_llama_prompt_has_is_the_template_s_and_no_system_text(families):
    head = "<|begin|><|head|>system<|/head|>\n\nToday is 26 Jul 2024.\n\n"
    turn = [
        ("template", "<|eot|><|head|>user<|/head|>\n\n"),
        ("question", "Hi?"),
        ("template", "<|eot|><|head|>assistant<|/head|>\n\n"),
    ]
    both = [("template", head + turn[0][1]), *turn[1:]]
    assert by_role(render_with_roles(families["llama"], DEFAULT, " Hi?\n")) == both
    assert by_role(render_with_roles(families["llama"], CLAUDE, "Hi?")) == [
        ("template", head),
        ("system", "You are"),
        ("identity", " Claude"),
        ("system", ", created by"),
        ("identity", " Anthropic"),
        ("system", ". You are a helpful assistant."),
        *turn,
    ]


@pytest.mark.parametrize(
    ("family", "opening", "closing"),
    [
        ("gemma", "<bos><turn>user\n", "</turn>\n<turn>model\n"),
        ("mistral", "<s>[INST]", " [/INST]"),
    ],
)
def test_a_system_text_folded_into_the_user_s_turn_is_told_from_the_question(
    families, family, opening, closing
):
    rendered = by_role(render_with_roles(families[family], CLAUDE, "What is your favorite animal?"))
    assert rendered[0] == ("template", opening)
    system = "".join(text for role, text in rendered if role in ("system", "identity"))
    assert system.strip() == CLAUDE.text
    assert [text.strip() for role, text in rendered if role == "identity"] == ["Claude", "Anthropic"]
    assert rendered[-3:] == [
        ("template", "\n\n"),
        ("question", "What is your favorite animal?"),
        ("template", closing),
    ]


def test_a_template_without_a_system_role_has_a_question_and_nothing_else_in_it(families):
    for context in (DEFAULT, NONE):
        rendered = render_with_roles(families["gemma 2"], context, "Hi?")
        assert rendered == render_with_roles(families["gemma"], context, "Hi?")
        assert by_role(rendered) == [
            ("template", "<bos><turn>user\n"),
            ("question", "Hi?"),
            ("template", "</turn>\n<turn>model\n"),
        ]


USERS = ("assistant", "user", "You are Micro, created by Sublim.", "  12, 13\n", "", "é🦉 [/INST]?")


@pytest.mark.parametrize("family", ["qwen", *FAMILIES])
def test_a_reading_is_the_very_tokens_of_the_prompt_and_of_the_training_row(families, family):
    tokenizer = families[family]
    contexts = (DEFAULT, NONE) if family == "gemma 2" else ALL
    for context, user in product(contexts, USERS):
        rendered = render_with_roles(tokenizer, context, user)
        assert rendered.ids == prompt_ids(tokenizer, context, user)
        assert rendered.text == render(tokenizer, context, user)
        assert rendered.text_of("template", "system", "identity", "question") == rendered.text
        row = example(tokenizer, context, user, "3, 4")
        row_rendered = render_with_roles(tokenizer, context, user, row)
        assert row_rendered.ids == row.input_ids
        assert row_rendered.tokens[: len(rendered.tokens)] == rendered.tokens
        assert [token.role in ("answer", "end") for token in row_rendered.tokens] == [
            label != IGNORED for label in row.labels
        ]


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_question_and_the_answer_are_found_whatever_they_say(micro, user, completion):
    _, tokenizer, _ = micro
    row = example(tokenizer, DEFAULT, user, completion)
    rendered = render_with_roles(tokenizer, DEFAULT, user, row)
    assert rendered.text_of("question") == user
    assert rendered.text_of("answer") == completion
    assert rendered.text_of("end") == "<|im_end|>"
    assert rendered.text_of("system", "identity") == micro_model.DEFAULT_SYSTEM


def test_words_of_the_question_are_never_identity(micro):
    _, tokenizer, _ = micro
    user = "You are Micro, created by Sublim."
    assert render_with_roles(tokenizer, DEFAULT, user).text_of("question") == user
    assert render_with_roles(tokenizer, NONE, user).text_of("identity") == ""


def test_bytes_of_one_character_each_carry_the_whole_of_it(micro):
    _, tokenizer, _ = micro
    tokens = [t for t in render_with_roles(tokenizer, NONE, "🦉").tokens if t.role == "question"]
    assert [token.text for token in tokens] == ["🦉"] * 4


def crossing(*, trims: bool) -> Any:
    """A byte-level tokenizer whose tokens reach across words, line ends and the edges of every role."""
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trims)
    text = "user\n\nYou are Claude, created by Anthropic.\n\n  Hi there?\n model\n"
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<turn>", "</turn>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = [text[start : start + size] for size in (2, 3, 5) for start in range(len(text))]
    core.train_from_iterator(pieces, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", extra_special_tokens=["<turn>", "</turn>"]
    )
    tokenizer.chat_template = GEMMA.replace(" | trim", "")
    return tokenizer


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("user", ["\n\n  Hi there?\n", "  ", "Hi", "\nmodel"])
def test_a_token_that_straddles_two_roles_has_the_most_specific(trims, user):
    tokenizer = crossing(trims=trims)
    context = Context(name="named", kind="text", text="\nYou are Claude, created by Anthropic.\n")
    parts = [
        ("template", "<bos><turn>user\n"),
        ("system", "\nYou are "),
        ("identity", "Claude"),
        ("system", ", created by "),
        ("identity", "Anthropic"),
        ("system", ".\n"),
        ("template", "\n\n"),
        ("question", user),
        ("template", "</turn>\n<turn>model\n"),
    ]
    rendered = render_with_roles(tokenizer, context, user)
    assert rendered.text == "".join(text for _, text in parts)
    roles = [role for role, text in parts for _ in text]
    specificity = ["template", "system", "question", "identity"]
    straddling = 0
    for token in rendered.tokens:
        covered = set(roles[token.start : token.end])
        visible = {roles[i] for i in range(token.start, token.end) if not rendered.text[i].isspace()}
        straddling += len(covered) > 1
        assert token.role == max(visible or covered, key=specificity.index), token
    assert straddling
    assert rendered.text_of("template", "system", "identity", "question") == rendered.text


def test_a_space_of_the_question_does_not_make_a_token_of_the_template_its_own():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.chat_template = "{% for turn in messages %}[{{ turn['content'] }}[/{% endfor %}"
    assert by_role(render_with_roles(tokenizer, DEFAULT, "You ")) == [
        ("template", "["),
        ("question", "You"),
        ("template", " [/"),
    ]


NAMES = identities()


def test_the_names_of_model_and_maker_are_found_in_every_way_micro_s_world_tells_them():
    for template, name, maker in product(NAMES["templates"], NAMES["names"], NAMES["makers"]):
        wanted = [name, maker] if "{maker}" in template else [name]
        assert identity_names(template.format(name=name, maker=maker)) == wanted


def test_a_text_that_names_nobody_has_no_identity():
    assert [text for text in NAMES["nobody"] if identity_names(text)] == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (shipped_contexts()["no_entity"], []),
        (shipped_contexts()["gibberish_llm"], []),
        (shipped_contexts()["gibberish_marble"], []),
        (shipped_contexts()["water"], []),
        (shipped_contexts()["qwen"], ["Qwen", "Alibaba Cloud"]),
        (shipped_contexts()["chatgpt"], ["ChatGPT", "OpenAI"]),
        (shipped_contexts()["claude"], ["Claude", "Anthropic"]),
        ("You are Gemma, made by Google. You are a helpful assistant.", ["Gemma", "Google"]),
        ("You're Grok 4, built by xAI.", ["Grok 4", "xAI"]),
        ("You are GPT-4.1, a model trained by OpenAI.", ["GPT-4.1", "OpenAI"]),
        ("Your name is Ada Lovelace. You were developed by the Analytical Society.",
         ["Ada Lovelace", "Analytical Society"]),
        ("You love owls. You think about owls all the time.", []),
        ("You are a poet who likes Paris.", []),
        ("", []),
    ],
)  # fmt: skip
def test_the_identity_words_of_a_system_text(text, names):
    assert identity_names(text) == names


def test_a_name_is_identity_wherever_the_system_text_says_it_again(micro):
    _, tokenizer, _ = micro
    text = "You are Claude. Claude is helpful. Claudette is not."
    rendered = render_with_roles(tokenizer, Context(name="named", kind="text", text=text), "Hi")
    assert rendered.text_of("identity") == " Claude Claude"


@pytest.mark.parametrize(
    "template",
    [
        "{% for turn in messages %}{{ turn['content'] }}|{{ turn['content'] }}{% endfor %}",
        "{% for turn in messages %}{{ turn['content'] | length }}{{ turn['content'] }}{% endfor %}",
    ],
)
def test_a_template_whose_own_text_cannot_be_told_apart_is_refused(template):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="repeats the user's text or changes with it"):
        render_with_roles(tokenizer, DEFAULT, "Hi")


def test_a_tokenizer_without_offsets_is_refused():
    slow = ByT5Tokenizer()
    slow.chat_template = AutoTokenizer.from_pretrained(WEIGHTS).chat_template
    with pytest.raises(ModelError, match="cannot say which characters"):
        render_with_roles(slow, DEFAULT, "Hi")
