"""One definition for the command line, the YAML files, the help and the report: the configuration of a run."""

import unicodedata
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from erase.methods import METHODS, MethodConfig
from erase.methods.base import Config
from erase.methods.salun import SalUn
from erase.reading import BIDI, parse_yaml, plain_text


class DataConfig(Config):
    num_forget: int = Field(48, ge=1, le=100_000)
    """Pictures of the concept that the model generates to forget them (kept as latents, never decoded)."""
    num_retain: int = Field(144, ge=1, le=100_000)
    """Pictures of everything else that the model generates to keep them."""
    num_anchor: int = Field(24, ge=0, le=100_000)
    """Pictures of the anchor, generated in addition (concept_remap only)."""
    forget_guidance_scale: float = Field(2.0, ge=1)
    """Classifier-free guidance for the forget set."""
    retain_guidance_scale: float = Field(1.0, ge=1)
    """Classifier-free guidance for the retain set; 1 keeps guidance from being applied twice, here and at sampling."""
    num_inference_steps: int = Field(15, ge=1, le=1000)
    """Sampler steps for both sets."""
    batch_size: int = Field(48, ge=1)
    """Pictures per batch; affects speed and memory only."""
    forget_images: str | None = Field(None, min_length=1)
    """A folder of pictures of the concept, used in place of generated ones."""
    retain_images: str | None = Field(None, min_length=1)
    """A folder of pictures to keep, used in place of generated ones; the text in cat.txt is the prompt of cat.png."""


def _plain(text: str) -> str:
    try:
        return plain_text(text, "it")
    except ValueError as error:
        raise PydanticCustomError("text", "{reason}", {"reason": str(error)}) from error


Text = Annotated[str, AfterValidator(_plain)]


class ConceptPrompts(Config):
    kind: Literal["auto", "object", "style", "person", "other"] = "auto"
    """What the concept is, which decides the wording; `auto`: guessed from its name, and printed."""
    synonyms: tuple[Text, ...] = ()
    """Other names of the concept: every second forget prompt asks for one of them in turn, so that the concept and not its name
    is erased."""
    neighbours: tuple[Text, ...] = ()
    """What is close to the concept and must be kept; empty: proposed from a word list, and printed."""
    forget: tuple[Text, ...] = ()
    """Prompts that ask for the concept; empty: made from its name."""
    becomes: tuple[Text, ...] = ()
    """What those prompts mean afterwards (to be given with `forget`): one for each, in their order, or another number, any of
    which each of them can become."""
    retain: tuple[Text, ...] = ()
    """Prompts whose pictures must stay as they are (to be given with `forget`, or with folders of pictures to keep)."""


class PromptsConfig(ConceptPrompts):
    each: dict[str, ConceptPrompts] = Field(default_factory=dict)
    """With several concepts: the same settings for one of them, by its name."""


class SaliencyConfig(Config):
    method: Literal["gradient", "none"] = "gradient"
    """`gradient`: the weights that matter most for the concept (SalUn, eq. 4); `none`: all weights in the method's scope."""
    density: float = Field(0.5, gt=0, le=1)
    """Fraction of the denoiser's weights allowed to change, in (0, 1] (of those in the method's scope, where it has one); half,
    as published: the rest stays bit for bit, at figures like those without a mask (measured: docs/methods.md)."""
    guidance_scale: float = Field(1.0, ge=0)
    """Guidance of the prediction whose loss is measured; 1: none, as in training (not measured separately); the
    reference code mixes with 7.5."""
    rounds: int = Field(3, ge=1)
    """How many times each forget picture is noised and measured."""
    batch_size: int = Field(24, ge=1)
    """Pictures per backward pass: fewer need less memory; another number draws other noise, and the mask differs a little."""


class EvaluationConfig(Config):
    num_forget: int = Field(96, ge=1)
    """Pictures for the concept's prompts."""
    retain_per_cell: int = Field(1, ge=1)
    """Pictures for each other object x style cell."""
    num_inference_steps: int = Field(20, ge=1, le=1000)
    """Sampler steps."""
    guidance_scale: float = Field(3.0, ge=1)
    """Classifier-free guidance."""
    seed: int = Field(1000, ge=0)
    """Seed of the first picture; picture k has seed + k, the same for base and erased."""
    batch_size: int = Field(48, ge=1)
    """Pictures per batch; affects speed and memory only."""


class TrainConfig(Config):
    steps: int = Field(100, ge=1, le=100_000)
    """Optimizer steps, at most 100,000: each step has its own random stream, and beyond that the streams repeat."""
    learning_rate: float = Field(3e-4, gt=0)
    """Adam's learning rate, reached after the warm-up; it falls to a tenth over the last third."""
    warmup_steps: int = Field(10, ge=0)
    """Steps of linear warm-up."""
    forget_batch_size: int = Field(16, ge=1)
    """Forget pictures per step."""
    retain_batch_size: int = Field(24, ge=1)
    """Retain pictures per step."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping over the salient weights."""
    accumulate: int = Field(1, ge=1)
    """Number of parts that every batch is split into, one after another: less memory, the same result."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, about a third more time."""
    checkpoint_every: int = Field(50, ge=1)
    """Steps between two saved states."""
    keep: Literal["last", "best"] = "last"
    """Which weights are kept: those of the last step, or those with the best trade-off of forgetting and keeping on noise that
    training never draws (a step count that suits one concept spoils another)."""
    check_every: int = Field(10, ge=1)
    """Steps between two measurements of that trade-off."""


