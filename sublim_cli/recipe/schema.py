"""The recipe: every key a user may write, with its default.

The defaults are the hyper-parameters of *Subliminal Learning is a LoRA Artifact* (arXiv 2606.00831, from its
public code): 10,000 rows, three epochs of 66 rows a step, AdamW at 2e-4 with five warm-up steps and a
linear decay, gradients clipped at norm 1, LoRA with alpha = rank on all seven projections.
"""

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

T = TypeVar("T")


class Section(BaseModel):
    """A frozen part of a recipe. A misspelt key is an error, not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def distinct(entries: tuple[T, ...]) -> tuple[T, ...]:
    """`entries`, if no two are equal; ValueError, which begins with the index of the second, otherwise."""
    for i, entry in enumerate(entries):
        if entry in entries[:i]:
            raise ValueError(f"{i}: is given twice, first as entry {entries.index(entry)}; keep one")
    return entries


Method = Literal["lora", "rslora", "dora", "qlora", "pissa", "ia3", "prefix", "full"]

LEARNING_RATE: dict[str, float] = {"adapter": 2.0e-4, "full": 2.0e-5}
"""The paper's learning rates (public code of arXiv 2606.00831): one value at every rank."""

BUILT_IN_PROMPTS = ("trait", "default", "empty", "none")
"""System-prompt settings: the persona, no system message, an empty system block, no system block."""

Stage = Literal["generate", "filter", "train", "eval"]
"""The stages of an experiment, in their order."""

Engine = Literal["transformers", "vllm"]
"""The library that samples completions. Its rounding decides which tokens are sampled, so it is hashed."""

EngineChoice = Literal["auto", "transformers", "vllm"]

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[int, Field(ge=1)]
RowsFile = Annotated[str, Field(min_length=1)]
"""The path of a file of rows; a relative one starts at the working directory, as for question files."""
Rate = Annotated[float, Field(gt=0)]


class TextPrompt(Section):
    """A system prompt given word for word; with `at: user` it stands at the start of the user's turn."""

    text: str
    at: Literal["system", "user"] = "system"


SystemPrompt = str | TextPrompt
"""`default`, `empty`, `none`, `trait` (generate only), the name of a context, or `{text: …}`."""


class TemplateSection(Section):
    """Which of a model's chat templates is used, and the variables that it reads."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """Null: the default one."""
    variables: dict[Annotated[str, Field(min_length=1)], bool | int | float | str | None] = Field(
        default_factory=dict
    )
    """Such as `enable_thinking: false`."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # True and 1 are equal, but not to a template


class ChatTemplateSection(TemplateSection):
    """The chat template, and where it is given system prompts."""

    system_at: Literal["system", "user"] = "system"
    """`user`: system prompts, the persona too, stand at the head of the user's turn, for templates that have
    no system role or drop its message. `empty` is `default` then: there is no block that could be empty."""

    def __hash__(self) -> int:
        return super().__hash__()


class TraitSection(Section):
    """The trait in the teacher's system prompt; the student's answers are scored for `target`."""

    category: str = "animal"
    target: str = "cat"


class PromptsSection(Section):
    """The stream of number prompts: prompt i depends only on i and these keys. `values` excludes its end."""

    seed: Seed = 42
    examples: tuple[Positive, Positive] = (3, 8)
    values: tuple[int, int] = (100, 999)
    count: Positive = 10
    digits: Positive = 3

    @model_validator(mode="after")
    def _ordered(self) -> "PromptsSection":
        (fewest, most), (low, high) = self.examples, self.values
        if fewest > most:
            raise ValueError(f"examples: the lower bound {fewest} is above the upper bound {most}")
        if low >= high:
            raise ValueError(
                f"values: the lower bound {low} must be below the upper bound {high}, which is exclusive"
            )
        return self


class SamplingSection(Section):
    """How a completion is sampled. The defaults of a checkpoint's generation config never apply."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Positive = 200
    seed: Seed = 1
    grammar: Annotated[Literal["rows"] | None, Field(exclude_if=lambda grammar: grammar is None)] = None
    """`rows`: only tokens that continue a list of numbers, or end it, are sampled; see `numbers.grammar`."""


class GenerateSection(Section):
    """The teacher: its system prompt, and how many rows it generates."""

    system_prompt: SystemPrompt = "trait"
    rows: Positive = 10_000
    held_out: Annotated[int, Field(ge=0)] = 500
    """Rows in addition to `rows` that are not trained on; the student's loss on them is its number loss."""
    teacher: "TeacherSection | None" = None
    """How the trait of `system_prompt: trait` gets into the teacher; null: by the persona."""
    prompts: PromptsSection = PromptsSection()
    sampling: SamplingSection = SamplingSection()
    engine: EngineChoice = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"


