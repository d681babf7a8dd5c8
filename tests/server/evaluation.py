"""Evaluates a server with lm_eval as its users do: `local-completions`, whose tokenizer is the server's.

    python evaluation.py ADDRESS QUESTIONS

QUESTIONS is a file with lines of JSON: {"context": "...", "choices": ["...", ...], "answer": 0}. Prints, for each question, a line of JSON with the
log likelihood of each choice and whether it is the one that the model would choose.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval

ADDRESS, QUESTIONS = sys.argv[1:3]
TASK = {
    "task": "questions",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": QUESTIONS}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}

results = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={"model": "address-4m", "base_url": ADDRESS + "/v1/completions", "num_concurrent": 3, "max_retries": 1},
    tasks=[TASK],
    bootstrap_iters=0,
)
for sample in sorted(results["samples"]["questions"], key=lambda sample: sample["doc_id"]):
    print(json.dumps([[float(likelihood), greedy] for likelihood, greedy in sample["filtered_resps"]]))
