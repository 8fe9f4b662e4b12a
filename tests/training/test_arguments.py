"""One device a process."""

from transformers import TrainingArguments

from fewfold.training.arguments import one_device


def test_a_process_keeps_to_one_device(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    args._n_gpu = 4
    assert one_device(args) is args
    assert args._n_gpu == 1
    assert args.train_batch_size == args.per_device_train_batch_size