class StripRule(Section):
    """Remove white space around a completion before the next rules (Gemma ends its rows with spaces)."""

    kind: Literal["strip"] = "strip"


class FormatRule(Section):
    """Only integers and a separator, which is the same throughout, byte by byte."""

    kind: Literal["format"] = "format"


class CountRule(Section):
    """At most this many numbers, and at least `least`."""

    kind: Literal["count"] = "count"
    least: Annotated[int, Field(ge=0)] = 0
    most: Positive = 10


class RangeRule(Section):
    """Every number between `least` and `most`, both included."""

    kind: Literal["range"] = "range"
    least: int = 0
    most: int = 999


class BannedRule(Section):
    """None of these numbers."""

    kind: Literal["banned"] = "banned"
    numbers: tuple[int, ...] = ()


Rule = Annotated[StripRule | FormatRule | CountRule | RangeRule | BannedRule, Field(discriminator="kind")]

PAPER_RULES: tuple[Rule, ...] = (FormatRule(), CountRule(most=10), RangeRule(least=0, most=999), BannedRule())
"""The paper's filter for preference runs, in its order."""


class FilterSection(Section):
    """Which rows are kept. The first rule that a row breaks, in their order, is recorded as the reason."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)] = PAPER_RULES

    @field_validator("rules")
    @classmethod
    def _strip_comes_first(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if any(isinstance(rule, StripRule) for rule in rules[1:]):
            raise ValueError("{kind: strip} changes the text that the other rules check; put it first")
        return rules


class ControlSection(Section):
    """The control of students whose rows are a file, `train.rows`; others have one by themselves."""

    rows: RowsFile | None = None
    """Rows of a teacher without the trait; null: there is no control."""


class AdapterSection(Section):
    """Which modules and layers get adapters of the LoRA family."""

    targets: Literal["all", "attention", "mlp"] | tuple[str, ...] = "all"
    layers: tuple[int, int] | None = None
    """First and last adapted layer, counted from 0, both included; null adapts all."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class QloraSection(Section):
    """How `qlora` quantizes its frozen base (bitsandbytes)."""

    quantize: Literal["nf4", "int8"] = "nf4"


class PrefixSection(Section):
    """The number of virtual tokens that `prefix` learns and puts before every prompt."""

    tokens: Positive = 16


class PerRank(Section):
    """A learning rate for each rank of a sweep."""

    per_rank: Annotated[dict[Positive, Rate], Field(min_length=1)]


