"""What a training may read, and that it reads exactly what an evaluation asks."""

import lm_eval
import pytest
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.train.documents import choose_documents
from lm_eval_lora_drop.train.examples import chat_template, example_builder, load_binding
from lm_eval_lora_drop.train.settings import TaskSettings
from testing.tokenizers_ import byte_level
from testing.toy import make_task

PLAIN = {"system_instruction": None, "apply_chat_template": False, "fewshot_as_multiturn": False, "chat_template": None}


def rows(*questions):
    return [{"question": text, "answer": f"answer to {text}"} for text in questions]


def choose(task, **given):
    settings = {"limit": None, "seed": 0, "hold_out": 0, **given}
    return choose_documents(Binding(task, PLAIN), **settings)


def questions(found):
    return {doc["question"] for _, doc in found.chosen}


class Recorder(LM):
    """Notes what the harness asks."""

    tokenizer_name = "recorder"

    def __init__(self, tokenizer=None):
        super().__init__()
        self.asked = []
        self.tokenizer = tokenizer

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args[0] for request in requests]
        return ["" for _ in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [(-float(request.idx), False) for request in requests]

    loglikelihood_rolling = generate_until

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return chat_template(self.tokenizer)(chat_history, add_generation_prompt)


def test_no_document_of_an_evaluated_split():
    """Test documents in other case, spacing and punctuation, and validation documents, are left out; so are
    repetitions; the rest is trained on, once."""
    task = make_task(
        splits={
            "train": rows("one", "TWO!", "three", " four ", "three", "five", "ｓｉｘ"),
            "validation": rows("Four"),
            "test": rows("two", "six", "nine"),
        }
    )
    found = choose(task)
    assert questions(found) == {"one", "three", "five"}
    assert (found.leaked, found.repeated, found.held_out, found.split) == (3, 1, 0, "train")


def test_a_sweep_that_draws_from_the_training_split_keeps_its_documents():
    """Without a validation split of its own the sweep draws from the training split: none of what it draws by default
    is trained on, nor anything that reads the same."""
    train = rows(*(f"question {index}" for index in range(40)))
    task = make_task(splits={"train": [*train, *rows("Question 7", "question 8!")], "test": rows("t")})
    binding = Binding(task, PLAIN)
    for hold_out in (1, 10, 30):
        swept = validation.draw(binding, hold_out, 0).documents
        found = choose(task, hold_out=hold_out, seed=5)
        assert found.held_out >= hold_out
        assert not {document.doc_id for document in swept} & {index for index, _ in found.chosen}
        heard = {document.doc["question"].casefold().strip("!") for document in swept}
        assert not heard & {text.casefold().strip("!") for text in questions(found)}
        assert len(found.chosen) + found.repeated + found.leaked + found.held_out == 42
    assert len(choose(task, hold_out=0).chosen) == 40


def test_draws_continue_and_depend_on_the_data_seed_alone():
    task = make_task()
    long, short, other = (choose(task, limit=limit, seed=seed).chosen for limit, seed in ((9, 0), (4, 0), (9, 1)))
    assert long[:4] == short
    assert long != other
    assert len(long) == 9


def test_documents_that_do_not_fit_are_replaced_and_counted():
    found = choose(make_task(), limit=5, fits=lambda index, _: index % 2 == 0)
    assert len(found.chosen) == 5
    assert all(index % 2 == 0 for index, _ in found.chosen)
    assert found.unfit > 0


@pytest.mark.parametrize(
    ("config", "splits", "message"),
    [
        ({"training_split": None}, {"test": rows("a")}, "has no training split"),
        ({"test_split": "train"}, {"train": rows("a", "b"), "validation": rows("c")}, "evaluated on split 'train'"),
        ({}, {"train": rows("a"), "validation": rows("b"), "test": rows("A")}, "no document remains for training"),
    ],
)
def test_tasks_that_cannot_be_trained_on(config, splits, message):
    with pytest.raises(ArgumentError, match=message):
        choose(make_task(splits=splits, **config))


def _examples(task, arguments):
    docs = list(enumerate(task.training_docs()))
    with example_builder(Binding(task, arguments), 0) as build:
        return [build(index, doc) for index, doc in docs]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("prefix", [None, "So:", "So: "])
def test_prompts_are_those_of_an_evaluation(chat, prefix):
    """The same rows as test split of an evaluation by the harness: what it asks a model is what is trained on."""
    given = rows("Is it?", "What, then?", "你好吗")
    extra = {
        "doc_to_text": "Q: {{question}}\nA:",
        "description": "Answer.\n\n",
        **({"gen_prefix": prefix} if prefix else {}),
    }
    tested = make_task(splits={"test": given}, training_split=None, validation_split=None, **extra)
    trained = make_task(splits={"train": given, "validation": rows("v"), "test": rows("t")}, **extra)
    model = Recorder(byte_level(prefix_space=False))
    lm_eval.simple_evaluate(
        model=model,
        tasks=[tested],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=chat,
        system_instruction="Be short.",
        bootstrap_iters=0,
    )
    template = chat_template(model.tokenizer) if chat else None
    arguments = {**PLAIN, "apply_chat_template": chat, "chat_template": template, "system_instruction": "Be short."}
    examples = _examples(trained, arguments)
    assert [example.prompt for example in examples] == model.asked
    # A prefix of the answer ends the prompt; without one a chat's answer begins its turn.
    delimited = prefix == "So:" if prefix else not chat
    assert [example.answer for example in examples] == [f"{' ' * delimited}{row['answer']}" for row in given]


def test_choices_are_trained_as_they_are_scored():
    """Multiple choice: prompt and the right choice, as the harness sends them to be scored."""
    given = [
        {"question": "Sky?", "choices": ["red", "blue"], "answer": 1},
        {"question": "Sun?", "choices": ["hot", "hotter"], "answer": 0},
    ]
    extra = {
        "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    tested = make_task(
        splits={"test": given}, training_split=None, validation_split=None, generation_kwargs=None, **extra
    )
    trained = make_task(splits={"train": given, "test": given[:1]}, generation_kwargs=None, **extra)
    model = Recorder()
    lm_eval.simple_evaluate(
        model=model, tasks=[tested], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
    )
    right = [("Sky?", " blue"), ("Sun?", " hot")]
    assert set(right) < set(model.asked)
    examples = _examples(trained, PLAIN)
    assert [(example.prompt, example.answer) for example in examples] == right
    assert not any(example.generates for example in examples)


def test_choices_in_the_context_and_unconditional_scores():
    """Winogrande's form, where the choice stands in the prompt and the "text" is the right one's index; and
    acc_mutual_info, which scores every choice without a prompt too."""
    extra = {"output_type": "multiple_choice", "generation_kwargs": None, "doc_to_choice": "{{choices}}"}
    accuracy = {"aggregation": "mean", "higher_is_better": True}
    given = [{"right": right, "choices": ["He", "She"], "end": "sang."} for right in (0, 1)]
    task = make_task(
        splits={"train": given, "test": given[:1]}, doc_to_text="{{right}}", doc_to_target="{{end}}",
        metric_list=[{"metric": "acc", **accuracy}], **extra,
    )  # fmt: skip
    assert [(one.prompt, one.answer) for one in _examples(task, PLAIN)] == [("He", " sang."), ("She", " sang.")]
    given = [{"question": "Sky?", "choices": ["red", "blue"], "answer": 1}]
    task = make_task(
        splits={"train": given, "test": given}, doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc", **accuracy}, {"metric": "acc_mutual_info", **accuracy}], **extra,
    )  # fmt: skip
    assert [(one.prompt, one.answer) for one in _examples(task, PLAIN)] == [("Sky?", " blue")]


def test_a_text_without_question_cannot_be_trained_on():
    perplexity = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    task = make_task(
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        generation_kwargs=None,
        metric_list=[perplexity],
    )
    with pytest.raises(ArgumentError, match="no prompt and no answer"):
        _examples(task, PLAIN)


def test_fewshot_examples_never_show_the_document_itself():
    task = make_task(fewshot_split="train", num_fewshot=3)
    for example in _examples(task, PLAIN):
        assert example.prompt.count(example.prompt.rsplit("\n\n", 1)[-1]) == 1
        assert example.prompt.count("answer") == 3


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("lora_drop_samsun", "Did you mean lora_drop_samsum"),
        ("lora_drop_all", "is a group"),
        ("", "is not known"),
    ],
)
def test_unknown_task(task, message):
    with pytest.raises(ArgumentError, match=message):
        load_binding(TaskSettings(task=task))


