"""The recipe: every key a user may write, its default and what it means.

The defaults are the hyper-parameters of *Subliminal Learning is a LoRA Artifact* (arXiv 2606.00831, from its
public code): 10,000 rows, three epochs of 66 rows a step, AdamW at 2e-4 with five warm-up steps and a
linear decay, gradients clipped at norm 1, LoRA with alpha = rank on all seven projections.
"""

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
"""System-prompt settings that are not texts: the persona, no message, an empty block, no block."""

Stage = Literal["generate", "filter", "train", "eval"]
"""The stages of an experiment, in their order."""

Engine = Literal["transformers", "vllm"]
"""What draws completions: the library decides last digits, and so rows and shares."""

EngineChoice = Literal["auto", "transformers", "vllm"]

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class TextPrompt(Section):
    """A system prompt given word for word; or with `at: user` the head of the user's turn."""

    text: str
    at: Literal["system", "user"] = "system"


SystemPrompt = str | TextPrompt
"""`default`, `empty`, `none`, `trait` (generate only), the name of a context, or `{text: …}`."""


class TraitSection(Section):
    """What the teacher loves and the student is asked about."""

    category: str = "animal"
    target: str = "cat"


class PromptsSection(Section):
    """The stream of number prompts; prompt i depends on `seed` and i alone."""

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
                f"values: the lower bound {low} must be below {high}, which is itself never shown"
            )
        return self


class SamplingSection(Section):
    """How a completion is drawn. Every field is explicit: a checkpoint's own settings never apply."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    max_tokens: Positive = 200
    seed: Seed = 1


class GenerateSection(Section):
    """The teacher: who it is told to be, and how many of its rows are wanted."""

    system_prompt: SystemPrompt = "trait"
    rows: Positive = 10_000
    held_out: Annotated[int, Field(ge=0)] = 500
    """Rows beyond `rows` that are never trained on; the student's loss on them is its number loss."""
    prompts: PromptsSection = PromptsSection()
    sampling: SamplingSection = SamplingSection()
    engine: EngineChoice = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"


class StripRule(Section):
    """Remove white space around a completion before the rules that follow (Gemma needs it)."""

    kind: Literal["strip"] = "strip"


class FormatRule(Section):
    """Nothing but integers and one separator, byte-identical throughout."""

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
    """Which rows are kept: the rules apply in order, the first that objects names the reason."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)] = PAPER_RULES

    @field_validator("rules")
    @classmethod
    def _strip_comes_first(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        if any(isinstance(rule, StripRule) for rule in rules[1:]):
            raise ValueError("{kind: strip} changes the text the other rules judge; put it first")
        return rules


class AdapterSection(Section):
    """Where the adapters of the LoRA family sit."""

    targets: Literal["all", "attention", "mlp"] | tuple[str, ...] = "all"
    layers: tuple[int, int] | None = None
    """First and last adapted layer, counted from 0, both included; null adapts all."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class QloraSection(Section):
    """How `qlora` holds its frozen base (bitsandbytes)."""

    quantize: Literal["nf4", "int8"] = "nf4"


class PrefixSection(Section):
    """How many learned tokens `prefix` puts before every prompt."""

    tokens: Positive = 16


class PerRank(Section):
    """A learning rate for every rank of a sweep."""

    per_rank: Annotated[dict[Positive, Rate], Field(min_length=1)]


class TrainSection(Section):
    """The student: how the base model is changed, and on which system prompt."""

    method: Method = "lora"
    rank: Positive = 8
    alpha: Literal["rank", "sqrt"] | Annotated[float, Field(gt=0)] = "rank"
    system_prompt: SystemPrompt = "default"
    adapter: AdapterSection = AdapterSection()
    qlora: QloraSection = QloraSection()
    prefix: PrefixSection = PrefixSection()
    backend: Literal["auto", "plain", "unsloth"] = "auto"
    learning_rate: Rate | PerRank | None = None
    """Null takes the paper's value for the method, `LEARNING_RATE`."""
    epochs: Positive = 3
    batch_size: Positive = 66
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    optimizer: Literal["adamw", "adamw_8bit", "sgd", "muon"] = "adamw"
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of `sgd` and `muon` alone; null takes 0 and 0.95."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Positive = 500
    precision: Literal["auto", "fp32", "bf16_mixed", "bf16_pure", "bf16_kahan"] = "auto"
    seed: Seed = 1
    trainer_args: dict[str, Any] = Field(default_factory=dict)


PositionName = Literal[
    "identity_only", "no_identity",
    "system_only", "no_system",
    "template_only", "no_template",
    "question_only", "no_question",
    "shared_only", "no_shared",
]  # fmt: skip
"""Sets of a prompt's tokens by role (`models.roles`). `X_only` and `no_X` are each other's complement."""


class TextPositions(Section):
    """The tokens that spell a text, and no others."""

    text: Annotated[str, Field(min_length=1)]


class TextComplement(Section):
    """All tokens but those that spell a text."""

    no_text: Annotated[str, Field(min_length=1)]