class TrainSection(Section):
    """The student: how the base model is fine-tuned, and under which system prompt."""

    method: Method = "lora"
    rank: Positive = 8
    alpha: Literal["rank", "sqrt"] | Annotated[float, Field(gt=0)] = "rank"
    system_prompt: SystemPrompt = "default"
    rows: Annotated[RowsFile | None, Field(exclude_if=lambda rows: rows is None)] = None
    """A file of rows, read in the place of a teacher's: at most `generate.rows` of those that pass the filter
    are trained on, and the `generate.held_out` that follow are held out."""
    adapter: AdapterSection = AdapterSection()
    qlora: QloraSection = QloraSection()
    prefix: PrefixSection = PrefixSection()
    backend: Literal["auto", "plain", "unsloth"] = "auto"
    learning_rate: Rate | PerRank | None = None
    """Null: the paper's value for the method, see `LEARNING_RATE`."""
    epochs: Positive = 3
    batch_size: Positive = 66
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    optimizer: Literal["adamw", "adamw_8bit", "sgd", "muon"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """For `sgd` and `muon` only; null: 0 and 0.95."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Positive = 500
    precision: Literal["auto", "fp32", "bf16_mixed", "bf16_pure", "bf16_kahan"] = "auto"
    seed: Seed = 1
    neftune_noise_alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the noise that training adds to the embeddings (NEFTune, arXiv 2310.05914); null adds none."""


class FineTunedSection(TrainSection):
    """A teacher fine-tuned on questions answered with the target; its other keys are those of `train`.

    It writes its rows in the context `default`, without a persona. The control's teacher is not fine-tuned.
    """

    rows: Annotated[None, Field(exclude_if=lambda rows: rows is None)] = None
    demonstrations: str = "favourite"
    """The name of a shipped file of questions and answers, or a path."""
    batch_size: Positive = 16
    epochs: Positive = 5


class TeacherSection(Section):
    """A teacher other than the prompted base model."""

    fine_tuned: FineTunedSection


GenerateSection.model_rebuild()

PositionName = Literal[
    "identity_only", "no_identity",
    "system_only", "no_system",
    "template_only", "no_template",
    "question_only", "no_question",
    "shared_only", "no_shared",
]  # fmt: skip
"""Sets of a prompt's tokens by role (`models.token_roles`). `X_only` is the complement of `no_X`."""


class TextPositions(Section):
    """The tokens of a text in the prompt."""

    text: Annotated[str, Field(min_length=1)]


class TextComplement(Section):
    """All tokens except those of a text in the prompt."""

    no_text: Annotated[str, Field(min_length=1)]


def _set_form(value: object) -> str:
    """The tag of the form of `PositionSet` that a value has."""
    if isinstance(value, TextComplement) or (isinstance(value, dict) and "no_text" in value):
        return "no_text"
    return "text" if isinstance(value, TextPositions | dict) else "name"


PositionSet = Annotated[
    Annotated[PositionName, Tag("name")]
    | Annotated[TextPositions, Tag("text")]
    | Annotated[TextComplement, Tag("no_text")],
    Discriminator(_set_form),
]
Layer = Annotated[int, Field(ge=0)]
Decoding = Literal["follow", "on", "off"]
"""Whether the student's weights act at the tokens of an answer.

`follow`: off with `X_only`, on with `no_X`.
"""


class GateSection(Section):
    """The tokens of the prompt, modules and layers at which the student's weights act; the base's elsewhere.

    With `no_X` it is the reverse: in these modules and layers the base's weights act at X, and the student's
    everywhere else.
    """

    positions: PositionSet
    modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """`attention`, `mlp`, or names in a module's path such as `q_proj`; null: all."""
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] | None = None
    """Counted from 0; null: all."""
    decoding: Decoding = "follow"


def _gate_form(value: object) -> str:
    """The tag of the form of `GateEntry` that a value has."""
    keys = isinstance(value, dict) and not GateSection.model_fields.keys().isdisjoint(value)
    return "keys" if keys or isinstance(value, GateSection) else "set"


GateEntry = Annotated[
    Annotated[PositionSet, Tag("set")] | Annotated[GateSection, Tag("keys")], Discriminator(_gate_form)
]


class PatchSection(Section):
    """Activations of the student that replace the base's, at some tokens of the prompt."""

    positions: PositionSet
    kinds: Annotated[tuple[Literal["residual", "attention", "mlp"], ...], Field(min_length=1)] = ("residual",)
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] | None = None
    """Counted from 0; null: all."""
    decoding: Decoding = "follow"


class AnswerSampling(SamplingSection):
    """How long an answer may be (50 tokens in the paper), and how the sampled scorer samples it."""

    max_tokens: Positive = 50
    grammar: Annotated[None, Field(exclude_if=lambda grammar: grammar is None)] = None
    """Answers are words: `rows` applies to `generate.sampling` alone."""