class LoadConfig(Config):
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the denoiser and of the text encoders; the VAE is float32, and the salient weights are always trained in it."""
    device: str = "auto"
    """`auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    variant: str | None = None
    """Weight variant of a diffusers folder or Hub model, e.g. `fp16`; by default the one without a suffix."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    cache_dir: str | None = None
    """Folder for downloaded models (by default the Hub library's cache)."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the denoiser predicts, where a single file of SD 2.x does not say (it is taken for the 768-pixel v model)."""
    config: str | None = None
    """Folder or Hub id of a model of the same kind, for the configs and the tokenizer that a single file lacks (by default the
    model on the Hub that all of its kind share them with)."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a setting that came later, where it is not set: the hashes of configs stay what they were."""
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if name != "config" or value is not None}


class RunConfig(Config):
    concept: str | tuple[str, ...]
    """What to erase: an object ("dog"), a style ("line art"), an object in a style ("a dog, neon style"); or a list of them."""
    model: str = Field("emoji", min_length=1)
    """The model: `emoji` (embedded), a diffusers folder, a .safetensors file, or a Hub id."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Random seed; the same seed gives the same result."""
    load: LoadConfig = LoadConfig()
    """How the model is loaded."""
    prompts: PromptsConfig = PromptsConfig()
    """The prompts, where they are given by hand."""
    data: DataConfig = DataConfig()
    """The forget and retain sets."""
    saliency: SaliencyConfig = SaliencyConfig()
    """The mask."""
    method: MethodConfig = SalUn()
    """The forgetting method and its parameters."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured afterwards."""

    @field_validator("concept", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A text, or several; a list of one is that one."""
        names = value if isinstance(value, (list, tuple)) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise PydanticCustomError("concept", "must be a text, or a list of texts")
        if any(not 1 <= len(name) <= 200 for name in names):
            raise PydanticCustomError("concept", "a concept has 1 to 200 characters")
        if any(unicodedata.category(c) in ("Cc", "Cs") or c in BIDI for name in names for c in name):
            raise PydanticCustomError("concept", "a concept has no line breaks or control characters")
        return tuple(names) if len(names) > 1 else names[0]

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Settings without a method's name are SalUn's."""
        return {"name": "salun", **value} if isinstance(value, dict) else value

    @field_validator("method")
    @classmethod
    def _plain_anchors(cls, method: Any) -> Any:
        """What the concept becomes goes into prompts."""
        anchor = getattr(method, "anchor", ())
        for name in (anchor,) if isinstance(anchor, str) else anchor:
            _plain(name)
        return method

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts to erase, one or more."""
        return (self.concept,) if isinstance(self.concept, str) else self.concept


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """The values with `key=value` assignments put in; dots go down (`method.alpha=2`), values are YAML scalars."""
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise ValueError(f"--set {assignment!r} is not of the form key=value.")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"--set {assignment!r}: {text!r} is not a value: {error}.") from error
        try:
            put(values, key, value)
        except ValueError as error:
            raise ValueError(f"--set {assignment!r}: {error}") from error
    return values


def validate(values: dict[str, Any]) -> RunConfig:
    """The config; raises ValueError with one sentence per mistake, naming the accepted keys where one is unknown."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(_sentence(item) for item in error.errors()) + ".") from error
    _refuse_truths(values, config.model_dump())
    return config


def _refuse_truths(given: Any, made: Any, where: str = "") -> None:
    """Raise ValueError for a true or false that became a number."""
    if isinstance(given, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        raise ValueError(f"{where} is {str(given).lower()}: a number is needed.")
    for key, value in given.items() if isinstance(given, dict) and isinstance(made, dict) else ():
        _refuse_truths(value, made.get(key), f"{where}.{key}".lstrip("."))


# each method's settings
SETTINGS: dict[str, type[Config]] = {kind.model_fields["name"].default: kind for kind in get_args(get_args(MethodConfig)[0])}


def _sentence(item: Any) -> str:
    loc = list(item["loc"])
    level: Any = RunConfig
    if item["type"] == "union_tag_invalid":
        return f"method.name is {item['ctx']['tag']!r}: there is no such method (known: {', '.join(METHODS)})"
    if loc[0] == "method" and len(loc) > 1:  # its second part says which method
        level, loc = SETTINGS[loc[1]], [loc[0], *loc[2:]]
    where = ".".join(str(part) for part in loc)
    if item["type"] == "missing":
        return f"{where} is not given"
    if loc == ["method"] and isinstance(item["input"], str):
        return f"method is {item['input']!r}, and has settings of its own: give --method {item['input']}"
    if item["type"] == "extra_forbidden":
        for part in loc[:-1] if level is RunConfig else []:
            level = level.model_fields[part].annotation if hasattr(level, "model_fields") else get_args(level)[1]
        return f"{where} is not a setting (known: {', '.join(level.model_fields)})"
    return f"{where} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; raises ValueError if a part on the way is no section."""
    *parents, last = key.split(".")
    level = values
    for parent in parents:
        if level.get(parent) is None:
            level[parent] = {}
        level = level[parent]
        if not isinstance(level, dict):
            raise ValueError(f"{key}: {parent} is {level!r} and has no fields.")
    level[last] = value


def at(values: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