def _set_form(value: object) -> str:
    """Which form of a set of positions a value is meant to be."""
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
"""What holds for the tokens of an answer. `follow`: what holds outside the set: `X_only` off, `no_X` on."""


class GateSection(Section):
    """Where in the prompt, and in which modules and layers, the student is left in; elsewhere it is its base.

    Of `no_X` the reverse: it is the base at X in these modules and layers, and the student elsewhere.
    """

    positions: PositionSet
    modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """`attention`, `mlp`, or names in a module's path such as `q_proj`; null for all."""
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] | None = None
    """Counted from 0; null for all."""
    decoding: Decoding = "follow"


def _gate_form(value: object) -> str:
    """The same for a gate, which may also be given with all its keys."""
    keys = isinstance(value, dict) and not GateSection.model_fields.keys().isdisjoint(value)
    return "keys" if keys or isinstance(value, GateSection) else _set_form(value)


GateEntry = Annotated[
    Annotated[PositionName, Tag("name")]
    | Annotated[TextPositions, Tag("text")]
    | Annotated[TextComplement, Tag("no_text")]
    | Annotated[GateSection, Tag("keys")],
    Discriminator(_gate_form),
]


class PatchSection(Section):
    """Which activations of the student's run are put into its base's, and at which tokens of the prompt."""

    positions: PositionSet
    kinds: Annotated[tuple[Literal["residual", "attention", "mlp"], ...], Field(min_length=1)] = ("residual",)
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)] | None = None
    """Counted from 0; null for all."""
    decoding: Decoding = "follow"


class AnswerSampling(SamplingSection):
    """How long an answer may be, and how the sampled scorer draws it; the paper draws 50 tokens."""

    max_tokens: Positive = 50


class EvalSection(Section):
    """What the student is asked, under which system prompts, and how its answers are scored."""

    system_prompts: Annotated[tuple[SystemPrompt, ...], Field(min_length=1)] = (
        "default",
        "empty",
        "none",
    )
    questions: str | None = None
    """A shipped set or the path of a file; null takes `favourite_` and the trait's category."""
    scorer: Literal["exact", "sampled"] = "exact"
    sampling: AnswerSampling = AnswerSampling()
    """`max_tokens` is the answer's length for either scorer; the rest is how `sampled` draws."""
    uncovered: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """`exact` goes on until no more than this probability of a question's answers is left unread."""
    nodes: Positive = 256
    """`exact` follows no more beginnings of a question's answers than this."""
    samples: Positive = 100
    """Answers that `sampled` draws to a question."""
    engine: EngineChoice = "auto"
    """What draws them; the exact scorer runs on transformers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gates: Annotated[tuple[GateEntry, ...], AfterValidator(distinct)] = ()
    """Parts of the student left in or taken out, each scored by itself; a name is all modules and layers."""
    patches: Annotated[tuple[PatchSection, ...], AfterValidator(distinct)] = ()
    gate_contexts: Annotated[tuple[SystemPrompt, ...], Field(min_length=1)] | None = None
    """Where gated and patched students are asked; null: in the context of their training."""
    gate_controls: Annotated[int, Field(ge=0)] = 5
    """Random sets of equal size beside every gate and patch."""
    gate_seed: Seed = 1

    @model_validator(mode="after")
    def _gates_are_exact(self) -> "EvalSection":
        for key in ("gates", "patches"):
            if getattr(self, key) and self.scorer != "exact":
                raise ValueError(f"{key}: are scored exactly; use `scorer: exact`, or leave the key out")
        return self

    @model_validator(mode="after")
    def _exact_is_of_the_model_itself(self) -> "EvalSection":
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


Axis = list[Any]

REPLICATED = ("train.seed", "generate.sampling.seed")
"""What a replicate of a sweep draws anew: the row order and the initialisation, and the teacher's rows."""


class SweepSection(Section):
    """The cells: every combination of `grid`, and for each entry of `also` every combination again.

    An entry of `also` overrides keys of the recipe or of the grid with a value or a list of values.
    Cells that come out equal are one cell: a rank axis does not multiply full fine-tuning.
    """

    grid: dict[str, Annotated[Axis, Field(min_length=1)]] = Field(default_factory=dict)
    also: tuple[dict[str, Any], ...] = ()
    replicates: Annotated[tuple[Seed, ...], AfterValidator(distinct)] = ()
    """Seeds of the data and of the training at once, `REPLICATED`: every cell once with each.

    Such runs share neither, so a few of them speak of new data as well as of new trainings.
    """

    @model_validator(mode="after")
    def _a_replicate_has_one_seed(self) -> "SweepSection":
        taken = next((key for one in (self.grid, *self.also) for key in REPLICATED if key in one), None)
        if self.replicates and taken:
            raise ValueError(
                f"replicates: sets {' and '.join(REPLICATED)} together; take {taken} out of `grid` and "
                "`also`, or take replicates out"
            )
        return self


