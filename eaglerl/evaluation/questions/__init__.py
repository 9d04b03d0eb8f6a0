"""Questions and answers in the layouts of MT-bench and EAGLE."""

from eaglerl._moved import moved_attributes

__getattr__ = moved_attributes(__name__, "eaglerl.evaluation.questions.question_files")
