"""Small studies of the demo's task, for the tiny model."""

import json

import yaml

METADATA = {"train_documents": 8, "validation_documents": 6, "test_documents": 5}
TRAINING = {"epochs": 1, "batch_size": 4, "learning_rate": 0.05, "max_length": 200, "precision": "float32"}


def study_of(base, folder, *, metadata=METADATA, training=TRAINING, **parts):
    """What a study's file holds, with results in `folder` unless `parts` say otherwise."""
    return {
        "model_args": {
            "pretrained": str(base), "dtype": "float32", "device": "cpu", "sweep_limit": 4,
            "sweep_dir": str(folder / "sweeps"), "sweep_metric": "reference_loglikelihood",
        },
        "output": str(folder / "out"),
        "tasks": {
            "problems": {
                "task": "lora_drop_demo", "metadata": metadata, "training": training,
                "evaluation": {"bootstrap_iters": 0, "batch_size": 4, "gen_kwargs": {"max_gen_toks": 6}},
            }
        },
        **parts,
    }  # fmt: skip


def table_of(output):
    """The table of a finished study, without what tells two runs of it apart."""
    table = json.loads((output / "study.json").read_text())
    return [{key: entry[key] for key in entry if key not in ("seconds", "model_args")} for entry in table]


def write_study(folder, config):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