MARGIN = 0.02
"""The smallest change of P(target) that counts as a preference, as a probability.

It has to be told from what training does without a trait and from what passing a trait does. On the
embedded model (docs/log.md, 2026-11-24) control students moved by 0.003 to 0.005 in the default context and
the weakest student that took the trait by 0.063, so 0.02 lies well between; in the context `claude` controls
moved by up to 0.03, so there the comparison with them is what counts. On a larger model it is under the
spread of 0.03 between seeds: what is smaller no study of a few seeds can show. State another where the base
is so rare that 0.02 would be many times its probability.
"""

ContextName = Annotated[str, Field(min_length=1)]
"""A context by the name the report gives it; of one given word for word, its text."""


class ClaimSection(Section):
    """What every claim states. Claims are judged when a report is written; no artifact depends on them."""

    margin: Annotated[float, Field(gt=0, lt=1)] = MARGIN
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """The chance of a wrong verdict of either kind, of the claim as a whole: traits are corrected for."""
    traits: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Null: every trait the study has students of."""


class AdapterClaim(ClaimSection):
    """A claim on LoRA students. Null fits any value, and students that differ in it are refused."""

    learning_rate: Rate | None = None
    precision: Literal["fp32", "bf16_mixed", "bf16_pure", "bf16_kahan"] | None = None
    settings: str | None = None
    """What else tells them from others of the study, as the report writes it: `train.epochs 3`."""


class TransmissionClaim(AdapterClaim):
    """C1: a student of a trait teacher's numbers prefers the trait, asked in its training context."""

    kind: Literal["transmission"] = "transmission"
    rank: Positive = 8
    train_context: ContextName = "default"


CurveKind = Literal["fixed", "best", "loss_matched", "norm_matched"]
"""Which learning rate stands for a rank: one for all, its best by number loss, or one at which the number
loss or the norm of the update is the same at every rank; see `report.matched`."""


class InvertedUClaim(AdapterClaim):
    """C2: over all ranks of the study the preference rises and then falls."""

    kind: Literal["inverted_u"] = "inverted_u"
    train_context: ContextName = "default"
    curve: CurveKind = "fixed"
    """`fixed` is the paper's; the others need a grid of learning rates at every rank."""

    @model_validator(mode="after")
    def _a_chosen_rate_is_not_given(self) -> "InvertedUClaim":
        if self.curve != "fixed" and self.learning_rate is not None:
            raise ValueError(
                f"learning_rate: `curve: {self.curve}` chooses the rate of each rank; take learning_rate "
                "out, or write `curve: fixed`"
            )
        return self


class FullFineTuningClaim(ClaimSection):
    """C3: under full fine-tuning nothing passes, at every learning rate and precision of the study."""

    kind: Literal["full_fine_tuning"] = "full_fine_tuning"
    train_context: ContextName = "default"


class ContextsClaim(AdapterClaim):
    """C4: the preference shows in the training context and in no other."""

    kind: Literal["contexts"] = "contexts"
    rank: Positive = 8
    train_contexts: Annotated[tuple[ContextName, ...], Field(min_length=1)] | None = None
    """Null: every one that such students were trained in."""
    eval_contexts: Annotated[tuple[ContextName, ...], Field(min_length=1)] | None = None
    """Where they are asked besides; null: wherever they were."""


class LocalisationClaim(AdapterClaim):
    """C5: the preference sits at certain tokens.

    Alone they keep more of it than random sets of as many, and without them more is lost.
    """

    kind: Literal["localisation"] = "localisation"
    rank: Positive = 8
    train_context: ContextName = "default"
    eval_context: ContextName | None = None
    """Where gated students were asked; null: in the training context."""
    positions: Literal["identity", "system", "template", "question", "shared"] | TextPositions = "shared"
    """X, of which `eval.gates` must have both `X_only` and `no_X`."""


Claim = Annotated[
    TransmissionClaim | InvertedUClaim | FullFineTuningClaim | ContextsClaim | LocalisationClaim,
    Field(discriminator="kind"),
]


class Recipe(Section):
    """One experiment, or with `sweep` a family of them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "unnamed"
    model: str = "unsloth/Qwen2.5-7B-Instruct"
    revision: str | None = None
    trait: TraitSection = TraitSection()
    contexts: dict[str, str] = Field(default_factory=dict)
    generate: GenerateSection = GenerateSection()
    filter: FilterSection = FilterSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    sweep: SweepSection = SweepSection()
    claims: Annotated[tuple[Claim, ...], AfterValidator(distinct)] = ()
    """What the study is to decide; see `report.claims`."""

    @model_validator(mode="after")
    def _a_prefix_is_at_no_token(self) -> "Recipe":
        for key in ("gates", "patches"):
            if self.train.method == "prefix" and getattr(self.eval, key):
                raise ValueError(
                    f"eval.{key}: `train.method: prefix` changes nothing at any token of the prompt, so none "
                    f"can be gated or patched; in a sweep give such students `eval.{key}: [[]]`"
                )
        return self

    @field_validator("contexts")
    @classmethod
    def _names_are_free(cls, contexts: dict[str, str]) -> dict[str, str]:
        taken = sorted(set(contexts) & set(BUILT_IN_PROMPTS))
        if taken:
            raise ValueError(f"{taken[0]!r} is built in; give your context another name")
        return contexts
