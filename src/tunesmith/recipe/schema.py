"""The recipe, one class per section, in pipeline order. Read it top to bottom; `docs/recipe.md` is made from it.

Every field is documented once, in the string under it. `None` means "not asked for"; `auto` means "decide and tell me"
(`resolve.py` decides). Classes are frozen: a recipe is never changed after loading, only replaced.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from tunesmith.frozen import frozen
from tunesmith.recipe.typed import Bound, Shorthand

Auto = Literal["auto"]
PositiveInt = Annotated[int, Bound(minimum=1)]
NonNegativeInt = Annotated[int, Bound(minimum=0)]
PositiveFloat = Annotated[float, Bound(above=0.0)]
NonNegativeFloat = Annotated[float, Bound(minimum=0.0)]
Fraction = Annotated[float, Bound(minimum=0.0, maximum=1.0)]

RowFormat = Literal["messages", "sharegpt", "prompt_completion", "instruction", "preference", "chatgpt_export"]
Dtype = Literal["bfloat16", "float16", "float32"]
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@frozen
class Model:
    """The base model."""

    name_or_path: str
    """Local directory, Hugging Face Hub id, or `run:NAME` (what the newest run of that name made)."""
    revision: str | None = None
    """Branch, tag or commit on the Hub. Pin a commit to make a run repeatable."""
    dtype: Auto | Dtype = "auto"
    """Number format of weights and compute. Optimiser state and reductions stay in float32."""
    attn_implementation: Auto | Literal["varlen", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention kernel: `varlen` (rows without padding, shared beginnings computed once), or one of transformers'."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint. It can do anything your user can."""


@frozen
class Source:
    """One source of training rows."""

    path: str
    """File (`.json`, `.jsonl`, `.csv`, `.parquet`, each also `.gz`), directory, glob, or a Hub data set id."""
    format: Auto | RowFormat = "auto"
    """How a row is read. `auto` looks at the keys of the first rows and says what it found."""
    split: str = "train"
    """Split of a Hub data set; local files have none."""
    subset: str | None = None
    """Configuration name of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    weight: PositiveFloat = 1.0
    """How often one epoch sees this source: 2 = every row twice, 0.5 = half of its rows, chosen by hash."""
    max_rows: PositiveInt | None = None
    """Read at most this many rows, the first ones; later ones are not even counted."""
    columns: dict[str, str] = field(default_factory=dict)
    """Rename columns before reading: `{question: prompt, answer: completion}`."""


@frozen
class Data:
    """Rows: where they come from, how they become tokens."""

    train: Annotated[tuple[Source, ...], Shorthand("path")] = ()
    """Sources, mixed by their weights. A plain string is short for `{path: …}`. Needed without `tuned`."""
    validation: Annotated[tuple[Source, ...], Shorthand("path")] = ()
    """Held-out sources for the validation loss. Leave empty to hold out a fraction of `train`."""
    validation_fraction: Fraction = 0.0
    """Share of `train` that is held out, chosen by the hash of each row: rows never move when others are added."""
    max_length: PositiveInt = 2048
    """Longest sequence in tokens, template included."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a longer row. Dropped and truncated rows are counted and reported."""
    packing: Auto | bool = "auto"
    """Lay rows one after another without padding, attention kept within each, what they begin with together computed
    once; `false` puts rows of like length side by side."""
    train_on: Literal["assistant", "completion", "all"] = "assistant"
    """Tokens with a loss: every assistant turn, the last assistant turn only, or all tokens."""
    chat_template: str = "model"
    """`model` (the model's own), a name (`chatml`, `llama3`, `mistral`, `gemma`, `qwen`, `phi`, …), or a Jinja file."""
    deduplicate: bool = True
    """Drop rows whose content is exactly that of an earlier row."""
    max_bad_rows_fraction: Fraction = 0.05
    """Stop when more than this share of a source cannot be read; bad rows are quarantined with line and reason."""
    max_cut_rows_fraction: Fraction = 0.2
    """Refuse to train when more than this share of rows is dropped or truncated for its length."""
    min_trained_tokens_fraction: Fraction = 0.005
    """Refuse to train when fewer than this share of all tokens has a loss."""
    num_workers: Auto | PositiveInt = "auto"
    """Processes and threads that tokenise."""


