"""Training: manifests to checkpoint. Needs the `train` extra; import its modules by name.

config.py      every key of the YAML             corpus.py   checked utterances and cached audio
tokenizer.py   text to token ids                 plan.py     what each batch holds (pure function)
augment.py     waveform and feature augmentation pipeline.py batches of features, in the background
trainer.py     the loop                          state.py    exact resume
evaluate.py    greedy WER on dev sets            curves.py   metrics.csv and curves.png
averaging.py   mean of several checkpoints  alignment.py when each character is said
rooms.py, noise.py, codecs.py               what augment.py puts on a waveform
flat_start.py  labels for the first steps        distillation.py targets of a teacher
"""
