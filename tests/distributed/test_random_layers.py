"""Networks with dropout or with batch normalisation of vectors, on two processes."""

import zoo
from run_folder import assert_same_run

NOTE = "each process its own"


def test_masks_are_each_rank_s_own_and_come_again(two, scenes, tmp_path):
    words = ["--data.path", scenes, "--data.train_fraction", 0.25, "--train.batch_size", 8]
    words += ["--train.epochs", 1, "--optim.schedule", "constant", "--trust", zoo.__name__]
    words += ["--model.factory", "zoo:Dropout", "--run"]
    answers = two.cpprune("train", *words, tmp_path / "one")
    assert NOTE in answers[0]["err"]
    assert NOTE not in answers[1]["err"]
    two.cpprune("train", *words, tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    plain = [word if word != "zoo:Dropout" else "zoo:Plain" for word in words]
    assert NOTE not in two.cpprune("train", *plain, tmp_path / "plain")[0]["err"]


def test_a_short_last_batch_is_tried_on_all_ranks_alike(two, scenes, tmp_path):
    words = ["train", "--data.path", scenes, "--data.train_fraction", 0.25, "--train.epochs", 1]
    words += ["--optim.schedule", "constant", "--trust", "zoo", "--model.factory", "zoo:OneRow"]
    # 32 clips: the last batch has 3, of which the ranks have 1 and 2.
    two.cpprune(*words, "--train.batch_size", 29, "--run", tmp_path / "three")
    # 1 clip has no statistics, on however many processes.
    answers = two.cpprune(*words, "--train.batch_size", 31, "--run", tmp_path / "one", status=2)
    assert all("train.drop_last=true" in answer["err"] for answer in answers)