@frozen
class Lora:
    """The adapter of `lora`, `qlora`, `dora` and `qdora`."""

    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveFloat = 32.0
    """Scale: the update is multiplied by alpha / r."""
    use_rslora: bool = False
    """Multiply by alpha / √r instead: the update keeps its size at high ranks (Kalajdzievski 2023)."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the output head), a list of name endings, or a regular expression."""
    rank_pattern: dict[str, PositiveInt] = field(default_factory=dict)
    """Ranks of some layers: `{q_proj: 64}`. Keys are name endings or regular expressions; the first match counts."""
    alpha_pattern: dict[str, PositiveFloat] = field(default_factory=dict)
    """Alphas of some layers, named as in `rank_pattern`."""
    modules_to_save: tuple[Annotated[str, Bound(pattern=r"[A-Za-z0-9_.-]+")], ...] = ()
    """Modules trained whole beside the adapter, by the ends of their names (`embed_tokens`, `lm_head`, `norm`). Of tied
    embeddings naming one names both: the matrix they share is trained, and they stay tied."""


@frozen
class Dpo:
    """Direct preference optimisation."""

    beta: PositiveFloat = 0.1
    """Strength of the pull towards the reference model (Rafailov et al. 2023, equation 7)."""
    loss_type: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """Loss on the reward margin."""
    label_smoothing: Annotated[float, Bound(minimum=0.0, below=0.5)] = 0.0
    """Assumed probability that a preference label is wrong (`sigmoid` only)."""


@frozen
class Train:
    """What moves, what is optimised, and for how long."""

    objective: Literal["sft", "dpo"] = "sft"
    """Supervised fine-tuning, or direct preference optimisation on preference rows."""
    method: Literal["full", "lora", "qlora", "dora", "qdora"] = "lora"
    """What moves: all weights, or a low-rank adapter (q: on a 4-bit base; dora: magnitude and direction apart)."""
    lora: Lora = field(default_factory=Lora)
    dpo: Dpo = field(default_factory=Dpo)
    num_train_epochs: PositiveFloat = 3.0
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimiser steps, whatever the epochs say."""
    global_batch_size: PositiveInt = 16
    """Sequences (or preference pairs) per optimiser step, over all ranks and accumulation."""
    per_device_train_batch_size: Auto | PositiveInt = "auto"
    """Sequences of `data.max_length` per forward pass, with shorter ones packed into the same room; changes speed and
    memory, never the result. Accumulation follows from it, and it is halved when memory runs out."""
    num_processes: Auto | PositiveInt = "auto"
    """Processes (ranks) on this machine, one per device; `auto` takes every GPU. More machines: use torchrun."""
    parallelism: Auto | Literal["ddp", "fsdp2"] = "auto"
    """How ranks share the work: whole copies with summed gradients, or weights and optimiser state cut into shards."""
    optim: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = "adamw"
    """Optimiser: fused AdamW, bitsandbytes' AdamW with 8-bit state (also paged to the host), or PyTorch's Adafactor."""
    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    """Shape of the decay after warm-up, to zero for linear and cosine."""
    warmup_ratio: Fraction | None = None
    """Share of all steps spent warming up. Give this or `warmup_steps`; neither means 0.03."""
    warmup_steps: NonNegativeInt | None = None
    """Steps spent warming up."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of matrices; biases, norms and magnitudes are exempt."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    """When a loss or gradient is not finite, or the loss spikes: end with an error, leave the step out, or go back to
    the newest checkpoint and leave it out there."""
    max_loss_spike: Annotated[float, Bound(above=1.0)] | None = None
    """A step whose loss is more than this many times the median of the 32 before it is bad; by default none is."""
    adam_beta1: Annotated[float, Bound(minimum=0.0, below=1.0)] = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: Annotated[float, Bound(minimum=0.0, below=1.0)] = 0.999
    """Decay of AdamW's second moment."""
    gradient_checkpointing: Auto | bool = "auto"
    """Recompute activations in the backward pass: less memory, a third more compute."""
    torch_compile: Auto | bool = "auto"
    """Compile the model's layers: a minute or more before the first step, fewer passes over memory afterwards."""
    deterministic: bool = False
    """Use deterministic kernels only, also where CUDA's are slower. On a CPU results repeat bit for bit anyway."""
    logging_steps: PositiveInt = 1
    """Write metrics every so many steps."""
    eval_steps: PositiveInt | None = None
    """Measure the validation loss every so many steps; always once at the end when rows are held out."""
    early_stopping_patience: PositiveInt | None = None
    """Stop when the validation loss has not improved in so many measurements."""
    load_best_model_at_end: bool = False
    """Keep the checkpoint with the lowest validation loss, and end with its weights."""
    save_steps: PositiveInt = 100
    """Write a checkpoint every so many steps; always one at the end and on a stop signal."""
    save_total_limit: PositiveInt = 2
    """Keep this many newest checkpoints."""