def test_chat_template_is_needed():
    with pytest.raises(ArgumentError, match="has none"):
        load_binding(
            TaskSettings(task="lora_drop_demo", apply_chat_template=True),
            byte_level(prefix_space=False, chat_template=None),
        )


def test_nearly_the_same_is_left_out_too():
    """A test document with a word changed, and one of the validation split: not trained on; the others are."""
    text = "Hannah: Hey, do you have Betty's number? Amanda: Let me see. Sorry, can't find it. Hannah: I'll ask Larry."
    other = "Eric: What a machine! Rob: That's great! Eric: I know, it shows how we see them. Rob: It's really funny!"
    train = rows(
        text,
        other,
        "Lenny: Can you help me with a thing? Bob: Sure, what is it? Lenny: Which of the two shall I take?",
    )
    splits = {
        "train": train,
        "validation": rows(other.replace("funny", "silly")),
        "test": rows(text.replace("Sorry", "Nope")),
    }
    found = choose(make_task(splits=splits))
    assert questions(found) == {train[2]["question"]}
    assert found.leaked == 2


@pytest.mark.data
def test_samsum_known_repetitions(shared_data):
    """Real data: of 3,000 drawn dialogues none is, letters and digits compared, one of test or validation."""
    binding = load_binding(TaskSettings(task="lora_drop_samsum", metadata={"data_dir": str(shared_data / "samsum")}))
    found = choose_documents(binding, limit=3000, seed=0, hold_out=200)
    assert found.leaked > 0
    assert len(found.chosen) == 3000
    words = lambda doc: "".join(char for char in doc["dialogue"].casefold() if char.isalnum())  # noqa: E731
    evaluated = {words(doc) for doc in binding.task.eval_docs} | {words(doc) for doc in binding.task.validation_docs()}
    assert not evaluated & {words(doc) for _, doc in found.chosen}
