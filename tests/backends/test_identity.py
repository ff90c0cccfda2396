"""Whatever changes an answer changes the identity of journals and answer caches.

By introspection: a field that a library or this package adds tomorrow is changed here too, and must give another
identity or stand on the short list.
"""

import dataclasses
import importlib.util
import inspect
import json
import shutil
import sys
from functools import partial

import peft
import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.adapter.files import base_fingerprint, open_adapter
from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.backends.identity import WHERE_AND_HOW_FAST, asks, decision, identity
from lm_eval_lora_drop.backends.identity.loaded import configuration, loaded_model
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.options import LoraDropArgs, parse_model_args
from lm_eval_lora_drop.record import fingerprint
from lm_eval_lora_drop.record.fingerprint import version_changes
from lm_eval_lora_drop.sweep.metric import scoring_of
from lm_eval_lora_drop.variant import parse_boundary, parse_layers
from testing.toy import evaluate, make_task, write_task

ROWS = {
    split: [{"question": f"{split} question {i}?", "answer": f"answer {i}"} for i in range(size)]
    for split, size in (("validation", 4), ("test", 3))
}


def setting(lm):
    """What journals and answer caches of this model are tied to, read as at the beginning of an evaluation."""
    lm._identity = None
    return json.loads(json.dumps(lm._setting()))