@frozen
class Merge:
    """Fold the adapter into the base weights, on the CPU."""

    dtype: Literal["model"] | Dtype = "model"
    """Number format of the merged weights; `model` keeps that of the base checkpoint."""
    max_shard_gib: PositiveFloat = 4.0
    """Largest file of the merged checkpoint."""
    fold_onto: Literal["measured", "original", "nf4"] = "measured"
    """Base of an adapter that was trained in 4 bits: the original weights, those after NF4, which it saw, or whichever
    is measured to have the lower loss on a few rows. Both losses are in the proof."""


@frozen
class Serve:
    """The server that evaluation, bench and chat talk to."""

    engine: Auto | Literal["vllm", "embedded"] = "auto"
    """`vllm` where a CUDA device is, `embedded` (CPU or one GPU, OpenAI-compatible) elsewhere."""
    port: Auto | Annotated[int, Bound(minimum=0, maximum=65535)] = "auto"
    """TCP port on the loopback interface; `auto` and 0 take a free one."""
    max_model_len: Auto | PositiveInt = "auto"
    """Longest prompt plus answer in tokens."""
    startup_timeout_seconds: PositiveFloat = 600.0
    """Give up when the server is not healthy after this long."""
    gpu_memory_utilization: Annotated[float, Bound(above=0.0, maximum=1.0)] = 0.9
    """Share of GPU memory vLLM may take."""
    vllm_python: str | None = None
    """Python of the environment that has vLLM, where its pins clash with ours: `/opt/vllm/bin/python`."""
    unmerged_adapter: bool = False
    """Serve the base model with the LoRA adapter on top, not the merged one (vLLM only); requests name the adapter."""


TextMetric = Literal["exact_match", "jaccard", "rouge", "bleu"]


