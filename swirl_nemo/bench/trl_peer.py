"""TRL's GRPOTrainer doing the bench's step: what a user would pick instead. Run by `swirl bench --against-trl PYTHON`.

    PYTHON trl_peer.py TASK_JSON FOLDER     # in an environment with torch 2.13, trl 1.16 and transformers 5.23

Reads a line, does a step, writes its seconds as a line of JSON. Nothing of TRL is replaced: methods are wrapped with
timers. The frozen counterpart scores as TRL's users would write it: one batched forward, logits at the action alone.
"""

import json
import os
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

TASK = json.loads(Path(sys.argv[1]).read_text())
os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
os.environ["OMP_NUM_THREADS"] = str(TASK["threads"])
warnings.filterwarnings("ignore")
ANSWERS = os.fdopen(os.dup(1), "w")  # what libraries print must not get between
os.dup2(2, 1)

import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

transformers.logging.set_verbosity_error()
torch.set_num_threads(TASK["threads"])
spent: dict[str, float] = defaultdict(float)


def timed(owner, name: str, part) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        start = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent[part(*arguments) if callable(part) else part] += time.perf_counter() - start

    setattr(owner, name, wrapped)


class Turns(TrainerCallback):
    """A step begins when a line is read, and the run ends where there is none."""

    def on_step_begin(self, args, state, control, **options):
        if not sys.stdin.readline():
            os._exit(0)
        spent.clear()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **options):
        parts = {part: spent[part] for part in ("generate", "reference", "reward", "train")}
        ANSWERS.write(json.dumps(parts | {"step": time.perf_counter() - self.start}) + "\n")
        ANSWERS.flush()


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TASK["fwm"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(TASK["fwm"], dtype=torch.float32)
    frozen = AutoModelForCausalLM.from_pretrained(TASK["idm"], dtype=torch.float32).eval().requires_grad_(False)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = [] if tokenizer.bos_token_id is None or tokenizer("")["input_ids"] else [tokenizer.bos_token_id]
    bos = tokenizer.bos_token if start else ""
    rows = [{"prompt": bos + row["x"] + row["z"], "state": row["x"], "action": row["z"]} for row in TASK["rows"]]
    length = len(tokenizer(rows[0]["prompt"])["input_ids"])
    assert length == TASK["prompt_len"], (length, TASK["prompt_len"])
    instruction = ids(TASK["instruction"])

    def reward(prompts, completions, completion_ids, state, action, **_):
        targets = [[*ids(text), tokenizer.eos_token_id] for text in action]
        known = zip(state, completion_ids, targets, strict=True)
        tokens = torch.tensor([[*start, *ids(x), *y, *instruction, *z] for x, y, z in known])
        count = len(targets[0])
        with torch.no_grad():
            logits = frozen(input_ids=tokens, use_cache=False, logits_to_keep=count + 1).logits[:, :-1]
        chosen = logits.log_softmax(-1).gather(2, tokens[:, -count:, None])[..., 0]
        return chosen.mean(1).clamp(min=-10.0).tolist()

    config = GRPOConfig(
        output_dir=sys.argv[2],
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        max_steps=TASK["steps"] + 2,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        per_device_train_batch_size=TASK["prompts"] * TASK["group"],
        num_generations=TASK["group"],
        max_completion_length=TASK["completion_len"],
        generation_kwargs={"min_new_tokens": TASK["completion_len"]},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=TASK["kl_beta"],
        gradient_checkpointing=False,
        scale_rewards="group",
        loss_type="grpo",
        dataloader_pin_memory=False,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows + rows[: TASK["prompts"]]),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    timed(trainer.model, "generate", "generate")
    timed(trainer, "_calculate_rewards", "reward")
    timed(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda model, *_: "reference" if model is trainer.ref_model else "policy",
    )
    timed(trainer, "_compute_loss", "train")
    timed(trainer.accelerator, "backward", "train")
    timed(trainer.accelerator, "clip_grad_norm_", "train")
    create = trainer.create_optimizer

    def create_optimizer(*arguments, **options):
        optimizer = create(*arguments, **options)
        timed(trainer.optimizer, "step", "train")
        return optimizer

    trainer.create_optimizer = create_optimizer
    trainer.train()


if __name__ == "__main__":
    main()
