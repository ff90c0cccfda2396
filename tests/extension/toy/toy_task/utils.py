"""Documents and metric of the toy task."""

import datasets


def load(**_):
    splits = {
        split: datasets.Dataset.from_list(
            [{"question": f"{word} number {i} is {i * i} of what?", "answer": "the text"} for i in range(4)]
        )
        for split, word in (("train", "Apple"), ("test", "Boat"))
    }
    return datasets.DatasetDict(splits)


def process_results(doc, results):
    return {"answer_letters": sum(sign.isalpha() for sign in results[0])}