@frozen
class TextTask:
    """Answers compared with the reference answers of the user's own rows."""

    files: tuple[str, ...] = ()
    """Files or globs of prompt/completion or messages rows."""
    metrics: tuple[TextMetric, ...] = ("exact_match", "jaccard", "rouge", "bleu")
    """Exact match, Jaccard overlap of words, ROUGE-1/2/L and BLEU."""
    limit: PositiveInt | None = None
    """Score the first rows only, of each set."""
    max_tokens: PositiveInt = 256
    """Longest answer in tokens."""
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Named sets with their own files, such as `adversarial: [hard.jsonl]`; scored apart, as `text.adversarial`."""


@frozen
class FunctionCallTask:
    """Function-call accuracy on held-out tool conversations: name and every argument must be equal."""

    files: tuple[str, ...]
    """Files or globs of `messages` + `tools` (or ShareGPT) rows; each assistant turn with a call is one item."""
    limit: PositiveInt | None = None
    """Score the first items only."""
    max_tokens: PositiveInt = 256
    """Longest answer in tokens."""


BfclProtocol = Literal["prompt", "fc-openai-tools", "fc-native-template"]
# fmt: off
BfclCategory = Literal[
    "simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple", "irrelevance",
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance",
    "multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context",
    "format_sensitivity", "single_turn", "multi_turn", "non_live", "live", "python", "non_python",
    "simple", "java", "javascript",
]
# fmt: on


@frozen
class BfclTask:
    """The Berkeley Function-Calling Leaderboard: its items, prompts and verdicts (docs/bfcl.md)."""

    categories: tuple[BfclCategory, ...]
    """Categories, also by their former names, and collections; `tunesmith bfcl categories` lists them. Each is a task
    of its own: `evaluate.bfcl.simple_python.accuracy`."""
    data: str | None = None
    """Directory with `BFCL_v4_*.json`, or a Hub data set. By default `$TUNESMITH_BFCL_DATA`, then an installed
    `bfcl-eval`, then the Hub."""
    limit: PositiveInt | None = None
    """Ask the first items of each category only. Such numbers compare with no published ones."""
    protocol: BfclProtocol = "prompt"
    """How functions are shown and calls are read: in a system prompt, as `tools` of the API with converted types, or as
    `tools` unconverted for the model's own template. Every number is labelled with it."""
    max_tokens: PositiveInt = 1024
    """Longest answer in tokens; the leaderboard gives 4096."""


HarnessSetting = int | float | bool | str | tuple[str, ...]


@frozen
class LmEval:
    """Benchmarks of lm-evaluation-harness, run as a process of its own; the files it writes are kept as they are."""

    tasks: tuple[str, ...]
    """Tasks, groups and tags as the harness names them (`gsm8k`, `mmlu`), or as people do (`GSM8K`, `ARC`)."""
    num_fewshot: NonNegativeInt | None = None
    """Worked examples in the prompt; by default what each task says."""
    limit: PositiveInt | None = None
    """Ask the first items of each task only. For trying out: such numbers compare with no published ones."""
    include_path: str | None = None
    """Directory with task files of your own, in the harness's YAML format."""
    apply_chat_template: bool = False
    """Put prompts into the chat template, few-shot examples as turns. Recorded beside every number."""
    backend: Auto | Literal["endpoint", "checkpoint"] = "auto"
    """Ask the served model, or let the harness load the weights itself."""
    tokenizer: str | None = None
    """Directory or Hub id of the tokenizer of an endpoint whose model is elsewhere; tasks with choices need one."""
    batch_size: PositiveInt = 8
    """Prompts per forward pass of `checkpoint`; an endpoint gets `evaluate.concurrency` requests of one prompt each."""
    gen_kwargs: dict[str, HarnessSetting] = field(default_factory=dict)
    """Generation settings in place of the tasks' own: `{max_gen_toks: 512, temperature: 0}`."""
    allow_code_execution: bool = False
    """Run the programs a model writes (HumanEval, MBPP), in a sandbox without network (docs/lm-eval.md)."""
    python: str | None = None
    """Interpreter that has lm_eval when it cannot live beside other packages; by default the one that runs this."""
    extra: dict[str, HarnessSetting] = field(default_factory=dict)
    """More settings, as in the harness's own configuration file: `{system_instruction: Be brief.}`."""


@frozen
class JudgeTask:
    """Another model prefers the base or the tuned answer to each row; asked twice, in both orders."""

    files: tuple[str, ...]
    """Files or globs of rows; their last answer is the reference."""
    url: str
    """Address of an OpenAI-compatible endpoint, such as `https://api.openai.com/v1`."""
    model: str
    """The judge's name there."""
    api_key: str | None = None
    """Key of the endpoint, as `${env:NAME}`."""
    criteria: str = "correctness first, then how well the request is followed, then clarity"
    """What makes an answer better, in words."""
    show_reference: bool = True
    """Show the judge the row's own answer, too."""
    limit: PositiveInt | None = None
    """Judge the first rows only."""
    max_tokens: PositiveInt = 256
    """Longest answer in tokens."""
    max_verdict_tokens: PositiveInt = 1024
    """Longest verdict in tokens; judges that think aloud need more."""