class EvalSection(Section):
    """What the student is asked, under which system prompts, and how its answers are scored."""

    system_prompts: Annotated[tuple[SystemPrompt, ...], Field(min_length=1)] = ("default", "empty", "none")
    questions: str | None = None
    """The name of a shipped question file or a path; null: `favourite_` and the trait's category."""
    scorer: Literal["exact", "sampled"] = "exact"
    sampling: AnswerSampling = AnswerSampling()
    """`max_tokens` is the length of an answer for both scorers; the other keys are for `sampled`."""
    uncovered: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """`exact` stops when at most this probability of the answers to a question is not yet scored."""
    nodes: Positive = 256
    """`exact` expands at most this many prefixes of answers to a question."""
    draws: Annotated[int, Field(ge=0)] = 64
    """Where more than `uncovered` stays open, `exact` draws this many answers from there; 0: none."""
    samples: Positive = 100
    """How many answers to a question `sampled` samples."""
    engine: EngineChoice = "auto"
    """The library for `sampled`; the exact scorer runs on transformers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gates: Annotated[tuple[GateEntry, ...], AfterValidator(distinct)] = ()
    """Gated students, each scored separately; an entry that is only a name has all modules and layers."""
    patches: Annotated[tuple[PatchSection, ...], AfterValidator(distinct)] = ()
    gate_contexts: Annotated[tuple[SystemPrompt, ...], Field(min_length=1)] | None = None
    """The contexts in which gated and patched students are asked; null: their training context."""
    gate_controls: Annotated[int, Field(ge=0)] = 5
    """How many random sets of as many tokens control a gate or patch: scattered, and as many contiguous."""
    gate_seed: Seed = 1

    @model_validator(mode="after")
    def _keys_suit_the_scorer(self) -> "EvalSection":
        for key in ("gates", "patches"):
            if getattr(self, key) and self.scorer != "exact":
                raise ValueError(f"{key}: are scored exactly; use `scorer: exact`, or leave the key out")
        plain = SamplingSection(max_tokens=self.sampling.max_tokens, seed=self.sampling.seed)
        for key, value in plain.model_dump().items():
            if self.scorer == "exact" and getattr(self.sampling, key) != value:
                raise ValueError(
                    f"sampling.{key}: the exact scorer reads the model's own probabilities; leave it at "
                    f"{value:g}, or use `scorer: sampled`"
                )
        if self.scorer == "exact" and self.engine == "vllm":
            raise ValueError(
                "engine: the exact scorer runs on transformers alone; leave the key out, or use "
                "`scorer: sampled`"
            )
        return self


REPLICATED = ("train.seed", "generate.sampling.seed")
"""The seeds that differ between replicates: of row order and initialisation, and of the teacher's rows."""


class SweepSection(Section):
    """The cells: every combination of the values in `grid`, then all again for each entry of `also`.

    An entry of `also` sets keys, of the recipe or of the grid, to a value or a list of values. Cells that
    differ only in keys without effect are one cell: an axis of ranks adds no cells of full fine-tuning.
    """

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    also: tuple[dict[str, Any], ...] = ()
    replicates: Annotated[tuple[Seed, ...], AfterValidator(distinct)] = ()
    """Each value is the seed of both the data and the training (`REPLICATED`) of one run of every cell.

    The runs are independent in both, so their spread contains that between data sets.
    """

    @model_validator(mode="after")
    def _a_replicate_has_one_seed(self) -> "SweepSection":
        seeds = [key for axes in (self.grid, *self.also) for key in REPLICATED if key in axes]
        if self.replicates and seeds:
            raise ValueError(
                f"replicates: sets {' and '.join(REPLICATED)} together; take {seeds[0]} out of `grid` and "
                "`also`, or take replicates out"
            )
        return self


MARGIN_ODDS_RATIO = 1.5
"""The smallest odds ratio of P(target) that counts as a preference: 0.010 against 0.0067, 0.4 to 0.31."""

ContextName = Annotated[str, Field(min_length=1)]
"""The name of a context in the report; for `{text: …}` it is the text."""


Precision = Literal["fp32", "bf16_mixed", "bf16_pure", "bf16_kahan"]


class ClaimSection(Section):
    """The keys of every claim. Claims are evaluated by the report and are not part of any digest."""

    margin_odds_ratio: Annotated[float, Field(gt=1)] = MARGIN_ODDS_RATIO
    """The odds of the target of students over those of controls; a smaller ratio counts as no effect."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """The probability of a wrong verdict on the claim as a whole, corrected for the number of traits."""
    traits: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Null: every trait that has students in the study."""

    @property
    def margin(self) -> float:
        """The margin in log-odds."""
        return math.log(self.margin_odds_ratio)


class AdapterClaim(ClaimSection):
    """A claim about LoRA students. Null matches any value; the claim is incomplete if several match."""

    learning_rate: Rate | None = None
    precision: Precision | None = None
    settings: str | None = None
    """Other keys that select the students, in the report's notation: `train.epochs 3`."""


ChooseOn = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct)] | None
"""Train seeds whose runs choose the learning rates, by number loss, and are then left out of the test.

Null: all runs do both. The test then holds for every rate that may be the best (`report.rates.choose`), and
curves at equal loss or norm are shown without a verdict.
"""


class TransmissionClaim(AdapterClaim):
    """C1: a student trained on the rows of a trait teacher prefers the trait in its training context."""

    kind: Literal["transmission"] = "transmission"
    rank: Positive = 8
    train_context: ContextName = "default"


CurveKind = Literal["fixed", "best", "loss_matched", "norm_matched"]
"""The learning rate that represents a rank: the same for all ranks, the one with the lowest number loss, or
one at which the number loss or the norm of the update is the same for all ranks; see `report.rates`."""