def changed(value):
    """Another value than this one, of its type where that can be had."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list() | tuple() | set() | dict():
            return type(value)() if value else {"a": 1} if isinstance(value, dict) else ["a"]
        case _:
            return 3


def load(base, adapter, **model_args):
    common = {"pretrained": str(base), "peft": str(adapter), "device": "cpu", "dtype": "float32", "boundary": "2"}
    return LoraDropLM(**{**common, **model_args})


def in_memory(base, adapter):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return LoraDropLM(pretrained=model, tokenizer=transformers.AutoTokenizer.from_pretrained(base), boundary="2")


# Every name that there is, by introspection.


def builder(args, **model_args):
    about = {"backend": "hf", "adapter": {}, "base": {}, "dtype": "float32", "loaded": {}}
    return {**identity(args, **about, model_args=model_args), **decision(args)}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LoraDropArgs)])
def test_every_argument_of_ours_counts_or_is_on_the_list(field):
    args, _ = parse_model_args({"boundary": "auto"}, known=())
    other = {"boundary": parse_boundary("default"), "layers": parse_layers("0-1")}
    new = other[field] if field in other else changed(getattr(args, field))
    same = builder(args) == builder(dataclasses.replace(args, **{field: new}))
    assert same == (field in WHERE_AND_HOW_FAST)


@pytest.mark.parametrize(
    "name", [name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "kwargs")]
)
def test_every_argument_of_the_harness_counts_or_is_on_the_list(name):
    args, _ = parse_model_args({}, known=())
    default = inspect.signature(HFLM.__init__).parameters[name].default
    same = builder(args, **{name: default}) == builder(args, **{name: changed(default)})
    assert same == (name in WHERE_AND_HOW_FAST)


def test_the_list_is_short_and_names_arguments_that_there_are():
    ours = {field.name for field in dataclasses.fields(LoraDropArgs)}
    assert len(WHERE_AND_HOW_FAST) <= 12
    assert (ours | set(inspect.signature(HFLM.__init__).parameters)).issuperset(WHERE_AND_HOW_FAST)


def test_every_field_of_an_adapters_configuration_counts(tiny_base, tiny_adapter):
    lm = in_memory(tiny_base, tiny_adapter)
    config = lm.model.peft_config["default"]
    before, missed = setting(lm), []
    for field in dataclasses.fields(peft.LoraConfig):
        if not hasattr(config, field.name):
            continue
        value = getattr(config, field.name)
        setattr(config, field.name, changed(value))
        missed += [field.name] if setting(lm) == before else []
        setattr(config, field.name, value)
    # Not written down by PEFT itself: how an adapter is loaded, not what it is.
    assert missed == ["runtime_config"]
    assert setting(lm) == before


@pytest.mark.parametrize("which", ["generation_config", "config"])
def test_every_field_of_a_configuration_counts(tiny_base, tiny_adapter, which):
    lm = in_memory(tiny_base, tiny_adapter)
    config = getattr(lm.model.get_base_model(), which)
    before = configuration(config)
    missed = []
    for name, value in list(vars(config).items()):
        vars(config)[name] = changed(value)
        missed += [name] if configuration(config) == before else []
        vars(config)[name] = value
    assert set(missed) <= {"_name_or_path", "transformers_version", "_original_object_hash", "_from_model_config"}


def test_every_switch_of_an_adapters_layer_counts(tiny_base, tiny_adapter):
    lm = in_memory(tiny_base, tiny_adapter)
    layer = next(m for m in lm.model.modules() if isinstance(m, peft.tuners.lora.LoraLayer))
    before = setting(lm)
    for name, value in list(vars(layer).items()):
        if name.startswith("_") or name == "training":
            continue
        new = (
            {key: changed(part) for key, part in value.items()} or {"a": 1}
            if isinstance(value, dict)
            else changed(value)
        )
        vars(layer)[name] = new
        if name == "merged_adapters":
            with pytest.raises(AdapterError, match="merged"):
                setting(lm)
        else:
            assert setting(lm) != before, name
        vars(layer)[name] = value
    assert setting(lm) == before


def write_edit(file):
    """Change a file without making it unreadable."""
    if file.suffix != ".json":
        file.write_text(file.read_text() + "{# edited #}")
        return
    content = json.loads(file.read_text())
    if file.name == "tokenizer.json":
        content["model"]["merges"] = content["model"]["merges"][:-1]
    elif file.name == "special_tokens_map.json":
        content["eos_token"] = "<s>"
    elif file.name == "added_tokens.json":
        content["<new>"] = 291
    else:
        content |= {"eos_token": "<s>"} if "tokenizer" in file.name else {"eos_token_id": 1}
    file.write_text(json.dumps(content))


TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"]


@pytest.mark.parametrize(("name", "apart"), [*((name, False) for name in TOKENIZER_FILES), ("tokenizer.json", True)])
def test_a_tokenizer_file_that_is_edited_counts(tiny_base, tiny_adapter, tmp_path, name, apart):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    if name == "special_tokens_map.json":  # older tokenizers keep these in a file of their own
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / name).write_text(json.dumps({"eos_token": settings.pop("eos_token")}))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    more = {"tokenizer": str(folder)} if apart else {}
    base = tiny_base if apart else folder
    before = setting(load(base, tiny_adapter, **more))
    assert setting(load(base, tiny_adapter, **more)) == before
    write_edit(folder / name)
    assert setting(load(base, tiny_adapter, **more)) != before


def test_what_a_training_leaves_beside_the_weights_does_not_count(tiny_base, tiny_adapter, tmp_path):
    base, adapter = (shutil.copytree(one, tmp_path / one.name) for one in (tiny_base, tiny_adapter))
    before = base_fingerprint(str(base), None), open_adapter(str(adapter)).fingerprint()
    for name in ("README.md", "training_args.bin", "optimizer.bin", "scheduler.bin", "tokenizer_old.json", "log.json"):
        for folder in (base, adapter):
            (folder / name).write_bytes(b"x")
    assert (base_fingerprint(str(base), None), open_adapter(str(adapter)).fingerprint()) == before
    (base / "code.py").write_bytes(b"x")
    assert base_fingerprint(str(base), None) != before[0]


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_configuration_file_that_is_edited_counts(tiny_base, tiny_adapter, tmp_path, name):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    before = setting(load(base, tiny_adapter))
    write_edit(base / name)
    assert setting(load(base, tiny_adapter)) != before


# A model that came in memory, or was edited there.


def train(lm):
    parameter = next(p for name, p in lm.model.named_parameters() if "lora_B" in name)
    parameter.requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    tokens = lm.tokenizer("The model", return_tensors="pt")
    lm.model(**tokens, labels=tokens["input_ids"]).loss.backward()
    optimizer.step()


def swap_rows(lm):
    weight = lm.model.get_base_model().model.embed_tokens.weight
    weight.data = weight.data.roll(1, dims=0)


EDITS = {
    "the adapter is trained on": train,
    "a weight of the base, by .data": lambda lm: lm.model.get_base_model().model.norm.weight.data.add_(1e-3),
    "rows of the embedding change places": swap_rows,
    "a scaling": lambda lm: next(m for m in lm.model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)).set_scale(
        "default", 3.0
    ),
    "rsLoRA": lambda lm: setattr(lm.model.peft_config["default"], "use_rslora", True),
    "the attention's implementation": lambda lm: lm.model.get_base_model().set_attn_implementation("eager"),
    "a penalty": lambda lm: (
        setattr(lm.model.generation_config, "repetition_penalty", 1.5)
        or setattr(lm.model.get_base_model().generation_config, "repetition_penalty", 1.5)
    ),
    "rotary base": lambda lm: lm.model.get_base_model().config.rope_parameters.update(rope_theta=5.0),
    "a token that is added": lambda lm: lm.tokenizer.add_tokens(["<new>"]),
    "the chat template": lambda lm: setattr(lm.tokenizer, "chat_template", "{{ messages }}"),
    "dropout is on": lambda lm: lm.model.train(),
    "the precision of products": lambda _: torch.set_float32_matmul_precision("medium"),
}


@pytest.mark.parametrize(
    ("edit", "how"),
    [
        *((edit, "in memory") for edit in EDITS),
        *((edit, "from folders") for edit in ("the adapter is trained on", "a scaling", "dropout is on")),
    ],
)
def test_an_edit_in_memory_counts(tiny_base, tiny_adapter, edit, how, request):
    request.addfinalizer(lambda: torch.set_float32_matmul_precision("highest"))
    lm = (in_memory if how == "in memory" else load)(tiny_base, tiny_adapter)
    before = setting(lm)
    assert setting(lm) == before
    EDITS[edit](lm)
    # A model that was handed over is evaluated without dropout, whatever mode its user left it in.
    assert (setting(lm) == before) == (how == "in memory" and edit == "dropout is on")


def test_what_an_evaluation_does_to_a_model_does_not_count(make, tmp_path):
    lm = make(boundary="auto", sweep_limit=3, merge=True)
    before = setting(lm)
    evaluate(lm, apply_chat_template=True)
    assert setting(lm) == before


def test_another_class_of_the_users_own_counts(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    code = tmp_path / "own_layers.py"
    lm = in_memory(tiny_base, tiny_adapter)
    found = []
    for factor in (1, 2):
        code.write_text(
            f"import torch\n\nclass Own(torch.nn.Identity):\n    def forward(self, x):\n        return x * {factor}\n"
        )
        spec = importlib.util.spec_from_file_location("own_layers", code)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, "own_layers", module)
        lm.model.get_base_model().model.own = module.Own()
        found.append(loaded_model(lm.model, lm.tokenizer)["code"])
    assert found[0] != found[1]


def test_weights_trained_between_two_evaluations_by_one_object_are_swept_anew(tiny_base, tiny_adapter, tmp_path, make):
    lm = make(boundary="auto", sweep_limit=3)
    evaluate(lm)
    train(lm)
    again = evaluate(lm)["samples"]
    assert len(list((tmp_path / "sweeps").glob("*.jsonl"))) == 2
    assert again


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda model: model.base_model.disable_adapter_layers(), "switched off in 28 of 28 modules"),
        (lambda model: model.merge_adapter(), "unmerge_adapter"),
    ],
)
def test_an_adapter_that_is_switched_off_or_merged_between_two_evaluations_is_refused(make, edit, message):
    lm = make(boundary="2")
    evaluate(lm)
    edit(lm.model)
    with pytest.raises(AdapterError, match=message):
        evaluate(lm)


# The list: answers are equal under two values of each name.

EQUAL = {
    "all at once": (
        {"evaluate": "chosen", "device": "cpu", "batch_size": 1, "sweep_engine": "plain"},
        {
            "evaluate": "chosen+full+base",
            # Another device where there is one.
            "device": "cuda:0" if torch.cuda.is_available() else "cpu:0",
            "batch_size": 3,
            "sweep_engine": "shared",
            "sweep_batch_size": 2,
            "sweep_dir": "other",
            "sweep_log": "none",
        },
    ),
    "a batch size that is found": (
        {"batch_size": "auto", "max_batch_size": 1},
        {"batch_size": "auto", "max_batch_size": 3},
    ),
}


def test_every_name_on_the_list_is_tried():
    assert {name for _, other in EQUAL.values() for name in other} == WHERE_AND_HOW_FAST - {"sweep_dry_run"}


@pytest.mark.parametrize("two", EQUAL)
def test_answers_are_equal_under_two_values_of_the_names_on_the_list(
    tiny_base, tiny_adapter, tmp_path, monkeypatch, two
):
    monkeypatch.chdir(tmp_path)
    answers = []
    for number, given in enumerate(EQUAL[two]):
        common = {"boundary": "auto", "batch_size": 2, "sweep_dir": str(tmp_path / str(number))}
        lm = load(tiny_base, tiny_adapter, **{**common, **given})
        results = evaluate(lm, make_task(splits=ROWS))
        # What else the test split is answered with stands in a journal of its own.
        files = [file for file in lm.args.sweep_dir.glob("*.jsonl") if ".test-" not in file.name]
        lines = [line for file in files for line in file.read_text().splitlines()[1:]]
        answered = {(x["variant"], x["doc_id"]): x["responses"] for x in map(json.loads, lines)}
        answers.append((results["samples"], answered))
    assert answers[0] == answers[1]
    assert len(answers[0][1]) == 5 * 4


def test_a_dry_run_answers_nothing(make, tmp_path):
    with pytest.raises(SystemExit):
        evaluate(make(boundary="auto", sweep_dry_run=True))
    assert list(tmp_path.rglob("*.jsonl")) == []


# What chooses the questions leaves the answers alone: the journal is read again under another value.

ASKED = {
    "sweep_candidates": "leave_one_out",
    "sweep_boundaries": "1-3",
    "sweep_limit": 3,
    "sweep_task": "a task",
    "sweep_metric": "reference_loglikelihood",
    "sweep_strategy": "racing",
    "sweep_select": "one_se",
    "sweep_jointly": True,
    "sweep_seed": 5,
    "sweep_size": 2,
    "sweep_also": "a task",
}


def journaled(base, adapter, folder, **given):
    """What a sweep's journal holds."""
    lm = load(base, adapter, boundary="auto", sweep_dir=str(folder), batch_size=2, **given)
    evaluate(lm, make_task(splits=ROWS))
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()[1:]]
    return {(x["variant"], x["key"]): x["responses"] for x in map(json.loads, lines)}