@frozen
class Evaluate:
    """What is measured on the tuned model, always beside the base model."""

    base_model: bool = True
    """Measure the base model on the same items, too."""
    text: TextTask | None = None
    function_calls: FunctionCallTask | None = None
    bfcl: BfclTask | None = None
    lm_eval: LmEval | None = None
    judge: JudgeTask | None = None
    concurrency: PositiveInt = 16
    """Requests in flight."""
    request_timeout_seconds: PositiveFloat = 600.0
    """Longest wait for one answer; then the item counts as not answered."""


@frozen
class Targets:
    """Limits that each level is held against; a miss is reported, and fails only through `gate`.

    The three latencies also decide which single requests are good: answered, and within every limit given.
    """

    ttft_p95_ms: PositiveFloat | None = None
    """Time to first token, 95th percentile, at most."""
    e2e_p95_ms: PositiveFloat | None = None
    """Whole answer, 95th percentile, at most."""
    tpot_p95_ms: PositiveFloat | None = None
    """Time per further output token, 95th percentile, at most."""
    output_tokens_per_second: PositiveFloat | None = None
    """Tokens made per second over all requests, at least."""
    good_fraction: Fraction | None = None
    """Share of good requests, at least. Failed requests are not good."""


@frozen
class Bench:
    """A load test of the tuned model, timed token by token. Each level of load is measured by itself."""

    concurrency: tuple[PositiveInt, ...] = (16, 32)
    """Closed loop: so many requests are kept in flight. Levels `c16`, `c32`; `[]` for none."""
    rates: tuple[PositiveFloat, ...] = ()
    """Open loop: so many requests are sent per second, whether or not the server keeps up, and every latency counts
    from the moment a request was due. Levels `r4`, `r0.5`."""
    arrivals: Literal["poisson", "constant"] = "poisson"
    """How requests of an open loop are spread over time."""
    trace: str | None = None
    """Recorded arrivals (JSONL or CSV: moments with lengths or prompts), replayed as an open loop, level `trace`."""
    trace_speed: PositiveFloat = 1.0
    """Replay the trace this many times as fast."""
    num_requests: PositiveInt = 100
    """Requests per level; of a trace, the first ones."""
    num_warmup_requests: NonNegativeInt = 2
    """Requests sent before timing begins."""
    prompts: tuple[str, ...] = ()
    """Files or globs whose rows give the prompts; empty means the validation or training rows."""
    prompt_tokens: PositiveInt | str | None = None
    """Make prompts up, of so many tokens: `512`, `256-1024` (uniform) or `512~128` (normal: mean, deviation)."""
    output_tokens: PositiveInt | str | None = None
    """Ask for answers of just so many tokens, in the same forms, from servers that know `ignore_eos`; without it an
    answer ends when it ends, at `max_tokens` at the latest."""
    max_tokens: PositiveInt = 200
    """Longest answer in tokens."""
    api: Literal["chat", "completions"] = "chat"
    """Which of the two endpoints is asked; `completions` sends bare text, without a chat template."""
    extra_body: str | None = None
    """JSON object put into every request, for what a server wants otherwise; a key that is `null` is left out:
    `{"max_tokens": null, "max_completion_tokens": 200}`."""
    request_timeout_seconds: PositiveFloat = 600.0
    """A request without a complete answer after this long has failed."""
    stall_timeout_seconds: PositiveFloat = 120.0
    """An answer that has begun and then stays silent this long has failed."""
    level_timeout_seconds: PositiveFloat = 3600.0
    """A level ends after this long, whatever is missing; it then fails its targets."""
    targets: Targets = field(default_factory=Targets)