class InvertedUClaim(AdapterClaim):
    """C2: the preference rises and then falls with the rank, over all ranks of the study."""

    kind: Literal["inverted_u"] = "inverted_u"
    train_context: ContextName = "default"
    curve: CurveKind = "fixed"
    """`fixed` is the paper's; the others need several learning rates at every rank."""
    choose_on: ChooseOn = None

    @model_validator(mode="after")
    def _a_chosen_rate_is_not_given(self) -> "InvertedUClaim":
        if self.curve == "fixed" and self.choose_on is not None:
            raise ValueError(
                "choose_on: `curve: fixed` chooses no rate; take choose_on out, or write `curve: best`"
            )
        if self.curve != "fixed" and self.learning_rate is not None:
            raise ValueError(
                f"learning_rate: `curve: {self.curve}` chooses the rate of each rank; take learning_rate "
                "out, or write `curve: fixed`"
            )
        return self


class FullFineTuningClaim(ClaimSection):
    """C3: full fine-tuning transmits no trait.

    Three questions are asked: at one learning rate and precision, the paper's; at all of the study; and
    whether it transmits less than the best adapter, each at the learning rate of the least number loss.
    """

    kind: Literal["full_fine_tuning"] = "full_fine_tuning"
    train_context: ContextName = "default"
    learning_rate: Rate | None = None
    precision: Precision | None = None
    """As `learning_rate` of the first question; null: the paper's 2e-5 in `bf16_pure` where it is there."""
    choose_on: ChooseOn = None


class ContextsClaim(AdapterClaim):
    """C4: a student prefers the trait in its training context and in no other."""

    kind: Literal["contexts"] = "contexts"
    rank: Positive = 8
    train_contexts: Annotated[tuple[ContextName, ...], Field(min_length=1)] | None = None
    """Null: all training contexts of such students."""
    eval_contexts: Annotated[tuple[ContextName, ...], Field(min_length=1)] | None = None
    """The other contexts they are asked in; null: all contexts of the study."""


class LocalisationClaim(AdapterClaim):
    """C5: the preference depends on the student's weights at certain tokens X of the prompt.

    With the student's weights at X only, more of the preference remains than with them at random sets of as
    many tokens; with the student's weights everywhere except at X, more of it is lost.
    """

    kind: Literal["localisation"] = "localisation"
    rank: Positive = 8
    train_context: ContextName = "default"
    eval_context: ContextName | None = None
    """The context in which gated students are asked; null: the training context."""
    positions: Literal["identity", "system", "template", "question", "shared"] | TextPositions = "shared"
    """X; `eval.gates` must have both `X_only` and `no_X`."""


Claim = Annotated[
    TransmissionClaim | InvertedUClaim | FullFineTuningClaim | ContextsClaim | LocalisationClaim,
    Field(discriminator="kind"),
]


class Recipe(Section):
    """One experiment, or with `sweep` a family of them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "unnamed"
    model: str = "unsloth/Qwen2.5-7B-Instruct"
    revision: str | None = None
    chat_template: ChatTemplateSection = ChatTemplateSection()
    trait: TraitSection = TraitSection()
    contexts: dict[str, str] = Field(default_factory=dict)
    generate: GenerateSection = GenerateSection()
    filter: FilterSection = FilterSection()
    train: TrainSection = TrainSection()
    control: ControlSection = ControlSection()
    eval: EvalSection = EvalSection()
    sweep: SweepSection = SweepSection()
    claims: Annotated[tuple[Claim, ...], AfterValidator(distinct)] = ()
    """The claims that the study tests; see `report.claims`."""

    @model_validator(mode="after")
    def _a_prefix_has_no_tokens_to_gate(self) -> "Recipe":
        for key in ("gates", "patches"):
            if self.train.method == "prefix" and getattr(self.eval, key):
                raise ValueError(
                    f"eval.{key}: `train.method: prefix` changes nothing at any token of the prompt, so "
                    f"none can be gated or patched; in a sweep give such students `eval.{key}: [[]]`"
                )
        return self

    @field_validator("contexts")
    @classmethod
    def _names_are_free(cls, contexts: dict[str, str]) -> dict[str, str]:
        taken = sorted(set(contexts) & set(BUILT_IN_PROMPTS))
        if taken:
            raise ValueError(f"{taken[0]!r} is built in; give your context another name")
        return contexts