@pytest.fixture(scope="module")
def usual(tiny_base, tiny_adapter, tmp_path_factory):
    return journaled(tiny_base, tiny_adapter, tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize(
    "name",
    [
        field.name
        for field in dataclasses.fields(LoraDropArgs)
        if asks(field.name) and field.name not in {"boundary", "layers", *WHERE_AND_HOW_FAST}
    ],
)
def test_an_argument_that_chooses_the_questions_does_not_change_an_answer(
    tiny_base, tiny_adapter, tmp_path, usual, name
):
    other = write_task(tmp_path, "other", ROWS, doc_to_text="Say: {{question}}")
    value = str(other) if ASKED[name] == "a task" else ASKED[name]
    more = {"sweep_candidates": "random"} if name == "sweep_size" else {}
    found = journaled(tiny_base, tiny_adapter, tmp_path / "sweeps", **more, **{name: value})
    both = usual.keys() & found.keys()
    assert both or name == "sweep_metric"
    assert [usual[one] for one in both] == [found[one] for one in both]


# Versions.


@pytest.mark.parametrize(
    ("then", "now", "outcome"),
    [
        ("2.13.0", "2.13.0", ([], [])),
        ("2.13.0+cpu", "2.13.1+cu128", ([], [])),
        ("5.23.0", "5.24.0", (["x 5.23.0, now 5.24.0"], [])),
        ("5.24", "4.57.1", ([], ["x 5.24, now 4.57.1"])),
        ("0.21.2", "0.21.3", (["x 0.21.2, now 0.21.3"], [])),
        ("0.21.2", "0.22.0", ([], ["x 0.21.2, now 0.22.0"])),
        ("0.9", "1.0", ([], ["x 0.9, now 1.0"])),
        ("main", "5.1", (["x main, now 5.1"], [])),
    ],
)
def test_versions(then, now, outcome):
    assert version_changes({"x": then, "here": "1"}, {"x": now, "there": "2"}) == outcome


@pytest.mark.parametrize(("release", "refused"), [("4.0.0", True), ("5.999.0", False)])
def test_another_release_of_a_library_is_said_or_refused(make, tmp_path, monkeypatch, caplog, release, refused):
    cache = str(tmp_path / "answers")
    evaluate(make(boundary="auto", sweep_limit=2), use_cache=cache)
    real = fingerprint.version
    monkeypatch.setattr(fingerprint, "version", lambda name: release if name == "transformers" else real(name))
    for way in ({}, {"use_cache": cache}):
        caplog.clear()
        if refused:
            with pytest.raises(ArgumentError, match=r"transformers .*now 4\.0\.0"):
                evaluate(make(boundary="auto", sweep_limit=2), **way)
        else:
            evaluate(make(boundary="auto", sweep_limit=2), **way)
            assert f"now {release}" in caplog.text


# Answer caches and request caches.


def test_an_answer_cache_of_another_setting_is_refused(make, tmp_path):
    cache = str(tmp_path / "answers")
    evaluate(make(boundary="auto", sweep_limit=2), use_cache=cache)
    for given in ({"merge": True}, {"sweep_limit": 3}, {"max_length": 200}):
        with pytest.raises(ArgumentError, match=next(iter(given))):
            evaluate(make(boundary="auto", **{"sweep_limit": 2, **given}), use_cache=cache)


def test_an_answer_cache_under_another_sweep_task_is_refused(make, tmp_path):
    cache, task = str(tmp_path / "answers"), lambda: make_task(splits={"test": ROWS["test"]})
    names = [str(write_task(tmp_path / name, name, ROWS)) for name in ("one", "two")]
    evaluate(make(boundary="auto", sweep_task=names[0]), task(), use_cache=cache)
    with pytest.raises(ArgumentError, match="sweep_task was"):
        evaluate(make(boundary="auto", sweep_task=names[1]), task(), use_cache=cache)


def test_a_choice_by_another_metric_is_not_recalled(make, tmp_path):
    """The function in the task's own file says something else now: its earlier choice was taken for today's."""
    cache, code, found = str(tmp_path / "answers"), tmp_path / "utils.py", []
    for sign in ("", "-"):
        code.write_text(f"def score(doc, results):\n    return {{'length': {sign}len(results[0])}}\n")
        spec = importlib.util.spec_from_file_location("utils", code)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        metrics = [{"metric": "length", "aggregation": "mean", "higher_is_better": True}]
        task = make_task(splits=ROWS, process_results=module.score, metric_list=metrics)
        found.append(scoring_of(task))
        if sign:
            with pytest.raises(ArgumentError, match="its metric have changed"):
                evaluate(make(boundary="auto", sweep_select="best"), task, use_cache=cache)
        else:
            evaluate(make(boundary="auto", sweep_select="best"), task, use_cache=cache)
    assert found[0] != found[1]


@pytest.mark.parametrize("kind", ["partial's argument", "partial's code", "another function", "a callable object"])
def test_what_scores_is_part_of_the_choice(kind, tmp_path):
    """However the task's function is made: its code, its bound arguments, and which function of the file it is."""
    code, found = tmp_path / "utils.py", []
    for which in (0, 1):
        sign = "-" if which and kind in ("partial's code", "a callable object") else ""
        code.write_text(
            f"def one(doc, results, by=1):\n    return {{'length': {sign}by * len(results[0])}}\n\n\n"
            "def two(doc, results):\n    return {'length': 0}\n\n\n"
            f"class Scorer:\n    def __call__(self, doc, results):\n        return {{'length': {sign}1}}\n"
        )
        spec = importlib.util.spec_from_file_location("utils", code)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        score = {
            "partial's argument": partial(module.one, by=1 + which),
            "partial's code": partial(module.one, by=1),
            "another function": (module.one, module.two)[which],
            "a callable object": module.Scorer(),
        }[kind]
        metrics = [{"metric": "length", "aggregation": "mean", "higher_is_better": True}]
        task = make_task(splits=ROWS, metric_list=metrics)
        task.config.process_results = score
        found.append(scoring_of(task))
        assert scoring_of(task) == found[-1]
        assert " at 0x" not in str(found[-1])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "how",
    [
        "import own_rules as r",
        "from own_rules import SIGN",
        "import own_package.rules as r",
        "from own_package import rules as r",
        "if 0:\n    from .own_rules import SIGN\nfrom own_rules import SIGN",
        "if 0:\n    from ..................... import nothing\nimport own_rules as r",
    ],
)
def test_what_the_scoring_file_imports_is_part_of_the_choice(how, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    rules, found = tmp_path / ("own_package/rules.py" if "package" in how else "own_rules.py"), []
    code = tmp_path / "own_scoring.py"
    code.write_text(
        f"{how}\n\n\ndef score(doc, results):\n    return {{'length': {'' if 'SIGN' in how else 'r.'}SIGN}}\n"
    )
    for sign in (1, 1, -1):
        rules.write_text(f"SIGN = {sign}\n")
        for name in ("own_rules", "own_package.rules", "own_package"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        spec = importlib.util.spec_from_file_location("own_scoring", code)  # as lm-eval loads `!function`
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        task = make_task(splits=ROWS)
        task.config.process_results = module.score
        found.append(scoring_of(task))
    assert found[0] == found[1] != found[2]


def test_answers_under_one_choice_are_not_recorded_as_anothers(make, tmp_path):
    """The same arguments, and other validation documents: they choose otherwise, and the answers are there already."""
    cache = str(tmp_path / "answers")

    def task(sign):
        rows = [{**row, "answer": str(sign)} for row in ROWS["validation"]]
        return make_task(
            splits={**ROWS, "validation": rows},
            process_results=lambda doc, results: {"length": len(results[0]) * float(doc["answer"])},
            metric_list=[{"metric": "length", "aggregation": "mean", "higher_is_better": True}],
        )

    def swept(sign, **way):
        task_of_these = task(sign)
        task_of_these.dataset["test"] = task_of_these.dataset["test"].map(lambda _: {"answer": "1"})
        lm = make(boundary="auto", sweep_select="best")
        return evaluate(lm, task_of_these, **way)["config"]["lora_drop"]["tasks"]["toy"]["variant"]

    first = swept(1, use_cache=cache)
    assert swept(-1) != first
    with pytest.raises(ArgumentError, match=f"under the variant {first}, and now"):
        swept(-1, use_cache=cache)


@pytest.mark.parametrize(
    "config",
    [
        {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 2, "do_sample": False}},
        {"doc_to_text": "Q: {{question}}"},
        {"repeats": 2},
    ],
    ids=["generation arguments", "prompt", "repeats"],
)
def test_cached_requests_of_another_making_are_refused(make, tmp_path, monkeypatch, config):
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    shots = {"num_fewshot": 2}
    lm = make(boundary=2)
    first = evaluate(lm, make_task(**shots), cache_requests=True)["samples"]
    assert evaluate(lm, make_task(**shots), cache_requests=True)["samples"] == first
    with pytest.raises(ArgumentError, match="cache_requests refresh"):
        evaluate(lm, make_task(**shots, **config), cache_requests=True)
    evaluate(lm, make_task(**shots, **config), cache_requests=True, rewrite_requests_cache=True)