@frozen
class Report:
    """The page."""

    title: str | None = None
    """Headline; the recipe's name by default."""
    num_examples: NonNegativeInt = 8
    """Answers shown per task: fixed by tuning, broken by it, and wrong in both."""


@frozen
class HubTarget:
    """A model repository on the Hugging Face Hub. The token is read from HF_TOKEN."""

    repo_id: str
    """`owner/name`."""
    private: bool = True
    """Create the repository as private."""


@frozen
class S3Target:
    """A place in an S3-compatible store. Credentials come from where AWS's tools look: AWS_ACCESS_KEY_ID, profiles."""

    url: str
    """`s3://bucket/prefix`; the model goes to `prefix/NAME/`."""
    endpoint_url: str | None = None
    """Server of a store that is not AWS (MinIO, Ceph, R2, …); AWS_ENDPOINT_URL_S3 says the same."""


@frozen
class Publish:
    """Where the model goes when everything has passed."""

    local: str | None = None
    """Directory that receives `NAME/` with weights, tokenizer, model card and manifest."""
    hub: HubTarget | None = None
    s3: Annotated[S3Target | None, Shorthand("url")] = None
    """An S3-compatible store. A plain `s3://bucket/prefix` is short for `{url: …}`."""
    even_if_gate_failed: bool = False
    """Publish although a gate rule failed; the model card says so."""


@frozen
class Mlflow:
    """Mirror metrics to MLflow.

    Its history only grows: a step that is trained again keeps its first numbers there. After a kill the new ones are
    the same; after a rollback (`train.on_bad_step`) they are not, and `metrics.jsonl` and TensorBoard have them.
    """

    tracking_uri: str | None = None
    """Server or `sqlite:///…`; by default `sqlite:///OUTPUT_DIR/mlflow.db`."""
    experiment: str | None = None
    """Experiment name; the recipe's name by default."""


@frozen
class Wandb:
    """Mirror metrics to Weights & Biases. The key is read from WANDB_API_KEY.

    Online its history only grows, as MLflow's; offline files are written anew, and have what `metrics.jsonl` has.
    """

    project: str | None = None
    """Project; the recipe's name by default."""
    mode: Literal["online", "offline"] = "offline"
    """`offline` writes files that `wandb sync` can send later."""


@frozen
class Track:
    """Mirrors of metrics.jsonl, which is always written. Short form: a list of names."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run directory."""
    mlflow: Mlflow | None = None
    wandb: Wandb | None = None


@frozen
class Recipe:
    """One recipe. Sections stand in the order in which they run."""

    name: Annotated[str, Bound(pattern=NAME_PATTERN)]
    """Names the run directory, the experiment and the published model."""
    model: Annotated[Model, Shorthand("name_or_path")]
    data: Data = field(default_factory=Data)
    tuned: str | None = None
    """What an earlier training made of the model: the directory of an adapter in PEFT's format or of a whole model, or
    `run:NAME`. Nothing is trained then: the run begins with merging, and `data.train` stays empty."""
    seed: NonNegativeInt = 42
    """Seed of every random choice."""
    output_dir: str = "outputs"
    """Holds `runs/` and `cache/`."""
    train: Train = field(default_factory=Train)
    merge: Merge = field(default_factory=Merge)
    serve: Serve = field(default_factory=Serve)
    evaluate: Evaluate | None = None
    bench: Bench | None = None
    gate: tuple[str, ...] = ()
    """Rules over the run's numbers: `improved(evaluate.text.exact_match)`, `not_regressed(evaluate.text.bleu, 1.0)`,
    `bench.c16.ttft_p95_ms < 500`, sums and products too. `tunesmith gate RUN --numbers` lists what they can read."""
    report: Report = field(default_factory=Report)
    publish: Publish | None = None
    track: Annotated[Track, Shorthand("*")] = field(default_factory=Track)
