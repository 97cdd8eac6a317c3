"""Training: manifests to checkpoint. Needs the `train` extra; import its modules by name.

config.py      every key of the YAML             corpus.py   checked utterances and cached audio
tokenizer.py   text to token ids                 plan.py     what each batch holds (pure function)
augment.py     waveform and feature augmentation pipeline.py batches of features, in the background
trainer.py     the loop                          state.py    exact resume
evaluate.py    greedy WER on dev sets            curves.py   metrics.csv and curves.png
averaging.py   mean of several checkpoints
"""
